"""One video to the clips in it: faces followed, measured and judged.

Faces through a video: one track per person and shot.

    frame ─► cut? ─► faces ─► each goes to the track whose last face is nearest, or begins one

A track ends at a cut, when its face is gone for longer than a blink of the tracker, or after a minute.

What training cannot use, and why: every clip is measured, and a rejected one is told the first gate it fails.

One video to the clips in it: faces followed, one clip per face, each measured and judged.

Of faces that are seen at the same time only the one whose lips fit the sound best can be the speaker.
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
from flowportrait.data.corpus import Clip, Source
from flowportrait.errors import BadInput
from flowportrait.media.audio import has_audio, read_audio
from flowportrait.media.crop import around, mouth_patch
from flowportrait.media.faces import FaceTracker, bridge, yaw
from flowportrait.media.mel import level, log_mel
from flowportrait.media.video import FPS, SAMPLES_PER_FRAME, CutDetector, iter_frames
from flowportrait.models.speech_stream import speech_gate
from flowportrait.rewards.sync import SyncExpert, lower_face

MAX_FACES = 3
LONGEST = 1500
"""Frames after which a track is cut: a minute."""
GAP = 5
"""Frames a face may be lost for."""
NEAR = 0.5
"""How far a face moves between two frames at most, in its own heights."""
TRACKING_SIDE = 960
"""Longer side of the picture that the tracker sees; landmarks are in pixels of the frame itself."""
PICTURE = 128
LOOK_EVERY = 5
_LOOK_SIDE = 96


@dataclass
class Track:
    """One face from frame ``start`` on: landmarks ``[478, 3]``, blendshapes ``[52]`` and mouth patch of every frame
    (None where it was lost), sharpness and light of every fifth, and one picture of it ``[128, 128, 3]``."""

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
        return self.start + len(self)

    def last(self) -> np.ndarray:
        """Landmarks of the last frame the face was seen in."""
        return next(points for points in reversed(self.landmarks) if points is not None)

    def lost(self) -> int:
        """For how many frames the face has been gone."""
        return next(i for i, points in enumerate(reversed(self.landmarks)) if points is not None)

    def see(self, frame: np.ndarray, points: np.ndarray, shapes: np.ndarray) -> None:
        """Add what one frame shows."""
        if len(self) % LOOK_EVERY == 0:
            self._look(frame, points)
        self.landmarks.append(points)
        self.blendshapes.append(shapes)
        self.mouth.append(mouth_patch(frame, points))

    def miss(self) -> None:
        """Add a frame without the face."""
        for column in (self.landmarks, self.blendshapes, self.mouth):
            column.append(None)

    def trim(self) -> Track:
        """Without the lost frames at its end."""
        for _ in range(self.lost()):
            for column in (self.landmarks, self.blendshapes, self.mouth):
                column.pop()
        return self

    def _look(self, frame: np.ndarray, points: np.ndarray) -> None:
        low, high = points[:, :2].min(0), points[:, :2].max(0)
        centre, side = (low + high) / 2, float((high - low).max())
        grey = cv2.cvtColor(_square(frame, centre, side, _LOOK_SIDE), cv2.COLOR_RGB2GRAY)
        # Relative to the face's own contrast, or dark faces would count as blurred.
        contrast = float(grey.std()) + 1.0
        self.sharpness.append(float(cv2.Laplacian(grey, cv2.CV_32F).std()) / contrast)
        self.light.append(float(grey.mean()))
        if self.picture is None or len(self) == 2 * LOOK_EVERY:
            self.picture = picture(frame, points)


def picture(frame: np.ndarray, points: np.ndarray) -> np.ndarray:
    """The face with landmarks ``[478, ≥ 2]`` px in ``frame``, with some room, ``[128, 128, 3]`` uint8."""
    low, high = points[:, :2].min(0), points[:, :2].max(0)
    return _square(frame, (low + high) / 2, 1.7 * float((high - low).max()), PICTURE)


def follow(frames: Iterable[np.ndarray]) -> Iterator[Track]:
    """Tracks of a video's frames ``[H, W, 3]`` uint8 RGB at 25 fps, each as soon as it ends."""
    cut, open_tracks = CutDetector(), list[Track]()
    with FaceTracker(max_faces=MAX_FACES) as tracker:
        for index, frame in enumerate(frames):
            if cut(frame):
                yield from _ended(open_tracks, lambda track: True)
            faces = _detect(tracker, frame)
            for track, face in _assign(open_tracks, faces):
                if face is None:
                    track.miss()
                else:
                    track.see(frame, *face)
                    faces = [other for other in faces if other is not face]
            for points, shapes in faces:
                track = Track(index, frame.shape[:2])
                track.see(frame, points, shapes)
                open_tracks.append(track)
            yield from _ended(open_tracks, lambda track: track.lost() > GAP or len(track) >= LONGEST)
    yield from _ended(open_tracks, lambda track: True)


