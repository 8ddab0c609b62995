"""The inside of the mouth, drawn between the lips of a finished face.

Teeth are attached to the skull (upper) or the jaw (lower) and never swim; their colours and the cavity's
come from ``mouth_model``, relative to the portrait's own skin. A photo that already shows the inside keeps
its own pixels there, carried by the skull, and the model continues them where the mouth opens further.
"""

from __future__ import annotations

import cv2
import numpy as np

from flowportrait.codec.contours import INNER_LOWER, INNER_UPPER, fill, opening
from flowportrait.codec.mesh import rigid_motion
from flowportrait.codec.mouth_frame import MouthFrame, Opening, skin_colour
from flowportrait.codec.mouth_model import MouthModel

_UPPER_TEETH = np.array([0.0, 8.5, 15.2, 22.2, 27.7, 32.2]) / 90
_LOWER_TEETH = np.array([0.0, 5.3, 11.1, 17.5, 23.2, 28.2]) / 90
"""Where teeth meet, from the middle outwards, projected on the front (mean widths in mm / 90 mm)."""

_GROOVE = 0.004
_UPPER_GROOVE, _LOWER_GROOVE = 0.16, 0.12
_ROUNDING = 0.010
_UPPER_LONGER = -0.002
_LOWER_SHORTER = 0.03
# Footage of news presenters shows more of the lower teeth than most people do.
_TOOTH_HUE, _CAVITY_HUE = 0.4, 0.45
# How much of the skin's hue shows, and the colour the rest has: enamel is nearly white, gums and tongue are
# red.
_BASE = np.array([[1.28, 0.9, 0.88], [1.06, 1.0, 0.92], [1.06, 1.0, 0.92]], np.float32)
_GREY_SATURATION = 0.10
_PHOTO_OPENING = 0.025
_STRIDE = 3
_TOUCHING = 2.0
_NARROW, _NARROW_BELOW = 0.55, 0.035
_BRIGHTNESS = np.array([1.0, 1.3, 0.95], np.float32)
_CAVITY_PEAK = 0.5
_UPPER_SHADE = 0.25
_LIP_SHADE = np.array([0.2, 0.42, 0.4], np.float32)
_SEAM = 0.4
_SHADOW, _SHADOW_BELOW = 0.35, 0.6
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)


