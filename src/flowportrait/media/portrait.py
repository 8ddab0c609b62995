"""A photo to a portrait: the face found, cut out as a square, with its landmarks.

    photo ──find──► largest face ──to_crop──► 512 x 512 crop, face about half its side ──► landmarks in the
    crop

The crop keeps the way back (``to_crop``), so drawn frames can be put into the photo at its own resolution.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np

from flowportrait.errors import BadInput
from flowportrait.media.face import FaceTracker
from flowportrait.media.occlusion import mouth_covered

_FACE_SHARE = 0.5
_MAX_FACE_SHARE = 0.66
_HEAD_ABOVE = 0.04
_MAX_FACES = 8
_SEARCH_SIDE = 1024
_MIN_FACE_PX = 24.0
_SMALL_FACE_PX = 64.0
_LARGEST_YAW = 60.0
_SIZES = (512, 768, 1024)
_ENLARGEMENT = 1.5
"""A drawn square is picked so large that pasting it back enlarges it by no more than this."""

_AGREEMENT = 0.05

Found = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Portrait:
    """One person ready to be drawn.

    image ``[H, W, 3]`` uint8 RGB, the whole photo; crop ``[S, S, 3]`` uint8, the face about half its side;
    landmarks ``[478, 3]`` float32 in crop pixels; blendshapes ``[52]``; to_crop ``[2, 3]`` affine map from
    photo pixels to crop pixels.
    """

    image: np.ndarray
    crop: np.ndarray
    landmarks: np.ndarray
    blendshapes: np.ndarray
    to_crop: np.ndarray

    @classmethod
    def from_image(
        cls, image: np.ndarray, size: int | None = 512, name: str = "the photo", face: int | None = None
    ) -> Portrait:
        """Portrait of a face of ``image`` ``[H, W, 3]`` uint8 RGB; ``name`` appears in messages.

        size: side of the crop, or None for what the photo's own resolution asks for (512, 768 or 1024).
        face: which one, counted from the left beginning at 1; the largest by default, with a warning if there are
        several.

        Raises:
            BadInput: no face or no such face is found, it is smaller than 24 px or turned away over 60 degrees.
        """
        landmarks, blendshapes = _chosen(find_faces(image), face, name)
        height, aside = _extent(landmarks), abs(yaw(landmarks))
        if height < _MIN_FACE_PX:
            raise BadInput(f"The face in {name} is only {height:.0f} px high: give a larger one.")
        if height < _SMALL_FACE_PX:
            warnings.warn(f"The face in {name} is only {height:.0f} px high and will be soft.", stacklevel=2)
        if aside > _LARGEST_YAW:
            raise BadInput(f"The face in {name} is turned {aside:.0f} degrees away: give a photo that shows both eyes.")
        if size is None:
            side = 1 / np.sqrt(abs(np.linalg.det(crop_transform(landmarks, image.shape[:2], 1)[:, :2])))
            size = next((s for s in _SIZES if s * _ENLARGEMENT >= side), _SIZES[-1])
        to_crop = crop_transform(landmarks, image.shape[:2], size)
        crop = sample_crop(image, to_crop, size)
        landmarks = apply_affine(to_crop, landmarks)
        with FaceTracker(still=True, max_faces=_MAX_FACES) as tracker:
            again = [face for face in tracker.detect(crop) if _same(face[0], landmarks)]
        if again:
            landmarks, blendshapes = again[0]
        if mouth_covered(crop, landmarks):
            warnings.warn(f"The mouth in {name} seems to be covered: lips will be drawn over it.", stacklevel=2)
        return cls(image, crop, landmarks.astype(np.float32), blendshapes, to_crop)


def _chosen(faces: list[Found], face: int | None, name: str) -> Found:
    if not faces:
        raise BadInput(f"No face found in {name}: give a photo with one clearly visible face.")
    if face is None:
        if len(faces) > 1:
            warnings.warn(
                f"{len(faces)} faces found in {name}: the largest one is used; --face N picks the N-th from the left.",
                stacklevel=3,
            )
        return faces[0]
    if not 1 <= face <= len(faces):
        raise BadInput(f"There is no face number {face} in {name}: give a number from 1 to {len(faces)}.")
    return sorted(faces, key=lambda found: float(found[0][:, 0].mean()))[face - 1]


def yaw(landmarks: np.ndarray) -> float:
    """How far a face with landmarks ``[478, 3]`` px is turned aside, in degrees: the slant of its eye line in depth."""
    across = landmarks[263] - landmarks[33]
    return float(np.degrees(np.arctan2(across[2], np.hypot(across[0], across[1]))))


def find_faces(image: np.ndarray) -> list[Found]:
    """Faces in ``image`` with landmarks in its pixels, largest first.

    The detector sees a 128 px thumbnail, so small faces are missed in the whole picture; where nothing is
    found, overlapping tiles of a half, a third and a fifth of the shorter side are searched. What tiles show
    must be seen again, in the same place, in two closer views: a coffee cup is a face once, but not thrice.
    """
    with FaceTracker(still=True, max_faces=_MAX_FACES) as tracker:
        for closer, windows in enumerate(_searches(image.shape[:2])):
            found: list[Found] = []
            for x, y, side in windows:
                for face in _detect_window(tracker, image, x, y, side):
                    if not any(_same(face[0], other[0]) for other in found):
                        found.append(face)
            if closer:
                found = [face for face in found if _confirmed(tracker, image, face[0])]
            if found:
                return sorted(found, key=lambda face: -_extent(face[0]))
    return []


def _confirmed(tracker: FaceTracker, image: np.ndarray, landmarks: np.ndarray) -> bool:
    extent, centre = _extent(landmarks), landmarks[:, :2].mean(0)
    for room in (1.6, 2.4):
        side = round(room * extent)
        x, y = np.round(centre - side / 2).astype(int)
        views = _detect_window(tracker, image, int(x), int(y), side)
        shifts = [np.abs(points - landmarks)[:, :2].mean() for points, _ in views]
        if not shifts or min(shifts) > _AGREEMENT * extent:
            return False
    return True


def _searches(shape: tuple[int, int]) -> Iterator[list[tuple[int, int, int]]]:
    height, width = shape
    yield [(0, 0, max(shape))]
    pad = max(shape) // 4
    yield [(-pad, -pad, max(shape) + 2 * pad)]
    for divisor in (1, 2, 3, 5):
        side = min(shape) // divisor
        if side >= 2 * _MIN_FACE_PX:
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


def crop_transform(landmarks: np.ndarray, shape: tuple[int, int], size: int) -> np.ndarray:
    """Affine ``[2, 3]`` from photo to a square of ``size`` px around the face of ``landmarks``.

    The square is kept inside the photo where that leaves the face at most two thirds of its side; a face
    that fills the photo is given room by repeating the photo's edge.
    """
    height, width = shape
    face = _extent(landmarks)
    side = face / _FACE_SHARE
    if side > min(shape):
        side = max(float(min(shape)), face / _MAX_FACE_SHARE)
    low, high = landmarks[:, :2].min(0), landmarks[:, :2].max(0)
    centre = (low + high) / 2 - np.array([0, _HEAD_ABOVE * side])
    corner = centre - side / 2
    for axis, length in enumerate((width, height)):
        if side <= length:
            corner[axis] = np.clip(corner[axis], 0, length - side)
        else:
            corner[axis] = (length - side) / 2 if side < 1.15 * length else corner[axis]
    scale = size / side
    # Pixel centres sit at half-integers of the edge coordinates that corner and side are measured in.
    offset = (0.5 - corner) * scale - 0.5
    return np.array([[scale, 0, offset[0]], [0, scale, offset[1]]])


def apply_affine(matrix: np.ndarray, landmarks: np.ndarray) -> np.ndarray:
    """Landmarks ``[..., 3]`` under an affine map of x and y; z follows its scale."""
    scale = float(np.sqrt(abs(np.linalg.det(matrix[:, :2]))))
    flat = landmarks[..., :2] @ matrix[:, :2].T + matrix[:, 2]
    return np.concatenate([flat, landmarks[..., 2:] * scale], -1).astype(np.float32)


def sample_crop(image: np.ndarray, matrix: np.ndarray, size: int, border: int = cv2.BORDER_REPLICATE) -> np.ndarray:
    """Square view of ``image`` under ``matrix``, area-averaged where it shrinks."""
    scale = float(np.sqrt(abs(np.linalg.det(matrix[:, :2]))))
    if scale < 0.75:
        # One exact area reduction over the needed window, then the sub-pixel remainder.
        small = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        ratio = np.array([small.shape[1] / image.shape[1], small.shape[0] / image.shape[0]])
        shrink = np.array([[ratio[0], 0, 0.5 * ratio[0] - 0.5], [0, ratio[1], 0.5 * ratio[1] - 0.5], [0, 0, 1]])
        matrix = (np.vstack([matrix, [0, 0, 1]]) @ np.linalg.inv(shrink))[:2]
        image = small
    flags = cv2.INTER_CUBIC if scale > 1 else cv2.INTER_LINEAR
    return cv2.warpAffine(image, matrix, (size, size), flags=flags, borderMode=border)


def _extent(landmarks: np.ndarray) -> float:
    return float(np.ptp(landmarks[:, :2], axis=0).max())


def _same(a: np.ndarray, b: np.ndarray) -> bool:
    gap = np.linalg.norm(a[:, :2].mean(0) - b[:, :2].mean(0))
    return bool(gap < 0.4 * max(_extent(a), _extent(b)))
