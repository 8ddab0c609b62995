"""Cut the square around a face out of a photo and paste it back, and cut head-stabilised views of the face.

    crop(x) = photo(to_crop⁻¹ x)            photo'(x) = (1 − m(x)) photo(x) + m(x) frame(to_crop x)

The mask m is one in the crop's middle and falls smoothly to zero at its border. Where the crop alone is wanted and
reaches past the photo, ``largest_photo_square`` gives the largest square of it that the photo fills.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from flowportrait.media.faces import face_extent

# --- The crop of a photo ----------------------------------------------------------------

_FACE_SHARE = 0.5
_MAX_FACE_SHARE = 0.66
_HEAD_ABOVE = 0.04
_FEATHER = 0.06
_WHOLE = 1e-3
"""A border that is this near to a pixel's own, in px, counts as that pixel's: the affine map is rounded."""
_MOST_SHIFT = 0.05
"""Pixels of the photo by which an enlarged frame may be displaced."""
_MOST_PADDING = 64
"""Largest padding in px with which an enlarged frame is brought to whole pixels of the photo."""


def crop_transform(landmarks: np.ndarray, shape: tuple[int, int], size: int) -> np.ndarray:
    """Return the affine map ``[2, 3]`` from a photo to a square of ``size`` px around the face of ``landmarks``.

    The square is kept inside the photo where that leaves the face at most two thirds of its side; a face that fills the
    photo gets a margin that repeats the photo's edge.

    Args:
        landmarks: ``[478, ≥ 2]`` px of the photo.
        shape: height and width of the photo.
        size: side of the crop in px.
    """
    height, width = shape
    face = face_extent(landmarks)
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
    """Map landmarks ``[..., 3]`` by an affine map of x and y; z is scaled with them."""
    scale = float(np.sqrt(abs(np.linalg.det(matrix[:, :2]))))
    flat = landmarks[..., :2] @ matrix[:, :2].T + matrix[:, 2]
    return np.concatenate([flat, landmarks[..., 2:] * scale], -1).astype(np.float32)


def resize_transform(before: tuple[int, ...], after: tuple[int, ...]) -> np.ndarray:
    """Return the affine map ``[2, 3]`` from pixels of a picture to those of a resized copy.

    The outer edges of the pictures coincide, not the centres of their corner pixels.

    Args:
        before: shape of the picture.
        after: shape of the copy.
    """
    down, across = after[0] / before[0], after[1] / before[1]
    return np.array([[across, 0, 0.5 * across - 0.5], [0, down, 0.5 * down - 0.5]])


def sample_crop(image: np.ndarray, matrix: np.ndarray, size: int, border: int = cv2.BORDER_REPLICATE) -> np.ndarray:
    """Return the square view ``[size, size, ...]`` of ``image`` under ``matrix``, area-averaged where it shrinks."""
    scale = float(np.sqrt(abs(np.linalg.det(matrix[:, :2]))))
    if scale < 0.75:
        # One exact area reduction of the picture, then an affine map for the sub-pixel remainder.
        small = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        shrink = np.vstack([resize_transform(image.shape, small.shape), [0, 0, 1]])
        matrix = (np.vstack([matrix, [0, 0, 1]]) @ np.linalg.inv(shrink))[:2]
        image = small
    flags = cv2.INTER_CUBIC if scale > 1 else cv2.INTER_LINEAR
    return cv2.warpAffine(image, matrix, (size, size), flags=flags, borderMode=border)


class FramePaster:
    """A function that pastes frames back into one photo ``[H, W, 3]`` uint8, prepared once for all of them.

    Args:
        image: the photo.
        to_crop: the affine map ``[2, 3]`` that took the square of side ``size`` from the photo.
        size: side of the frames in px.
        mask: ``[S, S]`` float in [0, 1], where a frame replaces the photo; by default all of the crop, feathered over 6
            % of its side, except along sides where the crop reaches the photo's edge.
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
        self._to_patch = to_photo.copy()
        self._to_patch[:, 2] -= (left, top)
        self._shape = (int(right - left), int(bottom - top))
        self._flags = cv2.INTER_CUBIC if np.linalg.det(to_photo[:, :2]) > 1 else cv2.INTER_LINEAR
        self._enlargement = _Enlargement.of(self._to_patch, size, self._shape)
        if mask is None:
            mask = feather_mask(size, _open_sides(corners, width, height))
        self._frame_weight = cv2.warpAffine(
            mask.astype(np.float32),
            self._to_patch,
            self._shape,
            flags=cv2.INTER_LINEAR,
            borderMode=cv2.BORDER_REPLICATE,
        )
        self._photo_weight = 1 - self._frame_weight
        self._photo_patch = np.ascontiguousarray(image[self._box])
        self._strips = _blended_strips(self._frame_weight)

    def __call__(self, frame: np.ndarray) -> np.ndarray:
        """Return a copy of the photo with ``frame`` ``[S, S, 3]`` uint8 pasted over the square."""
        result = self._image.copy()
        if self._box is not None:
            patch = result[self._box]
            # Written in place: the frame replaces the photo everywhere but in the strips along the mask's border.
            if self._enlargement is not None:
                patch[:] = self._enlargement(frame)
            else:
                cv2.warpAffine(
                    frame, self._to_patch, self._shape, dst=patch, flags=self._flags, borderMode=cv2.BORDER_REPLICATE
                )
            for strip in self._strips:
                patch[strip] = cv2.blendLinear(
                    patch[strip], self._photo_patch[strip], self._frame_weight[strip], self._photo_weight[strip]
                )
        return result


