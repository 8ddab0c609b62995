"""The flaws of generated portraits, and what is measured of them: larger is worse, None where it does not apply.

    saturation   mean chroma C* of the skin                       smoothness   −ln of the quartiles' gap of L* − G ∗ L*
    hue          |h − 50°| of the skin's colour                   oil          99th percentile − median of the skin's L*
    softness     coarse over fine gradients of mouth and eyes     blocks       steps on the 8-pixel grid over the others
    closed       −(lid gap over eye width), of the wider eye      unequal      |ln| of the ratio of the two lid gaps
    crossed      difference of the irises' places in their eyes   teeth        L* of the brightest of the mouth − skin
    proportions  largest |z| of six ratios of the face

A number is a flaw where real pictures end, which ``measured_stills`` knows. The catalogue says in words, for a judge,
what goes wrong with generated portraits, type by type (skin · eyes · teeth · hands · biology · picture), and which
detector measures it, if any does.

    detail            −softness of mouth and eyes                contrast      standard deviation of L*
    colourfulness     √(σ_rg² + σ_yb²) + 0.3 √(μ_rg² + μ_yb²)    brightness    mean L*

General quality is these four; colourfulness is that of Hasler and Süsstrunk (2003).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
import torch

from flowportrait.codec.contours import EYES, INNER_LOWER, INNER_UPPER
from flowportrait.portraitgen.look import CORNERS, Look, eye_distance
from flowportrait.reward.sharpness import detail

Detector = Callable[[Look], float | None]

SKIN_HUE = 50.0
"""Degrees; skin of any lightness lies within about 25 of it under white light."""
_GREY = 6.0
"""Chroma under which a hue means nothing: black-and-white pictures."""
_OPEN_MOUTH = 0.08
_OPEN_EYE = 0.12
_GRID = 8
_LEAST_GRID = 96
"""Shorter side of a picture in which eight-pixel blocks can be told from its content."""
_PAIRS = ((61, 291), (10, 152), (234, 454), (168, 2), (98, 327), (133, 362))
"""Mouth width, face height, face width, nose length, nose width, distance of the inner eye corners."""


def saturation(look: Look) -> float | None:
    """Mean chroma of the skin."""
    found = look.skin
    return None if found is None else float(np.hypot(found[0][..., 1], found[0][..., 2])[found[1]].mean())


def hue(look: Look) -> float | None:
    """Degrees of the skin's hue from ``SKIN_HUE``."""
    found = look.skin
    if found is None:
        return None
    a, b = (float(found[0][..., axis][found[1]].mean()) for axis in (1, 2))
    away = np.degrees(np.arctan2(b, a)) - SKIN_HUE
    return None if np.hypot(a, b) < _GREY else float(abs((away + 180) % 360 - 180))


def smoothness(look: Look) -> float | None:
    """How little texture the skin has."""
    found = look.skin
    if found is None:
        return None
    bright = found[0][..., 0]
    fine = bright - cv2.GaussianBlur(bright, (0, 0), 1.5)
    # The middle half of the values: wrinkles and edges that the mask left in are no texture.
    low, high = np.percentile(fine[found[1]], [25, 75])
    return float(-np.log(high - low + 1e-2))


def oil(look: Look) -> float | None:
    """How far highlights stand out of the skin."""
    found = look.skin
    if found is None:
        return None
    bright = found[0][..., 0][found[1]]
    return float(np.percentile(bright, 99) - np.median(bright))


def softness(look: Look) -> float | None:
    """How little fine detail mouth and eyes have."""
    if look.face is None or look.points is None:
        return None
    picture = torch.from_numpy(look.face).permute(2, 0, 1)[None].float() / 255
    found = detail(picture, torch.from_numpy(look.points[None, :, :2]))
    value = -float(torch.stack(list(found.values())).mean())
    return value if np.isfinite(value) else None


def blocks(look: Look) -> float | None:
    """Steps of luminance on the eight-pixel grid over those elsewhere, as encoded: before any resizing."""
    if min(look.picture.shape[:2]) < _LEAST_GRID:
        return None
    grey = cv2.cvtColor(look.picture, cv2.COLOR_RGB2GRAY).astype(np.float32)
    ratios = []
    for lines in (grey, grey.T):
        # A step that is one of a slope is no border of a block.
        step = np.abs(np.diff(lines, axis=1))
        sharp = (step[:, 1:-1] - 0.5 * (step[:, :-2] + step[:, 2:])).clip(0).mean(0)
        phase = (np.arange(len(sharp)) + 2) % _GRID == 0
        ratios.append(float(sharp[phase].mean() / max(float(sharp[~phase].mean()), 1e-2)))
    return float(np.mean(ratios))


def _gaps(look: Look) -> tuple[float, float] | None:
    """Lid gap over eye width of both eyes."""
    if look.landmarks is None:
        return None
    points, ratios = look.landmarks[:, :2], []
    for upper, lower, _ in EYES:
        gap = np.linalg.norm(points[upper[3:6]] - points[lower[3:6]], axis=1).mean()
        ratios.append(float(gap / max(float(np.linalg.norm(points[upper[0]] - points[upper[-1]])), 1e-3)))
    return ratios[0], ratios[1]


def closed(look: Look) -> float | None:
    """How far even the wider eye is closed."""
    gaps = _gaps(look)
    return None if gaps is None else -max(gaps)


