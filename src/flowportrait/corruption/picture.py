"""Right motion, bad picture: soft, pumping in colour, flickering, or with the border of the paste-back showing.

frame'[t] = frame[t] ∗ G_σ        frame'[t] = frame[t] + level(t) · tint        frame'[t] = frame[t] + level · box
"""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np

from flowportrait.corruption.footage import Footage
from flowportrait.media.video import FPS

PUMP_HZ = 1.0
TINT = np.array([1.0, -0.4, -0.6])
"""Colour that pumping adds: warmer and cooler at almost equal brightness."""
FACE_MARGIN = 0.35
"""Of the face's size, how far the paste-back square reaches beyond it."""


def blur(clip: Footage, sigma: float, seed: int = 0) -> Footage:
    """Gaussian blur of ``sigma`` pixels."""
    if sigma <= 0:
        return clip
    frames = np.stack([cv2.GaussianBlur(frame, (0, 0), sigma) for frame in clip.pictures("blur")])
    return replace(clip, frames=frames)


def pump_colour(clip: Footage, levels: float, seed: int = 0) -> Footage:
    """The white balance swings once a second by ``levels`` of 255, warm to cool."""
    frames = clip.pictures("colour pumping")
    swing = levels * np.sin(2 * np.pi * PUMP_HZ * np.arange(len(frames)) / FPS)
    return replace(clip, frames=np.stack([_added(f, s * TINT) for f, s in zip(frames, swing, strict=True)]))


def flicker(clip: Footage, levels: float, seed: int = 0) -> Footage:
    """Brightness is off by a normal ``levels`` of 255, anew in every frame."""
    frames = clip.pictures("flicker")
    off = np.random.default_rng(seed).normal(0, levels, len(frames))
    return replace(clip, frames=np.stack([_added(f, np.full(3, s)) for f, s in zip(frames, off, strict=True)]))


def seam(clip: Footage, levels: float, seed: int = 0) -> Footage:
    """A square around the face is brighter by ``levels`` of 255, with a hard border, as after a careless
    paste-back; the square does not move.

    Raises:
        BadInput: no landmarks to know where the face is.
    """
    frames, points = clip.pictures("seam"), clip.points("seam")
    left, top, right, bottom = paste_square(points, frames.shape[1:3])
    frames = frames.copy()
    inside = frames[:, top:bottom, left:right]
    frames[:, top:bottom, left:right] = (inside + levels).round().clip(0, 255).astype(np.uint8)
    return replace(clip, frames=frames)


def paste_square(points: np.ndarray, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """left, top, right, bottom in pixels around the face's mean place, inside a frame of ``size`` (H, W)."""
    face = np.nanmean(points[..., :2], axis=0)
    low, high = face.min(0), face.max(0)
    reach = (0.5 + FACE_MARGIN) * float((high - low).max())
    middle = (low + high) / 2
    left, top = np.maximum(middle - reach, 2).astype(int)
    right, bottom = np.minimum(middle + reach, np.array(size[::-1]) - 2).astype(int)
    return int(left), int(top), int(right), int(bottom)


def _added(frame: np.ndarray, levels: np.ndarray) -> np.ndarray:
    return (frame + levels).round().clip(0, 255).astype(np.uint8)
