"""A tracked video: its face, its shots, and how much of the new lips each frame takes.

    frames ─► cut? ─► face ─► occluded mouth? ─► share of the new lips that each frame takes

A frame keeps its own lips where no face is found, the mouth is covered or lies outside the picture, or the head is
turned aside or lies on its side. Before and after such frames the new lips fade within a fifth of a second.
``track_face_in_video`` makes a tracked video from a file.
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
from flowportrait.media.faces import FaceTracker, TrackedFace, face_roll, face_yaw
from flowportrait.media.occlusion import OcclusionDetector, is_mouth_outside
from flowportrait.media.portrait import faces_in_rotated_image
from flowportrait.media.video import FPS, CutDetector, iter_frames, read_frame_rate

Progress = Callable[[Iterable[Any], int | None, str], Iterable[Any]]
"""``(items, total, description) -> items``; shows the progress of work on items (``terminal.progress``)."""

NO_FACE, COVERED, OUTSIDE, SIDEWAYS, ASIDE = range(1, 6)
REASONS = {
    NO_FACE: "no face is found", COVERED: "something covers the mouth",
    OUTSIDE: "the mouth is outside the picture", SIDEWAYS: "the face lies on its side",
    ASIDE: "the head is turned aside",
}  # fmt: skip
"""Reasons for which a frame keeps its own lips."""

OCCLUDED_SHARE, MAYBE_OCCLUDED_SHARE, _MEDIAN_FACTOR = 0.2, 0.1, 2.0
"""Share of mouth and jaw above which a frame counts as occluded; the lower threshold for frames next to an occluded
one; multiple of a shot's median share that is added to both thresholds."""

_FULL_YAW, _ZERO_YAW = 32.0, 46.0
"""Degrees of yaw between which the new lips fade into the video's own."""

_LARGEST_ROLL = 60.0
"""Degrees of roll beyond which a face lies on its side."""

_GUARD, _FADE = 0.08, 0.2
"""Seconds next to frames without new lips that have none either, and seconds over which the new lips then fade in."""

_FEW = 0.5
"""Share of usable frames below which the video may need to be rotated."""

_RECHECKED = (1, 16, 128)
"""Which of the frames that keep their own lips are examined again after turning them."""


def no_progress(items: Iterable[Any], total: int | None, doing: str) -> Iterable[Any]:
    """Return the items and show nothing."""
    return items


@dataclass(frozen=True)
class TrackedVideo:
    """A tracked video.

    Attributes:
        video: the file.
        faces: the tracked face in every frame.
        starts: first frame of each shot (zero, then every cut).
        fps: frame rate of the file.
        obstacles: ``[T]``, zero or the first of ``REASONS`` for which a frame keeps its own lips; None if not examined.
    """

    video: Path
    faces: TrackedFace
    starts: list[int]
    fps: Fraction = Fraction(FPS)
    obstacles: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.faces.valid)

    def shots(self) -> Iterator[slice]:
        """Yield the frames of each shot."""
        for start, stop in zip(self.starts, [*self.starts[1:], len(self)], strict=True):
            yield slice(start, stop)

    @cached_property
    def usable(self) -> np.ndarray:
        """Whether lips can be drawn into the face of each frame, ``[T]``."""
        return self.faces.valid if self.obstacles is None else self.faces.valid & (self.obstacles == 0)

    @cached_property
    def share(self) -> np.ndarray:
        """Share of the new lips that each frame takes, ``[T]`` from 0 to 1."""
        result = np.zeros(len(self), np.float64)
        for shot in self.shots():
            result[shot] = _fade_in(self.usable[shot], float(self.fps))
        for index in np.flatnonzero(result):
            result[index] *= _frontal(self.faces.landmarks[index])
        return result

    def summary(self, frames: np.ndarray) -> str | None:
        """Return one sentence on how many frames keep their own lips and why; None if none do.

        ``frames`` are frame numbers in playing order.
        """
        reasons = self._reasons()[frames]
        if not reasons.any():
            return None
        parts = [f"in {count} {REASONS[r]}" for r in REASONS if (count := int((reasons == r).sum()))]
        return f"{(reasons > 0).sum()} of {len(frames)} frames kept their own lips: {', '.join(parts)}."

    def _reasons(self) -> np.ndarray:
        """Return zero or the reason for each frame, ``[T]``; frames guarded by a neighbour share its reason."""
        obstacles = np.where(self.faces.valid, 0, NO_FACE) if self.obstacles is None else self.obstacles
        result = np.where((obstacles == 0) & (self.share == 0), ASIDE, obstacles)
        for shot in self.shots():
            obstructed = np.flatnonzero(obstacles[shot])
            guarded = _frames_to_nearest(~self.usable[shot]) <= _GUARD * float(self.fps)
            for index in np.flatnonzero(guarded & (obstacles[shot] == 0)):
                result[shot.start + index] = obstacles[shot][obstructed[np.abs(obstructed - index).argmin()]]
        return result


