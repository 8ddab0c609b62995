"""Faces of still pictures, and artefacts found in them.

Where a face is in a picture, how it is framed, and what can be said of it by measuring.

    picture ─► largest face ─► eye corners ≥ 40 px apart: framed at 115 px ("large")
                                            ≥ 16 px       framed at  48 px ("small")
                                            below         too small to say anything about skin

    ┌────────────┐  ─┐
    │            │   │ 2.4 units        the outer corners of the eyes lie on a level line, one unit apart,
    │   ◉----◉   │   │                  the square's middle 0.4 units below it
    │     ▽      │   │
    │    ───     │   │
    └────────────┘  ─┘

A detail that is not there cannot be judged, so limits are known per size; what only a larger picture shows is left to
a judge that looks at all of it. Five attributes are the condition of the small flow, and what a prompt asked for:

    yaw       slant of the eye line in depth, right of the picture positive, degrees
    opening   gap between the inner lips over the distance of the eye corners
    smile     mean of the two smile blendshapes
    tone      individual typology angle of the cheeks, arctan((L* − 50) / b*) in degrees: 55 very light … −30 dark
    light     mean L* of the face

The flaws of generated portraits, and what is measured of them: larger is worse, None where it does not apply.

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

Does a picture show what its prompt asked for, where that can be measured?

    pose         |yaw| under 12°: frontal · 8° to 40°: three-quarter · over 35°: profile;  |roll| over 6°: tilted
    expression   lips 0.05 eye distances apart: surprised · closer: neutral, closed smile
                 smile blendshapes over 0.3: both smiles, and neither neutral nor serious
    framing      height of the face over the picture's: over 0.45 close-up · 0.2 to 0.6 head and shoulders · under 0.35
    skin_tone    typology angle of the cheeks, only in light without colour; bands wide enough for light's own say

Bands overlap on purpose: only a clear miss counts. Age, occupation and camera are for a judge that looks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import cv2
import numpy as np
import torch

from flowportrait.media.crop import apply_affine, sample_crop, to_canonical
from flowportrait.media.faces import FaceTracker, yaw
from flowportrait.media.portrait import find_faces
from flowportrait.rendering.face_regions import EYES, INNER_LOWER, INNER_UPPER
from flowportrait.rewards.consistency import detail, masks

WIDTH, CENTRE = 2.4, (0.0, 0.4)
CORNERS = (33, 263)
"""Outer corners of the eyes."""
Scale = Literal["large", "small"]
SIDES: dict[Scale, int] = {"large": 115, "small": 48}
NEAREST: dict[Scale, float] = {"large": 40.0, "small": 16.0}
"""Pixels between the eye corners from which on a face is looked at that large."""
_DARKER = 12.0
"""L* under the face's median from which on something in it is no skin."""
_ENLARGED, _BORDER = 192, 32
_TINY = 128
"""A picture with a shorter side is enlarged before faces are looked for."""
ATTRIBUTES = ("yaw", "opening", "smile", "tone", "light")
_CHEEKS = ([117, 118, 101, 36, 205, 187, 123], [346, 347, 330, 266, 425, 411, 352])
_INNER_LIPS = (13, 14)
_SMILES = slice(44, 46)
"""mouthSmileLeft and mouthSmileRight among the 52 blendshapes."""


def framed(image: np.ndarray, landmarks: np.ndarray, side: int) -> tuple[np.ndarray, np.ndarray]:
    """The face ``[side, side, 3]`` uint8 of a picture ``[H, W, 3]``, and its landmarks ``[478, 3]`` px there."""
    matrix = to_canonical(landmarks) * (side / WIDTH)
    matrix[:, 2] += side / 2 - np.array(CENTRE) * side / WIDTH - 0.5
    return sample_crop(image, matrix, side, cv2.BORDER_REPLICATE), apply_affine(matrix, landmarks)


def eye_distance(landmarks: np.ndarray) -> float:
    """Pixels between the outer corners of the eyes of landmarks ``[478, …]``."""
    return float(np.linalg.norm(landmarks[CORNERS[0], :2] - landmarks[CORNERS[1], :2]))


