"""Light and shape the footage is too coarse to teach: one portrait's palette, single teeth, shadows of the
lips.

The mouth model learns from mouths some forty pixels wide how bright each layer is where. Here its ratios
become colours of a given portrait (photo, painting, black-and-white), and its tooth bands become teeth.
"""

from __future__ import annotations

import cv2
import numpy as np

from flowportrait.codec.mouth_light import Light
from flowportrait.codec.mouth_model import MouthModel

_UPPER_TEETH = np.array([0.0, 8.5, 15.2, 22.2, 27.7, 32.2]) / 90
_LOWER_TEETH = np.array([0.0, 5.3, 11.1, 17.5, 23.2, 28.2]) / 90
"""Where teeth meet, from the middle outwards, projected on the front (mean widths in mm / 90 mm)."""

_GROOVE = 0.004
_UPPER_GROOVE, _LOWER_GROOVE = 0.16, 0.12
"""Width of the groove between teeth in eye distances, and how much darker it is."""

_ROUNDING = 0.010
"""How far a tooth's corners stand back behind its edge's middle."""

_UPPER_SHIFT, _LOWER_SHIFT = -0.002, 0.03
"""Added to the learned tooth lines: news presenters show more of their lower teeth than most people do."""

_GAIN = np.array([1.0, 1.3, 0.95], np.float32)
"""Brightness of cavity, upper and lower teeth against the footage, where upper teeth lie in studio shadow."""

_CAVITY_PEAK, _TONGUE_WIDTH = 0.5, 0.12
"""The cavity's brightest ratio to the skin, in the middle, and where the round tongue darkens sideways."""

_CAVITY_HUE, _TOOTH_HUE = 0.45, 0.4
_BASE = np.array([[1.28, 0.91, 0.8], [1.06, 1.0, 0.92], [1.06, 1.0, 0.92]], np.float32)
"""How much of the learned hue shows, and the hue of the rest: tongue and gums red, enamel nearly white."""

_NARROW, _NARROW_BELOW = 0.55, 0.035
"""Light lost between lips that are close together."""

_LIP_SHADE_WIDTH, _UPPER_SHADE = 0.02, 0.25
_LOWER_SHADE = np.array([0.2, 0.42, 0.5], np.float32)
"""Light lost behind the upper lip, and behind the lower one, where gums begin."""

_GREY_SATURATION = 0.10
"""Skin less colourful than this is a black-and-white picture's."""

_LUMA = np.array([0.299, 0.587, 0.114], np.float32)


def colourfulness(skin: np.ndarray) -> float:
    """Zero for the skin colour ``[3]`` of a black-and-white picture, one for that of a colour photo."""
    return min(float(np.ptp(skin) / skin.max()) / _GREY_SATURATION, 1.0)


class Palette:
    """Colours of one portrait's mouth, from its skin colour ``[3]`` and its light."""

    def __init__(self, skin: np.ndarray, light: Light) -> None:
        self._skin = skin.astype(np.float32)
        self._teeth = np.float32(light.teeth)
        self._gain = (_GAIN * np.array([1.0, light.teeth, light.teeth], np.float32))[:, None]
        self.colourful = colourfulness(skin)
        self._base = (1 + self.colourful * (_BASE * light.hue - 1)).astype(np.float32)
        self._lower_shade = _LOWER_SHADE.mean() + self.colourful * (_LOWER_SHADE - _LOWER_SHADE.mean())

    def colours(self, ratios: np.ndarray, place: np.ndarray) -> np.ndarray:
        """Layer colours ``[N, 9]`` from their ratios to the skin ``[N, 9]`` at places ``[N, 5]``."""
        across, above, below = place[:, 0], place[:, 3], place[:, 4]
        layers = ratios.reshape(-1, 3, 3) * self._gain
        peak = _CAVITY_PEAK * (0.55 + 0.45 * np.exp(-((across / _TONGUE_WIDTH) ** 2)))
        layers[:, 0] *= np.minimum(1, peak / layers[:, 0].mean(1))[:, None]
        layers = self._tinted(layers * self._skin)
        layers *= (1 - _NARROW * np.exp(-(((above + below) / _NARROW_BELOW) ** 2)))[:, None, None]
        layers[:, 1] *= (1 - _UPPER_SHADE * np.exp(-((above / _LIP_SHADE_WIDTH) ** 2)))[:, None]
        layers[:, 2] *= 1 - self._lower_shade * np.exp(-((below / _LIP_SHADE_WIDTH) ** 2))[:, None]
        return layers.reshape(-1, 9)

    def _tinted(self, layers: np.ndarray) -> np.ndarray:
        grey = (layers @ _LUMA)[..., None]
        # Enamel is white in light and takes the mouth's colour in shadow.
        hue = (1.25 - grey / (self._skin @ _LUMA)).clip(0, 1) * (1 - _TOOTH_HUE) + _TOOTH_HUE
        # The darker skin is beside its light, the less of its hue is the light's.
        hue = hue / self._teeth
        hue[:, 0] = _CAVITY_HUE
        return grey * self._base + self.colourful * hue * (layers - grey)


def compose(layers: np.ndarray, place: np.ndarray, model: MouthModel, pixel: float) -> np.ndarray:
    """Picture ``[h, w, 3]`` of teeth before the cavity, from layer colours ``[h, w, 9]`` at places ``(u, s,
    j)`` ``[h, w, 3]``; ``pixel`` is a pixel's size in eye distances."""
    across, skull, jaw = np.abs(place[..., 0]), place[..., 1], place[..., 2]
    bow = across * across
    soft = max(0.7 * pixel, 0.004)
    groove, corner = _teeth(across, _UPPER_TEETH)
    line = model.line[0] + _UPPER_SHIFT + model.curve[0] * bow - _ROUNDING * corner
    upper = _edge((line - skull) / soft)
    upper_light = upper * (1 - _UPPER_GROOVE * groove)
    groove, corner = _teeth(across, _LOWER_TEETH)
    line = model.line[1] + _LOWER_SHIFT + model.curve[1] * bow + _ROUNDING * corner
    lower = _edge((jaw - line) / soft) * (1 - upper)
    lower_light = lower * (1 - _LOWER_GROOVE * groove)
    colour = layers[..., :3] * (1 - upper - lower)[..., None]
    colour += layers[..., 3:6] * upper_light[..., None]
    colour += layers[..., 6:] * lower_light[..., None]
    return colour


def _teeth(across: np.ndarray, borders: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How much of a groove, and how far from a tooth's middle (one at its sides), each place is."""
    index = np.searchsorted(borders, across, side="right").clip(1, len(borders) - 1)
    left, right = borders[index - 1], borders[index]
    groove = np.exp(-((np.minimum(across - left, np.abs(right - across)) / _GROOVE) ** 2))
    within = (2 * (across - left) / (right - left) - 1).clip(-1, 1)
    return groove.astype(np.float32), (within**4).astype(np.float32)


def _edge(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x.clip(-30, 30)))


def enlarge(values: np.ndarray, stride: int, width: int, height: int) -> np.ndarray:
    """Samples ``[rows, columns, C]`` taken every ``stride`` px to all ``[height, width, C]`` pixels."""
    grid = np.stack(np.meshgrid(np.arange(width), np.arange(height)), -1).astype(np.float32) / stride
    parts = [np.ascontiguousarray(values[..., i : i + 3]) for i in range(0, values.shape[-1], 3)]
    return np.dstack([cv2.remap(part, grid, None, cv2.INTER_LINEAR) for part in parts])
