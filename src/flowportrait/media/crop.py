"""The square around a face: cut out of a photo, and put back into it when it was drawn.

    crop(x) = photo(to_crop⁻¹ x)            photo'(x) = (1 − m(x)) photo(x) + m(x) frame(to_crop x)

where m is one in the crop's middle and falls smoothly to zero at its border. Or, where the crop alone is wanted and
reaches past the photo, the largest square of it that the photo fills.
"""

from __future__ import annotations

import cv2
import numpy as np

from flowportrait.media.face import extent

_FACE_SHARE = 0.5
_MAX_FACE_SHARE = 0.66
_HEAD_ABOVE = 0.04
_FEATHER = 0.06
_WHOLE = 1e-3
"""A border this near to a pixel's own, in px, is that pixel's: rounding of the affine map."""


def crop_transform(landmarks: np.ndarray, shape: tuple[int, int], size: int) -> np.ndarray:
    """Affine ``[2, 3]`` from photo to a square of ``size`` px around the face of ``landmarks``.

    The square is kept inside the photo where that leaves the face at most two thirds of its side; a face
    that fills the photo is given room by repeating the photo's edge.
    """
    height, width = shape
    face = extent(landmarks)
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


def resize_transform(before: tuple[int, ...], after: tuple[int, ...]) -> np.ndarray:
    """Affine ``[2, 3]`` between the pixels of a picture of shape ``before`` and of the same scaled to ``after``: their
    outer edges meet, not the centres of their corner pixels."""
    down, across = after[0] / before[0], after[1] / before[1]
    return np.array([[across, 0, 0.5 * across - 0.5], [0, down, 0.5 * down - 0.5]])


def sample_crop(image: np.ndarray, matrix: np.ndarray, size: int, border: int = cv2.BORDER_REPLICATE) -> np.ndarray:
    """Square view of ``image`` under ``matrix``, area-averaged where it shrinks."""
    scale = float(np.sqrt(abs(np.linalg.det(matrix[:, :2]))))
    if scale < 0.75:
        # One exact area reduction over the needed window, then the sub-pixel remainder.
        small = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        shrink = np.vstack([resize_transform(image.shape, small.shape), [0, 0, 1]])
        matrix = (np.vstack([matrix, [0, 0, 1]]) @ np.linalg.inv(shrink))[:2]
        image = small
    flags = cv2.INTER_CUBIC if scale > 1 else cv2.INTER_LINEAR
    return cv2.warpAffine(image, matrix, (size, size), flags=flags, borderMode=border)


class Paste:
    """The way back of frames into one photo ``[H, W, 3]`` uint8, prepared once for all of them.

    to_crop: the affine map ``[2, 3]`` that took the square of side ``size`` from the photo. mask: ``[S, S]`` float in
    [0, 1], where a frame replaces the photo; by default all of the crop, feathered over 6 % of its side, except along
    sides where the crop reaches the photo's edge.
    """

    def __init__(self, image: np.ndarray, to_crop: np.ndarray, size: int, mask: np.ndarray | None = None) -> None:
        self._image = image
        height, width = image.shape[:2]
        to_photo = cv2.invertAffineTransform(to_crop)
        corners = np.array([[-1, -1, 1], [size, -1, 1], [-1, size, 1], [size, size, 1]]) @ to_photo.T
        left, top = np.floor(corners.min(0)).astype(int).clip(0)
        right, bottom = np.minimum(np.ceil(corners.max(0)).astype(int) + 1, [width, height])
        self._box = None if right <= left or bottom <= top else np.s_[top:bottom, left:right]
        if self._box is None:
            return
        self._local = to_photo.copy()
        self._local[:, 2] -= (left, top)
        self._shape = (int(right - left), int(bottom - top))
        self._flags = cv2.INTER_CUBIC if np.linalg.det(to_photo[:, :2]) > 1 else cv2.INTER_LINEAR
        if mask is None:
            mask = feather(size, _open_sides(corners, width, height))
        self._weight = cv2.warpAffine(
            mask.astype(np.float32), self._local, self._shape, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
        )
        self._rest = 1 - self._weight
        self._under = np.ascontiguousarray(image[self._box])

    def __call__(self, frame: np.ndarray) -> np.ndarray:
        """A copy of the photo with ``frame`` ``[S, S, 3]`` uint8 laid over the square."""
        result = self._image.copy()
        if self._box is not None:
            drawn = cv2.warpAffine(frame, self._local, self._shape, flags=self._flags, borderMode=cv2.BORDER_REPLICATE)
            result[self._box] = cv2.blendLinear(drawn, self._under, self._weight, self._rest)
        return result


def paste_back(image: np.ndarray, frame: np.ndarray, to_crop: np.ndarray, mask: np.ndarray | None = None) -> np.ndarray:
    """Photo ``[H, W, 3]`` uint8 with ``frame`` ``[S, S, 3]`` uint8 laid over the square ``to_crop`` took it
    from; see ``Paste``."""
    return Paste(image, to_crop, frame.shape[0], mask)(frame)


def photo_square(to_crop: np.ndarray, shape: tuple[int, ...], landmarks: np.ndarray, size: int) -> tuple[int, int, int]:
    """Left, top and side, in px of a crop of side ``size``, of its largest square that the photo of ``shape`` fills.

    The square holds the whole face (``landmarks`` ``[478, ≥ 2]`` in crop px), even where the photo does not: then what
    repeats the photo's edge stays in view. ``(0, 0, size)`` where the photo fills the crop.
    """
    height, width = shape[:2]
    corners = np.array([[-0.5, -0.5, 1], [width - 0.5, height - 0.5, 1]]) @ to_crop.T + 0.5
    low = np.ceil(corners[0].clip(0, size) - _WHOLE)
    high = np.floor(corners[1].clip(0, size) + _WHOLE)
    face_low, face_high = landmarks[:, :2].min(0), landmarks[:, :2].max(0)
    side = min(max((high - low).min(), np.ceil((face_high - face_low).max())), size)
    room = np.maximum(high - side, low)
    corner = ((face_low + face_high - side) / 2).clip(low, room).clip(0, size - side)
    return int(corner[0]), int(corner[1]), int(side)


def feather(size: int, open_sides: tuple[bool, bool, bool, bool] = (True, True, True, True)) -> np.ndarray:
    """Weight ``[size, size]`` float32, zero along the open sides (left, top, right, bottom), one inside."""
    distance = np.arange(size) / (_FEATHER * size)
    ramp = distance.clip(0, 1)
    ramp = ramp * ramp * (3 - 2 * ramp)
    flat = np.ones(size)
    left, top, right, bottom = open_sides
    across = np.minimum(ramp if left else flat, ramp[::-1] if right else flat)
    down = np.minimum(ramp if top else flat, ramp[::-1] if bottom else flat)
    return (down[:, None] * across[None]).astype(np.float32)


def _open_sides(corners: np.ndarray, width: int, height: int) -> tuple[bool, bool, bool, bool]:
    """Sides of the crop with photo beyond them."""
    low, high = corners.min(0), corners.max(0)
    return bool(low[0] > 1), bool(low[1] > 1), bool(high[0] < width - 2), bool(high[1] < height - 2)