Face = tuple[np.ndarray, np.ndarray]


def _detect(tracker: FaceTracker, frame: np.ndarray) -> list[Face]:
    scale = min(1.0, TRACKING_SIDE / max(frame.shape[:2]))
    small = frame if scale == 1.0 else cv2.resize(frame, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    ratio = frame.shape[1] / small.shape[1]
    return [(points * ratio, shapes) for points, shapes in tracker.detect(small)]


def _assign(tracks: list[Track], faces: list[Face]) -> list[tuple[Track, Face | None]]:
    """Nearest first; each face to one track at most."""
    pairs = []
    for track in tracks:
        last = track.last()
        reach = NEAR * float(np.ptp(last[:, 1])) * (1 + track.lost())
        for face in faces:
            distance = float(np.linalg.norm((face[0] - last)[:, :2].mean(0)))
            if distance < reach:
                pairs.append((distance, track, face))
    taken: dict[int, Face] = {}
    for _, track, face in sorted(pairs, key=lambda pair: pair[0]):
        if id(track) not in taken and all(face is not other for other in taken.values()):
            taken[id(track)] = face
    return [(track, taken.get(id(track))) for track in tracks]


def _ended(tracks: list[Track], over: Callable[[Track], bool]) -> Iterator[Track]:
    for track in [track for track in tracks if over(track)]:
        tracks.remove(track)
        yield track.trim()


def _square(frame: np.ndarray, centre: np.ndarray, side: float, size: int) -> np.ndarray:
    """The square of ``side`` px around ``centre`` at ``size`` px, the frame's edge repeated beyond it."""
    scale = size / max(side, 1.0)
    reach = max(1, int(0.5 / scale))
    frame, corner = around(frame, np.array([centre - side / 2, centre + side / 2]), reach + 2)
    centre = centre - corner
    matrix = np.array([[scale, 0, size / 2 - scale * centre[0]], [0, scale, size / 2 - scale * centre[1]]])
    if scale < 0.5:
        frame = cv2.blur(frame, (reach, reach))
    return cv2.warpAffine(frame, matrix, (size, size), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


REACH = 10
"""Frames of delay between lips and sound that are tried."""
LIP_READABLE = 30
"""Frames from which on lip sync can be judged."""
SURE_FRAMES, SURE_PEAK = 75, 0.15
"""Length and margin from which on a delay is believed and put right."""


@dataclass(frozen=True)
class Gates:
    """The least, or the most, that a clip for training shows. ``--set gate=value`` changes one."""

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
class Quality:
    """Measured on one clip, in the units of ``Gates``; delay: frames by which the sound is late where it fits best;
    peak: the margin there. The last three are None where the clip is too short to tell."""

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
        """Plain values, rounded for reading."""
        return {key: round(value, 3) if isinstance(value, float) else value for key, value in asdict(self).items()}


def measure(clip: Clip, track: Track) -> Quality:
    """The quality of a clip and the track it was cut from."""
    eyes = np.linalg.norm(clip.landmarks[:, 33, :2] - clip.landmarks[:, 263, :2], axis=1)
    turned = np.abs([yaw(points) for points in clip.landmarks[::3]])
    sync, delay, peak = sync_margin(clip) if len(clip) >= LIP_READABLE else (None, None, None)
    return Quality(
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


def judge(quality: Quality, gates: Gates) -> tuple[str, str] | None:
    """The first gate a clip fails, as one word and in words; None for a clip worth training on."""
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
def sync_margin(clip: Clip) -> tuple[float, int, float]:
    """How much better lips and sound fit when in time (within two frames) than at other delays; the best delay, and
    how much better they fit there.

    The expert is the reward's, which reads motion and not pixels: footage for the evaluation's own expert is not
    chosen by itself.
    """
    expert = SyncExpert.load()
    face = expert.embed_face(lower_face(clip.landmarks, clip.blendshapes)[None])[0]
    voice = expert.embed_audio(log_mel(level(clip.audio))[None])[0]
    length, fits = len(face), []
    for late in range(-REACH, REACH + 1):
        lips, sound = face[max(0, -late) : length - max(0, late)], voice[max(0, late) : length - max(0, -late)]
        fits.append(float((lips * sound).sum(-1).mean()))
    table = np.array(fits)
    usual = float(np.median(table))
    return float(table[REACH - 2 : REACH + 3].max()) - usual, int(table.argmax()) - REACH, float(table.max()) - usual


def out_of_step(quality: Quality, gates: Gates) -> int:
    """Frames by which the sound is clearly late (early if negative) in footage that is else in sync: a clear peak away
    from zero in a clip of three seconds or more. Zero where there is nothing to put right."""
    if quality.sync is None or quality.delay is None or quality.peak is None or quality.frames < SURE_FRAMES:
        return 0
    clear = quality.sync < gates.sync and quality.peak > SURE_PEAK and abs(quality.delay) < REACH
    return quality.delay if clear else 0


HEAD_ROOM = 1.9
"""Side of the crop over the extent of the face throughout the clip."""
SHORTEST = 5
"""Frames below which a track is a flash of the detector and not worth a line."""


@dataclass(frozen=True)
class Candidate:
    """A face track as a clip: its record for the index (``rejected`` and ``reason`` among it where it was), the clip,
    and a picture ``[128, 128, 3]``."""

    record: dict[str, Any]
    clip: Clip | None
    picture: np.ndarray | None


def extract(source: Source, gates: Gates, on_frame: Callable[[], None] = lambda: None) -> tuple[list[Candidate], float]:
    """Every face track of a video, kept or rejected, and how many seconds the video lasts; one rejection where it is
    of no use as a whole. ``on_frame`` is called for every frame that was read."""
    shown = 0

    def counted() -> Iterator[np.ndarray]:
        nonlocal shown
        for frame in iter_frames(source.path):
            shown += 1
            on_frame()
            yield frame

    base = {"name": source.name, "speaker": source.speaker, "split": source.split, "source": source.name}
    try:
        wave = _sound(source)
        tracks = [track for track in follow(counted()) if len(track) >= SHORTEST]
    except BadInput as error:
        return [Candidate(base | {"rejected": str(error), "reason": _reason(error)}, None, None)], shown / FPS
    if not tracks:
        rejected = base | {"rejected": f"{source.path} shows no face", "reason": "no face"}
        return [Candidate(rejected, None, None)], shown / FPS
    tracks.sort(key=lambda track: (track.start, -len(track)))
    found = [
        _candidate(base if len(tracks) == 1 else base | {"name": f"{source.name}@{number:02d}"}, track, wave, gates)
        for number, track in enumerate(tracks)
    ]
    return _one_at_a_time(found), shown / FPS


def read_clip(path: Path, gates: Gates | None = None) -> Clip:
    """The longest usable clip of one video.

    Raises:
        BadInput: there is none; the reason in the message.
    """
    candidates, _ = extract(Source(path, path.stem, "", ""), gates or Gates())
    usable = [candidate.clip for candidate in candidates if "rejected" not in candidate.record]
    if not usable:
        raise BadInput(f"{path} is of no use for training: {candidates[0].record['rejected']}.")
    return max((clip for clip in usable if clip is not None), key=len)


def _sound(source: Source) -> np.ndarray:
    path: Path = source.path
    if not has_audio(path) and path.is_file() and source.sound is not None:
        path = source.sound
    return read_audio(path)


def _reason(error: BadInput) -> str:
    text = str(error)
    return "no sound" if "no audio stream" in text or "no sound samples" in text else "unreadable"


def _candidate(base: dict[str, Any], track: Track, wave: np.ndarray, gates: Gates) -> Candidate:
    clip = _clip(track, wave, late=0)
    quality = measure(clip, track)
    late = out_of_step(quality, gates)
    if late:
        clip = _clip(track, wave, late)
        quality = measure(clip, track)
        base = base | {"put_right": late}
    record = base | {"start": round(track.start / FPS, 2), **quality.to_dict()}
    failed = judge(quality, gates)
    if failed:
        record |= {"reason": failed[0], "rejected": f"{base['name']}: {failed[1]}"}
    return Candidate(record, clip, track.picture)


def _clip(track: Track, wave: np.ndarray, late: int) -> Clip:
    """The track as a clip, with sound taken from ``late`` frames further on."""
    valid = np.array([points is not None for points in track.landmarks])

    def column(values: list[Any], shape: tuple[int, ...]) -> np.ndarray:
        lost = np.full(shape, np.nan, np.float32)
        return bridge(np.array([lost if value is None else value for value in values]), valid)

    landmarks = column(track.landmarks, (478, 3))
    mouth = np.array([np.zeros((48, 64), np.uint8) if patch is None else patch for patch in track.mouth])
    # A lost frame shows the mouth seen last.
    mouth = mouth[np.maximum.accumulate(np.where(valid, np.arange(len(valid)), 0))]
    audio = np.zeros(len(track) * SAMPLES_PER_FRAME, np.float32)
    places = np.arange(len(audio)) + (track.start + late) * SAMPLES_PER_FRAME
    there = (places >= 0) & (places < len(wave))
    audio[there] = wave[places[there]]
    return Clip(
        landmarks,
        column(track.blendshapes, (52,)),
        mouth,
        np.array(track.size),
        audio,
        speech=speech_gate(audio) > 0.5,
        crop=_crop(landmarks),
    )


def _crop(landmarks: np.ndarray) -> np.ndarray:
    """Left, top and side of a square that holds the head in every frame."""
    low, high = (f(landmarks[..., :2].reshape(-1, 2), 0) for f in (np.min, np.max))
    face = np.ptp(landmarks[..., :2], axis=1).max(-1).mean()
    side = max(float((high - low).max()), HEAD_ROOM * float(face))
    corner = (low + high) / 2 - side / 2
    return np.round([*corner, side]).astype(np.int32)


def _one_at_a_time(found: list[Candidate]) -> list[Candidate]:
    """Reject every clip that overlaps with a better synchronised one."""

    def fit(candidate: Candidate) -> float:
        return candidate.record.get("sync") or -1.0

    kept: list[Candidate] = []
    result = []
    for candidate in sorted(found, key=fit, reverse=True):
        record = candidate.record
        if "rejected" not in record and any(_overlap(record, other.record) for other in kept):
            record = record | {"reason": "other face", "rejected": f"{record['name']}: another face speaks"}
        elif "rejected" not in record:
            kept.append(candidate)
        result.append(Candidate(record, candidate.clip, candidate.picture))
    return sorted(result, key=lambda candidate: candidate.record["name"])


def _overlap(a: dict[str, Any], b: dict[str, Any]) -> bool:
    starts = max(a["start"], b["start"])
    return bool(starts < min(a["start"] + a["frames"] / FPS, b["start"] + b["frames"] / FPS) - 0.1)
