"""Extract the clips in a video: faces are tracked, one clip per face, each measured and accepted or rejected.

    frame ─► cut? ─► faces ─► tracks, one per person and shot ─► clips ─► measured ─► gates ─► kept or rejected

Of faces that are visible at the same time only the one with the lips that fit the sound best can be the speaker.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from flowportrait.config import at_least
from flowportrait.data.corpus import FaceClip, SourceVideo
from flowportrait.errors import BadInput
from flowportrait.media.audio import has_audio, read_audio
from flowportrait.media.crop import mouth_patch, window_around
from flowportrait.media.faces import FaceTracker, face_yaw, interpolate_missing_frames
from flowportrait.media.mel import log_mel, normalize_loudness
from flowportrait.media.video import FPS, SAMPLES_PER_FRAME, CutDetector, iter_frames
from flowportrait.models.speech_stream import speech_gate
from flowportrait.rewards.sync import MotionSyncExpert, lower_face_motion

# --- Tracks -----------------------------------------------------------------------------
#
# Each face of a frame goes to the track with the nearest last face, or begins a new one. A track ends at a cut, when
# its face is missing for longer than a dropout of the tracker, or after a minute.

MAX_FACES_PER_FRAME = 3
MAX_TRACK_FRAMES = 1500
"""Frames after which a track is split: a minute."""
MAX_MISSING_FRAMES = 5
"""Frames that a face may be missing for."""
MAX_FACE_STEP = 0.5
"""Largest distance that a face moves between two frames, in its own heights."""
TRACKING_SIDE = 960
"""Longer side of the picture that the tracker gets; landmarks are in pixels of the frame itself."""
THUMBNAIL_SIDE = 128
"""Side of the pictures of faces in px."""
MEASURE_EVERY = 5
"""Frames from one measurement of sharpness and light to the next."""
_MEASURED_SIDE = 96


@dataclass
class FaceTrack:
    """One face from frame ``start`` on.

    landmarks ``[478, 3]``, blendshapes ``[52]`` and mouth patch: of every frame, None where the face is missing.
    sharpness and light: of every fifth frame. picture: one picture of the face ``[128, 128, 3]``.
    """

    start: int
    size: tuple[int, int]
    landmarks: list[np.ndarray | None] = field(default_factory=list)
    blendshapes: list[np.ndarray | None] = field(default_factory=list)
    mouth: list[np.ndarray | None] = field(default_factory=list)
    sharpness: list[float] = field(default_factory=list)
    light: list[float] = field(default_factory=list)
    picture: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.landmarks)

    @property
    def stop(self) -> int:
        """The frame after the last one."""
        return self.start + len(self)

    def last(self) -> np.ndarray:
        """Return the landmarks of the last frame with the face."""
        return next(points for points in reversed(self.landmarks) if points is not None)

    def lost(self) -> int:
        """Return for how many frames the face has been missing."""
        return next(i for i, points in enumerate(reversed(self.landmarks)) if points is not None)

    def see(self, frame: np.ndarray, points: np.ndarray, shapes: np.ndarray) -> None:
        """Add a frame with the face."""
        if len(self) % MEASURE_EVERY == 0:
            self._measure_picture(frame, points)
        self.landmarks.append(points)
        self.blendshapes.append(shapes)
        self.mouth.append(mouth_patch(frame, points))

    def miss(self) -> None:
        """Add a frame without the face."""
        for column in (self.landmarks, self.blendshapes, self.mouth):
            column.append(None)

    def trim(self) -> FaceTrack:
        """Remove the frames without a face at the end, and return the track."""
        for _ in range(self.lost()):
            for column in (self.landmarks, self.blendshapes, self.mouth):
                column.pop()
        return self

    def _measure_picture(self, frame: np.ndarray, points: np.ndarray) -> None:
        low, high = points[:, :2].min(0), points[:, :2].max(0)
        centre, side = (low + high) / 2, float((high - low).max())
        grey = cv2.cvtColor(_square(frame, centre, side, _MEASURED_SIDE), cv2.COLOR_RGB2GRAY)
        # Relative to the face's own contrast: otherwise dark faces would count as blurred.
        contrast = float(grey.std()) + 1.0
        self.sharpness.append(float(cv2.Laplacian(grey, cv2.CV_32F).std()) / contrast)
        self.light.append(float(grey.mean()))
        if self.picture is None or len(self) == 2 * MEASURE_EVERY:
            self.picture = face_thumbnail(frame, points)


def face_thumbnail(frame: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Return the face with landmarks ``[478, ≥ 2]`` px in ``frame``, with a margin, ``[128, 128, 3]`` uint8."""
    low, high = points[:, :2].min(0), points[:, :2].max(0)
    return _square(frame, (low + high) / 2, 1.7 * float((high - low).max()), THUMBNAIL_SIDE)


