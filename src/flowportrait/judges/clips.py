"""This module holds a clip that is judged, and makes the pictures and sound of it that a specialist receives.

    lip_sync         mouth close-ups, 25 fps, five to a row, the waveform of the same 0.2 s under the row; the sound
    expressiveness   the whole face about six times a second; the sound
    motion           neighbouring frames and 4 × |difference|, at the largest changes

``JudgedClip`` is the clip, ``clip_input`` and ``pair_input`` make the ``JudgeInput``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import torch

from flowportrait.errors import BadInput
from flowportrait.judges.rubric import Aspect
from flowportrait.media.audio import SAMPLE_RATE, SAMPLES_PER_FRAME
from flowportrait.media.faces import FaceTracker, interpolate_missing_frames
from flowportrait.media.mel import log_mel, normalize_loudness
from flowportrait.media.video import FPS, LOCAL_CLIP_LIMITS, ClipLimits, read_clip
from flowportrait.rewards.batch import Failure, RewardBatch

MIN_FACE_SHARE = 0.8
"""Least share of frames that must show a face."""
MIN_JUDGED_FRAMES = 10
"""Least number of frames of a clip that can be judged."""
MOUTH_POINTS = (61, 291, 0, 17)
"""Landmarks of the corners, the top and the bottom of the mouth."""
MOUTH_COLUMNS = 5
"""Mouth close-ups in a row of a sheet."""
CELL_SIDE = 144
"""Pixels of the side of a picture on a sheet."""
_LABEL_HEIGHT = 16
_WAVE_HEIGHT = 44
_AMPLIFICATION = 4
_FACE_SIDE = 256
_FACE_EVERY = 4
_SHOWN_CHANGES = 9
_PAUSE = SAMPLE_RATE // 2


@dataclass(frozen=True)
class JudgedClip:
    """A clip with its sound, from a file or from a batch of rewards.

    Args:
        frames: ``[T, H, W, 3]`` uint8 at 25 fps.
        audio: ``[640 T]`` float32 at 16 kHz; cut or padded with silence to the length of the frames.
        name: the clip's name in reports.
        generator: what made the clip, for reports.
        known_batch: the same clip as a batch of one row, if the caller has one.
        known_landmarks: ``[T, 478, 2]`` px, if the caller has them; the face is then not tracked again.

    Raises:
        BadInput: ``frames`` has another type or shape, or is empty.
    """

    frames: np.ndarray
    audio: np.ndarray
    name: str = "clip"
    generator: str = ""
    known_batch: RewardBatch | None = field(default=None, repr=False, compare=False)
    known_landmarks: np.ndarray | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.frames.ndim != 4 or self.frames.shape[-1] != 3 or self.frames.dtype != np.uint8 or not len(self.frames):
            raise BadInput(f"{self.name} is {self.frames.dtype} {self.frames.shape}: give RGB uint8 [T, H, W, 3].")
        fitted = np.zeros(len(self.frames) * SAMPLES_PER_FRAME, np.float32)
        fitted[: len(self.audio)] = self.audio[: len(fitted)]
        object.__setattr__(self, "audio", fitted)

    @classmethod
    def from_video(cls, path: Path, generator: str = "", limits: ClipLimits = LOCAL_CLIP_LIMITS) -> JudgedClip:
        """Read a video file; a file without a sound track becomes a silent clip.

        Raises:
            BadInput: the file cannot be read, or exceeds the limits.
        """
        frames, audio = read_clip(path, limits)
        return cls(frames, np.zeros(0, np.float32) if audio is None else audio, path.name, generator)

    def __len__(self) -> int:
        return len(self.frames)

    @property
    def seconds(self) -> float:
        """The length of the clip in seconds."""
        return len(self.frames) / FPS

    @cached_property
    def digest(self) -> str:
        """The SHA-256 hash of frames and audio, in hexadecimal."""
        found = hashlib.sha256(repr(self.frames.shape).encode())
        found.update(self.frames.tobytes())
        found.update(self.audio.tobytes())
        return found.hexdigest()

    @cached_property
    def _tracked(self) -> tuple[np.ndarray, float]:
        if self.known_landmarks is not None:
            return self.known_landmarks.astype(np.float32), 1.0
        with FaceTracker() as tracker:
            faces = tracker.track(self.frames)
        face_share = float(faces.valid.mean())
        return (
            interpolate_missing_frames(faces.landmarks, faces.valid)[..., :2]
            if face_share
            else faces.landmarks[..., :2]
        ), face_share

    @property
    def landmarks(self) -> np.ndarray:
        """The face landmarks ``[T, 478, 2]`` px, interpolated where no face was found."""
        return self._tracked[0]

    @cached_property
    def batch(self) -> RewardBatch:
        """The clip as a batch of rewards with one row."""
        return self.known_batch or RewardBatch.from_frames([self.frames], [self.audio])

    def with_sound(self, audio: np.ndarray, name: str) -> JudgedClip:
        """Return a clip with the same frames and another sound; landmarks and the batch are reused."""
        changed = JudgedClip(self.frames, audio, name, self.generator, known_landmarks=self.known_landmarks)
        current_batch = self.known_batch or self.__dict__.get("batch")
        if current_batch is not None:
            mel = log_mel(normalize_loudness(changed.audio))[None]
            batch = replace(current_batch, mel=mel, audio=torch.from_numpy(changed.audio)[None])
            changed = replace(changed, known_batch=batch)
        return changed

    def too_short(self) -> Failure | None:
        """Return a failure if the clip has fewer than ``MIN_JUDGED_FRAMES`` frames, else None."""
        if len(self) < MIN_JUDGED_FRAMES:
            return Failure("too_short", f"{self.name} has {len(self)} frames, fewer than {MIN_JUDGED_FRAMES}")
        return None

    def validation_error(self) -> Failure | None:
        """Return the reason why the clip cannot be judged (too short, no face), or None."""
        short = self.too_short()
        if short is not None:
            return short
        if self.known_batch is not None and 0 in self.known_batch.tracking_failures:
            return self.known_batch.tracking_failures[0]
        if self._tracked[1] < MIN_FACE_SHARE:
            return Failure("no_face", f"{self.name} shows a face in {self._tracked[1]:.0%} of {len(self)} frames")
        return None

    def is_silent(self) -> bool:
        """Return whether the clip is silent (all samples below 0.001)."""
        return float(np.abs(self.audio).max(initial=0.0)) < 1e-3


def clips_from_batch(batch: RewardBatch, names: Sequence[str] = ()) -> list[JudgedClip]:
    """Render every row of a batch as a clip.

    Args:
        batch: the batch of rewards.
        names: names of the clips, one per row.

    Raises:
        BadInput: the batch cannot render frames, or has no audio.
    """
    if "frames" not in batch.has or batch.audio is None:
        raise BadInput("A batch is judged by pictures and sound: give it a drawing and its audio.")
    every = tuple(range(batch.motion.shape[1]))
    pictures = (batch.frames(every) * 255).round().clamp(0, 255).byte().permute(0, 1, 3, 4, 2).numpy()
    places = batch.places(every).numpy() if "places" in batch.has else None
    return [
        JudgedClip(
            pictures[row],
            batch.audio[row].numpy().astype(np.float32),
            names[row] if names else f"sample {row}",
            known_batch=batch.select(torch.tensor([row])),
            known_landmarks=None if places is None else places[row],
        )
        for row in range(len(batch))
    ]


@dataclass(frozen=True)
class JudgeInput:
    """The pictures and the sound that a specialist is shown.

    Args:
        aspect: the aspect that is judged.
        pictures: captions and sheets ``[H, W, 3]`` uint8, in order of time.
        video: ``[K, S, S, 3]`` uint8 at ``fps``, from the beginning of the clip.
        fps: frames per second of ``video``.
        audio: ``[N]`` at 16 kHz; empty if the aspect is judged without sound.
        clip: the whole clip.
    """

    aspect: str
    pictures: tuple[tuple[str, np.ndarray], ...]
    video: np.ndarray
    fps: float
    audio: np.ndarray
    clip: JudgedClip


def clip_input(clip: JudgedClip, aspect: Aspect, sheets: int = 4) -> JudgeInput:
    """Return the input of a specialist on ``aspect``.

    Args:
        clip: the clip.
        aspect: one of ``ASPECTS``.
        sheets: the most sheets of pictures; for long clips they are spread over the length.
    """
    if aspect == "lip_sync":
        mouth = mouth_video(clip)
        starts = _window_starts(len(clip), FPS, sheets)
        pictures = tuple(
            (f"Mouth from {start / FPS:.2f} s, 0.04 s apart", mouth_sheet(mouth, clip.audio, start)) for start in starts
        )
        return JudgeInput(aspect, pictures, mouth, FPS, clip.audio, clip)
    face = face_video(clip)
    if aspect == "expressiveness":
        sampled = face[::_FACE_EVERY]
        per_sheet = 12
        pictures = tuple(
            (
                f"Face from {start * _FACE_EVERY / FPS:.2f} s, {_FACE_EVERY / FPS:.2f} s apart",
                _sheet(
                    sampled[start : start + per_sheet], (np.arange(start, len(sampled)) * _FACE_EVERY)[:per_sheet], 4
                ),
            )
            for start in _window_starts(len(sampled), per_sheet, sheets)
        )
        return JudgeInput(aspect, pictures, sampled, FPS / _FACE_EVERY, clip.audio, clip)
    caption = f"Where most changes: a frame, the next one, and {_AMPLIFICATION} times their difference"
    return JudgeInput(aspect, ((caption, change_sheet(face)),), face, FPS, np.zeros(0, np.float32), clip)


def pair_input(first: JudgedClip, second: JudgedClip, aspect: Aspect, sheets: int) -> JudgeInput:
    """Return the input for a comparison: captions that name the clip, and videos and sounds one after the other."""
    inputs = [clip_input(clip, aspect, max(1, sheets // 2)) for clip in (first, second)]
    named = zip(("First clip", "Second clip"), inputs, strict=True)
    pictures = tuple((f"{which}. {caption}", picture) for which, one in named for caption, picture in one.pictures)
    one, other = (found.audio for found in inputs)
    audio = np.concatenate([one, np.zeros(_PAUSE, np.float32), other]) if len(one) else one
    video = np.concatenate([found.video for found in inputs])
    return replace(inputs[0], pictures=pictures, video=video, audio=audio, clip=concatenate_clips(first, second))


def concatenate_clips(first: JudgedClip, second: JudgedClip) -> JudgedClip:
    """Return one clip that shows two clips one after the other; the second is resized to the first."""
    height, width = first.frames.shape[1:3]
    resized = [cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA) for frame in second.frames]
    frames = np.concatenate([first.frames, np.stack(resized)])
    return JudgedClip(frames, np.concatenate([first.audio, second.audio]), f"{first.name} and {second.name}")


def mouth_video(clip: JudgedClip) -> np.ndarray:
    """Return mouth close-ups ``[T, CELL, CELL, 3]`` uint8 that follow the mouth's corners at a constant scale."""
    points = clip.landmarks
    corners = points[:, MOUTH_POINTS[:2]]
    side = 2.2 * float(np.median(np.linalg.norm(corners[:, 1] - corners[:, 0], axis=-1)))
    # The window follows the corners alone, a little lower, so that it does not move when the jaw opens.
    middle = _smoothed(corners.mean(1)) + np.array([0, 0.08 * side])
    return _crop_frames(clip.frames, middle, side, CELL_SIDE)