class _Enlargement:
    """A function that enlarges a square frame like ``cv2.warpAffine``, but with ``cv2.resize``: ten times as fast.

        frame ─► padded so that it begins and ends where a pixel of the photo does ─► resized ─► the patch cut out

    The two differ by 1/20 of a pixel at most; warpAffine itself rounds to 1/32 of a frame's pixel.
    """

    def __init__(self, spans: list[tuple[int, int, int, int]], shape: tuple[int, int]) -> None:
        self._spans, self._shape = spans, shape

    @classmethod
    def of(cls, matrix: np.ndarray, size: int, shape: tuple[int, int]) -> _Enlargement | None:
        """Return the enlargement of an affine map ``[2, 3]`` from a frame of side ``size`` to a patch.

        Args:
            matrix: the map.
            size: side of the frame in px.
            shape: width and height of the patch in px.

        Returns:
            None where the map makes frames smaller or turns them, or where no padding fits.
        """
        scale = matrix[0, 0]
        if scale < 1 or abs(matrix[0, 1]) + abs(matrix[1, 0]) + abs(matrix[1, 1] - scale) > _WHOLE / size:
            return None
        spans = [_aligned_span(float(scale), float(offset), size) for offset in matrix[:, 2]]
        for (begin, end, start, stop), length, offset in zip(spans, shape, matrix[:, 2], strict=True):
            edges = (np.array([begin, end]) - 0.5) * scale + offset + 0.5
            if start > 0 or stop < length or np.abs(edges - [start, stop]).max() > _MOST_SHIFT:
                return None
        return cls(spans, shape)

    def __call__(self, frame: np.ndarray) -> np.ndarray:
        """Return the patch ``[h, w, 3]`` of a frame ``[S, S, 3]`` uint8."""
        size, (width, height) = len(frame), self._shape
        (left, right, x, x_stop), (top, bottom, y, y_stop) = self._spans
        if min(left, top) < 0 or max(right, bottom) > size:
            frame = cv2.copyMakeBorder(frame, -top, bottom - size, -left, right - size, cv2.BORDER_REPLICATE)
        large = cv2.resize(frame, (x_stop - x, y_stop - y), interpolation=cv2.INTER_CUBIC)
        return large[-y : height - y, -x : width - x]


def _aligned_span(scale: float, offset: float, size: int) -> tuple[int, int, int, int]:
    """Return where a frame's axis, with padding, begins and ends on whole pixels of a larger picture, or nearly so.

    Args:
        scale: pixels of the picture per pixel of the frame.
        offset: place in the picture of the frame's first pixel.
        size: pixels of the frame.

    Returns:
        Begin (at most 0) and end (at least ``size``) on the frame, and the same places in the picture.
    """
    result: list[tuple[int, int]] = []
    for places in (-np.arange(_MOST_PADDING + 1), size + np.arange(_MOST_PADDING + 1)):
        edges = (places - 0.5) * scale + offset + 0.5
        # Of places that are as near to a whole pixel, the one with the least padding.
        chosen = int((np.abs(edges - edges.round()) + 1e-4 * np.arange(len(places))).argmin())
        result.append((int(places[chosen]), round(float(edges[chosen]))))
    (begin, first), (end, last) = result
    return begin, end, first, last


