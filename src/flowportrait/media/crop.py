"""Put a drawn crop back into the photo it was cut from, at the photo's own resolution.

    photo'(x) = (1 - m(x)) photo(x) + m(x) frame(to_crop x)

where m is one in the crop's middle and falls smoothly to zero at its border.
"""

from __future__ import annotations

import cv2
import numpy as np

_FEATHER = 0.06


def paste_back(image: np.ndarray, frame: np.ndarray, to_crop: np.ndarray, mask: np.ndarray | None = None) -> np.ndarray:
    """Photo ``[H, W, 3]`` uint8 with ``frame`` ``[S, S, 3]`` uint8 laid over the square ``to_crop`` took it
    from.

    mask: ``[S, S]`` float in [0, 1], where the frame replaces the photo; by default all of the crop,
    feathered over 6 % of its side, except along sides where the crop reaches the photo's edge.
    """
    height, width = image.shape[:2]
    size = frame.shape[0]
    to_photo = cv2.invertAffineTransform(to_crop)
    corners = np.array([[-1, -1, 1], [size, -1, 1], [-1, size, 1], [size, size, 1]]) @ to_photo.T
    left, top = np.floor(corners.min(0)).astype(int).clip(0)
    right, bottom = np.minimum(np.ceil(corners.max(0)).astype(int) + 1, [width, height])
    if right <= left or bottom <= top:
        return image.copy()
    local = to_photo.copy()
    local[:, 2] -= (left, top)
    box = (int(right - left), int(bottom - top))
    enlarged = np.linalg.det(to_photo[:, :2]) > 1
    flags = cv2.INTER_CUBIC if enlarged else cv2.INTER_LINEAR
    drawn = cv2.warpAffine(frame, local, box, flags=flags, borderMode=cv2.BORDER_REPLICATE)
    if mask is None:
        mask = feather(size, _open_sides(corners, width, height))
    weight = cv2.warpAffine(
        mask.astype(np.float32), local, box, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
    )
    result = image.copy()
    under = np.ascontiguousarray(result[top:bottom, left:right])
    result[top:bottom, left:right] = cv2.blendLinear(drawn, under, weight, 1 - weight)
    return result


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
