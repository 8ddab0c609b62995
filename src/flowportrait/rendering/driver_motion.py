"""The motion of a person in a video, to be drawn on the portrait of somebody else.

    frames ─► face of each ─► in each shot: motion relative to the person's neutral face and pose ─► limits ─► [T, 30]

A frame without a face takes the motion between its neighbours, and in a longer gap the portrait eases to its neutral
pose and back. After a cut the motion fades from that of the shot before, as the portrait itself is not cut.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch

from flowportrait.errors import BadInput
from flowportrait.media.faces import FaceTracker, TrackedFace, interpolate_missing_frames
from flowportrait.media.video import FPS, CutDetector, iter_frames, read_frame_rate
from flowportrait.rendering.footage import Progress, no_progress
from flowportrait.rendering.motion_basis import HEAD, MOTION_DIM, MotionBasis

_HEAD_LIMITS = np.array([7.0, 9.0, 9.0, 4.0, 4.0, 6.0], np.float32)
"""Standard deviations that pitch, yaw, roll, the shifts to the side and down, and the size of the head never exceed:
16, 19 and 11 degrees, 0.4 and 0.2 eye distances and 5 percent. Beyond, one photo shows too little of a head."""
_UNCHANGED_SHARE = 0.6
"""Share of the limit up to which head motion is unchanged."""
_SHORT_GAP, _EASE = 0.5, 0.3
"""Seconds without a face that are bridged, and seconds in which the portrait comes to rest in longer gaps."""
_CUT_FADE = 0.28
"""Seconds in which the motion fades after a cut."""


def limit_driver_head(head: np.ndarray) -> np.ndarray:
    """Return head motion ``[..., 6]`` that is compressed smoothly towards what a portrait can show."""
    start = _UNCHANGED_SHARE * _HEAD_LIMITS
    room = _HEAD_LIMITS - start
    excess = np.maximum(np.abs(head) - start, 0)
    return np.sign(head) * (np.minimum(np.abs(head), start) + room * np.tanh(excess / room))


@dataclass(frozen=True)
class DriverMotion:
    """The motion of a tracked person.

    Attributes:
        motion: ``[T, 30]`` at the frame rate of the video.
        fps: that frame rate.
        missing: number of frames in which no face is found.
        video: the file.
    """

    motion: torch.Tensor
    fps: Fraction
    missing: int
    video: Path

    def __len__(self) -> int:
        return len(self.motion)

    def summary(self) -> str | None:
        """Return one sentence on the frames without a face; None if there are none."""
        if not self.missing:
            return None
        return f"Note: {self.missing} of {len(self)} frames of {self.video} show no face: the motion there is made up."

    def at_25_fps(self) -> torch.Tensor:
        """Return the motion ``[T', 30]`` at 25 frames per second, interpolated linearly."""
        if self.fps == FPS:
            return self.motion
        count = max(1, round(len(self) * FPS / self.fps))
        times = np.arange(count) * float(self.fps) / FPS
        frames = np.arange(len(self))
        columns = [np.interp(times, frames, column) for column in self.motion.numpy().T]
        return torch.from_numpy(np.stack(columns, 1).astype(np.float32))


def read_driver_motion(video: Path, face: int | None = None, progress: Progress = no_progress) -> DriverMotion:
    """Return the motion of one person in a video.

    Args:
        video: the file.
        face: which face, counted from the left where that many are visible; by default the largest face at the
            beginning of each shot.
        progress: shows the progress.

    Raises:
        BadInput: the video is unreadable, shows no face, or ``face`` is not there in the first frame with faces.
    """
    rate = read_frame_rate(video)
    cut, starts = CutDetector(), [0]

    def frames_by_shot() -> Iterator[np.ndarray]:
        frames = progress(iter_frames(video, rate.fps), rate.frames or None, "following the face")
        for index, frame in enumerate(frames):
            if cut(frame):
                starts.append(index)
                tracker.new_shot()
            yield frame

    with FaceTracker(face=face) as tracker:
        faces = tracker.track(frames_by_shot())
    if not faces.valid.any():
        raise BadInput(f"No face found in {video}: give a clip with one clearly visible face to --drive.")
    if face is None and (faces.count > 1).mean() > 0.5:
        warnings.warn(
            f"Several faces found in {video}: the largest at the start of each shot drives the portrait.", stacklevel=2
        )
    motion = driver_motion(faces, starts, float(rate.fps))
    return DriverMotion(motion, rate.fps, int((~faces.valid).sum()), video)


def driver_motion(faces: TrackedFace, starts: list[int], fps: float) -> torch.Tensor:
    """Return the motion ``[T, 30]`` of a tracked person, relative to the person's neutral face and pose in each shot.

    Args:
        faces: the face in each of T frames.
        starts: first frame of each shot.
        fps: frames per second.
    """
    parts: list[np.ndarray] = []
    previous = np.zeros(MOTION_DIM, np.float32)
    for start, stop in zip(starts, [*starts[1:], len(faces.valid)], strict=True):
        motion = _shot_motion(faces, slice(start, stop), fps)
        if parts:
            share = _smooth_step(np.arange(1, len(motion) + 1) / (_CUT_FADE * fps))[:, None]
            motion = previous + share * (motion - previous)
        parts.append(motion)
        previous = motion[-1]
    return torch.from_numpy(np.concatenate(parts).astype(np.float32))


def _shot_motion(faces: TrackedFace, shot: slice, fps: float) -> np.ndarray:
    valid = faces.valid[shot]
    if not valid.any():
        return np.zeros((len(valid), MOTION_DIM), np.float32)
    landmarks = interpolate_missing_frames(faces.landmarks[shot], valid)
    blendshapes = interpolate_missing_frames(faces.blendshapes[shot], valid)
    motion = MotionBasis.load().encode(landmarks, blendshapes)[0].numpy()
    motion[:, HEAD] = limit_driver_head(motion[:, HEAD])
    return motion * _presence(valid, fps)[:, None]


def _presence(valid: np.ndarray, fps: float) -> np.ndarray:
    """Return the share ``[T]`` of the motion that remains in each frame: it falls to zero inside long gaps."""
    share = np.ones(len(valid), np.float32)
    edges = np.flatnonzero(np.diff(np.concatenate([[0], ~valid, [0]]).astype(int)))
    for start, stop in zip(edges[::2], edges[1::2], strict=True):
        if stop - start > _SHORT_GAP * fps:
            frames = np.arange(start, stop)
            before = frames - start + 1 if start else np.full(len(frames), np.inf)
            after = stop - frames if stop < len(valid) else np.full(len(frames), np.inf)
            share[start:stop] = _smooth_step(1 - np.minimum(before, after) / (_EASE * fps))
    return share


def _smooth_step(share: np.ndarray) -> np.ndarray:
    clipped = share.clip(0, 1)
    return clipped * clipped * (3 - 2 * clipped)
