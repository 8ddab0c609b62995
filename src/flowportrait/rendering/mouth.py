"""The inside of the mouth, drawn between the lips of a finished face.

    colour / skin  =  cavity  ◁ lower teeth, j > line + curve u²  ◁ upper teeth, s < line + curve u²

The picture has three smooth layers with sharp lines between them (◁: covered by), in the coordinates (u, s, j, a, b) of
``mouth_geometry``. ``MouthModel``, a small network, gives the colours of the layers relative to the skin;
``MouthLight`` is how bright the teeth of one portrait are; ``MouthPalette`` and ``compose_teeth`` turn both into
colours and single teeth; ``Mouth`` draws them. Teeth are attached to the skull (upper) or the jaw (lower), so they
never swim. A photo that already shows the inside of the mouth keeps its own pixels there, its lower teeth moved with
the jaw, and the model continues them where the mouth opens further.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from safetensors.numpy import load, save_file

from flowportrait.files import atomic_write, shipped_weights
from flowportrait.media.colour import LUMA_601
from flowportrait.rendering.face_regions import (
    EYES,
    INNER_LOWER,
    INNER_UPPER,
    blend_over,
    box_around,
    opening_outline,
    outline_mask,
)
from flowportrait.rendering.mouth_geometry import MouthFrame, MouthOpening, skin_colour

# --- The learned look ------------------------------------------------------------------------------------------------

FEATURE_COUNT = 12
HIDDEN_UNITS = 40
LAYER_COUNT = 4
"""Inputs, hidden width and number of linear layers of the network."""


def mouth_features(place: Any, shape: Any) -> list[Any]:
    """Return the 12 network inputs ``[N]``, in NumPy or torch.

    Args:
        place: coordinates ``[N, 5]``.
        shape: height and width of the opening ``[N, 2]``.
    """
    u, s, j, a, b = (place[:, i] for i in range(5))
    h, w = shape[:, 0], shape[:, 1]
    share, spread = a / (a + b + 0.02), abs(u) / (w + 0.1)
    columns = [u, abs(u), u * u * 4, s, j, a, b, 0.3 * share, h, w, 0.3 * spread, h * a * 5]
    return [8.0 * column for column in columns]


class MouthModel:
    """The network of the three layers' colours, and the lines at which teeth end.

    Args:
        layers: weight and bias of each linear layer.
        line: position of the tooth lines at the middle, upper and lower, ``[2]``.
        curve: their curvature, ``[2]``.
    """

    def __init__(self, layers: Sequence[tuple[np.ndarray, np.ndarray]], line: np.ndarray, curve: np.ndarray) -> None:
        self._layers = [(w.astype(np.float32), b.astype(np.float32)) for w, b in layers]
        self.line, self.curve = line.astype(np.float32), curve.astype(np.float32)

    def layers(self, place: np.ndarray, shape: tuple[float, float]) -> np.ndarray:
        """Return the colours of cavity, upper and lower teeth relative to the skin, ``[N, 9]`` float32.

        Args:
            place: coordinates ``[N, 5]``.
            shape: height and width of the opening.
        """
        x = np.stack(mouth_features(place, np.broadcast_to(np.array(shape, np.float32), (len(place), 2))), -1)
        for weight, bias in self._layers[:-1]:
            x = np.maximum(x @ weight + bias, 0)
        weight, bias = self._layers[-1]
        return np.exp(x @ weight + bias)

    def save(self, path: Path) -> None:
        """Write the model atomically as float16 safetensors."""
        tensors = {"line": self.line, "curve": self.curve}
        for index, (weight, bias) in enumerate(self._layers):
            tensors |= {f"weight_{index}": weight, f"bias_{index}": bias}
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as partial:
            save_file({name: np.ascontiguousarray(value, np.float16) for name, value in tensors.items()}, str(partial))

    @classmethod
    @lru_cache(maxsize=1)
    def shipped(cls) -> MouthModel:
        """Return the model that comes with the package."""
        data = load(shipped_weights("mouth/interior.safetensors").read_bytes())
        layers = [(data[f"weight_{i}"], data[f"bias_{i}"]) for i in range(LAYER_COUNT)]
        return cls(layers, data["line"], data["curve"])


# --- Light of one portrait -------------------------------------------------------------------------------------------
#
# How bright the teeth are relative to the skin. The mouth model knows this ratio for the skin it was trained on, but
# enamel is white whatever the skin: across speakers the brightness of teeth hardly follows that of the skin (as its
# power 0.2).
#
#     from a photo   (w / skin)^0.8,   w = √(white of the eyes / 0.9 · brightest of the picture / 1.62), at least one
#     from a video   luma of the visible teeth / 1.16
#
# The three numbers are medians over speakers, relative to the skin; brightness is luma. In a painting under old varnish
# white itself is warm, so the mouth takes a third of the hue (in logarithms) of the white of the eyes.

_EYE_WHITE, _BRIGHTEST, _TEETH = 0.9, 1.62, 1.16
"""Median luma of eye white, of the brightest pixels and of teeth, relative to the skin."""

_POWER = 0.8
_MOST = 1.7
_LEAST = 0.75
"""Bounds of the factor on teeth. Visible teeth may lie in the shadow of the lips; drawn ones get a shadow anyway."""

_HUE, _MOST_HUE = 0.3, 1.2
"""Share of the hue of the eye white that is used, as lashes and lids colour it too, and its bound."""

_OPEN = 0.06
"""Smallest opening, in eye distances, at which a frame shows teeth."""

_FEW = 3
"""Least number of pixels, or of frames, of a measurement."""


class MouthLight(NamedTuple):
    """The light in a mouth.

    Attributes:
        teeth: factor on the brightness of the model's teeth.
        hue: hue of white ``[3]``, with luma one.
    """

    teeth: float
    hue: np.ndarray


def eye_white_colour(picture: np.ndarray, landmarks: np.ndarray) -> np.ndarray | None:
    """Return the colour ``[3]`` of the white of the eyes, at least one in each channel; None if the eyes are shut."""
    points, whites = landmarks[:, :2], []
    for upper, lower, iris in EYES:
        inside = outline_mask(picture.shape[:2], opening_outline(points[upper], points[lower]))
        radius = float(np.linalg.norm(points[iris + 1 : iris + 5] - points[iris], axis=1).mean())
        ys, xs = np.nonzero(inside > 0.8)
        outside_iris = np.hypot(xs - points[iris, 0], ys - points[iris, 1]) > 1.1 * radius
        if outside_iris.sum() > _FEW:
            whites.append(np.percentile(picture[ys[outside_iris], xs[outside_iris]], 75, axis=0))
    return np.mean(whites, axis=0) + 1 if whites else None


def teeth_luma(picture: np.ndarray, landmarks: np.ndarray) -> float | None:
    """Return the luma of the teeth in a picture, or None if the mouth is not open enough to show them."""
    points = landmarks[:, :2]
    gap = np.linalg.norm(points[14] - points[13]) / np.linalg.norm(points[33] - points[263])
    if gap <= _OPEN:
        return None
    inside = outline_mask(picture.shape[:2], opening_outline(points[INNER_UPPER], points[INNER_LOWER])) > 0.9
    if inside.sum() <= _FEW:
        return None
    return float(np.percentile(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)[inside], 90))


def estimate_light(picture: np.ndarray, landmarks: np.ndarray, skin: np.ndarray) -> MouthLight:
    """Return the light of a picture ``[H, W, 3]`` uint8 with landmarks ``[478, 3]`` px and skin colour ``[3]``."""
    white = eye_white_colour(picture, landmarks)
    if white is None:
        return MouthLight(1.0, np.ones(3))
    brightest = np.percentile(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY), 99)
    light = np.sqrt((white @ LUMA_601) / _EYE_WHITE * brightest / _BRIGHTEST)
    hue = np.clip((white / (white @ LUMA_601)) ** _HUE, 1 / _MOST_HUE, _MOST_HUE)
    return MouthLight(float(np.clip((light / (skin @ LUMA_601)) ** _POWER, 1.0, _MOST)), hue / (hue @ LUMA_601))


def estimate_teeth_factor(frames: Sequence[np.ndarray], landmarks: np.ndarray, skin: np.ndarray) -> float | None:
    """Return the factor on the model's teeth that fits the frames of a video with landmarks ``[T, 478, 3]`` px.

    None if too few frames show the inside of the mouth.
    """
    lumas = [teeth_luma(frame, points) for frame, points in zip(frames, landmarks, strict=True)]
    found = [luma for luma in lumas if luma is not None]
    if len(found) < _FEW:
        return None
    return float(np.clip(np.median(found) / (skin @ LUMA_601) / _TEETH, _LEAST, _MOST))


# --- Colours and single teeth ----------------------------------------------------------------------------------------
#
# The model learned the brightness of each layer from mouths some forty pixels wide. Here its ratios become colours of a
# given portrait (photo, painting, black-and-white), and its tooth bands become teeth; both add detail of shape and
# shadow that the footage is too coarse to teach.

_UPPER_TEETH = np.array([0.0, 8.5, 15.2, 22.2, 27.7, 32.2]) / 90
_LOWER_TEETH = np.array([0.0, 5.3, 11.1, 17.5, 23.2, 28.2]) / 90
"""Borders between teeth, from the middle outwards, projected on the front (mean widths in mm / 90 mm)."""

_GROOVE = 0.004
_UPPER_GROOVE, _LOWER_GROOVE = 0.16, 0.12
"""Width of the groove between teeth in eye distances, and how much darker it is."""

_ROUNDING = 0.010
"""How far the corners of a tooth stand back from the middle of its edge."""

_UPPER_SHIFT, _LOWER_SHIFT = -0.002, 0.03
"""Added to the learned tooth lines: news presenters show more of their lower teeth than most people do."""

_GAIN = np.array([1.0, 1.3, 0.95], np.float32)
"""Brightness of cavity, upper and lower teeth relative to the footage, in which upper teeth lie in studio shadow."""

_CAVITY_PEAK, _TONGUE_WIDTH = 0.5, 0.12
"""Largest ratio of the cavity to the skin, in the middle, and the width over which the round tongue darkens
sideways."""

_CAVITY_HUE, _TOOTH_HUE = 0.45, 0.4
_BASE = np.array([[1.28, 0.91, 0.8], [1.06, 1.0, 0.92], [1.06, 1.0, 0.92]], np.float32)
"""Shares of the learned hue, and the hues of the rest: tongue and gums red, enamel nearly white."""

_NARROW, _NARROW_BELOW = 0.55, 0.035
"""Share of light lost between lips that are close together, and the opening that counts as close."""

_LIP_SHADE_WIDTH, _UPPER_SHADE = 0.02, 0.25
_LOWER_SHADE = np.array([0.2, 0.42, 0.5], np.float32)
"""Width of the shade behind a lip, and light lost behind the upper lip and behind the lower one, where gums begin."""

_GREY_SATURATION = 0.10
"""Saturation of the skin below which a picture counts as partly, and at zero as fully, black-and-white."""

_LUMA = LUMA_601.astype(np.float32)


def colourfulness(skin: np.ndarray) -> float:
    """Return how colourful a picture with skin colour ``[3]`` is: zero for black-and-white, one for a colour photo."""
    return min(float(np.ptp(skin) / skin.max()) / _GREY_SATURATION, 1.0)


class MouthPalette:
    """The colours of one portrait's mouth, from its skin colour ``[3]`` and its light."""

    def __init__(self, skin: np.ndarray, light: MouthLight) -> None:
        self._skin = skin.astype(np.float32)
        self._teeth = np.float32(light.teeth)
        self._gain = (_GAIN * np.array([1.0, light.teeth, light.teeth], np.float32))[:, None]
        self.colourful = colourfulness(skin)
        self._base = (1 + self.colourful * (_BASE * light.hue - 1)).astype(np.float32)
        self._lower_shade = _LOWER_SHADE.mean() + self.colourful * (_LOWER_SHADE - _LOWER_SHADE.mean())

    def colours(self, ratios: np.ndarray, place: np.ndarray) -> np.ndarray:
        """Return layer colours ``[N, 9]`` for ratios to the skin ``[N, 9]`` at coordinates ``[N, 5]``."""
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
        # The darker the skin is relative to the light, the less of its hue comes from the light.
        hue = hue / self._teeth
        hue[:, 0] = _CAVITY_HUE
        return grey * self._base + self.colourful * hue * (layers - grey)


