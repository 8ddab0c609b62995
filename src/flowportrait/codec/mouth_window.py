"""The lower face as a small head-stabilised picture, and where the mouth's parts are in it.

    window = 72 x 96 px, 1.15 outer-eye-corner distances across, from the nose's base to the chin
    (u, s) = place [x, y, 1],   j = s − jaw        skull and jaw coordinates of ``mouth_frame``, linear in it

What a network reads and writes here is the same size for every face and every picture.
"""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np

from flowportrait.codec.contours import OUTER_LOWER, OUTER_UPPER, fill, opening
from flowportrait.codec.mouth_frame import MouthFrame
from flowportrait.media.align import to_canonical

HEIGHT, WIDTH = 72, 96
_SPAN = 1.15
_CENTRE = np.array([0.0, 0.88])
_MIDDLE = np.array([WIDTH - 1, HEIGHT - 1]) / 2


class MouthState(NamedTuple):
    """What the lips and the jaw do: inner opening and whole lips as shares of each pixel, ``[72, 96]``
    float32; place ``[2, 3]`` from window pixels to (u, s); jaw's drop and opening's height in eye distances."""

    inner: np.ndarray
    outer: np.ndarray
    place: np.ndarray
    jaw: float
    height: float


def to_window(landmarks: np.ndarray) -> np.ndarray:
    """Similarity ``[2, 3]`` from image pixels to window pixels for landmarks ``[478, 3]``."""
    scale = WIDTH / _SPAN
    matrix = to_canonical(landmarks) * scale
    matrix[:, 2] += _MIDDLE - _CENTRE * scale
    return matrix


def cut(image: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Window ``[72, 96, 3]`` uint8 of an image ``[H, W, 3]`` uint8 under ``to_window``'s matrix."""
    pixel = 1 / float(np.sqrt(abs(np.linalg.det(matrix[:, :2]))))
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    back = cv2.invertAffineTransform(matrix)
    if pixel > 1.2:
        # Twice as fine, then averaged: what is left out must not flicker.
        fine = back.copy()
        fine[:, :2] /= 2
        fine[:, 2] -= back[:, :2] @ np.array([0.25, 0.25])
        large = cv2.warpAffine(image, fine, (2 * WIDTH, 2 * HEIGHT), flags=flags, borderMode=cv2.BORDER_REPLICATE)
        return cv2.resize(large, (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA)
    return cv2.warpAffine(image, back, (WIDTH, HEIGHT), flags=flags, borderMode=cv2.BORDER_REPLICATE)


def mouth_state(frame: MouthFrame, landmarks: np.ndarray, matrix: np.ndarray) -> MouthState:
    """State of the mouth with landmarks ``[478, 3]`` px, of a person whose skull and jaw ``frame`` knows."""
    shape = frame.opening(landmarks)
    points = landmarks[:, :2] @ matrix[:, :2].T + matrix[:, 2]
    back = cv2.invertAffineTransform(matrix)
    scale = float(np.hypot(*shape.axes[0]))
    place = (shape.axes / scale**2) @ (back - np.column_stack([np.zeros((2, 2)), shape.middle]))
    outline = shape.outline @ matrix[:, :2].T + matrix[:, 2]
    return MouthState(
        inner=fill((HEIGHT, WIDTH), outline),
        outer=fill((HEIGHT, WIDTH), opening(points[OUTER_UPPER], points[OUTER_LOWER])),
        place=place.astype(np.float32),
        jaw=shape.jaw,
        height=shape.height,
    )
