"""Head-stabilised views of a face: a similarity transform from rigid landmarks to a canonical frame.

The canonical frame has the outer eye corners one unit apart on a horizontal line around the origin, y down.
Only points that hardly move with speech (eye corners, nose bridge, nose base) take part, so what moves inside
a stabilised patch is the mouth and not the head.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from flowportrait.media.crop import sample_crop

RIGID = np.array([33, 133, 362, 263, 168, 6, 197, 2])
"""Outer and inner eye corners, nose bridge (three points), nose base."""

_CANONICAL = np.array(
    [[-0.5, 0], [-0.17, 0.02], [0.17, 0.02], [0.5, 0], [0, -0.06], [0, 0.1], [0, 0.24], [0, 0.56]], np.float32
)

MOUTH_PATCH = (48, 64)
"""Height and width in pixels of the patch the evaluation expert reads."""

_PATCH_CENTRE, _PATCH_WIDTH = (0.0, 0.84), 1.0


def to_canonical(landmarks: np.ndarray) -> np.ndarray:
    """Least-squares similarity ``[2, 3]`` from image pixels to the canonical frame for landmarks ``[478, 3]``."""
    source = landmarks[RIGID, :2].astype(np.float64)
    centre, goal = source.mean(0), _CANONICAL.mean(0)
    a, b = source - centre, _CANONICAL - goal
    scale = 1.0 / (a**2).sum()
    cos = (a * b).sum() * scale
    sin = (a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]).sum() * scale
    turn = np.array([[cos, -sin], [sin, cos]])
    return np.hstack([turn, (goal - turn @ centre)[:, None]])


@dataclass(frozen=True)
class CanonicalView:
    """A square window on the canonical frame: ``size`` px, ``scale`` px a unit, its corner at ``(left, top)`` units."""

    left: float
    top: float
    size: int
    scale: float

    def pixels(self, places: np.ndarray) -> np.ndarray:
        """Pixel coordinates ``[..., 2]`` of canonical ``places`` ``[..., 2]``."""
        return (np.asarray(places) - (self.left, self.top)) * self.scale - 0.5

    def matrix(self, landmarks: np.ndarray) -> np.ndarray:
        """Affine map ``[2, 3]`` from the pixels of an image with ``landmarks`` ``[478, ≥ 2]`` to those of the view."""
        result = to_canonical(landmarks) * self.scale
        result[:, 2] -= np.array([self.left, self.top]) * self.scale + 0.5
        return result

    def cut(self, image: np.ndarray, landmarks: np.ndarray) -> np.ndarray:
        """The view ``[size, size, 3]`` uint8 of ``image`` ``[H, W, 3]``, whose edge is repeated beyond it."""
        matrix = self.matrix(landmarks)
        corners = np.array([[0, 0, 1], [self.size, 0, 1], [0, self.size, 1], [self.size, self.size, 1]])
        near, (left, top) = around(image, corners @ cv2.invertAffineTransform(matrix).T)
        matrix[:, 2] += matrix[:, :2] @ (left, top)
        return sample_crop(near, matrix, self.size)


def mouth_patch(frame: np.ndarray, landmarks: np.ndarray) -> np.ndarray:
    """Grey mouth patch ``[48, 64]`` uint8, one canonical unit wide, from a frame ``[H, W, 3]`` RGB."""
    height, width = MOUTH_PATCH
    pixels = width / _PATCH_WIDTH
    matrix = to_canonical(landmarks) * pixels
    matrix[:, 2] += np.array([width, height]) / 2 - np.array(_PATCH_CENTRE) * pixels
    back = cv2.invertAffineTransform(matrix)
    near, (left, top) = around(frame, np.array([[0, 0, 1], [width, 0, 1], [0, height, 1], [width, height, 1]]) @ back.T)
    matrix[:, 2] += matrix[:, :2] @ (left, top)
    grey = cv2.cvtColor(near, cv2.COLOR_RGB2GRAY)
    return cv2.warpAffine(grey, matrix, (width, height), flags=cv2.INTER_AREA, borderMode=cv2.BORDER_REPLICATE)


def around(frame: np.ndarray, places: np.ndarray, room: float = 2.0) -> tuple[np.ndarray, tuple[int, int]]:
    """The part of a frame ``[H, W, 3]`` that holds ``places`` ``[N, 2]`` px and ``room`` px around them, at least one
    pixel of it, and its left and top: of a large picture only what is looked at needs to be touched."""
    height, width = frame.shape[:2]
    low, high = np.floor(places.min(0) - room).astype(int), np.ceil(places.max(0) + room).astype(int)
    left, top = min(max(int(low[0]), 0), width - 1), min(max(int(low[1]), 0), height - 1)
    return frame[top : max(int(high[1]) + 1, top + 1), left : max(int(high[0]) + 1, left + 1)], (left, top)
