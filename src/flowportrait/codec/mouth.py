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
from flowportrait.codec.mouth_light import light_of
from flowportrait.codec.mouth_look import Palette, compose, enlarge
from flowportrait.codec.mouth_model import MouthModel

PHOTO_OPENING = 0.025
"""Opening, in eye distances, from which on a photo is taken to show the mouth's inside."""

_TOUCHING = 2.0
"""Opening in pixels below which lips fade into touching."""

_SEAM = 0.4
_SHADOW, _SHADOW_BELOW = 0.35, 0.6
"""Darkness of the line closed lips meet in; light left on photographed teeth behind them; both set in below
this share of the photo's own opening."""

_REDDENING = np.array([-0.2, 0.06, 0.18], np.float32)
"""Light between nearly closed lips has passed through them: how much faster than its mean each channel fades."""

_STRIDE = 3
"""Pixels between samples of the smooth layers."""


class Mouth:
    """Mouth interior of one portrait crop ``[S, S, 3]`` uint8 with landmarks ``[478, 3]`` px.

    keep_own: show the crop's own interior where its mouth is open. palette: the colours inside; from the crop by
    default.
    """

    def __init__(
        self, crop: np.ndarray, landmarks: np.ndarray, keep_own: bool = True, palette: Palette | None = None
    ) -> None:
        self._frame = MouthFrame(landmarks)
        self._model = MouthModel.shipped()
        skin = skin_colour(crop, landmarks)
        self._palette = palette or Palette(skin, light_of(crop, landmarks, skin))
        self._landmarks = landmarks.astype(np.float64)
        points = self._landmarks[:, :2]
        outline = opening(points[INNER_UPPER], points[INNER_LOWER])
        self._own = self._frame.opening(self._landmarks)
        self._photo = crop if keep_own and self._own.height > PHOTO_OPENING else None
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
        places = coarse.reshape(-1, 5)
        layers = self._palette.colours(self._model.layers(places, (shape.height, shape.width)), places)
        layers = enlarge(layers.reshape(len(ys), len(xs), 9), _STRIDE, width, height)
        place = enlarge(coarse[..., :3], _STRIDE, width, height)
        return compose(layers, place, self._model, 1 / float(np.hypot(*shape.axes[0])))

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
        photo = cv2.warpAffine(self._photo, forward, box, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        known = cv2.warpAffine(self._photo_mask, forward, box, flags=cv2.INTER_LINEAR)[..., None]
        # Lips that close put the teeth behind them into shadow.
        light = _SHADOW + (1 - _SHADOW) * min(shape.height / (_SHADOW_BELOW * self._own.height), 1.0)
        shade = light ** (1 + self._palette.colourful * _REDDENING)
        return inside + known * (photo * shade - inside)