def face_video(clip: JudgedClip) -> np.ndarray:
    """Return the face ``[T, 256, 256, 3]`` uint8 in a square that does not move, so that head motion is visible."""
    points = np.nanmedian(clip.landmarks, 0)
    low, high = points.min(0), points.max(0)
    middle = np.repeat(((low + high) / 2)[None], len(clip), 0)
    return _crop_frames(clip.frames, middle, 1.7 * float((high - low).max()), _FACE_SIDE)


def mouth_sheet(mouth: np.ndarray, audio: np.ndarray, start: int) -> np.ndarray:
    """Return a sheet of one second of close-ups, five to a row with times, and the waveform of 0.2 s under each row."""
    level = max(float(np.abs(audio).max(initial=0.0)), 1e-3)
    rows = []
    for first in range(start, min(start + FPS, len(mouth)), MOUTH_COLUMNS):
        cells = mouth[first : first + MOUTH_COLUMNS]
        samples = audio[first * SAMPLES_PER_FRAME : (first + len(cells)) * SAMPLES_PER_FRAME]
        pictures = _sheet(cells, np.arange(first, first + len(cells)), MOUTH_COLUMNS)
        wave = waveform_picture(samples / level, len(cells) * CELL_SIDE)
        rows += [pictures, np.pad(wave, ((0, 0), (0, pictures.shape[1] - wave.shape[1]), (0, 0)))]
    return np.concatenate(rows)


