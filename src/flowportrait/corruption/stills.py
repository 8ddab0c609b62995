"""Damage to still portraits.

What has a width (blur, an airbrush, a shine) is as wide on a large face as on a small one: widths are in pixels of a
face framed at 115 px.
"""

from __future__ import annotations

from typing import Protocol

import cv2
import numpy as np
import torch

from flowportrait.corruption.clips import Seed
from flowportrait.portraitgen.detectors import WIDTH, eye_distance
from flowportrait.rewards.consistency import masks

REFERENCE_SIDE = 115
"""Pixels of the framed face that widths are given for."""


class FacePicture(Protocol):
    """A picture ``[H, W, 3]`` uint8 RGB and the landmarks ``[478, 3]`` px of its face."""

    @property
    def picture(self) -> np.ndarray: ...

    @property
    def landmarks(self) -> np.ndarray | None: ...


def relative_face_size(portrait: FacePicture) -> float:
    """How much larger the face is than one framed at 115 px."""
    assert portrait.landmarks is not None, "only faces are damaged"
    return eye_distance(portrait.landmarks) * WIDTH / REFERENCE_SIDE


def chroma(portrait: FacePicture, strength: float, rng: Seed = 0) -> np.ndarray:
    """Chroma times 1 + strength."""
    lab = _lab(portrait.picture)
    lab[..., 1:] *= 1 + strength
    return _rgb(lab)


def airbrush(portrait: FacePicture, strength: float, rng: Seed = 0) -> np.ndarray:
    """Skin without its detail, edges kept: a bilateral filter."""
    unit = relative_face_size(portrait)
    return cv2.bilateralFilter(portrait.picture, round(15 * unit), 150 * strength, 8 * unit)


def tint(portrait: FacePicture, strength: float, rng: Seed = 0) -> np.ndarray:
    """The red channel moved towards the green one's place."""
    return np.round((1 - strength) * portrait.picture + strength * portrait.picture[..., [1, 0, 2]]).astype(np.uint8)


def shine(portrait: FacePicture, strength: float, rng: Seed = 0) -> np.ndarray:
    """The brightest skin made brighter."""
    assert portrait.landmarks is not None, "only faces are damaged"
    lab = _lab(portrait.picture)
    bright = cv2.GaussianBlur(lab[..., 0], (0, 0), 2 * relative_face_size(portrait))
    face = masks(torch.from_numpy(portrait.landmarks[None, :, :2]), lab.shape[:2])["face"][0].numpy() > 0
    lab[..., 0] += 40 * strength * np.clip((bright - np.percentile(bright[face], 85)) / 10, 0, 1) * face
    return _rgb(lab)


def blur(portrait: FacePicture, strength: float, rng: Seed = 0) -> np.ndarray:
    """Out of focus."""
    return cv2.GaussianBlur(portrait.picture, (0, 0), 2 * strength * relative_face_size(portrait))


def jpeg(portrait: FacePicture, strength: float, rng: Seed = 0) -> np.ndarray:
    """JPEG of falling quality."""
    _, data = cv2.imencode(".jpg", portrait.picture, [cv2.IMWRITE_JPEG_QUALITY, round(75 - 68 * strength)])
    return np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR))


def fade(portrait: FacePicture, strength: float, rng: Seed = 0) -> np.ndarray:
    """Contrast and colours towards the picture's mean grey."""
    left = 1 - 0.9 * strength
    return np.round(left * portrait.picture + (1 - left) * portrait.picture.mean()).astype(np.uint8)


def underexpose(portrait: FacePicture, strength: float, rng: Seed = 0) -> np.ndarray:
    """Under-exposed by up to three and a half stops (sRGB taken for a power of 2.2)."""
    return np.round(portrait.picture * 2 ** (-3.5 * strength / 2.2)).astype(np.uint8)


def _lab(picture: np.ndarray) -> np.ndarray:
    return np.asarray(cv2.cvtColor(picture.astype(np.float32) / 255, cv2.COLOR_RGB2LAB))


def _rgb(lab: np.ndarray) -> np.ndarray:
    return np.round(cv2.cvtColor(lab, cv2.COLOR_LAB2RGB).clip(0, 1) * 255).astype(np.uint8)
