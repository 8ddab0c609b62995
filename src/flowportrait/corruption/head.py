"""A head that is none: a skull like rubber, a neck like a spring. Pictures and landmarks go together.

Not in the catalogue: what hurts a pose is known to who checks poses (``judge.posed``).
"""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np

from flowportrait.corruption.footage import Footage
from flowportrait.media.video import FPS

STRETCH_HZ, WHIP_HZ = 1.5, 3.0


def stretched(clip: Footage, share: float, seed: int = 0) -> Footage:
    """The face grows wider and narrower by ``share`` and back, 1.5 times a second."""
    width = 1 + share * _swing(len(clip), STRETCH_HZ)
    return _moved(clip, [np.array([[w, 0.0], [0.0, 1.0]]) for w in width], "stretched")


def whipped(clip: Footage, degrees: float, seed: int = 0) -> Footage:
    """The picture turns by ``degrees`` and back, three times a second."""
    angles = np.radians(degrees) * _swing(len(clip), WHIP_HZ)
    return _moved(clip, [np.array([[np.cos(a), -np.sin(a)], [np.sin(a), np.cos(a)]]) for a in angles], "whipped")


def _swing(frames: int, hertz: float) -> np.ndarray:
    return np.sin(2 * np.pi * hertz * np.arange(frames) / FPS)


def _moved(clip: Footage, linear: list[np.ndarray], name: str) -> Footage:
    """Every frame under a linear map about the face's middle."""
    points = clip.points(name)
    middle = points[..., :2].mean((0, 1))
    matrices = [np.hstack([m, (middle - m @ middle)[:, None]]) for m in linear]
    frames = clip.frames
    if frames is not None:
        frames = np.stack([
            cv2.warpAffine(frame, m, frame.shape[1::-1], flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
            for frame, m in zip(frames, matrices, strict=True)
        ])  # fmt: skip
    moved = points.copy()
    for index, m in enumerate(matrices):
        moved[index, :, :2] = points[index, :, :2] @ m[:, :2].T + m[:, 2]
    return replace(clip, frames=frames, landmarks=moved)