class Mouth:
    """Mouth interior of one portrait crop ``[S, S, 3]`` uint8 with landmarks ``[478, 3]`` px.

    keep_own: show the crop's own interior where its mouth is open. skin: colour ``[3]`` the interior is
    relative to; measured in the crop by default.
    """

    def __init__(
        self, crop: np.ndarray, landmarks: np.ndarray, keep_own: bool = True, skin: np.ndarray | None = None
    ) -> None:
        self._frame = MouthFrame(landmarks)
        self._model = MouthModel.shipped()
        self._skin = (skin_colour(crop, landmarks) if skin is None else skin).astype(np.float32)
        saturation = float(np.ptp(self._skin) / self._skin.max())
        self._colourful = min(saturation / _GREY_SATURATION, 1.0)
        self._lip_shade = _LIP_SHADE.mean() + self._colourful * (_LIP_SHADE - _LIP_SHADE.mean())
        self._landmarks = landmarks.astype(np.float64)
        points = self._landmarks[:, :2]
        outline = opening(points[INNER_UPPER], points[INNER_LOWER])
        self._own = self._frame.opening(self._landmarks)
        self._photo = crop if keep_own and self._own.height > _PHOTO_OPENING else None
        self._photo_mask = fill(crop.shape[:2], outline, 0.8)

    def draw(self, frame: np.ndarray, target: np.ndarray) -> None:
        """Draw into ``frame`` ``[S, S, 3]`` uint8 in place for target landmarks ``[478, 3]`` px."""
        shape = self._frame.opening(target)
        size = frame.shape[0]
        low = np.floor(shape.outline.min(0) - 2).astype(int).clip(0, size - 1)
        high = np.ceil(shape.outline.max(0) + 3).astype(int).clip(1, size)
        if (high - low).min() < 3:
            return
        region = frame[low[1] : high[1], low[0] : high[0]]
        if self._photo is not None:
            self._seam(region, shape, low)
        inside = self._interior(shape, low, high)
        if self._photo is not None:
            inside = self._own_pixels(inside, shape, target, low, high)
        mask = fill(region.shape[:2], shape.outline - low, 0.6)[..., None]
        # Lips a fraction of a pixel apart touch.
        mask *= np.float32(min(shape.height * float(np.hypot(*shape.axes[0])) / _TOUCHING, 1.0))
        region[:] = np.round(region + mask * (inside - region)).clip(0, 255).astype(np.uint8)

    def _seam(self, region: np.ndarray, shape: Opening, low: np.ndarray) -> None:
        """Lips photographed apart lack the dark line that closed lips meet in."""
        closed = 1 - min(shape.height / self._own.height / _SHADOW_BELOW, 1.0)
        if closed > 0:
            half = len(shape.outline) // 2
            ring = np.concatenate([shape.outline, shape.outline[:1]])
            upper, lower = ring[: half + 1], ring[half:][::-1]
            thick = np.sin(np.linspace(0, np.pi, half + 1))[:, None] ** 0.5 * np.array([0.0, 0.8])
            line = np.concatenate([upper - thick, (lower + thick)[-2:0:-1]]) - low
            dark = fill(region.shape[:2], line, 0.8)[..., None] * np.float32(_SEAM * closed)
            region[:] = np.round(region * (1 - dark)).astype(np.uint8)

    def _interior(self, shape: Opening, low: np.ndarray, high: np.ndarray) -> np.ndarray:
        """Colours ``[h, w, 3]`` of the box from ``low`` to ``high``, valid inside the opening."""
        width, height = high - low
        xs = np.arange(low[0], high[0] + _STRIDE, _STRIDE, dtype=np.float64)
        ys = np.arange(low[1], high[1] + _STRIDE, _STRIDE, dtype=np.float64)
        coarse = shape.coordinates(np.stack(np.meshgrid(xs, ys), -1))
        # Beyond the lips' edges the layers go on as at the edge.
        coarse[..., 3:] = coarse[..., 3:].clip(0)
        layers = self._model.layers(coarse.reshape(-1, 5), (shape.height, shape.width))
        layers = self._tinted(layers, coarse[..., 0].reshape(-1)).reshape(len(ys), len(xs), 9)
        # Little light gets in where the lips are close together, and the lower lip shades the teeth behind
        # it.
        above, below = coarse[..., 3], coarse[..., 4]
        layers *= (1 - _NARROW * np.exp(-(((above + below) / _NARROW_BELOW) ** 2)))[..., None]
        layers[..., 3:6] *= (1 - _UPPER_SHADE * np.exp(-((above / 0.02) ** 2)))[..., None]
        layers[..., 6:] *= 1 - self._lip_shade * np.exp(-((below / 0.02) ** 2))[..., None]
        grid = np.stack(np.meshgrid(np.arange(width), np.arange(height)), -1).astype(np.float32) / _STRIDE
        layers = np.dstack(
            [
                cv2.remap(np.ascontiguousarray(layers[..., i : i + 3]), grid, None, cv2.INTER_LINEAR)
                for i in (0, 3, 6)
            ]
        )
        place = cv2.remap(np.ascontiguousarray(coarse[..., :3]), grid, None, cv2.INTER_LINEAR)
        return self._paint(layers, place, float(np.hypot(*shape.axes[0])))

    def _tinted(self, ratios: np.ndarray, across: np.ndarray) -> np.ndarray:
        """Layer colours ``[N, 9]`` in the portrait's palette from ratios to the skin."""
        ratios = ratios.reshape(-1, 3, 3) * _BRIGHTNESS[:, None]
        # Tongue and cavity never outshine the teeth, and the tongue is round.
        peak = _CAVITY_PEAK * (0.55 + 0.45 * np.exp(-((across / 0.12) ** 2)))
        ratios[:, 0] *= np.minimum(1, peak / ratios[:, 0].mean(1))[:, None]
        colour = ratios * self._skin
        grey = (colour @ _LUMA)[..., None]
        # Enamel is white in light and takes the mouth's colour in shadow.
        shadow = (1.25 - grey / (self._skin @ _LUMA)).clip(0, 1) * (1 - _TOOTH_HUE) + _TOOTH_HUE
        shadow[:, 0] = _CAVITY_HUE
        hue = self._colourful * shadow
        base = grey * (1 + self._colourful * (_BASE - 1))
        return (base + hue * (colour - grey)).reshape(-1, 9)

    def _paint(self, layers: np.ndarray, place: np.ndarray, scale: float) -> np.ndarray:
        across, skull, jaw = np.abs(place[..., 0]), place[..., 1], place[..., 2]
        line, curve = self._model.line, self._model.curve
        soft = max(0.7 / scale, 0.004)
        groove, corner = _teeth(across, _UPPER_TEETH)
        bow = across * across
        on_upper = _edge((line[0] + _UPPER_LONGER + curve[0] * bow - _ROUNDING * corner - skull) / soft)
        on_upper_lit = on_upper * (1 - _UPPER_GROOVE * groove)
        groove, corner = _teeth(across, _LOWER_TEETH)
        on_lower = _edge((jaw - line[1] - _LOWER_SHORTER - curve[1] * bow - _ROUNDING * corner) / soft)
        on_lower *= 1 - on_upper
        colour = layers[..., :3] * (1 - on_upper - on_lower)[..., None]
        colour += layers[..., 3:6] * on_upper_lit[..., None]
        colour += layers[..., 6:] * (on_lower * (1 - _LOWER_GROOVE * groove))[..., None]
        return colour

    def _own_pixels(
        self, inside: np.ndarray, shape: Opening, target: np.ndarray, low: np.ndarray, high: np.ndarray
    ) -> np.ndarray:
        """The photo's own interior, carried by the skull, over the model's."""
        matrix, shift = rigid_motion(self._landmarks, target)
        flat = matrix[:2, :2]
        depth = self._landmarks[[13, 14], 2].mean()
        offset = shift[:2] + matrix[:2, 2] * depth - low
        box = (int(high[0] - low[0]), int(high[1] - low[1]))
        forward = np.column_stack([flat, offset])
        photo = cv2.warpAffine(
            self._photo, forward, box, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
        )
        known = cv2.warpAffine(self._photo_mask, forward, box, flags=cv2.INTER_LINEAR)[..., None]
        # Lips that close put the teeth behind them into shadow.
        light = min(shape.height / (_SHADOW_BELOW * self._own.height), 1.0)
        return inside + known * (photo * np.float32(_SHADOW + (1 - _SHADOW) * light) - inside)


def _teeth(across: np.ndarray, borders: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Groove between teeth (one at their borders) and rounding of their corners (one at borders)."""
    index = np.searchsorted(borders, across, side="right").clip(1, len(borders) - 1)
    left, right = borders[index - 1], borders[index]
    groove = np.exp(-((np.minimum(across - left, np.abs(right - across)) / _GROOVE) ** 2))
    within = (2 * (across - left) / (right - left) - 1).clip(-1, 1)
    return groove.astype(np.float32), (within**4).astype(np.float32)


def _edge(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x.clip(-30, 30)))
