"""This module finds the face in a still picture and measures it: attributes, artefacts, quality, and prompt agreement.

    picture ─► largest face ─► eye corners ≥ 40 px apart: framed at 115 px ("large")
                                            ≥ 16 px       framed at  48 px ("small")
                                            below         too small to measure the skin

    ┌────────────┐  ─┐
    │            │   │ 2.4 units        the outer corners of the eyes lie on a level line, one unit apart;
    │   ◉----◉   │   │                  the centre of the square is 0.4 units below the line
    │     ▽      │   │
    │    ───     │   │
    └────────────┘  ─┘

A small picture does not show every detail, so the limits of ``portraitgen.measured_judge`` are known per size; details
that only a larger picture shows are left to a judge that looks at the whole picture. The parts in order: finding and
framing a face, its attributes, the artefact detectors and general quality, the catalogue of artefacts, and the
agreement of a picture with its prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import cv2
import numpy as np
import torch

from flowportrait.media.crop import apply_affine, canonical_transform, sample_crop
from flowportrait.media.faces import FaceTracker, face_yaw
from flowportrait.media.portrait import find_faces
from flowportrait.rendering.face_regions import EYES, INNER_LOWER, INNER_UPPER
from flowportrait.rewards.consistency import measure_sharpness, region_masks

# --- Finding and framing a face

FRAME_WIDTH, FRAME_CENTRE = 2.4, (0.0, 0.4)
"""Side of the frame, and its centre relative to the middle of the eye line, in distances between the eye corners."""
EYE_CORNERS = (33, 263)
"""Landmarks of the outer corners of the eyes."""
FaceScale = Literal["large", "small"]
"""The size at which a face is framed."""
FRAME_SIDES: dict[FaceScale, int] = {"large": 115, "small": 48}
"""Pixels of the side of a framed face."""
MIN_EYE_DISTANCES: dict[FaceScale, float] = {"large": 40.0, "small": 16.0}
"""Least distance in pixels between the eye corners of a face that is framed at a size."""
_DARKER = 12.0
"""Difference in L* below the face's median beyond which a pixel is not skin."""
_ENLARGED, _BORDER = 192, 32
_TINY = 128
"""Pictures with a shorter side are enlarged before the search for faces."""