def waveform_picture(samples: np.ndarray, width: int) -> np.ndarray:
    """Return samples in [-1, 1] as a picture ``[44, width, 3]`` uint8; each column shows their range at that moment."""
    canvas = np.full((_WAVE_HEIGHT, width, 3), 24, np.uint8)
    edges = np.linspace(0, len(samples), width + 1).astype(int)
    for x, (low, high) in enumerate(pairwise(edges)):
        piece = samples[low : max(high, low + 1)]
        if len(piece):
            top, bottom = ((1 - np.array([piece.max(), piece.min()]).clip(-1, 1)) / 2 * (_WAVE_HEIGHT - 1)).astype(int)
            canvas[top : bottom + 1, x] = (90, 220, 140)
    return canvas


def change_sheet(face: np.ndarray) -> np.ndarray:
    """Return a sheet with rows of a frame, the next frame and their amplified difference.

    It shows the ``_SHOWN_CHANGES`` largest changes of ``face`` ``[T, S, S, 3]`` uint8, in order of time.
    """
    change = np.array([np.abs(b.astype(np.int16) - a).mean() for a, b in pairwise(face)])
    places = np.sort(np.argsort(-change)[:_SHOWN_CHANGES])
    cells, times = [], []
    for place in places:
        now, later = face[place], face[place + 1]
        difference = np.abs(later.astype(np.int16) - now) * _AMPLIFICATION
        cells += [now, later, difference.clip(0, 255).astype(np.uint8)]
        times += [place, place + 1, place + 1]
    return _sheet(np.stack(cells), np.array(times), 3)


