"""Which landmarks outline what, and smooth closed curves through them."""

from __future__ import annotations

import cv2
import numpy as np

FACE_OVAL = [
    10, 338, 297, 332, 284, 251, 389, 356, 454, 323, 361, 288, 397, 365, 379, 378, 400, 377,
    152, 148, 176, 149, 150, 136, 172, 58, 132, 93, 234, 127, 162, 21, 54, 103, 67, 109,
]  # fmt: skip

INNER_UPPER = [78, 191, 80, 81, 82, 13, 312, 311, 310, 415, 308]
INNER_LOWER = [78, 95, 88, 178, 87, 14, 317, 402, 318, 324, 308]
"""Inner lip from the person's right corner to the left one."""

OUTER_UPPER = [61, 185, 40, 39, 37, 0, 267, 269, 270, 409, 291]
OUTER_LOWER = [61, 146, 91, 181, 84, 17, 314, 405, 321, 375, 291]
"""Outer lip, same order."""

EYES = (
    ([33, 246, 161, 160, 159, 158, 157, 173, 133], [33, 7, 163, 144, 145, 153, 154, 155, 133], 468),
    ([362, 398, 384, 385, 386, 387, 388, 466, 263], [362, 382, 381, 380, 374, 373, 390, 249, 263], 473),
)
"""Per eye: upper lid, lower lid (both from one corner to the other), iris centre (four rim points follow
it)."""

RIGID = [
    33, 133, 362, 263, 168, 6, 197, 195, 5, 4, 2, 98, 327, 10, 109, 338, 67, 297, 151, 9, 127, 356, 234, 454,
    21, 251,
]  # fmt: skip
"""Landmarks that move with the skull and hardly with speech."""

_SHIFT = 4
_FINER = 4
_STEPS = 4


def smooth_chain(points: np.ndarray, steps: int = _STEPS) -> np.ndarray:
    """Catmull-Rom curve ``[(N - 1) steps + 1, 2]`` through an open chain ``[N, 2]``."""
    ends = np.concatenate([[2 * points[0] - points[1]], points, [2 * points[-1] - points[-2]]])
    a, b, c, d = ends[:-3], ends[1:-2], ends[2:-1], ends[3:]
    t = (np.arange(steps) / steps)[None, :, None]
    a, b, c, d = (p[:, None] for p in (a, b, c, d))
    curve = 0.5 * (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - 3 * c + d - a) * t**3)
    return np.concatenate([curve.reshape(-1, 2), points[-1:]])


def opening(upper: np.ndarray, lower: np.ndarray, steps: int = _STEPS) -> np.ndarray:
    """Closed outline ``[M, 2]`` between two chains ``[N, 2]`` with common ends; crossed parts are shut."""
    top, bottom = smooth_chain(upper, steps), smooth_chain(lower, steps)
    crossed = top[:, 1] > bottom[:, 1]
    middle = (top + bottom) / 2
    top = np.where(crossed[:, None], middle, top)
    bottom = np.where(crossed[:, None], middle, bottom)
    return np.concatenate([top, bottom[-2:0:-1]])


def fill(shape: tuple[int, int], outline: np.ndarray, feather: float = 0.0) -> np.ndarray:
    """Mask ``[H, W]`` float32 of the area inside ``outline`` ``[M, 2]`` px, blurred by ``feather`` px.

    Drawn finer and averaged: each pixel holds the share of it that is inside, and slow motion looks smooth.
    """
    mask = np.zeros(shape, np.float32)
    low = np.floor(outline.min(0)).astype(int).clip(0)
    high = (np.ceil(outline.max(0)).astype(int) + 1).clip(max=(shape[1], shape[0]))
    width, height = high - low
    if width <= 0 or height <= 0:
        return mask
    fine = np.zeros((height * _FINER, width * _FINER), np.uint8)
    place = (outline - low + 0.5) * _FINER - 0.5
    cv2.fillPoly(fine, [np.round(place * (1 << _SHIFT)).astype(np.int32)], 255, cv2.LINE_8, _SHIFT)
    share = cv2.resize(fine, (int(width), int(height)), interpolation=cv2.INTER_AREA)
    mask[low[1] : high[1], low[0] : high[0]] = share * np.float32(1 / 255)
    return cv2.GaussianBlur(mask, (0, 0), feather) if feather > 0.2 else mask
