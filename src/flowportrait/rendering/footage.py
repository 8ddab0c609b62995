"""A tracked video: its face, its shots, and the frames that keep their own lips.

    frames ─► cut? ─► face ─► something before the mouth? ─► share of the new lips each frame takes

The new lips come and go over a fifth of a second before and after frames that cannot take them: where no face is found,
something is before the mouth, the mouth lies outside the picture, or the head is turned aside or lies on its side.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from flowportrait.errors import BadInput
from flowportrait.media.faces import Faces, FaceTracker, roll, yaw
from flowportrait.media.occlusion import OcclusionDetector, mouth_outside
from flowportrait.media.portrait import faces_when_turned
from flowportrait.media.video import FPS, CutDetector, frame_rate, iter_frames

Progress = Callable[[Iterable[Any], int | None, str], Iterable[Any]]
"""Shows how far work on items has come: items, how many they are, and what is done (``terminal.progress``)."""

NO_FACE, COVERED, OUTSIDE, SIDEWAYS, ASIDE = range(1, 6)
REASONS = {
    NO_FACE: "no face is found", COVERED: "something is before the mouth",
    OUTSIDE: "the mouth is outside the picture", SIDEWAYS: "the face lies on its side",
    ASIDE: "the head is turned aside",
}  # fmt: skip
"""Why a frame keeps its own lips."""

HIDDEN, MAYBE, _USUAL = 0.2, 0.1, 2.0
"""Share of mouth and jaw from which on something is before them; frames beside such a one count from the lower. How
often a shot's median share comes on top of both."""

_WHOLE, _GONE = 32.0, 46.0
"""Degrees of yaw between which the new lips give way to the video's own."""

_LARGEST_ROLL = 60.0
_GUARD, _FADE = 0.08, 0.2
"""Seconds beside frames without new lips that have none either, and over which these then come in."""

_FEW = 0.5
_LOOKED_AT = (1, 16, 128)
"""Which of the frames that keep their own lips are looked at once more, turned."""


def no_progress(items: Iterable[Any], total: int | None, doing: str) -> Iterable[Any]:
    """The items, and nothing shown."""
    return items


@dataclass(frozen=True)
class Footage:
    """A tracked video.

    Attributes:
        faces: the followed face in every frame.
        starts: where its shots begin (zero, then every cut).
        fps: frames a second, the file's own rate.
        obstacles: ``[T]``, zero or the first of ``REASONS`` that keeps a frame's own lips; None where nobody looked.
    """

    video: Path
    faces: Faces
    starts: list[int]
    fps: Fraction = Fraction(FPS)
    obstacles: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.faces.valid)

    def shots(self) -> Iterator[slice]:
        """Frames of each shot."""
        for start, stop in zip(self.starts, [*self.starts[1:], len(self)], strict=True):
            yield slice(start, stop)

    @cached_property
    def usable(self) -> np.ndarray:
        """Whether each frame shows a face that lips can be drawn into, ``[T]``."""
        return self.faces.valid if self.obstacles is None else self.faces.valid & (self.obstacles == 0)

    @cached_property
    def share(self) -> np.ndarray:
        """How much of the new lips each frame takes, ``[T]`` from 0 to 1."""
        result = np.zeros(len(self), np.float64)
        for shot in self.shots():
            result[shot] = _eased(self.usable[shot], float(self.fps))
        for index in np.flatnonzero(result):
            result[index] *= _frontal(self.faces.landmarks[index])
        return result

    def summary(self, frames: np.ndarray) -> str | None:
        """One sentence on which of ``frames`` (numbers, as they are played) keep their own lips; None if none do."""
        reasons = self._reasons()[frames]
        if not reasons.any():
            return None
        parts = [f"in {count} {REASONS[r]}" for r in REASONS if (count := int((reasons == r).sum()))]
        return f"{(reasons > 0).sum()} of {len(frames)} frames kept their own lips: {', '.join(parts)}."

    def _reasons(self) -> np.ndarray:
        """Zero or the reason, ``[T]``; frames beside those without new lips have theirs."""
        given = np.where(self.faces.valid, 0, NO_FACE) if self.obstacles is None else self.obstacles
        result = np.where((given == 0) & (self.share == 0), ASIDE, given)
        for shot in self.shots():
            known = np.flatnonzero(given[shot])
            guarded = _distance(~self.usable[shot]) <= _GUARD * float(self.fps)
            for index in np.flatnonzero(guarded & (given[shot] == 0)):
                result[shot.start + index] = given[shot][known[np.abs(known - index).argmin()]]
        return result