def track_face_in_video(video: Path, face: int | None = None, progress: Progress = no_progress) -> TrackedVideo:
    """Track one face through each shot of a video.

    Args:
        video: the file.
        face: which face is tracked, counted from the left, where that many are visible; by default the largest face at
            the beginning of the shot.
        progress: shows the progress.

    Raises:
        BadInput: if the video is unreadable, no face in it can be dubbed, or ``face`` is not there in the first frame
            with faces.
    """
    rate = read_frame_rate(video)
    cut, starts, detector = CutDetector(), [0], OcclusionDetector()
    hidden: list[float] = []
    obstacles: list[int] = []
    doubts = 0
    doubtful: list[np.ndarray] = []

    def frames_by_shot() -> Iterator[np.ndarray]:
        frames = progress(iter_frames(video, rate.fps), rate.frames or None, "following the face")
        for index, frame in enumerate(frames):
            if cut(frame):
                starts.append(index)
                tracker.new_shot()
            yield frame

    def inspect(frame: np.ndarray, landmarks: np.ndarray | None) -> None:
        obstacles.append(_obstacle(frame, landmarks))
        hidden.append(detector.covered_share(frame, landmarks) if landmarks is not None and not obstacles[-1] else 0.0)
        if obstacles[-1] or hidden[-1] > OCCLUDED_SHARE:
            nonlocal doubts
            doubts += 1
            if doubts in _RECHECKED:
                doubtful.append(frame)

    with FaceTracker(face=face) as tracker:
        faces = tracker.track(frames_by_shot(), inspect)
    unexamined = TrackedVideo(video, faces, starts, rate.fps)
    kinds = np.array(obstacles, int)
    for shot in unexamined.shots():
        kinds[shot][occluded_frames(np.array(hidden[shot])) & (kinds[shot] == 0)] = COVERED
    footage = TrackedVideo(video, faces, starts, rate.fps, kinds)
    _check_usable(footage, doubtful, detector)
    if face is None and (faces.count > 1).mean() > 0.5:
        warnings.warn(
            f"Several faces found in {video}: the largest at the start of each shot is dubbed; --face N picks another.",
            stacklevel=3,
        )
    return footage


def _obstacle(frame: np.ndarray, landmarks: np.ndarray | None) -> int:
    """Return zero, or the reason that the position of a face gives for keeping its lips."""
    if landmarks is None:
        return NO_FACE
    if abs(face_roll(landmarks)) > _LARGEST_ROLL:
        return SIDEWAYS
    return OUTSIDE if is_mouth_outside(frame.shape, landmarks) else 0


def _check_usable(footage: TrackedVideo, doubtful: list[np.ndarray], detector: OcclusionDetector) -> None:
    """Check that something can be dubbed.

    Raises:
        BadInput: if nothing can be.
    """
    video, valid = footage.video, footage.faces.valid
    if footage.usable.mean() < _FEW and all(_upright_when_turned(frame, detector) for frame in doubtful):
        raise BadInput(f"No face stands upright in {video}, but one would if it were turned: rotate the video upright.")
    if not valid.any():
        raise BadInput(f"No face found in {video}: give a video with one clearly visible face.")
    if footage.share.any():
        return
    if footage.obstacles is not None and (footage.obstacles[valid] == SIDEWAYS).mean() > _FEW:
        raise BadInput(f"The face in {video} lies on its side: rotate the video upright.")
    reasons = footage.summary(np.arange(len(footage))) or ""
    raise BadInput(f"Nothing can be dubbed in {video}: {reasons.partition(': ')[2][:-1]} (of {len(footage)} frames).")


def _upright_when_turned(frame: np.ndarray, detector: OcclusionDetector) -> bool:
    """Return whether a frame shows a face with an uncovered mouth once it is turned.

    In faces that are upside down the tracker finds false upright faces, whose mouths look covered.
    """
    return any(
        detector.covered_share(turned, points) < OCCLUDED_SHARE for turned, points in faces_in_rotated_image(frame)
    )


def occluded_frames(shares: np.ndarray) -> np.ndarray:
    """Return in which frames of a shot the mouth is covered, ``[T]`` bool.

    The thresholds rise with the median of the shot, as a face may look slightly covered throughout, in coloured light
    for example. A single frame above them, blurred or blinking, does not count.

    Args:
        shares: covered share of mouth and jaw in each frame, ``[T]``.
    """
    median = float(np.median(shares))
    offset = _MEDIAN_FACTOR * median if median < OCCLUDED_SHARE else 0.0
    edges = np.flatnonzero(np.diff(np.concatenate([[0], shares > MAYBE_OCCLUDED_SHARE + offset, [0]]).astype(int)))
    result = np.zeros(len(shares), bool)
    for start, stop in zip(edges[::2], edges[1::2], strict=True):
        result[start:stop] = stop - start > 1 and shares[start:stop].max() > OCCLUDED_SHARE + offset
    return result


def _fade_in(usable: np.ndarray, fps: float) -> np.ndarray:
    """Return the share of the new lips, ``[T]``, which is zero in and next to frames that are not usable."""
    t = ((_frames_to_nearest(~usable) / fps - _GUARD) / _FADE).clip(0, 1)
    return t * t * (3 - 2 * t)


def _frames_to_nearest(marked: np.ndarray) -> np.ndarray:
    """Return the number of frames from each one to the nearest marked one, ``[T]``; infinite if none is marked."""
    places = np.flatnonzero(marked)
    if not len(places):
        return np.full(len(marked), np.inf)
    frames = np.arange(len(marked))
    after = places[np.searchsorted(places, frames).clip(max=len(places) - 1)]
    before = places[(np.searchsorted(places, frames, side="right") - 1).clip(min=0)]
    return np.minimum(np.abs(after - frames), np.abs(frames - before))


def _frontal(landmarks: np.ndarray) -> float:
    """Return the share of the new lips that a face takes by its yaw: one from the front, zero in profile.

    In profile the mesh would draw the lips over the edge of the cheek.
    """
    angle = abs(face_yaw(landmarks))
    t = min(max((_ZERO_YAW - angle) / (_ZERO_YAW - _FULL_YAW), 0.0), 1.0)
    return t * t * (3 - 2 * t)
