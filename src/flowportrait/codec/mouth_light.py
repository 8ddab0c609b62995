"""How light teeth are beside the skin. The mouth model knows their ratio for the skin it learned from, but enamel is
white whatever the skin: from speaker to speaker the teeth's brightness hardly follows the skin's (as its power 0.2;
``benchmarks/mouth_light.py``).

    from a photo   (w / skin)^0.8,   w = √(white of the eyes / 0.9 · brightest of the picture / 1.62), one at least
    from a video   the teeth it shows / 1.16

The three numbers are the speakers' medians, relative to the skin; brightness is luma. White itself is warm in a
painting under old varnish: the mouth takes a third of the hue (in logarithms) that the white of the eyes has.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np

from flowportrait.codec.contours import EYES, INNER_LOWER, INNER_UPPER, fill, opening

_EYE_WHITE, _BRIGHTEST, _TEETH = 0.9, 1.62, 1.16
_POWER = 0.8
_MOST = 1.7
_LEAST = 0.75
"""Teeth shown may be in the shadow of the lips; drawn ones have their own."""

_HUE, _MOST_HUE = 0.3, 1.2
"""Share of the eye white's hue, which lashes and lids also colour, and its bound."""

_OPEN = 0.06
"""Opening in eye distances from which on a frame shows teeth."""

_FEW = 3
LUMA = np.array([0.299, 0.587, 0.114])


class Light(NamedTuple):
    """How a mouth is lit: factor on the model's teeth; hue ``[3]`` of what is white, of luma one."""

    teeth: float
    hue: np.ndarray


def eye_white(picture: np.ndarray, landmarks: np.ndarray) -> np.ndarray | None:
    """Colour ``[3]`` of the white of the eyes, none of them black; None where the eyes are shut."""
    points, whites = landmarks[:, :2], []
    for upper, lower, iris in EYES:
        inside = fill(picture.shape[:2], opening(points[upper], points[lower]))
        radius = float(np.linalg.norm(points[iris + 1 : iris + 5] - points[iris], axis=1).mean())
        ys, xs = np.nonzero(inside > 0.8)
        beside = np.hypot(xs - points[iris, 0], ys - points[iris, 1]) > 1.1 * radius
        if beside.sum() > _FEW:
            whites.append(np.percentile(picture[ys[beside], xs[beside]], 75, axis=0))
    return np.mean(whites, axis=0) + 1 if whites else None


def teeth_seen(picture: np.ndarray, landmarks: np.ndarray) -> float | None:
    """Luma of the teeth of a mouth that is open enough to show them."""
    points = landmarks[:, :2]
    gap = np.linalg.norm(points[14] - points[13]) / np.linalg.norm(points[33] - points[263])
    if gap <= _OPEN:
        return None
    inside = fill(picture.shape[:2], opening(points[INNER_UPPER], points[INNER_LOWER])) > 0.9
    if inside.sum() <= _FEW:
        return None
    return float(np.percentile(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)[inside], 90))


def light_of(picture: np.ndarray, landmarks: np.ndarray, skin: np.ndarray) -> Light:
    """Light in a picture ``[H, W, 3]`` uint8 with landmarks ``[478, 3]`` px and skin colour ``[3]``."""
    white = eye_white(picture, landmarks)
    if white is None:
        return Light(1.0, np.ones(3))
    brightest = np.percentile(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY), 99)
    light = np.sqrt((white @ LUMA) / _EYE_WHITE * brightest / _BRIGHTEST)
    hue = np.clip((white / (white @ LUMA)) ** _HUE, 1 / _MOST_HUE, _MOST_HUE)
    return Light(float(np.clip((light / (skin @ LUMA)) ** _POWER, 1.0, _MOST)), hue / (hue @ LUMA))


def shown_teeth(frames: Sequence[np.ndarray], landmarks: np.ndarray, skin: np.ndarray) -> float | None:
    """Factor on the model's teeth from a video's frames with landmarks ``[T, 478, 3]`` px; None where too few show the
    mouth's inside."""
    seen = [teeth_seen(frame, points) for frame, points in zip(frames, landmarks, strict=True)]
    found = [luma for luma in seen if luma is not None]
    if len(found) < _FEW:
        return None
    return float(np.clip(np.median(found) / (skin @ LUMA) / _TEETH, _LEAST, _MOST))
