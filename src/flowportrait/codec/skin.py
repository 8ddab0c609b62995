"""The photo without its openings: eyes and mouth filled with the skin around them.

Lips that close over a photographed smile, and lids that close over an eye, must not drag teeth or eye white
along; they are drawn from this picture.
"""

from __future__ import annotations

import cv2
import numpy as np

from flowportrait.codec.contours import EYES, INNER_LOWER, INNER_UPPER, fill, opening


def bare_skin(crop: np.ndarray, landmarks: np.ndarray, eyes: bool = True) -> np.ndarray:
    """Crop ``[S, S, 3]`` uint8 with the inside of lips, and with ``eyes`` of lids, painted over from their
    rims."""
    points = landmarks[:, :2].astype(np.float64)
    width = float(np.linalg.norm(points[33] - points[263]))
    result = crop.copy()
    for upper, lower, _ in EYES if eyes else ():
        # Lashes at the rim belong to the lid: the filling begins a little inside the opening.
        _paint_over(result, opening(points[upper], points[lower]), -0.012 * width)
    lips = opening(points[INNER_UPPER], points[INNER_LOWER])
    gap = float((points[INNER_LOWER] - points[INNER_UPPER])[:, 1].max())
    if gap > 0.03 * width:
        # Teeth shine into the rim of the lips: the filling begins a little outside the opening.
        _paint_over(result, lips, 0.018 * width)
    return result


def _paint_over(image: np.ndarray, outline: np.ndarray, grow: float) -> None:
    size = image.shape[0]
    margin = 12 + 2 * abs(grow)
    low = np.floor(outline.min(0) - margin).astype(int).clip(0, size - 1)
    high = np.ceil(outline.max(0) + margin).astype(int).clip(1, size)
    patch = np.ascontiguousarray(image[low[1] : high[1], low[0] : high[0]])
    inside = (fill(patch.shape[:2], outline - low) > 0.5).astype(np.uint8)
    radius = round(abs(grow))
    if radius:
        disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))
        inside = cv2.dilate(inside, disc) if grow > 0 else cv2.erode(inside, disc)
    image[low[1] : high[1], low[0] : high[0]] = cv2.inpaint(patch, inside, 3, cv2.INPAINT_TELEA)
