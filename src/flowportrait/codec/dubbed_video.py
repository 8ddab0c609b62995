"""A whole video with other lips, shot by shot.

    frames ─► cut? ─► face of the shot ─► its own motion, identity and mouth ─► lips exchanged ─► frames

At a cut everything known about the face is forgotten: whose it is, where it is, in what light. A second person's mouth
would else be drawn into the first one's face, and a filter over time would mix the frames before and after.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from flowportrait.codec.basis import LOWER, MotionBasis
from flowportrait.codec.dubbing import MouthMemory, redraw_mouth
from flowportrait.errors import BadInput
from flowportrait.media.face import Faces, FaceTracker, bridge, yaw
from flowportrait.media.shots import CutDetector
from flowportrait.media.video import iter_frames

MEMORY_FRAMES = 50
"""How many frames of a shot its mouth is learned from."""

_WHOLE, _GONE = 32.0, 46.0
"""Degrees of yaw between which the new lips give way to the video's own."""
_SOON = 2.5
"""Lips come near the video's own first; only then is one picture mixed with the other, or two mouths would show."""


@dataclass(frozen=True)
class Footage:
    """A tracked video: its faces, and where its shots begin (zero, then every cut)."""

    video: Path
    faces: Faces
    starts: list[int]

    def __len__(self) -> int:
        return len(self.faces.valid)

    def shots(self) -> Iterator[slice]:
        """Frames of each shot."""
        for start, stop in zip(self.starts, [*self.starts[1:], len(self)], strict=True):
            yield slice(start, stop)


def track_footage(video: Path, face: int | None = None) -> Footage:
    """Follow one face through each shot of a video: the largest where the shot begins, or the ``face``-th from the
    left where that many are seen.

    Raises:
        BadInput: an unreadable video, no face in it, or no such face where it first shows any.
    """
    cut, starts = CutDetector(), [0]

    def watched() -> Iterator[np.ndarray]:
        for index, frame in enumerate(iter_frames(video)):
            if cut(frame):
                starts.append(index)
                tracker.new_shot()
            yield frame

    with FaceTracker(face=face) as tracker:
        faces = tracker.track(watched())
    if not faces.valid.any():
        raise BadInput(f"No face found in {video}: give a video with one clearly visible face.")
    if face is None and (faces.count > 1).mean() > 0.5:
        warnings.warn(
            f"Several faces found in {video}: the largest at the start of each shot is dubbed; --face N picks another.",
            stacklevel=3,
        )
    return Footage(video, faces, starts)


def dubbed(footage: Footage, lips: torch.Tensor) -> Iterator[np.ndarray]:
    """Yield the video's frames ``[H, W, 3]`` uint8 (even sides) with the lower face of motion ``lips`` ``[T, 30]``;
    frames without a face pass unchanged."""
    # Read twice, a shot apart: its mouth must be known before its first frame is drawn.
    ahead, frames = iter_frames(footage.video), iter_frames(footage.video)
    for shot in footage.shots():
        valid = footage.faces.valid[shot]
        sampled = np.flatnonzero(valid)[:: max(1, int(valid.sum()) // MEMORY_FRAMES)]
        kept = [frame for index, frame in zip(range(len(valid)), ahead, strict=False) if index in sampled]
        if not kept:
            yield from (_even(next(frames)) for _ in valid)
            continue
        own, target = _exchanged(footage.faces, shot, lips[shot])
        memory = MouthMemory.from_video(kept, own[sampled])
        for seen, points, goal in zip(valid, own, target, strict=True):
            frame, share = next(frames), _share(points)
            if seen and share > 0:
                frame = redraw_mouth(frame, points, points + share * (goal - points), memory, min(1.0, _SOON * share))
            yield _even(frame)


def _exchanged(faces: Faces, shot: slice, lips: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Landmarks ``[t, 478, 3]`` px of a shot, tracked and with the lips exchanged."""
    basis, valid = MotionBasis.load(), faces.valid[shot]
    landmarks = bridge(faces.landmarks[shot], valid)
    own, identity = basis.encode(landmarks, bridge(faces.blendshapes[shot], valid))
    spoken = own.clone()
    spoken[:, LOWER] = lips[:, LOWER]
    # What the basis cannot express of the tracked face stays as tracked: only the difference is applied.
    return landmarks, landmarks + (basis.decode(spoken, identity) - basis.decode(own, identity)).numpy()


def _share(landmarks: np.ndarray) -> float:
    """How much of the new lips a face shows: all from the front, none in profile, where a mesh that was seen from the
    front would draw them over the cheek's edge."""
    turned = abs(yaw(landmarks))
    rest = min(max((_GONE - turned) / (_GONE - _WHOLE), 0.0), 1.0)
    return rest * rest * (3 - 2 * rest)


def _even(frame: np.ndarray) -> np.ndarray:
    return frame[: frame.shape[0] // 2 * 2, : frame.shape[1] // 2 * 2]
