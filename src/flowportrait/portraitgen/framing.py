"""How a face is framed: the square around it, in distances between the outer corners of the eyes.

┌────────────┐  ─┐
│            │   │ 2.4 units        the corners lie on a level line, one unit apart,
│   ◉----◉   │   │                  the square's middle 0.4 units below it
│     ▽      │   │
│    ───     │   │
└────────────┘  ─┘
"""

from __future__ import annotations

import cv2
import numpy as np

from flowportrait.media.align import to_canonical
from flowportrait.media.crop import apply_affine, sample_crop

WIDTH, CENTRE = 2.4, (0.0, 0.4)
CORNERS = (33, 263)
"""Outer corners of the eyes."""


def framed(image: np.ndarray, landmarks: np.ndarray, side: int) -> tuple[np.ndarray, np.ndarray]:
    """The face ``[side, side, 3]`` uint8 of a picture ``[H, W, 3]``, and its landmarks ``[478, 3]`` px there."""
    matrix = to_canonical(landmarks) * (side / WIDTH)
    matrix[:, 2] += side / 2 - np.array(CENTRE) * side / WIDTH - 0.5
    return sample_crop(image, matrix, side, cv2.BORDER_REPLICATE), apply_affine(matrix, landmarks)


def eye_distance(landmarks: np.ndarray) -> float:
    """Pixels between the outer corners of the eyes of landmarks ``[478, …]``."""
    return float(np.linalg.norm(landmarks[CORNERS[0], :2] - landmarks[CORNERS[1], :2]))
