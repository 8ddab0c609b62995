"""Where mouth, eyes, face and background are in a picture, from its landmarks."""

from __future__ import annotations

import cv2
import numpy as np
import torch

from flowportrait.codec.contours import EYES, OUTER_LOWER, OUTER_UPPER

MOUTH = OUTER_UPPER + OUTER_LOWER
EYE_POINTS = [upper + lower for upper, lower, _ in EYES]
_MARGIN = 0.12
"""Room around lips and lids, in outer-eye-corner distances."""


def masks(places: torch.Tensor, side: tuple[int, int]) -> dict[str, torch.Tensor]:
    """Shares of every pixel ``[N, H, W]`` that belong to ``mouth``, ``eyes``, ``face`` (the rest of it) and
    ``background``, for landmarks ``[N, 478, 2]`` px; each pixel belongs to one of them."""
    shape = (len(places), *side)
    mouth, eyes, face = (np.zeros(shape, np.uint8) for _ in range(3))
    for row, points in enumerate(places.numpy()):
        margin = _MARGIN * float(np.linalg.norm(points[33] - points[263]))
        _fill(mouth[row], points[MOUTH], margin)
        for eye in EYE_POINTS:
            _fill(eyes[row], points[eye], margin)
        _fill(face[row], points[:468], 0.0)
    eyes &= 1 - mouth
    face &= (1 - mouth) & (1 - eyes)
    background = 1 - mouth - eyes - face
    parts = {"mouth": mouth, "eyes": eyes, "face": face, "background": background}
    return {name: torch.from_numpy(part).float() for name, part in parts.items()}


def mean_over(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean ``[N]`` of ``[N, H, W]`` where the mask is, NaN where it is nowhere."""
    return (values * mask).sum((1, 2)) / mask.sum((1, 2))


def _fill(canvas: np.ndarray, points: np.ndarray, margin: float) -> None:
    middle = points.mean(0)
    reach = np.linalg.norm(points - middle, axis=1, keepdims=True)
    hull = cv2.convexHull((middle + (points - middle) * (1 + margin / np.maximum(reach, 1e-6))).astype(np.float32))
    cv2.fillConvexPoly(canvas, np.round(hull).astype(np.int32), 1)