def frame_face(image: np.ndarray, landmarks: np.ndarray, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Cut the framed face out of a picture.

    Args:
        image: ``[H, W, 3]`` uint8.
        landmarks: ``[478, 3]`` px in the picture.
        side: pixels of the side of the framed face.

    Returns:
        The framed face ``[side, side, 3]`` uint8, and the landmarks ``[478, 3]`` px in it.
    """
    matrix = canonical_transform(landmarks) * (side / FRAME_WIDTH)
    matrix[:, 2] += side / 2 - np.array(FRAME_CENTRE) * side / FRAME_WIDTH - 0.5
    return sample_crop(image, matrix, side, cv2.BORDER_REPLICATE), apply_affine(matrix, landmarks)


def eye_distance(landmarks: np.ndarray) -> float:
    """Return the pixels between the outer corners of the eyes of landmarks ``[478, ≥ 2]``."""
    return float(np.linalg.norm(landmarks[EYE_CORNERS[0], :2] - landmarks[EYE_CORNERS[1], :2]))


@dataclass(frozen=True)
class FaceView:
    """A picture with its largest face.

    Args:
        picture: ``[H, W, 3]`` uint8 RGB.
        faces: number of faces in the picture.
        landmarks: ``[478, 3]`` px of the largest face, None without a face.
        blendshapes: ``[52]`` of the largest face, None without a face.
        scale: the size at which the face is framed, None if the face is too small.
        face: the framed face ``[S, S, 3]`` uint8, None if the face is too small.
        points: landmarks ``[478, 3]`` px in the framed face, None if the face is too small.
    """

    picture: np.ndarray
    faces: int
    landmarks: np.ndarray | None = None
    blendshapes: np.ndarray | None = None
    scale: FaceScale | None = None
    face: np.ndarray | None = None
    points: np.ndarray | None = None

    @cached_property
    def skin(self) -> tuple[np.ndarray, np.ndarray] | None:
        """Lab of the framed face ``[S, S, 3]`` float32, and a mask ``[S, S]`` of its skin; None without a face."""
        if self.face is None or self.points is None:
            return None
        lab = cv2.cvtColor(self.face.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
        face = region_masks(torch.from_numpy(self.points[None, :, :2]), self.face.shape[:2])["face"][0].numpy()
        # Pixels much darker than most of the face (hair, brows) and its outline are not skin.
        inside = cv2.erode(face, np.ones((3, 3), np.uint8)) > 0
        if not inside.any():
            return None
        return lab, inside & (lab[..., 0] > np.median(lab[..., 0][inside]) - _DARKER)

    @classmethod
    def at(cls, picture: np.ndarray, found: Sequence[tuple[np.ndarray, np.ndarray]]) -> FaceView:
        """Return the picture with faces that are known: landmarks ``[478, 3]`` and blendshapes, largest face first."""
        if not found:
            return cls(picture, 0)
        landmarks, shapes = found[0]
        distance = eye_distance(landmarks)
        scale = next((name for name, least in MIN_EYE_DISTANCES.items() if distance >= least), None)
        if scale is None:
            return cls(picture, len(found), landmarks, shapes)
        return cls(picture, len(found), landmarks, shapes, scale, *frame_face(picture, landmarks, FRAME_SIDES[scale]))


def find_face(picture: np.ndarray) -> FaceView:
    """Search a picture ``[H, W, 3]`` uint8 RGB for faces of any size and place, and return it with its largest face."""
    if min(picture.shape[:2]) >= _TINY:
        return FaceView.at(picture, find_faces(picture))
    with FaceTracker(still=True) as tracker:
        return find_framed_face(picture, tracker)


def find_framed_face(picture: np.ndarray, tracker: FaceTracker) -> FaceView:
    """Return a picture that one face fills with that face, by a single search.

    Args:
        picture: ``[H, W, 3]`` uint8 RGB.
        tracker: a face tracker for still pictures; making one takes as long as fifty searches.
    """
    scale = _ENLARGED / max(picture.shape[:2])
    flags = cv2.INTER_CUBIC if scale > 1 else cv2.INTER_AREA
    large = cv2.resize(picture, None, fx=scale, fy=scale, interpolation=flags)
    # A tightly framed face is found more reliably with a margin around it.
    large = cv2.copyMakeBorder(large, *(_BORDER,) * 4, cv2.BORDER_REPLICATE)
    offset = _BORDER + 0.5 * (scale - 1)
    back = np.array([[1 / scale, 0, -offset / scale], [0, 1 / scale, -offset / scale]])
    return FaceView.at(picture, [(apply_affine(back, points), shapes) for points, shapes in tracker.detect(large)])


# --- Attributes

ATTRIBUTES = ("yaw", "opening", "smile", "tone", "light")
"""The attributes of a face; they are the condition of the small flow and part of what a prompt asks for.

    yaw       slant of the eye line in depth, right of the picture positive, degrees
    opening   gap between the inner lips over the distance of the eye corners
    smile     mean of the two smile blendshapes
    tone      individual typology angle of the cheeks, arctan((L* − 50) / b*) in degrees: 55 very light … −30 dark
    light     mean L* of the face
"""
_CHEEKS = ([117, 118, 101, 36, 205, 187, 123], [346, 347, 330, 266, 425, 411, 352])
_INNER_LIPS = (13, 14)
_SMILES = slice(44, 46)
"""mouthSmileLeft and mouthSmileRight among the 52 blendshapes."""


def attributes(picture: np.ndarray, landmarks: np.ndarray, blendshapes: np.ndarray) -> np.ndarray:
    """Return the attributes ``[5]`` of a face, in the order of ``ATTRIBUTES``.

    Args:
        picture: ``[H, W, 3]`` uint8 RGB.
        landmarks: ``[478, 3]`` px in the picture.
        blendshapes: ``[52]``.
    """
    lab = cv2.cvtColor(picture.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
    cheeks = lab[cheek_mask(picture.shape[:2], landmarks)]
    skin = cheeks.mean(0) if len(cheeks) else lab.reshape(-1, 3).mean(0)
    low, high = landmarks[:, :2].min(0).astype(int).clip(0), landmarks[:, :2].max(0).astype(int) + 1
    face = lab[low[1] : high[1], low[0] : high[0], 0]
    gap = float(np.linalg.norm(landmarks[_INNER_LIPS[0], :2] - landmarks[_INNER_LIPS[1], :2]))
    tone = float(np.degrees(np.arctan2(skin[0] - 50, max(float(skin[2]), 1e-3))))
    return np.array(
        [face_yaw(landmarks), gap / eye_distance(landmarks), blendshapes[_SMILES].mean(), tone, face.mean()], np.float32
    )


def cheek_mask(shape: tuple[int, int], landmarks: np.ndarray) -> np.ndarray:
    """Return the mask ``[H, W]`` bool of both cheeks."""
    canvas = np.zeros(shape, np.uint8)
    for cheek in _CHEEKS:
        cv2.fillConvexPoly(canvas, cv2.convexHull(np.round(landmarks[cheek, :2]).astype(np.int32)), 1)
    return canvas.astype(bool)


# --- Detectors of artefacts, and general quality
#
#     saturation   mean chroma C* of the skin                      smoothness  −ln of the quartiles' gap of L* − G ∗ L*
#     hue          |h − 50°| of the skin's colour                  oil         99th percentile − median of the skin's L*
#     softness     coarse over fine gradients of mouth and eyes    blocks      steps on the 8-pixel grid over the others
#     closed       −(lid gap over eye width), of the wider eye     unequal     |ln| of the ratio of the two lid gaps
#     crossed      difference of the irises' places in their eyes  teeth       L* of the brightest of the mouth − skin
#     proportions  largest |z| of six ratios of the face
#
# Larger values are worse; None means that a detector does not apply. ``portraitgen.measured_judge`` holds the
# limits beyond
# which a value is an artefact.

Detector = Callable[[FaceView], float | None]
"""A function that measures an artefact; None if the measurement does not apply."""

SKIN_HUE = 50.0
"""Typical hue of skin in degrees; skin of any lightness lies within about 25° of it under white light."""
_GREY = 6.0
"""Chroma below which the hue is meaningless, as in black-and-white pictures."""
_OPEN_MOUTH = 0.08
_OPEN_EYE = 0.12
_GRID = 8
_LEAST_GRID = 96
"""Least shorter side of a picture in which eight-pixel blocks can be distinguished from content."""
_PAIRS = ((61, 291), (10, 152), (234, 454), (168, 2), (98, 327), (133, 362))
"""Landmarks of mouth width, face height, face width, nose length, nose width, distance of the inner eye corners."""


def skin_saturation(view: FaceView) -> float | None:
    """Return the mean chroma of the skin."""
    found = view.skin
    return None if found is None else float(np.hypot(found[0][..., 1], found[0][..., 2])[found[1]].mean())


def skin_hue_error(view: FaceView) -> float | None:
    """Return the distance of the skin's hue from ``SKIN_HUE``, in degrees."""
    found = view.skin
    if found is None:
        return None
    a, b = (float(found[0][..., axis][found[1]].mean()) for axis in (1, 2))
    away = np.degrees(np.arctan2(b, a)) - SKIN_HUE
    return None if np.hypot(a, b) < _GREY else float(abs((away + 180) % 360 - 180))


def skin_smoothness(view: FaceView) -> float | None:
    """Return how little texture the skin has: −ln of the interquartile range of its fine detail."""
    found = view.skin
    if found is None:
        return None
    bright = found[0][..., 0]
    fine = bright - cv2.GaussianBlur(bright, (0, 0), 1.5)
    # The interquartile range ignores wrinkles and edges that the mask left in.
    low, high = np.percentile(fine[found[1]], [25, 75])
    return float(-np.log(high - low + 1e-2))


def skin_shine(view: FaceView) -> float | None:
    """Return how much brighter highlights are than the skin, in L*."""
    found = view.skin
    if found is None:
        return None
    bright = found[0][..., 0][found[1]]
    return float(np.percentile(bright, 99) - np.median(bright))


def face_softness(view: FaceView) -> float | None:
    """Return how little fine detail mouth and eyes have."""
    if view.face is None or view.points is None:
        return None
    picture = torch.from_numpy(view.face).permute(2, 0, 1)[None].float() / 255
    found = measure_sharpness(picture, torch.from_numpy(view.points[None, :, :2]))
    value = -float(torch.stack(list(found.values())).mean())
    return value if np.isfinite(value) else None


def jpeg_blockiness(view: FaceView) -> float | None:
    """Return the ratio of luminance steps on the eight-pixel grid to those elsewhere, in the picture as encoded."""
    if min(view.picture.shape[:2]) < _LEAST_GRID:
        return None
    grey = cv2.cvtColor(view.picture, cv2.COLOR_RGB2GRAY).astype(np.float32)
    block_ratios = []
    for lines in (grey, grey.T):
        # A step that is part of a slope is not the border of a block.
        step = np.abs(np.diff(lines, axis=1))
        sharp = (step[:, 1:-1] - 0.5 * (step[:, :-2] + step[:, 2:])).clip(0).mean(0)
        phase = (np.arange(len(sharp)) + 2) % _GRID == 0
        block_ratios.append(float(sharp[phase].mean() / max(float(sharp[~phase].mean()), 1e-2)))
    return float(np.mean(block_ratios))


def _lid_gaps(view: FaceView) -> tuple[float, float] | None:
    """Return the lid gap over the eye width of both eyes."""
    if view.landmarks is None:
        return None
    points, gap_ratios = view.landmarks[:, :2], []
    for upper, lower, _ in EYES:
        gap = np.linalg.norm(points[upper[3:6]] - points[lower[3:6]], axis=1).mean()
        gap_ratios.append(float(gap / max(float(np.linalg.norm(points[upper[0]] - points[upper[-1]])), 1e-3)))
    return gap_ratios[0], gap_ratios[1]


def eye_closure(view: FaceView) -> float | None:
    """Return how far even the wider eye is closed: minus its lid gap over its width."""
    gaps = _lid_gaps(view)
    return None if gaps is None else -max(gaps)


def eye_asymmetry(view: FaceView) -> float | None:
    """Return how much the opening of the two eyes differs: |ln| of the ratio of the lid gaps."""
    gaps = _lid_gaps(view)
    if gaps is None or max(gaps) < _OPEN_EYE:
        return None
    return float(abs(np.log((gaps[0] + 0.02) / (gaps[1] + 0.02))))


def gaze_mismatch(view: FaceView) -> float | None:
    """Return how much the positions of the irises in their eyes differ, in eye widths."""
    gaps = _lid_gaps(view)
    if view.landmarks is None or gaps is None or min(gaps) < _OPEN_EYE:
        return None
    points, places = view.landmarks[:, :2], []
    for upper, _, iris in EYES:
        first, last = points[upper[0]], points[upper[-1]]
        along = (last - first) / max(float(np.linalg.norm(last - first)), 1e-3)
        places.append(float((points[iris] - first) @ along / max(float(np.linalg.norm(last - first)), 1e-3)))
    # Both positions are measured from left to right in the picture, so that looking aside moves them equally.
    return abs(places[0] - places[1])


def teeth_brightness(view: FaceView) -> float | None:
    """Return how much brighter the brightest quarter of the open mouth is than the skin, in L*."""
    found = view.skin
    if found is None or view.points is None:
        return None
    inner = view.points[INNER_UPPER + INNER_LOWER[::-1], :2]
    if np.linalg.norm(view.points[13, :2] - view.points[14, :2]) < _OPEN_MOUTH * eye_distance(view.points):
        return None
    canvas = np.zeros(found[1].shape, np.uint8)
    cv2.fillPoly(canvas, [np.round(inner).astype(np.int32)], 1)
    inside = found[0][..., 0][canvas > 0]
    if len(inside) < 4:
        return None
    return float(inside[inside >= np.percentile(inside, 75)].mean() - np.median(found[0][..., 0][found[1]]))


def face_ratios(landmarks: np.ndarray) -> np.ndarray:
    """Return the logarithms ``[6]`` of six lengths of a face over the distance of its outer eye corners.

    Args:
        landmarks: ``[478, 3]``; lengths are three-dimensional, so that turning the head changes them little.
    """
    unit = np.linalg.norm(landmarks[EYE_CORNERS[0]] - landmarks[EYE_CORNERS[1]])
    return np.array([np.log(np.linalg.norm(landmarks[a] - landmarks[b]) / unit) for a, b in _PAIRS])


def picture_quality(view: FaceView) -> dict[str, float | None]:
    """Return four figures of general quality of the framed face, or of the whole picture without a face.

        detail           −softness of mouth and eyes               contrast     standard deviation of L*
        colourfulness    √(σ_rg² + σ_yb²) + 0.3 √(μ_rg² + μ_yb²)   brightness   mean L*

    Colourfulness is that of Hasler and Süsstrunk (2003), as ln(1 + value).
    """
    picture = view.picture if view.face is None else view.face
    lab = cv2.cvtColor(picture.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
    soft = face_softness(view)
    red, green, blue = picture.astype(np.float64).transpose(2, 0, 1)
    across, down = red - green, (red + green) / 2 - blue
    colour = np.hypot(across.std(), down.std()) + 0.3 * np.hypot(across.mean(), down.mean())
    return {
        "detail": None if soft is None else -soft,
        "contrast": float(lab[..., 0].std()),
        "colourfulness": float(np.log(colour + 1.0)),
        "brightness": float(lab[..., 0].mean()),
    }


# --- The catalogue of artefacts

ArtefactPart = Literal["skin", "eyes", "teeth", "hands", "biology", "picture"]
"""The part of a portrait that an artefact concerns."""


@dataclass(frozen=True)
class Artefact:
    """One kind of artefact of generated portraits.

    Args:
        name: name of the artefact.
        part: the part of the portrait that it concerns.
        words: its description, which judges are asked with.
        detector: the function that measures it, None if it cannot be measured.
    """

    name: str
    part: ArtefactPart
    words: str
    detector: Detector | None = None


ARTEFACTS: tuple[Artefact, ...] = (
    Artefact("over_saturated", "skin", "skin or lips more colourful than any light makes them", skin_saturation),
    Artefact("skin_hue", "skin", "skin of a colour that skin does not have under any plausible light", skin_hue_error),
    Artefact("over_smooth", "skin", "skin without pores, lines or down, as if airbrushed", skin_smoothness),
    Artefact("oily", "skin", "waxy or oily shine where real skin is matt", skin_shine),
    Artefact("closed_eyes", "eyes", "eyes closed or half closed though not asked for", eye_closure),
    Artefact("unequal_eyes", "eyes", "one eye open wider, larger or placed higher than the other", eye_asymmetry),
    Artefact("crossed_gaze", "eyes", "eyes that look in different directions", gaze_mismatch),
    Artefact("iris", "eyes", "pupils that are not round, irises or reflections that differ between the eyes"),
    Artefact("glowing_teeth", "teeth", "teeth brighter than everything around them", teeth_brightness),
    Artefact("merged_teeth", "teeth", "teeth without borders, too many, too small, or in more than one row"),
    Artefact("hands", "hands", "a wrong number of fingers, joints that bend the wrong way, hands grown into things"),
    Artefact("proportions", "biology", "a face whose parts do not go together in size or place"),
    Artefact("ears_and_hair", "biology", "ears that differ, are missing or melt into hair; hair growing from nowhere"),
    Artefact("anatomy", "biology", "neck, shoulders or limbs that cannot be so; jewellery or glasses grown into skin"),
    Artefact("missing_face", "biology", "no face where the prompt asks for a portrait"),
    Artefact("second_face", "biology", "another face where one person was asked for"),
    Artefact("blur", "picture", "eyes and mouth out of focus", face_softness),
    Artefact("blocks", "picture", "squares from compression", jpeg_blockiness),
)
"""The artefacts of generated portraits. ``proportions``, ``missing_face`` and ``second_face`` have no detector here,
because they are measured in ``portraitgen.measured_judge``, where real faces are known."""

ARTEFACTS_BY_NAME = {artefact.name: artefact for artefact in ARTEFACTS}
"""The artefacts of the catalogue by name."""


# --- Agreement with a prompt

_TONES = {"very light": (35, 90), "light": (15, 65), "tan": (-5, 45), "brown": (-40, 25), "dark": (-90, 0)}
"""Range of the typology angle in degrees for each skin tone."""
_WHITE = ("soft daylight", "hard sun", "studio")
"""Light without colour, in which the skin tone can be measured."""
_APART, _SMILING = 0.05, 0.3
"""Opening of the mouth and smile above which lips count as apart and a face as smiling."""
MEASURED_DIMENSIONS = ("pose", "expression", "framing", "skin_tone")
"""The dimensions of the taxonomy that can be measured."""


def prompt_agreement(view: FaceView, terms: dict[str, str]) -> dict[str, bool]:
    """Return for each measurable dimension of a prompt whether the picture shows what the prompt asks for.

        pose         |yaw| < 12°: frontal · 8° to 40°: three-quarter · > 35°: profile;  |roll| > 6°: tilted
        expression   lips 0.05 eye distances apart: surprised · closer: neutral, closed smile
                     smile blendshapes > 0.3: both smiles, and neither neutral nor serious
        framing      face over picture height: > 0.45 close-up · 0.2 to 0.6 head and shoulders · < 0.35 half-length
        skin_tone    typology angle of the cheeks, only in light without colour; wide ranges, because light changes it

    The ranges overlap on purpose, so that only a clear miss counts. Age, occupation and camera are left to a judge that
    looks.

    Args:
        view: the picture with its face.
        terms: the prompt's value of every dimension.

    Returns:
        Whether each dimension is met; empty without a face.
    """
    if view.landmarks is None or view.blendshapes is None:
        return {}
    values = dict(zip(ATTRIBUTES, attributes(view.picture, view.landmarks, view.blendshapes).tolist(), strict=True))
    across = view.landmarks[EYE_CORNERS[1]] - view.landmarks[EYE_CORNERS[0]]
    roll = abs(float(np.degrees(np.arctan2(across[1], np.hypot(across[0], across[2])))))
    share = float(np.ptp(view.landmarks[:, 1])) / view.picture.shape[0]
    yaw, parted, smiling = abs(values["yaw"]), values["opening"] > _APART, values["smile"] > _SMILING
    checks = {
        "pose": {"frontal": yaw < 12, "three-quarter": 8 < yaw < 40, "profile": yaw > 35, "tilted": roll > 6},
        "expression": {
            "neutral": not parted and not smiling, "closed smile": smiling and not parted, "open smile": smiling,
            "surprised": parted, "serious": not smiling,
        },
        "framing": {"close-up": share > 0.45, "head and shoulders": 0.2 < share < 0.6, "half-length": share < 0.35},
    }  # fmt: skip
    agreement = {name: bool(by_value[terms[name]]) for name, by_value in checks.items() if name in terms}
    if terms.get("skin_tone") in _TONES and terms.get("light", "studio") in _WHITE:
        low, high = _TONES[terms["skin_tone"]]
        agreement["skin_tone"] = bool(low < values["tone"] < high)
    return agreement