@dataclass(frozen=True)
class Look:
    """picture ``[H, W, 3]`` uint8; faces: how many; landmarks ``[478, 3]`` px of the largest and its blendshapes
    ``[52]``; face ``[S, S, 3]`` uint8 and points ``[478, 3]``: framed at the size that ``scale`` names. None where
    there is no face, or none large enough."""

    picture: np.ndarray
    faces: int
    landmarks: np.ndarray | None = None
    blendshapes: np.ndarray | None = None
    scale: Scale | None = None
    face: np.ndarray | None = None
    points: np.ndarray | None = None

    @cached_property
    def skin(self) -> tuple[np.ndarray, np.ndarray] | None:
        """Lab of the framed face ``[S, S, 3]`` float32, and which pixels ``[S, S]`` are skin; None without a face."""
        if self.face is None or self.points is None:
            return None
        lab = cv2.cvtColor(self.face.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
        face = masks(torch.from_numpy(self.points[None, :, :2]), self.face.shape[:2])["face"][0].numpy()
        # Hair, brows and the outline are no skin: what is much darker than most of the face, and its rim.
        inside = cv2.erode(face, np.ones((3, 3), np.uint8)) > 0
        if not inside.any():
            return None
        return lab, inside & (lab[..., 0] > np.median(lab[..., 0][inside]) - _DARKER)

    @classmethod
    def at(cls, picture: np.ndarray, found: Sequence[tuple[np.ndarray, np.ndarray]]) -> Look:
        """With faces found before, largest first."""
        if not found:
            return cls(picture, 0)
        landmarks, shapes = found[0]
        apart = eye_distance(landmarks)
        scale = next((name for name, least in NEAREST.items() if apart >= least), None)
        if scale is None:
            return cls(picture, len(found), landmarks, shapes)
        return cls(picture, len(found), landmarks, shapes, scale, *framed(picture, landmarks, SIDES[scale]))


def look(picture: np.ndarray) -> Look:
    """Look at a picture ``[H, W, 3]`` uint8 RGB, everywhere in it."""
    if min(picture.shape[:2]) >= _TINY:
        return Look.at(picture, find_faces(picture))
    with FaceTracker(still=True) as tracker:
        return glance(picture, tracker)


def glance(picture: np.ndarray, tracker: FaceTracker) -> Look:
    """Look at a picture that should be full of one face: a single search. Making a ``tracker`` (a still one) takes as
    long as fifty searches."""
    scale = _ENLARGED / max(picture.shape[:2])
    flags = cv2.INTER_CUBIC if scale > 1 else cv2.INTER_AREA
    large = cv2.resize(picture, None, fx=scale, fy=scale, interpolation=flags)
    # Framed tightly, a face is found more surely with some room around it.
    large = cv2.copyMakeBorder(large, *(_BORDER,) * 4, cv2.BORDER_REPLICATE)
    offset = _BORDER + 0.5 * (scale - 1)
    back = np.array([[1 / scale, 0, -offset / scale], [0, 1 / scale, -offset / scale]])
    return Look.at(picture, [(apply_affine(back, points), shapes) for points, shapes in tracker.detect(large)])


def attributes(picture: np.ndarray, landmarks: np.ndarray, blendshapes: np.ndarray) -> np.ndarray:
    """``[5]`` in the order of ``ATTRIBUTES``, of a picture ``[H, W, 3]`` uint8 with landmarks ``[478, 3]`` px in it and
    blendshapes ``[52]``."""
    lab = cv2.cvtColor(picture.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
    cheeks = lab[cheek_mask(picture.shape[:2], landmarks)]
    skin = cheeks.mean(0) if len(cheeks) else lab.reshape(-1, 3).mean(0)
    low, high = landmarks[:, :2].min(0).astype(int).clip(0), landmarks[:, :2].max(0).astype(int) + 1
    face = lab[low[1] : high[1], low[0] : high[0], 0]
    gap = float(np.linalg.norm(landmarks[_INNER_LIPS[0], :2] - landmarks[_INNER_LIPS[1], :2]))
    tone = float(np.degrees(np.arctan2(skin[0] - 50, max(float(skin[2]), 1e-3))))
    return np.array(
        [yaw(landmarks), gap / eye_distance(landmarks), blendshapes[_SMILES].mean(), tone, face.mean()], np.float32
    )


def cheek_mask(shape: tuple[int, int], landmarks: np.ndarray) -> np.ndarray:
    """Pixels ``[H, W]`` bool of both cheeks."""
    canvas = np.zeros(shape, np.uint8)
    for cheek in _CHEEKS:
        cv2.fillConvexPoly(canvas, cv2.convexHull(np.round(landmarks[cheek, :2]).astype(np.int32)), 1)
    return canvas.astype(bool)


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


_TONES = {"very light": (35, 90), "light": (15, 65), "tan": (-5, 45), "brown": (-40, 25), "dark": (-90, 0)}
_WHITE = ("soft daylight", "hard sun", "studio")
_APART, _SMILING = 0.05, 0.3
MEASURED = ("pose", "expression", "framing", "skin_tone")


def agreement(look: Look, terms: dict[str, str]) -> dict[str, bool]:
    """Whether each dimension that can be measured is met; nothing without a face."""
    if look.landmarks is None or look.blendshapes is None:
        return {}
    told = dict(zip(ATTRIBUTES, attributes(look.picture, look.landmarks, look.blendshapes).tolist(), strict=True))
    across = look.landmarks[CORNERS[1]] - look.landmarks[CORNERS[0]]
    roll = abs(float(np.degrees(np.arctan2(across[1], np.hypot(across[0], across[2])))))
    share = float(np.ptp(look.landmarks[:, 1])) / look.picture.shape[0]
    yaw, apart, smiling = abs(told["yaw"]), told["opening"] > _APART, told["smile"] > _SMILING
    checks = {
        "pose": {"frontal": yaw < 12, "three-quarter": 8 < yaw < 40, "profile": yaw > 35, "tilted": roll > 6},
        "expression": {
            "neutral": not apart and not smiling, "closed smile": smiling and not apart, "open smile": smiling,
            "surprised": apart, "serious": not smiling,
        },
        "framing": {"close-up": share > 0.45, "head and shoulders": 0.2 < share < 0.6, "half-length": share < 0.35},
    }  # fmt: skip
    found = {name: bool(own[terms[name]]) for name, own in checks.items() if name in terms}
    if terms.get("skin_tone") in _TONES and terms.get("light", "studio") in _WHITE:
        low, high = _TONES[terms["skin_tone"]]
        found["skin_tone"] = bool(low < told["tone"] < high)
    return found
