"""Geometry of the mouth: coordinates inside an open mouth, and the lower face as a small head-stabilised picture."""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np

from flowportrait.media.crop import canonical_transform
from flowportrait.rendering.face_regions import (
    INNER_LOWER,
    INNER_UPPER,
    OUTER_LOWER,
    OUTER_UPPER,
    opening_outline,
    outline_mask,
)
from flowportrait.rendering.mesh import rigid_motion

# --- Coordinates inside the mouth ------------------------------------------------------------------------------------
#
# Teeth and tongue do not swim in these coordinates, as they are attached to the skull or to the jaw:
#
#     u   across, from the middle          s   down, from where closed lips meet (skull: upper teeth rest here)
#                                          j = s − jaw   (jaw: lower teeth rest here)
#     a   below the upper lip's edge       b   above the lower lip's edge
#
# All lengths are in distances between the outer eye corners (about 90 mm), so one model fits every size.

_CHIN = [152, 148, 377, 175, 199, 176, 400]
_TEETH_BEHIND_LIPS = 0.09
_LIP_SHARE = 0.35
"""Share of the opening by which the upper lip rises; the jaw carries the rest."""


class MouthOpening(NamedTuple):
    """An open mouth in one picture; lengths are in eye distances unless given in px.

    Attributes:
        outline: ``[M, 2]`` px.
        middle: origin of the coordinates ``[2]`` px, fixed to the skull.
        axes: rows across and down, in px per unit, ``[2, 2]``.
        jaw: drop of the chin.
        height: height of the opening.
        width: width of the opening.
        upper: edge of the upper lip in (u, s), ``[11, 2]``.
        lower: edge of the lower lip in (u, s), ``[11, 2]``.
        skull: the motion of the skull, as ``rigid_motion`` returns it.
    """

    outline: np.ndarray
    middle: np.ndarray
    axes: np.ndarray
    jaw: float
    height: float
    width: float
    upper: np.ndarray
    lower: np.ndarray
    skull: tuple[np.ndarray, np.ndarray]

    def coordinates(self, pixels: np.ndarray) -> np.ndarray:
        """Return ``(u, s, j, a, b)`` ``[..., 5]`` float32 at ``pixels`` ``[..., 2]`` px."""
        scale = float(np.hypot(*self.axes[0]))
        local = (pixels - self.middle) @ (self.axes.T / scale**2)
        u, s = local[..., 0], local[..., 1]
        top = np.interp(u, self.upper[:, 0], self.upper[:, 1])
        bottom = np.interp(u, self.lower[:, 0], self.lower[:, 1])
        return np.stack([u, s, s - self.jaw, s - top, bottom - s], -1).astype(np.float32)


class MouthFrame:
    """Skull and jaw of one person, from landmarks ``[478, 3]`` px of one picture; the mouth may be open in it."""

    def __init__(self, landmarks: np.ndarray) -> None:
        self._landmarks = landmarks.astype(np.float64)
        scale = _eye_distance(self._landmarks)
        upper, lower = self._landmarks[13], self._landmarks[14]
        gap = max(float(lower[1] - upper[1]), 0.0)
        # Where the lips would meet: the jaw carries most of an opening.
        self._lip_line = upper + _LIP_SHARE * (lower - upper) + np.array([0, 0, _TEETH_BEHIND_LIPS * scale])
        self._jaw = (1 - _LIP_SHARE) * gap / scale
        self._scale = scale

    def opening(self, target: np.ndarray, skull: tuple[np.ndarray, np.ndarray] | None = None) -> MouthOpening:
        """Return the opening for target landmarks ``[478, 3]`` px.

        ``skull`` is ``rigid_motion`` to the target, where it is known already.
        """
        matrix, shift = skull or rigid_motion(self._landmarks, target)
        middle = (matrix @ self._lip_line + shift)[:2]
        chin = (target[_CHIN] - (self._landmarks[_CHIN] @ matrix.T + shift))[:, :2].mean(0)
        scale = self._scale * float(np.cbrt(np.linalg.det(matrix)))
        across = (target[263] - target[33])[:2]
        across = across / np.hypot(*across)
        down = np.array([-across[1], across[0]])
        axes = np.stack([across, down]) * scale
        points = target[:, :2]
        upper, lower = (self._chain(points[chain], middle, axes, scale) for chain in (INNER_UPPER, INNER_LOWER))
        return MouthOpening(
            outline=opening_outline(points[INNER_UPPER], points[INNER_LOWER]),
            middle=middle,
            axes=axes,
            jaw=float(chin @ down) / scale + self._jaw,
            height=float((lower - upper)[:, 1].max().clip(0)),
            width=float(upper[-1, 0] - upper[0, 0]),
            upper=upper,
            lower=lower,
            skull=(matrix, shift),
        )

    @staticmethod
    def _chain(points: np.ndarray, middle: np.ndarray, axes: np.ndarray, scale: float) -> np.ndarray:
        local = (points - middle) @ (axes.T / scale**2)
        local[:, 0] = np.maximum.accumulate(local[:, 0])
        return local


def _eye_distance(landmarks: np.ndarray) -> float:
    return float(np.linalg.norm(landmarks[33] - landmarks[263]))