def _blended_strips(weight: np.ndarray) -> list[tuple[slice, slice]]:
    """Return up to four rectangles that hold every pixel of a mask ``[H, W]`` whose weight is not one.

    They lie around the largest rectangle that grows from the middle of the mask over pixels of weight one; a mask that
    is not one in its middle is returned whole.
    """
    height, width = weight.shape
    whole = weight == 1
    rows, columns = whole[:, width // 2], whole[height // 2]
    if not rows[height // 2]:
        return [np.s_[0:height, 0:width]]
    top, bottom = _run_around(rows, height // 2)
    left, right = _run_around(columns, width // 2)
    # The corners of a rounded mask are not one: shrink until all of the rectangle is.
    while top < bottom and left < right and not whole[top:bottom, left:right].all():
        top, bottom, left, right = top + 1, bottom - 1, left + 1, right - 1
    if top >= bottom or left >= right:
        return [np.s_[0:height, 0:width]]
    strips = [
        np.s_[0:top, 0:width], np.s_[bottom:height, 0:width], np.s_[top:bottom, 0:left], np.s_[top:bottom, right:width]
    ]  # fmt: skip
    return [(down, across) for down, across in strips if down.start < down.stop and across.start < across.stop]


def _run_around(values: np.ndarray, middle: int) -> tuple[int, int]:
    """Return start and stop of the run of true values that holds index ``middle``."""
    before, after = np.flatnonzero(~values[:middle]), np.flatnonzero(~values[middle:])
    return (int(before[-1]) + 1 if len(before) else 0), (middle + int(after[0]) if len(after) else len(values))


def paste_back(image: np.ndarray, frame: np.ndarray, to_crop: np.ndarray, mask: np.ndarray | None = None) -> np.ndarray:
    """Return a photo ``[H, W, 3]`` uint8 with ``frame`` ``[S, S, 3]`` uint8 pasted over the square of ``to_crop``.

    For the arguments see ``FramePaster``.
    """
    return FramePaster(image, to_crop, frame.shape[0], mask)(frame)


def largest_photo_square(
    to_crop: np.ndarray, shape: tuple[int, ...], landmarks: np.ndarray, size: int
) -> tuple[int, int, int]:
    """Return left, top and side of the largest square of a crop that the photo fills, in px of the crop.

    The square holds the whole face, even where the photo does not: then what repeats the photo's edge stays in view. It
    is ``(0, 0, size)`` where the photo fills the crop.

    Args:
        to_crop: the affine map ``[2, 3]`` from photo to crop.
        shape: of the photo.
        landmarks: ``[478, ≥ 2]`` in px of the crop.
        size: side of the crop.
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


def feather_mask(size: int, open_sides: tuple[bool, bool, bool, bool] = (True, True, True, True)) -> np.ndarray:
    """Return a weight ``[size, size]`` float32 that falls from one inside to zero at the open sides.

    Args:
        open_sides: whether the left, top, right and bottom sides are open.
    """
    distance = np.arange(size) / (_FEATHER * size)
    ramp = distance.clip(0, 1)
    ramp = ramp * ramp * (3 - 2 * ramp)
    flat = np.ones(size)
    left, top, right, bottom = open_sides
    across = np.minimum(ramp if left else flat, ramp[::-1] if right else flat)
    down = np.minimum(ramp if top else flat, ramp[::-1] if bottom else flat)
    return (down[:, None] * across[None]).astype(np.float32)


def _open_sides(corners: np.ndarray, width: int, height: int) -> tuple[bool, bool, bool, bool]:
    """Return for each side of the crop (left, top, right, bottom) whether the photo goes on beyond it."""
    low, high = corners.min(0), corners.max(0)
    return bool(low[0] > 1), bool(low[1] > 1), bool(high[0] < width - 2), bool(high[1] < height - 2)


# --- Head-stabilised views --------------------------------------------------------------
#
# A similarity transform takes rigid landmarks to a canonical frame, which has the outer eye corners one unit apart on a
# horizontal line around the origin, y down. Only points that hardly move with speech (eye corners, nose bridge, nose
# base) take part, so what moves inside a stabilised patch is the mouth and not the head.

STABILISING_LANDMARKS = np.array([33, 133, 362, 263, 168, 6, 197, 2])
"""Indices of landmarks that move with the skull alone.

Outer and inner eye corners, nose bridge (three points), nose base.
"""

_CANONICAL = np.array(
    [[-0.5, 0], [-0.17, 0.02], [0.17, 0.02], [0.5, 0], [0, -0.06], [0, 0.1], [0, 0.24], [0, 0.56]], np.float32
)

MOUTH_PATCH = (48, 64)
"""Height and width in pixels of the mouth patch, the input of the evaluation expert."""

_PATCH_CENTRE, _PATCH_WIDTH = (0.0, 0.84), 1.0


def canonical_transform(landmarks: np.ndarray) -> np.ndarray:
    """Return the least-squares similarity ``[2, 3]`` from image pixels to the canonical frame.

    Args:
        landmarks: ``[478, 3]`` px.
    """
    source = landmarks[STABILISING_LANDMARKS, :2].astype(np.float64)
    centre, target_centre = source.mean(0), _CANONICAL.mean(0)
    a, b = source - centre, _CANONICAL - target_centre
    scale = 1.0 / (a**2).sum()
    cos = (a * b).sum() * scale
    sin = (a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]).sum() * scale
    rotation = np.array([[cos, -sin], [sin, cos]])
    return np.hstack([rotation, (target_centre - rotation @ centre)[:, None]])


@dataclass(frozen=True)
class CanonicalView:
    """A square window on the canonical frame: ``size`` px, ``scale`` px a unit, its corner at ``(left, top)`` units."""

    left: float
    top: float
    size: int
    scale: float

    def pixels(self, places: np.ndarray) -> np.ndarray:
        """Return pixel coordinates ``[..., 2]`` of canonical ``places`` ``[..., 2]``."""
        return (np.asarray(places) - (self.left, self.top)) * self.scale - 0.5

    def matrix(self, landmarks: np.ndarray) -> np.ndarray:
        """Return the affine map ``[2, 3]`` from pixels of an image to those of the view.

        Args:
            landmarks: of the image's face, ``[478, ≥ 2]`` px.
        """
        result = canonical_transform(landmarks) * self.scale
        result[:, 2] -= np.array([self.left, self.top]) * self.scale + 0.5
        return result

    def cut(self, image: np.ndarray, landmarks: np.ndarray) -> np.ndarray:
        """Return the view ``[size, size, 3]`` uint8 of ``image`` ``[H, W, 3]``; its edge is repeated beyond it."""
        matrix = self.matrix(landmarks)
        corners = np.array([[0, 0, 1], [self.size, 0, 1], [0, self.size, 1], [self.size, self.size, 1]])
        window, (left, top) = window_around(image, corners @ cv2.invertAffineTransform(matrix).T)
        matrix[:, 2] += matrix[:, :2] @ (left, top)
        return sample_crop(window, matrix, self.size)


def mouth_patch(frame: np.ndarray, landmarks: np.ndarray) -> np.ndarray:
    """Return the grey mouth patch ``[48, 64]`` uint8, one canonical unit wide, of a frame ``[H, W, 3]`` RGB."""
    height, width = MOUTH_PATCH
    pixels = width / _PATCH_WIDTH
    matrix = canonical_transform(landmarks) * pixels
    matrix[:, 2] += np.array([width, height]) / 2 - np.array(_PATCH_CENTRE) * pixels
    to_image = cv2.invertAffineTransform(matrix)
    window, (left, top) = window_around(
        frame, np.array([[0, 0, 1], [width, 0, 1], [0, height, 1], [width, height, 1]]) @ to_image.T
    )
    matrix[:, 2] += matrix[:, :2] @ (left, top)
    grey = cv2.cvtColor(window, cv2.COLOR_RGB2GRAY)
    return cv2.warpAffine(grey, matrix, (width, height), flags=cv2.INTER_AREA, borderMode=cv2.BORDER_REPLICATE)


def window_around(frame: np.ndarray, places: np.ndarray, room: float = 2.0) -> tuple[np.ndarray, tuple[int, int]]:
    """Return the part of a frame ``[H, W, 3]`` around some points, and its left and top.

    Of a large picture only the part that is used needs to be read.

    Args:
        frame: the picture.
        places: points ``[N, 2]`` in px.
        room: margin around them in px; at least one pixel is returned.
    """
    height, width = frame.shape[:2]
    low, high = np.floor(places.min(0) - room).astype(int), np.ceil(places.max(0) + room).astype(int)
    left, top = min(max(int(low[0]), 0), width - 1), min(max(int(low[1]), 0), height - 1)
    return frame[top : max(int(high[1]) + 1, top + 1), left : max(int(high[0]) + 1, left + 1)], (left, top)