def _sheet(cells: np.ndarray, times: np.ndarray, columns: int) -> np.ndarray:
    """Return pictures with their times in a grid, row by row; ``times`` are frame numbers."""
    side = CELL_SIDE
    rows = -(-len(cells) // columns)
    sheet = np.zeros((rows * (side + _LABEL_HEIGHT), columns * side, 3), np.uint8)
    for index, (cell, time) in enumerate(zip(cells, times, strict=True)):
        top, left = index // columns * (side + _LABEL_HEIGHT), index % columns * side
        sheet[top : top + side, left : left + side] = cv2.resize(cell, (side, side), interpolation=cv2.INTER_AREA)
        place = (left + 4, top + side + _LABEL_HEIGHT - 4)
        cv2.putText(sheet, f"{time / FPS:.2f} s", place, cv2.FONT_HERSHEY_SIMPLEX, 0.4, (255, 255, 255), 1, cv2.LINE_AA)
    return sheet


def _crop_frames(frames: np.ndarray, middle: np.ndarray, side: float, pixels: int) -> np.ndarray:
    scale = pixels / max(side, 1.0)
    flags = cv2.INTER_CUBIC if scale > 1 else cv2.INTER_AREA
    result = []
    for frame, centre in zip(frames, middle, strict=True):
        matrix = np.array([[scale, 0, pixels / 2 - scale * centre[0]], [0, scale, pixels / 2 - scale * centre[1]]])
        result.append(cv2.warpAffine(frame, matrix, (pixels, pixels), flags=flags, borderMode=cv2.BORDER_REPLICATE))
    return np.stack(result)


def _smoothed(track: np.ndarray) -> np.ndarray:
    """Return the moving average over five frames, so that the window does not tremble with the landmarks."""
    padded = np.pad(track, ((2, 2), (0, 0)), mode="edge")
    return np.stack([padded[i : i + len(track)] for i in range(5)]).mean(0)


def _window_starts(length: int, span: int, most: int) -> list[int]:
    """Return the starts of at most ``most`` windows of length ``span`` that cover ``length`` or are spread over it."""
    count = -(-length // span)
    if count <= most:
        return [index * span for index in range(count)]
    return [round(index * (length - span) / (most - 1)) for index in range(most)] if most > 1 else [0]
