"""Where the faces of a photo are, however small.

    whole picture ─► with room around it ─► tiles of 1, ½, ⅓, ⅕ of its shorter side        until something is found

The detector sees a 128 px thumbnail, so small faces are missed in the whole picture. What tiles show must be seen
again, in the same place, in two closer views: a coffee cup is a face once, but not thrice.
"""

from __future__ import annotations

from collections.abc import Iterator

import cv2
import numpy as np

from flowportrait.media.crop import apply_affine, sample_crop
from flowportrait.media.face import FaceTracker, extent, roll

Found = tuple[np.ndarray, np.ndarray]
"""Landmarks ``[478, 3]`` px and blendshapes ``[52]``."""

MOST_FACES = 8
SMALLEST_PX = 24.0
_SEARCH_SIDE = 1024
_AGREEMENT = 0.05
"""Share of its size by which a face may lie elsewhere in a closer view."""
_UPRIGHT = 30.0
"""Degrees of roll up to which a face stands upright."""


def find_faces(image: np.ndarray) -> list[Found]:
    """Faces in ``image`` ``[H, W, 3]`` uint8 RGB with landmarks in its pixels, largest first."""
    with FaceTracker(still=True, max_faces=MOST_FACES) as tracker:
        for closer, windows in enumerate(_searches(image.shape[:2])):
            found: list[Found] = []
            for x, y, side in windows:
                for face in _detect_window(tracker, image, x, y, side):
                    if not any(same_face(face[0], other[0]) for other in found):
                        found.append(face)
            if closer:
                found = [face for face in found if _confirmed(tracker, image, face[0])]
            if found:
                return sorted(found, key=lambda face: -extent(face[0]))
    return []


def stands_when_turned(image: np.ndarray) -> bool:
    """Whether a face stands upright in ``image`` once it is turned by one, two or three quarters."""
    return any(True for _ in faces_when_turned(image))


def faces_when_turned(image: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """``image`` turned by one, three and two quarters, with the landmarks ``[478, 3]`` px of each face that stands
    upright in it then."""
    with FaceTracker(still=True, max_faces=MOST_FACES) as tracker:
        for quarters in (1, 3, 2):
            turned = np.ascontiguousarray(np.rot90(image, quarters))
            for points, _ in _detect_window(tracker, turned, 0, 0, max(turned.shape[:2])):
                if abs(roll(points)) < _UPRIGHT and _confirmed(tracker, turned, points):
                    yield turned, points


def _confirmed(tracker: FaceTracker, image: np.ndarray, landmarks: np.ndarray) -> bool:
    size, centre = extent(landmarks), landmarks[:, :2].mean(0)
    for room in (1.6, 2.4):
        side = round(room * size)
        x, y = np.round(centre - side / 2).astype(int)
        views = _detect_window(tracker, image, int(x), int(y), side)
        shifts = [np.abs(points - landmarks)[:, :2].mean() for points, _ in views]
        if not shifts or min(shifts) > _AGREEMENT * size:
            return False
    return True


def _searches(shape: tuple[int, int]) -> Iterator[list[tuple[int, int, int]]]:
    height, width = shape
    yield [(0, 0, max(shape))]
    pad = max(shape) // 4
    yield [(-pad, -pad, max(shape) + 2 * pad)]
    for divisor in (1, 2, 3, 5):
        side = min(shape) // divisor
        if side >= 2 * SMALLEST_PX:
            yield [(x, y, side) for y in _starts(height, side) for x in _starts(width, side)]


def _starts(length: int, side: int) -> list[int]:
    count = 1 + -(-2 * (length - side) // side)
    return sorted({int(start) for start in np.linspace(0, length - side, max(count, 1))})


def _detect_window(tracker: FaceTracker, image: np.ndarray, x: int, y: int, side: int) -> list[Found]:
    scale = min(1.0, _SEARCH_SIDE / side) if side > 256 else 512 / side
    size = round(side * scale)
    matrix = np.array([[scale, 0, -x * scale], [0, scale, -y * scale]])
    faces = tracker.detect(sample_crop(image, matrix, size, border=cv2.BORDER_CONSTANT))
    back = cv2.invertAffineTransform(matrix)
    return [(apply_affine(back, points), shapes) for points, shapes in faces]


def same_face(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether two sets of landmarks lie in the same place."""
    gap = np.linalg.norm(a[:, :2].mean(0) - b[:, :2].mean(0))
    return bool(gap < 0.4 * max(extent(a), extent(b)))
