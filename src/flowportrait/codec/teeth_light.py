"""How light teeth are beside the skin. The mouth model knows their ratio for the skin it learned from, but enamel is
white whatever the skin: over 28 speakers the teeth's brightness hardly follows the skin's (as its power 0.1).

    from a photo   (w / skin)^0.8,   w = √(white of the eyes / 0.89 · brightest of the picture / 1.57), one at least
    from a video   the teeth it shows / 1.15

The three numbers are those speakers' medians, relative to the skin; brightness is luma.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from flowportrait.codec.contours import EYES, INNER_LOWER, INNER_UPPER, fill, opening

_EYE_WHITE, _BRIGHTEST, _TEETH = 0.89, 1.57, 1.15
_POWER = 0.8
_MOST = 1.7
_LEAST = 0.75
"""Teeth shown may be in the shadow of the lips; drawn ones have their own."""

_OPEN = 0.06
"""Opening in eye distances from which on a frame shows teeth."""

_FEW = 3
_LUMA = np.array([0.299, 0.587, 0.114])


def lit_teeth(picture: np.ndarray, landmarks: np.ndarray, skin: np.ndarray) -> float:
    """Factor on the model's teeth for a picture ``[H, W, 3]`` uint8 with landmarks ``[478, 3]`` px and skin colour
    ``[3]``."""
    luma = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)
    whites = []
    for upper, lower, iris in EYES:
        points = landmarks[:, :2]
        inside = fill(luma.shape, opening(points[upper], points[lower]))
        radius = float(np.linalg.norm(points[iris + 1 : iris + 5] - points[iris], axis=1).mean())
        ys, xs = np.nonzero(inside > 0.8)
        beside = np.hypot(xs - points[iris, 0], ys - points[iris, 1]) > 1.1 * radius
        if beside.sum() > _FEW:
            whites.append(np.percentile(luma[ys[beside], xs[beside]], 75))
    if not whites:
        return 1.0
    here = float(skin @ _LUMA)
    light = np.sqrt(np.mean(whites) / _EYE_WHITE * np.percentile(luma, 99) / _BRIGHTEST)
    return float(np.clip((light / here) ** _POWER, 1.0, _MOST))


def shown_teeth(frames: Sequence[np.ndarray], landmarks: np.ndarray, skin: np.ndarray) -> float | None:
    """The same from a video's frames with landmarks ``[T, 478, 3]`` px; None where too few show the mouth's inside."""
    found = []
    for frame, points in zip(frames, landmarks[..., :2], strict=True):
        gap = np.linalg.norm(points[14] - points[13]) / np.linalg.norm(points[33] - points[263])
        if gap > _OPEN:
            inside = fill(frame.shape[:2], opening(points[INNER_UPPER], points[INNER_LOWER])) > 0.9
            if inside.sum() > _FEW:
                found.append(np.percentile(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)[inside], 90))
    if len(found) < _FEW:
        return None
    return float(np.clip(np.median(found) / (skin @ _LUMA) / _TEETH, _LEAST, _MOST))
