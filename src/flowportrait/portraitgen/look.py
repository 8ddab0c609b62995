"""One look at a picture: is there a face, where, how large, and framed at a size at which real ones are known.

    picture ─► largest face ─► eye corners ≥ 40 px apart: framed at 115 px ("large")
                                            ≥ 16 px       framed at  48 px ("small")
                                            below         too small to say anything about skin

A detail that is not there cannot be judged, so limits are known per size; what only a larger picture shows is left to
a judge that looks at all of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import cv2
import numpy as np
import torch

from flowportrait.media.crop import apply_affine
from flowportrait.media.face import FaceTracker
from flowportrait.media.search import find_faces
from flowportrait.portraitgen.framing import eye_distance, framed
from flowportrait.reward.regions import masks

Scale = Literal["large", "small"]
SIDES: dict[Scale, int] = {"large": 115, "small": 48}
NEAREST: dict[Scale, float] = {"large": 40.0, "small": 16.0}
"""Pixels between the eye corners from which on a face is looked at that large."""
_DARKER = 12.0
"""L* under the face's median from which on something in it is no skin."""
_ENLARGED, _BORDER = 192, 32
_TINY = 128
"""A picture with a shorter side is enlarged before faces are looked for."""


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
