"""Where a face is in a picture, how it is framed, and what can be said of it by measuring.

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
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import cv2
import numpy as np
import torch

from flowportrait.media.align import to_canonical
from flowportrait.media.crop import apply_affine, sample_crop
from flowportrait.media.face import FaceTracker, yaw
from flowportrait.media.search import find_faces
from flowportrait.reward.regions import masks

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