def track_footage(video: Path, face: int | None = None, progress: Progress = no_progress) -> Footage:
    """Follow one face through each shot of a video: the largest where the shot begins, or the ``face``-th from the
    left where that many are seen.

    Raises:
        BadInput: an unreadable video, no face in it that could be dubbed, or no such face where it first shows any.
    """
    rate = frame_rate(video)
    cut, starts, detector = CutDetector(), [0], OcclusionDetector()
    hidden: list[float] = []
    obstacles: list[int] = []
    doubts = 0
    doubtful: list[np.ndarray] = []

    def watched() -> Iterator[np.ndarray]:
        frames = progress(iter_frames(video, rate.fps), rate.frames or None, "following the face")
        for index, frame in enumerate(frames):
            if cut(frame):
                starts.append(index)
                tracker.new_shot()
            yield frame

    def inspect(frame: np.ndarray, landmarks: np.ndarray | None) -> None:
        obstacles.append(_obstacle(frame, landmarks))
        hidden.append(detector.covered_share(frame, landmarks) if landmarks is not None and not obstacles[-1] else 0.0)
        if obstacles[-1] or hidden[-1] > HIDDEN:
            nonlocal doubts
            doubts += 1
            if doubts in _LOOKED_AT:
                doubtful.append(frame)

    with FaceTracker(face=face) as tracker:
        faces = tracker.track(watched(), inspect)
    found = Footage(video, faces, starts, rate.fps)
    kinds = np.array(obstacles, int)
    for shot in found.shots():
        kinds[shot][hidden_frames(np.array(hidden[shot])) & (kinds[shot] == 0)] = COVERED
    footage = Footage(video, faces, starts, rate.fps, kinds)
    _check(footage, doubtful, detector)
    if face is None and (faces.count > 1).mean() > 0.5:
        warnings.warn(
            f"Several faces found in {video}: the largest at the start of each shot is dubbed; --face N picks another.",
            stacklevel=3,
        )
    return footage


def _obstacle(frame: np.ndarray, landmarks: np.ndarray | None) -> int:
    if landmarks is None:
        return NO_FACE
    if abs(roll(landmarks)) > _LARGEST_ROLL:
        return SIDEWAYS
    return OUTSIDE if mouth_outside(frame.shape, landmarks) else 0


def _check(footage: Footage, doubtful: list[np.ndarray], detector: OcclusionDetector) -> None:
    """That there is something to dub.

    Raises:
        BadInput: there is not.
    """
    video, valid = footage.video, footage.faces.valid
    if footage.usable.mean() < _FEW and all(_stands_when_turned(frame, detector) for frame in doubtful):
        raise BadInput(f"No face stands upright in {video}, but one would if it were turned: rotate the video upright.")
    if not valid.any():
        raise BadInput(f"No face found in {video}: give a video with one clearly visible face.")
    if footage.share.any():
        return
    if footage.obstacles is not None and (footage.obstacles[valid] == SIDEWAYS).mean() > _FEW:
        raise BadInput(f"The face in {video} lies on its side: rotate the video upright.")
    reasons = footage.summary(np.arange(len(footage))) or ""
    raise BadInput(f"Nothing can be dubbed in {video}: {reasons.partition(': ')[2][:-1]} (of {len(footage)} frames).")


def _stands_when_turned(frame: np.ndarray, detector: OcclusionDetector) -> bool:
    """Whether a frame shows a face with a free mouth once it is turned.

    The tracker finds upright faces in faces that are upside down, which are not there: their mouths look covered.
    """
    return any(detector.covered_share(turned, points) < HIDDEN for turned, points in faces_when_turned(frame))


def hidden_frames(shares: np.ndarray) -> np.ndarray:
    """Whether something is before the mouth in each frame of a shot, from the covered ``shares`` ``[T]``.

    A face that looks a little covered throughout, in coloured light for example, has to look more covered than that.
    One frame alone, blurred or blinking, is no thing that comes and goes.
    """
    usual = float(np.median(shares))
    above = _USUAL * usual if usual < HIDDEN else 0.0
    edges = np.flatnonzero(np.diff(np.concatenate([[0], shares > MAYBE + above, [0]]).astype(int)))
    result = np.zeros(len(shares), bool)
    for start, stop in zip(edges[::2], edges[1::2], strict=True):
        result[start:stop] = stop - start > 1 and shares[start:stop].max() > HIDDEN + above
    return result


def _eased(usable: np.ndarray, fps: float) -> np.ndarray:
    """Share of the new lips, ``[T]``, with nothing in and beside frames that are not usable."""
    t = ((_distance(~usable) / fps - _GUARD) / _FADE).clip(0, 1)
    return t * t * (3 - 2 * t)


def _distance(marked: np.ndarray) -> np.ndarray:
    """Frames from each one to the nearest that is marked, ``[T]``; infinite where none is."""
    places = np.flatnonzero(marked)
    if not len(places):
        return np.full(len(marked), np.inf)
    frames = np.arange(len(marked))
    after = places[np.searchsorted(places, frames).clip(max=len(places) - 1)]
    before = places[(np.searchsorted(places, frames, side="right") - 1).clip(min=0)]
    return np.minimum(np.abs(after - frames), np.abs(frames - before))


def _frontal(landmarks: np.ndarray) -> float:
    """How much of the new lips a face shows: all from the front, none in profile, where a mesh that was seen from the
    front would draw them over the cheek's edge."""
    turned = abs(yaw(landmarks))
    rest = min(max((_GONE - turned) / (_GONE - _WHOLE), 0.0), 1.0)
    return rest * rest * (3 - 2 * rest)