def skin_colour(image: np.ndarray, landmarks: np.ndarray) -> np.ndarray:
    """Return the median colour ``[3]`` float64 of the skin around the mouth.

    Args:
        image: ``[H, W, 3]`` uint8.
        landmarks: its landmarks ``[478, 3]`` px.
    """
    height, width = image.shape[:2]
    around = landmarks[[205, 425, 207, 427, 187, 411, 2, 164, 167, 393, 36, 266, 212, 432, 200, 199, 18], :2]
    index = np.round(around).astype(int).clip(1, [width - 2, height - 2])
    patches = [image[y - 1 : y + 2, x - 1 : x + 2].reshape(-1, 3).mean(0) for x, y in index]
    return np.maximum(np.median(patches, axis=0), 1.0)


# --- The mouth window ------------------------------------------------------------------------------------------------
#
# The lower face as a small head-stabilised picture, and where the parts of the mouth are in it:
#
#     window = 72 x 96 px, 1.15 outer-eye-corner distances across, from the base of the nose to the chin
#     (u, s) = place [x, y, 1],   j = s − jaw        coordinates inside the mouth, linear in the window
#
# So what a network reads and writes has the same size for every face and every picture.

WINDOW_HEIGHT, WINDOW_WIDTH = 72, 96
_SPAN = 1.15
"""Width of the window in outer-eye-corner distances."""

_CENTRE = np.array([0.0, 0.88])
"""Middle of the window in canonical coordinates."""

_MIDDLE = np.array([WINDOW_WIDTH - 1, WINDOW_HEIGHT - 1]) / 2


class MouthState(NamedTuple):
    """The state of the lips and the jaw in a mouth window.

    Attributes:
        inner: share of each pixel inside the opening, ``[72, 96]`` float32.
        outer: share of each pixel inside the outer lips, ``[72, 96]`` float32.
        place: linear map from window pixels to (u, s), ``[2, 3]``.
        jaw: drop of the jaw in eye distances.
        height: height of the opening in eye distances.
    """

    inner: np.ndarray
    outer: np.ndarray
    place: np.ndarray
    jaw: float
    height: float


def mouth_window_transform(landmarks: np.ndarray) -> np.ndarray:
    """Return the similarity ``[2, 3]`` from image pixels to window pixels, for landmarks ``[478, 3]`` px."""
    scale = WINDOW_WIDTH / _SPAN
    matrix = canonical_transform(landmarks) * scale
    matrix[:, 2] += _MIDDLE - _CENTRE * scale
    return matrix


def cut_mouth_window(image: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Return the window ``[72, 96, 3]`` uint8 of an image ``[H, W, 3]`` uint8, for a matrix of
    ``mouth_window_transform``."""
    pixel = 1 / float(np.sqrt(abs(np.linalg.det(matrix[:, :2]))))
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    back = cv2.invertAffineTransform(matrix)
    if pixel > 1.2:
        # Sampled twice as finely and averaged, so that fine detail does not flicker.
        fine = back.copy()
        fine[:, :2] /= 2
        fine[:, 2] -= back[:, :2] @ np.array([0.25, 0.25])
        large = cv2.warpAffine(
            image, fine, (2 * WINDOW_WIDTH, 2 * WINDOW_HEIGHT), flags=flags, borderMode=cv2.BORDER_REPLICATE
        )
        return cv2.resize(large, (WINDOW_WIDTH, WINDOW_HEIGHT), interpolation=cv2.INTER_AREA)
    return cv2.warpAffine(image, back, (WINDOW_WIDTH, WINDOW_HEIGHT), flags=flags, borderMode=cv2.BORDER_REPLICATE)


def mouth_state(
    frame: MouthFrame, landmarks: np.ndarray, matrix: np.ndarray, opening: MouthOpening | None = None
) -> MouthState:
    """Return the state of a mouth in its window.

    Args:
        frame: skull and jaw of the person.
        landmarks: ``[478, 3]`` px.
        matrix: similarity ``[2, 3]`` of ``mouth_window_transform``.
        opening: that of ``frame`` for these landmarks, where it is known already.
    """
    shape = opening or frame.opening(landmarks)
    points = landmarks[:, :2] @ matrix[:, :2].T + matrix[:, 2]
    back = cv2.invertAffineTransform(matrix)
    scale = float(np.hypot(*shape.axes[0]))
    place = (shape.axes / scale**2) @ (back - np.column_stack([np.zeros((2, 2)), shape.middle]))
    outline = shape.outline @ matrix[:, :2].T + matrix[:, 2]
    return MouthState(
        inner=outline_mask((WINDOW_HEIGHT, WINDOW_WIDTH), outline),
        outer=outline_mask((WINDOW_HEIGHT, WINDOW_WIDTH), opening_outline(points[OUTER_UPPER], points[OUTER_LOWER])),
        place=place.astype(np.float32),
        jaw=shape.jaw,
        height=shape.height,
    )


def unshuffle_pixels(planes: np.ndarray) -> np.ndarray:
    """Return ``F.pixel_unshuffle`` by two of ``[C, H, W]``."""
    count, height, width = planes.shape
    parts = planes.reshape(count, height // 2, 2, width // 2, 2).transpose(0, 2, 4, 1, 3)
    return np.ascontiguousarray(parts).reshape(4 * count, height // 2, width // 2)


def shuffle_pixels(parts: np.ndarray) -> np.ndarray:
    """Return ``F.pixel_shuffle`` by two of ``[4 C, h, w]``."""
    result = np.empty((len(parts) // 4, 2 * parts.shape[1], 2 * parts.shape[2]), parts.dtype)
    for index, part in enumerate(parts):
        result[index // 4, index // 2 % 2 :: 2, index % 2 :: 2] = part
    return result
