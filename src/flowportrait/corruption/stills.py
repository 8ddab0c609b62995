"""Corruptions of still portraits: colour, texture, sharpness and exposure.

Effects that have a width (blur, skin smoothing, shine) scale with the face: their widths are given in pixels of a face
framed at 115 px.
"""

from __future__ import annotations

from typing import Protocol

import cv2
import numpy as np
import torch

from flowportrait.corruption.clips import Seed
from flowportrait.portraitgen.detectors import FRAME_WIDTH, eye_distance
from flowportrait.rewards.consistency import region_masks

REFERENCE_SIDE = 115
"""Side in pixels of the framed face that widths are given for."""


class FacePicture(Protocol):
    """A picture ``[H, W, 3]`` uint8 RGB and the landmarks ``[478, 3]`` px of its face."""

    @property
    def picture(self) -> np.ndarray: ...

    @property
    def landmarks(self) -> np.ndarray | None: ...


def relative_face_size(portrait: FacePicture) -> float:
    """Return the size of the face relative to one framed at 115 px."""
    assert portrait.landmarks is not None, "only faces are damaged"
    return eye_distance(portrait.landmarks) * FRAME_WIDTH / REFERENCE_SIDE


def oversaturate(portrait: FacePicture, strength: float, rng: Seed = 0) -> np.ndarray:
    """Multiply the chroma by 1 + strength."""
    lab = _rgb_to_lab(portrait.picture)
    lab[..., 1:] *= 1 + strength
    return _lab_to_rgb(lab)


def smooth_skin(portrait: FacePicture, strength: float, rng: Seed = 0) -> np.ndarray:
    """Smooth the skin and keep edges, with a bilateral filter."""
    face_size = relative_face_size(portrait)
    return cv2.bilateralFilter(portrait.picture, round(15 * face_size), 150 * strength, 8 * face_size)


def shift_skin_hue(portrait: FacePicture, strength: float, rng: Seed = 0) -> np.ndarray:
    """Shift the hue of the skin by mixing in the picture with red and green exchanged."""
    return np.round((1 - strength) * portrait.picture + strength * portrait.picture[..., [1, 0, 2]]).astype(np.uint8)


def add_shine(portrait: FacePicture, strength: float, rng: Seed = 0) -> np.ndarray:
    """Brighten the brightest skin, as if it were oily."""
    assert portrait.landmarks is not None, "only faces are damaged"
    lab = _rgb_to_lab(portrait.picture)
    bright = cv2.GaussianBlur(lab[..., 0], (0, 0), 2 * relative_face_size(portrait))
    face = region_masks(torch.from_numpy(portrait.landmarks[None, :, :2]), lab.shape[:2])["face"][0].numpy() > 0
    lab[..., 0] += 40 * strength * np.clip((bright - np.percentile(bright[face], 85)) / 10, 0, 1) * face
    return _lab_to_rgb(lab)


def blur_picture(portrait: FacePicture, strength: float, rng: Seed = 0) -> np.ndarray:
    """Blur the picture as if it were out of focus."""
    return cv2.GaussianBlur(portrait.picture, (0, 0), 2 * strength * relative_face_size(portrait))


def compress_jpeg(portrait: FacePicture, strength: float, rng: Seed = 0) -> np.ndarray:
    """Compress the picture as JPEG with a quality from 75 down to 7."""
    _, data = cv2.imencode(".jpg", portrait.picture, [cv2.IMWRITE_JPEG_QUALITY, round(75 - 68 * strength)])
    return np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR))


def reduce_contrast(portrait: FacePicture, strength: float, rng: Seed = 0) -> np.ndarray:
    """Reduce contrast and colour towards the picture's mean grey, by up to 90 %."""
    contrast = 1 - 0.9 * strength
    return np.round(contrast * portrait.picture + (1 - contrast) * portrait.picture.mean()).astype(np.uint8)


def underexpose(portrait: FacePicture, strength: float, rng: Seed = 0) -> np.ndarray:
    """Under-expose the picture by up to 3.5 stops (sRGB approximated by a gamma of 2.2)."""
    return np.round(portrait.picture * 2 ** (-3.5 * strength / 2.2)).astype(np.uint8)


def _rgb_to_lab(picture: np.ndarray) -> np.ndarray:
    return np.asarray(cv2.cvtColor(picture.astype(np.float32) / 255, cv2.COLOR_RGB2LAB))


def _lab_to_rgb(lab: np.ndarray) -> np.ndarray:
    return np.round(cv2.cvtColor(lab, cv2.COLOR_LAB2RGB).clip(0, 1) * 255).astype(np.uint8)