def compose_teeth(samples: np.ndarray, model: MouthModel, pixel: float) -> np.ndarray:
    """Return the picture ``[h, w, 3]`` of teeth in front of the cavity.

    Args:
        samples: layer colours and the coordinates (u, s, j) ``[3, h, w, 4]``; see ``interpolate_layers``.
        model: gives the tooth lines.
        pixel: size of a pixel in eye distances.
    """
    (*cavity, across), (*upper_layer, skull), (*lower_layer, jaw) = (cv2.split(part) for part in samples)
    teeth = _tooth_tables(model)
    index = (np.abs(across, out=across) * np.float32(_TABLE_LENGTH / _TABLE_REACH)).astype(np.intp)
    upper_line, upper_light, lower_line, lower_light = teeth.take(index, 1, mode="clip")
    scale = np.float32(1 / max(0.7 * pixel, 0.004))
    upper = _sigmoid((upper_line - skull) * scale)
    cover = 1 - upper
    lower = _sigmoid((jaw - lower_line) * scale) * cover
    upper_light *= upper
    lower_light *= lower
    cover -= lower
    planes = zip(cavity, upper_layer, lower_layer, strict=True)
    return cv2.merge([c * cover + u * upper_light + d * lower_light for c, u, d in planes])


_TABLE_LENGTH, _TABLE_REACH = 8192, 0.8
"""Entries of the tables of teeth, and the distance from the middle up to which they are made."""