def unequal(look: Look) -> float | None:
    """How differently open the eyes are."""
    gaps = _gaps(look)
    if gaps is None or max(gaps) < _OPEN_EYE:
        return None
    return float(abs(np.log((gaps[0] + 0.02) / (gaps[1] + 0.02))))


def crossed(look: Look) -> float | None:
    """How differently the irises lie in their eyes, in eye widths."""
    gaps = _gaps(look)
    if look.landmarks is None or gaps is None or min(gaps) < _OPEN_EYE:
        return None
    points, places = look.landmarks[:, :2], []
    for upper, _, iris in EYES:
        first, last = points[upper[0]], points[upper[-1]]
        along = (last - first) / max(float(np.linalg.norm(last - first)), 1e-3)
        places.append(float((points[iris] - first) @ along / max(float(np.linalg.norm(last - first)), 1e-3)))
    # Both are measured from left to right in the picture: looking aside moves them alike.
    return abs(places[0] - places[1])


def teeth(look: Look) -> float | None:
    """How much brighter the open mouth's brightest quarter is than skin."""
    found = look.skin
    if found is None or look.points is None:
        return None
    inner = look.points[INNER_UPPER + INNER_LOWER[::-1], :2]
    if np.linalg.norm(look.points[13, :2] - look.points[14, :2]) < _OPEN_MOUTH * eye_distance(look.points):
        return None
    canvas = np.zeros(found[1].shape, np.uint8)
    cv2.fillPoly(canvas, [np.round(inner).astype(np.int32)], 1)
    inside = found[0][..., 0][canvas > 0]
    if len(inside) < 4:
        return None
    return float(inside[inside >= np.percentile(inside, 75)].mean() - np.median(found[0][..., 0][found[1]]))


def ratios(landmarks: np.ndarray) -> np.ndarray:
    """Six distances ``[6]`` of a face with landmarks ``[478, 3]``, in distances of the outer eye corners; ln. Depth
    takes part, so that turning the head changes them little."""
    unit = np.linalg.norm(landmarks[CORNERS[0]] - landmarks[CORNERS[1]])
    return np.array([np.log(np.linalg.norm(landmarks[a] - landmarks[b]) / unit) for a, b in _PAIRS])


def quality(look: Look) -> dict[str, float | None]:
    """Return detail, contrast, colourfulness and brightness of the framed face, or of the whole picture without one."""
    picture = look.picture if look.face is None else look.face
    lab = cv2.cvtColor(picture.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
    soft = softness(look)
    red, green, blue = picture.astype(np.float64).transpose(2, 0, 1)
    across, down = red - green, (red + green) / 2 - blue
    colour = np.hypot(across.std(), down.std()) + 0.3 * np.hypot(across.mean(), down.mean())
    return {
        "detail": None if soft is None else -soft,
        "contrast": float(lab[..., 0].std()),
        "colourfulness": float(np.log(colour + 1.0)),
        "brightness": float(lab[..., 0].mean()),
    }


# --- the catalogue

Part = Literal["skin", "eyes", "teeth", "hands", "biology", "picture"]


@dataclass(frozen=True)
class Artefact:
    """One kind of flaw: of which part, in words for a judge, and the detector that measures it, if any does."""

    name: str
    part: Part
    words: str
    detector: Detector | None = None


CATALOGUE: tuple[Artefact, ...] = (
    Artefact("over_saturated", "skin", "skin or lips more colourful than any light makes them", saturation),
    Artefact("skin_hue", "skin", "skin of a colour that skin does not have under any plausible light", hue),
    Artefact("over_smooth", "skin", "skin without pores, lines or down, as if airbrushed", smoothness),
    Artefact("oily", "skin", "waxy or oily shine where real skin is matt", oil),
    Artefact("closed_eyes", "eyes", "eyes closed or half closed though not asked for", closed),
    Artefact("unequal_eyes", "eyes", "one eye open wider, larger or placed higher than the other", unequal),
    Artefact("crossed_gaze", "eyes", "eyes that look in different directions", crossed),
    Artefact("iris", "eyes", "pupils that are not round, irises or reflections that differ between the eyes"),
    Artefact("glowing_teeth", "teeth", "teeth brighter than everything around them", teeth),
    Artefact("merged_teeth", "teeth", "teeth without borders, too many, too small, or in more than one row"),
    Artefact("hands", "hands", "a wrong number of fingers, joints that bend the wrong way, hands grown into things"),
    Artefact("proportions", "biology", "a face whose parts do not go together in size or place"),
    Artefact("ears_and_hair", "biology", "ears that differ, are missing or melt into hair; hair growing from nowhere"),
    Artefact("anatomy", "biology", "neck, shoulders or limbs that cannot be so; jewellery or glasses grown into skin"),
    Artefact("missing_face", "biology", "no face where the prompt asks for a portrait"),
    Artefact("second_face", "biology", "another face where one person was asked for"),
    Artefact("blur", "picture", "eyes and mouth out of focus", softness),
    Artefact("blocks", "picture", "squares from compression", blocks),
)
"""``proportions``, ``missing_face`` and ``second_face`` are measured in ``measured_stills``, which knows real faces."""

BY_NAME = {artefact.name: artefact for artefact in CATALOGUE}
