"""Eyes under moving lids: the eyeball is a layer of its own, seen through the lids' opening.

Lids are skin and belong to the mesh, but an open lid shows little but lashes: a lid that comes down is
painted with the skin around it and keeps its lash line. The eyeball stays in its place in the head, and
its iris slides with the gaze:

    eye'(x) = eye(p − gaze · exp(−(|p − iris − gaze| / 1.7 r)⁴)),     p = head-aligned x
"""

from __future__ import annotations

import cv2
import numpy as np

from flowportrait.codec.contours import EYES, fill, opening, smooth_chain

_SHADE = 0.45
_LID_SKIN = ((225, 224, 223, 222, 228, 229, 230, 231), (442, 443, 444, 445, 451, 450, 449, 448))
"""Skin between brow and lid fold, then below the eye, each in the order of the lid's landmarks."""

_LASHES = 0.75
_OPACITY = 0.88
_TOUCHING = 1.5


class Eye:
    """One eye (0: the person's right, 1: left) of a portrait crop ``[S, S, 3]`` with landmarks ``[478, 3]``
    px."""

    def __init__(self, crop: np.ndarray, landmarks: np.ndarray, side: int) -> None:
        self._upper, self._lower, self._iris = EYES[side]
        points = landmarks[:, :2].astype(np.float64)
        self._corners = points[[self._upper[0], self._upper[-1]]]
        self._width = float(np.linalg.norm(np.diff(self._corners, axis=0)))
        self._centre = points[self._iris]
        rim = points[self._iris + 1 : self._iris + 5]
        self._radius = float(np.linalg.norm(rim - self._centre, axis=1).mean())
        self._height = self._gap(points)
        self._photo_edge = points[self._upper]
        self.outline = opening(points[self._upper], points[self._lower])
        self._origin, self._ball = self._eyeball(crop)
        self._lid, self._lash = self._lid_colours(crop, points[list(_LID_SKIN[side])])

    def _gap(self, points: np.ndarray) -> float:
        return float(np.linalg.norm(points[self._upper[4]] - points[self._lower[4]]))

    def _eyeball(self, crop: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Crop around the eye with the eyeball continued under the lids, and its corner in the crop."""
        size = crop.shape[0]
        margin = 0.55 * self._width
        low = np.floor(self.outline.min(0) - margin).astype(int).clip(0, size - 2)
        high = np.ceil(self.outline.max(0) + margin).astype(int).clip(2, size)
        patch = crop[low[1] : high[1], low[0] : high[0]]
        inside = fill(patch.shape[:2], self.outline - low)
        unknown = (inside < 0.5).astype(np.uint8)
        ball = cv2.inpaint(np.ascontiguousarray(patch), unknown, 3, cv2.INPAINT_TELEA)
        soft = cv2.GaussianBlur(ball, (0, 0), max(0.02 * self._width, 0.3))
        # The hidden part is smooth; a thin rim of real skin keeps the lash line where it is.
        kept = fill(patch.shape[:2], self.outline - low, 0.012 * self._width)[..., None]
        return low.astype(np.float64), kept * ball + (1 - kept) * soft

    def _lid_colours(self, crop: np.ndarray, skin: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Lid colour along the eye ``[9, 3]`` and lash colour ``[3]``."""
        smooth = cv2.GaussianBlur(crop, (0, 0), max(0.05 * self._width, 0.5))
        index = np.round(skin).astype(int).clip(0, crop.shape[0] - 1)
        # The brow shades the skin above more than a lid; the skin below catches more light.
        samples = smooth[index[:, 1], index[:, 0]].astype(np.float32).reshape(2, 4, 3).mean(0)
        along = np.linspace(0, 1, 9)
        lid = np.stack([np.interp(along, np.linspace(0, 1, 4), samples[:, c]) for c in range(3)], -1)
        rim = np.round(self.outline[8:25]).astype(int).clip(0, crop.shape[0] - 1)
        dark = crop[rim[:, 1], rim[:, 0]].astype(np.float32)
        lash = dark[np.argsort(dark.sum(1))[: len(dark) // 3]].mean(0)
        return lid.astype(np.float32) * np.float32(0.96), np.minimum(lash, lid.mean(0) * 0.5)

    def _draw_lid(
        self, frame: np.ndarray, upper: np.ndarray, mapping: np.ndarray, shift: np.ndarray, closed: float
    ) -> None:
        """Paint the lid between where its edge is in the photo and where it is now, and its lashes."""
        rest = (self._photo_edge - shift) @ np.linalg.inv(mapping).T
        edge = smooth_chain(upper)
        fold = smooth_chain(rest)
        fold = fold + (fold - edge) * 0.1
        outline = np.concatenate([edge, fold[-2:0:-1]])
        size = frame.shape[0]
        low = np.floor(outline.min(0) - 4).astype(int).clip(0, size - 1)
        high = np.ceil(outline.max(0) + 5).astype(int).clip(1, size)
        region = frame[low[1] : high[1], low[0] : high[0]]
        soft = 0.055 * self._width
        mask = fill(region.shape[:2], outline - low, soft)
        along = np.linspace(edge[0, 0], edge[-1, 0], 9) - low[0]
        xs = np.arange(region.shape[1])
        order = 1 if along[-1] > along[0] else -1
        colour = np.stack([np.interp(xs, along[::order], self._lid[::order, c]) for c in range(3)], -1)
        strength = _OPACITY * min(closed / 0.35, 1.0)
        mixed = region + (mask * np.float32(strength))[..., None] * (colour[None].astype(np.float32) - region)
        thick = np.sin(np.linspace(0, np.pi, len(edge)))[:, None] ** 0.5 * np.array([0.0, 0.018 * self._width])
        lashes = np.concatenate([edge - thick, (edge + 0.6 * thick)[-2:0:-1]])
        dark = fill(region.shape[:2], lashes - low, 0.016 * self._width)[..., None]
        mixed += dark * np.float32(_LASHES * strength) * (self._lash - mixed)
        region[:] = np.round(mixed).clip(0, 255).astype(np.uint8)

    def draw(self, frame: np.ndarray, target: np.ndarray) -> None:
        """Draw the eye into ``frame`` ``[S, S, 3]`` uint8 in place for target landmarks ``[478, 3]`` px."""
        points = target[:, :2].astype(np.float64)
        outline = opening(points[self._upper], points[self._lower])
        # Similarity from the target's eye corners to the portrait's, as complex numbers.
        goal = points[[self._upper[0], self._upper[-1]]]
        turn = complex(*(self._corners[1] - self._corners[0])) / complex(*(goal[1] - goal[0]))
        mapping = np.array([[turn.real, -turn.imag], [turn.imag, turn.real]])
        shift = self._corners.mean(0) - mapping @ goal.mean(0)
        closed = 1 - min(self._gap(points) * abs(turn) / max(self._height, 1e-3), 1.0)
        if closed > 0.02:
            self._draw_lid(frame, points[self._upper], mapping, shift, closed)
        size = frame.shape[0]
        low = np.floor(outline.min(0) - 3).astype(int).clip(0, size - 1)
        high = np.ceil(outline.max(0) + 4).astype(int).clip(1, size)
        if (high - low).min() < 2:
            return
        gaze = mapping @ points[self._iris] + shift - self._centre
        ys, xs = np.mgrid[low[1] : high[1], low[0] : high[0]].astype(np.float32)
        px = mapping[0, 0] * xs + mapping[0, 1] * ys + shift[0]
        py = mapping[1, 0] * xs + mapping[1, 1] * ys + shift[1]
        reach = ((px - self._centre[0] - gaze[0]) ** 2 + (py - self._centre[1] - gaze[1]) ** 2) / (
            1.7 * self._radius
        ) ** 2
        fade = np.exp(-(reach**2))
        map_x = (px - gaze[0] * fade - self._origin[0]).astype(np.float32)
        map_y = (py - gaze[1] * fade - self._origin[1]).astype(np.float32)
        ball = cv2.remap(self._ball, map_x, map_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        mask = fill(ball.shape[:2], outline - low, 0.012 * self._width)[..., None]
        # Lids a fraction of a pixel apart touch.
        mask *= np.float32(min(self._gap(points) / _TOUCHING, 1.0))
        region = frame[low[1] : high[1], low[0] : high[0]]
        # A lid that comes down throws its shadow on the eyeball.
        mixed = region + mask * (ball * (1 - _SHADE * closed) - region)
        region[:] = np.round(mixed).clip(0, 255).astype(np.uint8)