def track_faces(frames: Iterable[np.ndarray]) -> Iterator[FaceTrack]:
    """Yield the tracks of a video's frames ``[H, W, 3]`` uint8 RGB at 25 fps, each as soon as it ends."""
    cut, open_tracks = CutDetector(), list[FaceTrack]()
    with FaceTracker(max_faces=MAX_FACES_PER_FRAME) as tracker:
        for index, frame in enumerate(frames):
            if cut(frame):
                yield from _close_tracks(open_tracks, lambda track: True)
            faces = _detect(tracker, frame)
            for track, face in _assign(open_tracks, faces):
                if face is None:
                    track.miss()
                else:
                    track.see(frame, *face)
                    faces = [other for other in faces if other is not face]
            for points, shapes in faces:
                track = FaceTrack(index, frame.shape[:2])
                track.see(frame, points, shapes)
                open_tracks.append(track)
            yield from _close_tracks(
                open_tracks, lambda track: track.lost() > MAX_MISSING_FRAMES or len(track) >= MAX_TRACK_FRAMES
            )
    yield from _close_tracks(open_tracks, lambda track: True)


Face = tuple[np.ndarray, np.ndarray]


def _detect(tracker: FaceTracker, frame: np.ndarray) -> list[Face]:
    scale = min(1.0, TRACKING_SIDE / max(frame.shape[:2]))
    small = frame if scale == 1.0 else cv2.resize(frame, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    ratio = frame.shape[1] / small.shape[1]
    return [(points * ratio, shapes) for points, shapes in tracker.detect(small)]


def _assign(tracks: list[FaceTrack], faces: list[Face]) -> list[tuple[FaceTrack, Face | None]]:
    """Assign faces to tracks, nearest first, each face to one track at most; None for a track without a face."""
    pairs = []
    for track in tracks:
        last = track.last()
        reach = MAX_FACE_STEP * float(np.ptp(last[:, 1])) * (1 + track.lost())
        for face in faces:
            distance = float(np.linalg.norm((face[0] - last)[:, :2].mean(0)))
            if distance < reach:
                pairs.append((distance, track, face))
    assigned: dict[int, Face] = {}
    for _, track, face in sorted(pairs, key=lambda pair: pair[0]):
        if id(track) not in assigned and all(face is not other for other in assigned.values()):
            assigned[id(track)] = face
    return [(track, assigned.get(id(track))) for track in tracks]


def _close_tracks(tracks: list[FaceTrack], over: Callable[[FaceTrack], bool]) -> Iterator[FaceTrack]:
    for track in [track for track in tracks if over(track)]:
        tracks.remove(track)
        yield track.trim()


def _square(frame: np.ndarray, centre: np.ndarray, side: float, size: int) -> np.ndarray:
    """Return the square of ``side`` px around ``centre`` at ``size`` px; beyond the frame its edge is repeated."""
    scale = size / max(side, 1.0)
    reach = max(1, int(0.5 / scale))
    frame, corner = window_around(frame, np.array([centre - side / 2, centre + side / 2]), reach + 2)
    centre = centre - corner
    matrix = np.array([[scale, 0, size / 2 - scale * centre[0]], [0, scale, size / 2 - scale * centre[1]]])
    if scale < 0.5:
        frame = cv2.blur(frame, (reach, reach))
    return cv2.warpAffine(frame, matrix, (size, size), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


# --- Quality: every clip is measured, and a rejected one records the first gate that it fails

MAX_TRIED_DELAY = 10
"""Frames of delay between lips and sound that are tried."""
MIN_SYNC_FRAMES = 30
"""Frames from which on lip sync can be measured."""
TRUSTED_DELAY_FRAMES, TRUSTED_DELAY_MARGIN = 75, 0.15
"""Length in frames and margin from which on a measured delay is trusted and corrected."""


@dataclass(frozen=True)
class QualityGates:
    """Limits for clips that training uses. ``--set gate=value`` changes one."""

    frames: int = 20
    """Frames at least."""
    eyes: float = 24.0
    """Pixels between the outer eye corners at least, in nine frames of ten."""
    seen: float = 0.98
    """Share of the frames in which the tracker sees the face."""
    yaw: float = 45.0
    """Degrees the head is turned aside at most, in nine frames of ten."""
    sharpness: float = 0.12
    """Contrast of the finest detail over that of the face at least; 0.1 is a face blurred over a tenth of its width."""
    darkest: float = 35.0
    """Mean brightness of the face, of 255, at least."""
    brightest: float = 225.0
    """And at most."""
    speech: float = 0.2
    """Share of the frames in which somebody speaks, at least."""
    sync: float = 0.06
    """Margin of lips and sound in time (within two frames) over other delays at least; right sound has 0.32, the sound
    of another sentence 0.02. Not judged below 30 frames. −2 turns it off."""

    def __post_init__(self) -> None:
        at_least(self, frames=1, eyes=0, seen=0, yaw=0, sharpness=0, darkest=0, brightest=0, speech=0, sync=-2)


@dataclass(frozen=True)
class ClipQuality:
    """Measurements of one clip, in the units of ``QualityGates``.

    Sync, delay and peak are None where the clip is too short to measure them.

    Attributes:
        delay: frames by which the sound is late where it fits best.
        peak: the margin there.
    """

    frames: int
    eyes: float
    seen: float
    yaw: float
    sharpness: float
    light: float
    speech: float
    sync: float | None
    delay: int | None
    peak: float | None

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, rounded for reading."""
        return {key: round(value, 3) if isinstance(value, float) else value for key, value in asdict(self).items()}


def measure_quality(clip: FaceClip, track: FaceTrack) -> ClipQuality:
    """Measure the quality of a clip and the track that it was cut from."""
    eyes = np.linalg.norm(clip.landmarks[:, 33, :2] - clip.landmarks[:, 263, :2], axis=1)
    turned = np.abs([face_yaw(points) for points in clip.landmarks[::3]])
    sync, delay, peak = sync_margin(clip) if len(clip) >= MIN_SYNC_FRAMES else (None, None, None)
    return ClipQuality(
        frames=len(clip),
        eyes=float(np.quantile(eyes, 0.1)),
        seen=sum(points is not None for points in track.landmarks) / len(track),
        yaw=float(np.quantile(turned, 0.9)),
        sharpness=float(np.median(track.sharpness)),
        light=float(np.median(track.light)),
        speech=float(clip.speech.mean()) if clip.speech is not None else 1.0,
        sync=sync,
        delay=delay,
        peak=peak,
    )


def first_failed_gate(quality: ClipQuality, gates: QualityGates) -> tuple[str, str] | None:
    """Return the first gate that a clip fails, as one word and as a sentence; None for a clip worth training on."""
    q, g = quality, gates
    failures = (
        ("short", q.frames < g.frames, f"{q.frames} frames, fewer than {g.frames}"),
        ("small", q.eyes < g.eyes, f"{q.eyes:.0f} px between the eyes, under {g.eyes:.0f}"),
        ("lost", q.seen < g.seen, f"the face is seen in {q.seen:.0%} of the frames, under {g.seen:.0%}"),
        ("turned", q.yaw > g.yaw, f"the head is turned by {q.yaw:.0f} degrees, over {g.yaw:.0f}"),
        ("blurred", q.sharpness < g.sharpness, f"sharpness {q.sharpness:.3f}, under {g.sharpness}"),
        ("dark", q.light < g.darkest, f"brightness {q.light:.0f} of 255, under {g.darkest:.0f}"),
        ("bright", q.light > g.brightest, f"brightness {q.light:.0f} of 255, over {g.brightest:.0f}"),
        ("silent", q.speech < g.speech, f"speech in {q.speech:.0%} of the time, under {g.speech:.0%}"),
        ("unsynced", q.sync is not None and q.sync < g.sync,
         f"lips and sound do not fit (margin {q.sync or 0:.2f}, under {g.sync}; best {q.delay} frames late)"),
    )  # fmt: skip
    return next(((name, words) for name, failed, words in failures if failed), None)


@torch.no_grad()
def sync_margin(clip: FaceClip) -> tuple[float, int, float]:
    """Return how much better lips and sound fit in time (within two frames) than at other delays, and the best delay.

    The expert is the reward's, which reads motion and not pixels: so the evaluation's own expert does not select the
    footage that it is trained on.

    Returns:
        The margin in time, the delay in frames where lips and sound fit best, and the margin there.
    """
    expert = MotionSyncExpert.load()
    face = expert.embed_face(lower_face_motion(clip.landmarks, clip.blendshapes)[None])[0]
    voice = expert.embed_audio(log_mel(normalize_loudness(clip.audio))[None])[0]
    length, fits = len(face), []
    for delay in range(-MAX_TRIED_DELAY, MAX_TRIED_DELAY + 1):
        face_part, voice_part = (
            face[max(0, -delay) : length - max(0, delay)],
            voice[max(0, delay) : length - max(0, -delay)],
        )
        fits.append(float((face_part * voice_part).sum(-1).mean()))
    table = np.array(fits)
    median = float(np.median(table))
    return (
        float(table[MAX_TRIED_DELAY - 2 : MAX_TRIED_DELAY + 3].max()) - median,
        int(table.argmax()) - MAX_TRIED_DELAY,
        float(table.max()) - median,
    )


def sound_delay_to_correct(quality: ClipQuality, gates: QualityGates) -> int:
    """Return by how many frames the sound is late (early if negative) in footage that is otherwise in sync.

    That is a clear peak away from zero in a clip of three seconds or more. It is zero where there is nothing to
    correct.
    """
    if quality.sync is None or quality.delay is None or quality.peak is None or quality.frames < TRUSTED_DELAY_FRAMES:
        return 0
    clear = quality.sync < gates.sync and quality.peak > TRUSTED_DELAY_MARGIN and abs(quality.delay) < MAX_TRIED_DELAY
    return quality.delay if clear else 0


# --- Clips ------------------------------------------------------------------------------

CROP_TO_FACE = 1.9
"""Side of the crop divided by the extent of the face, over the whole clip."""
MIN_TRACK_FRAMES = 5
"""Frames below which a track is a false detection that is not recorded."""


@dataclass(frozen=True)
class ClipCandidate:
    """A face track as a clip.

    Attributes:
        record: for the index, with ``rejected`` and ``reason`` if it was rejected.
        clip: the clip.
        picture: ``[128, 128, 3]``.
    """

    record: dict[str, Any]
    clip: FaceClip | None
    picture: np.ndarray | None


def extract_clips(
    source: SourceVideo, gates: QualityGates, on_frame: Callable[[], None] = lambda: None
) -> tuple[list[ClipCandidate], float]:
    """Return every face track of a video, kept or rejected, and how many seconds the video lasts.

    A video that is of no use as a whole gives one rejection. ``on_frame`` is called for every frame that was read.
    """
    frames_read = 0

    def counted_frames() -> Iterator[np.ndarray]:
        nonlocal frames_read
        for frame in iter_frames(source.path):
            frames_read += 1
            on_frame()
            yield frame

    base = {"name": source.name, "speaker": source.speaker, "split": source.split, "source": source.name}
    try:
        wave = _read_sound(source)
        tracks = [track for track in track_faces(counted_frames()) if len(track) >= MIN_TRACK_FRAMES]
    except BadInput as error:
        return [
            ClipCandidate(base | {"rejected": str(error), "reason": _rejection_reason(error)}, None, None)
        ], frames_read / FPS
    if not tracks:
        rejected = base | {"rejected": f"{source.path} shows no face", "reason": "no face"}
        return [ClipCandidate(rejected, None, None)], frames_read / FPS
    tracks.sort(key=lambda track: (track.start, -len(track)))
    candidates = [
        _build_candidate(
            base if len(tracks) == 1 else base | {"name": f"{source.name}@{number:02d}"}, track, wave, gates
        )
        for number, track in enumerate(tracks)
    ]
    return _reject_overlapping(candidates), frames_read / FPS


def longest_usable_clip(path: Path, gates: QualityGates | None = None) -> FaceClip:
    """Return the longest usable clip of one video.

    Raises:
        BadInput: there is none; the message has the reason.
    """
    candidates, _ = extract_clips(SourceVideo(path, path.stem, "", ""), gates or QualityGates())
    usable = [candidate.clip for candidate in candidates if "rejected" not in candidate.record]
    if not usable:
        raise BadInput(f"{path} is of no use for training: {candidates[0].record['rejected']}.")
    return max((clip for clip in usable if clip is not None), key=len)


def _read_sound(source: SourceVideo) -> np.ndarray:
    path: Path = source.path
    if not has_audio(path) and path.is_file() and source.sound is not None:
        path = source.sound
    return read_audio(path)


def _rejection_reason(error: BadInput) -> str:
    text = str(error)
    return "no sound" if "no audio stream" in text or "no sound samples" in text else "unreadable"


def _build_candidate(base: dict[str, Any], track: FaceTrack, wave: np.ndarray, gates: QualityGates) -> ClipCandidate:
    clip = _build_clip(track, wave, sound_delay=0)
    quality = measure_quality(clip, track)
    sound_delay = sound_delay_to_correct(quality, gates)
    if sound_delay:
        clip = _build_clip(track, wave, sound_delay)
        quality = measure_quality(clip, track)
        base = base | {"put_right": sound_delay}
    record = base | {"start": round(track.start / FPS, 2), **quality.to_dict()}
    failed = first_failed_gate(quality, gates)
    if failed:
        record |= {"reason": failed[0], "rejected": f"{base['name']}: {failed[1]}"}
    return ClipCandidate(record, clip, track.picture)


def _build_clip(track: FaceTrack, wave: np.ndarray, sound_delay: int) -> FaceClip:
    """Return the track as a clip, with sound from ``sound_delay`` frames further on."""
    valid = np.array([points is not None for points in track.landmarks])

    def column(values: list[Any], shape: tuple[int, ...]) -> np.ndarray:
        lost = np.full(shape, np.nan, np.float32)
        return interpolate_missing_frames(np.array([lost if value is None else value for value in values]), valid)

    landmarks = column(track.landmarks, (478, 3))
    mouth = np.array([np.zeros((48, 64), np.uint8) if patch is None else patch for patch in track.mouth])
    # A frame without a face repeats the last mouth.
    mouth = mouth[np.maximum.accumulate(np.where(valid, np.arange(len(valid)), 0))]
    audio = np.zeros(len(track) * SAMPLES_PER_FRAME, np.float32)
    places = np.arange(len(audio)) + (track.start + sound_delay) * SAMPLES_PER_FRAME
    is_inside = (places >= 0) & (places < len(wave))
    audio[is_inside] = wave[places[is_inside]]
    return FaceClip(
        landmarks,
        column(track.blendshapes, (52,)),
        mouth,
        np.array(track.size),
        audio,
        speech=speech_gate(audio) > 0.5,
        crop=_crop(landmarks),
    )


def _crop(landmarks: np.ndarray) -> np.ndarray:
    """Return left, top and side of a square that holds the head in every frame."""
    low, high = (f(landmarks[..., :2].reshape(-1, 2), 0) for f in (np.min, np.max))
    face = np.ptp(landmarks[..., :2], axis=1).max(-1).mean()
    side = max(float((high - low).max()), CROP_TO_FACE * float(face))
    corner = (low + high) / 2 - side / 2
    return np.round([*corner, side]).astype(np.int32)


def _reject_overlapping(candidates: list[ClipCandidate]) -> list[ClipCandidate]:
    """Reject every clip that overlaps with a better synchronised one."""

    def fit(candidate: ClipCandidate) -> float:
        return candidate.record.get("sync") or -1.0

    accepted: list[ClipCandidate] = []
    result = []
    for candidate in sorted(candidates, key=fit, reverse=True):
        record = candidate.record
        if "rejected" not in record and any(_overlap(record, other.record) for other in accepted):
            record = record | {"reason": "other face", "rejected": f"{record['name']}: another face speaks"}
        elif "rejected" not in record:
            accepted.append(candidate)
        result.append(ClipCandidate(record, candidate.clip, candidate.picture))
    return sorted(result, key=lambda candidate: candidate.record["name"])


def _overlap(a: dict[str, Any], b: dict[str, Any]) -> bool:
    starts = max(a["start"], b["start"])
    return bool(starts < min(a["start"] + a["frames"] / FPS, b["start"] + b["frames"] / FPS) - 0.1)