@lru_cache(maxsize=4)
def _tooth_tables(model: MouthModel) -> np.ndarray:
    """Return the tooth line and the light on the tooth, of the upper and then the lower teeth, ``[4, N]`` float32.

    Both depend only on the distance from the middle, so they are computed once.
    """
    across = ((np.arange(_TABLE_LENGTH) + 0.5) * (_TABLE_REACH / _TABLE_LENGTH)).astype(np.float32)
    curved, rows = across * across, []
    for jaw, (borders, shift, depth) in enumerate(
        ((_UPPER_TEETH, _UPPER_SHIFT, _UPPER_GROOVE), (_LOWER_TEETH, _LOWER_SHIFT, _LOWER_GROOVE))
    ):
        groove, corner = _tooth_shape(across, borders)
        rounding = _ROUNDING * corner if jaw else -_ROUNDING * corner
        rows += [model.line[jaw] + shift + model.curve[jaw] * curved + rounding, 1 - depth * groove]
    return np.stack(rows).astype(np.float32)


def _tooth_shape(across: np.ndarray, borders: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the depth of the groove between teeth (0–1), and the distance from the middle of a tooth (one at its
    sides)."""
    index = np.searchsorted(borders, across, side="right").clip(1, len(borders) - 1)
    left, right = borders[index - 1], borders[index]
    groove = np.exp(-((np.minimum(across - left, np.abs(right - across)) / _GROOVE) ** 2))
    within = (2 * (across - left) / (right - left) - 1).clip(-1, 1)
    return groove.astype(np.float32), (within**4).astype(np.float32)


def _sigmoid(x: np.ndarray) -> np.ndarray:
    # Below -80 the result is zero all the same, and nothing overflows.
    result = cv2.exp(np.negative(np.maximum(x, -80, out=x), out=x))
    result += 1
    return np.reciprocal(result, out=result)


def interpolate_layers(layers: np.ndarray, place: np.ndarray, stride: int, width: int, height: int) -> np.ndarray:
    """Return samples taken every ``stride`` px at all pixels, ``[3, height, width, 4]``.

    The parts are cavity, upper and lower teeth. Four channels at a time are the fastest, so each part holds the colours
    of its layer and one of the coordinates.

    Args:
        layers: layer colours ``[rows, columns, 9]``.
        place: coordinates (u, s, j) ``[rows, columns, 3]``.
        stride: pixels between samples.
        width: columns of the result.
        height: rows of the result.
    """
    rows, columns = layers.shape[:2]
    packed = np.empty((3, rows, columns, 4), np.float32)
    packed[..., :3] = layers.reshape(rows, columns, 3, 3).transpose(2, 0, 1, 3)
    packed[..., 3] = place.transpose(2, 0, 1)
    matrix = np.array([[1 / stride, 0, 0], [0, 1 / stride, 0]])
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return np.stack(
        [cv2.warpAffine(part, matrix, (width, height), flags=flags, borderMode=cv2.BORDER_REPLICATE) for part in packed]
    )


# --- Drawing ---------------------------------------------------------------------------------------------------------

PHOTO_OPENING = 0.025
"""Smallest opening, in eye distances, at which a photo shows the inside of the mouth."""

_TOUCHING = 2.0
"""Opening in pixels below which lips fade into touching."""

_INVISIBLE = 0.5 / 255
"""Opacity below which the inside of the mouth changes no pixel."""

_SEAM = 0.4
_SHADOW, _SHADOW_BELOW = 0.35, 0.6
"""Darkness of the line at which closed lips meet; light left on photographed teeth behind them; share of the photo's
own opening below which both set in."""

_ROWS_OVERLAP = 0.01
"""Half of the overlap of the photo's rows of teeth, in eye distances."""

_REDDENING = np.array([-0.2, 0.06, 0.18], np.float32)
"""How much faster than the mean each channel fades between nearly closed lips, as that light has passed through
them."""

_STRIDE = 4
"""Pixels between samples of the smooth layers."""


class Mouth:
    """Draws the inside of one portrait's mouth.

    Args:
        crop: the portrait crop ``[S, S, 3]`` uint8.
        landmarks: its landmarks ``[478, 3]`` px.
        keep_photo_interior: show the crop's own mouth interior where its mouth is open.
        palette: the colours inside; by default measured in the crop.
    """

    def __init__(
        self,
        crop: np.ndarray,
        landmarks: np.ndarray,
        keep_photo_interior: bool = True,
        palette: MouthPalette | None = None,
    ) -> None:
        self._frame = MouthFrame(landmarks)
        self._model = MouthModel.shipped()
        skin = skin_colour(crop, landmarks)
        self._palette = palette or MouthPalette(skin, estimate_light(crop, landmarks, skin))
        self._landmarks = landmarks.astype(np.float64)
        points = self._landmarks[:, :2]
        outline = opening_outline(points[INNER_UPPER], points[INNER_LOWER])
        self._photo_shape = self._frame.opening(self._landmarks)
        self._photo = crop if keep_photo_interior and self._photo_shape.height > PHOTO_OPENING else None
        self._photo_masks = self._photo_rows(outline_mask(crop.shape[:2], outline, 0.8))

    def draw(self, frame: np.ndarray, target: np.ndarray, opening: MouthOpening | None = None) -> None:
        """Draw into ``frame`` ``[S, S, 3]`` uint8 in place, for target landmarks ``[478, 3]`` px.

        ``opening`` is that of this portrait's mouth for ``target``, where it is known already.
        """
        shape = opening or self._frame.opening(target)
        left, top, right, bottom = box_around(shape.outline, frame.shape[1::-1], 2, 3)
        if min(right - left, bottom - top) < 3:
            return
        region, low, high = frame[top:bottom, left:right], np.array([left, top]), np.array([right, bottom])
        if self._photo is not None:
            self._draw_seam(region, shape, low)
        # Lips a fraction of a pixel apart touch.
        opacity = min(shape.height * float(np.hypot(*shape.axes[0])) / _TOUCHING, 1.0)
        if opacity < _INVISIBLE:
            return
        inside = self._interior(shape, low, high)
        if self._photo is not None:
            inside = self._blend_photo(inside, shape, low, high)
        mask = outline_mask(region.shape[:2], shape.outline - low, 0.6)
        mask *= np.float32(opacity)
        blend_over(region, inside.astype(np.float32, copy=False), mask)

    def _draw_seam(self, region: np.ndarray, shape: MouthOpening, low: np.ndarray) -> None:
        """Draw the dark line at which closed lips meet, which lips that were photographed apart lack."""
        closed = 1 - min(shape.height / self._photo_shape.height / _SHADOW_BELOW, 1.0)
        if closed > 0:
            half = len(shape.outline) // 2
            ring = np.concatenate([shape.outline, shape.outline[:1]])
            upper, lower = ring[: half + 1], ring[half:][::-1]
            thick = np.sin(np.linspace(0, np.pi, half + 1))[:, None] ** 0.5 * np.array([0.0, 0.8])
            line = np.concatenate([upper - thick, (lower + thick)[-2:0:-1]]) - low
            dark = outline_mask(region.shape[:2], line, 0.8)[..., None] * np.float32(_SEAM * closed)
            region[:] = np.round(region * (1 - dark)).astype(np.uint8)

    def _interior(self, shape: MouthOpening, low: np.ndarray, high: np.ndarray) -> np.ndarray:
        """Return the colours ``[h, w, 3]`` of the box from ``low`` to ``high``, valid inside the opening."""
        width, height = high - low
        xs = np.arange(low[0], high[0] + _STRIDE, _STRIDE, dtype=np.float64)
        ys = np.arange(low[1], high[1] + _STRIDE, _STRIDE, dtype=np.float64)
        coarse = shape.coordinates(np.stack(np.meshgrid(xs, ys), -1))
        # Beyond the edges of the lips the layers continue as at the edge.
        coarse[..., 3:] = coarse[..., 3:].clip(0)
        places = coarse.reshape(-1, 5)
        layers = self._palette.colours(self._model.layers(places, (shape.height, shape.width)), places)
        samples = interpolate_layers(
            layers.reshape(len(ys), len(xs), 9), coarse[..., :3], _STRIDE, int(width), int(height)
        )
        return compose_teeth(samples, self._model, 1 / float(np.hypot(*shape.axes[0])))

    def _blend_photo(self, inside: np.ndarray, shape: MouthOpening, low: np.ndarray, high: np.ndarray) -> np.ndarray:
        """Return the model's interior with that of the photo blended over it.

        Its lower row of teeth moves with the jaw, the rest with the skull.
        """
        matrix, shift = shape.skull
        depth = self._landmarks[[13, 14], 2].mean()
        offset = shift[:2] + matrix[:2, 2] * depth - low
        box = (int(high[0] - low[0]), int(high[1] - low[1]))
        # Lips that close cast a shadow on the teeth behind them.
        light = _SHADOW + (1 - _SHADOW) * min(shape.height / (_SHADOW_BELOW * self._photo_shape.height), 1.0)
        shade = light ** (1 + self._palette.colourful * _REDDENING)
        jaw = shape.axes[1] * (shape.jaw - self._photo_shape.jaw)
        for mask, moved in zip(self._photo_masks, (jaw, 0.0), strict=True):
            forward = np.column_stack([matrix[:2, :2], offset + moved])
            photo = cv2.warpAffine(self._photo, forward, box, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
            known = cv2.warpAffine(mask, forward, box, flags=cv2.INTER_LINEAR)[..., None]
            inside = inside + known * (photo * shade - inside)
        return inside

    def _photo_rows(self, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the parts of the photo's opening ``[S, S]`` that move with the jaw and with the skull."""
        left, top, right, bottom = box_around(self._photo_shape.outline, mask.shape[::-1], 3, 4)
        xs, ys = np.meshgrid(np.arange(left, right), np.arange(top, bottom))
        place = self._photo_shape.coordinates(np.stack([xs, ys], -1).astype(np.float64))
        lines = self._model.line + np.array([_UPPER_SHIFT, _LOWER_SHIFT + self._photo_shape.jaw])
        below = (place[..., 1] - lines.mean()) / _ROWS_OVERLAP
        lower, upper = np.zeros_like(mask), np.zeros_like(mask)
        part = np.s_[top:bottom, left:right]
        lower[part], upper[part] = mask[part] * (1 + below).clip(0, 1), mask[part] * (1 - below).clip(0, 1)
        return lower, upper
