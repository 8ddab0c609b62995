"""Damage of known cause to a still portrait, to see who notices.

    damage(look, strength) ─► picture        strength 0 … 1

What has a width (blur, an airbrush, a shine) is as wide on a large face as on a small one: widths are in pixels of a
face framed at 115 px.
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
import torch

from flowportrait.portraitgen.look import SIDES, WIDTH, Look, eye_distance
from flowportrait.reward.regions import masks

Damage = Callable[[Look, float], np.ndarray]
"""Of a look with a face."""
STRENGTHS = (0.33, 0.67, 1.0)


def enlarged(seen: Look) -> float:
    """How much larger the face is than one framed at 115 px."""
    assert seen.landmarks is not None, "only faces are damaged"
    return eye_distance(seen.landmarks) * WIDTH / SIDES["large"]


def chroma(seen: Look, strength: float) -> np.ndarray:
    """Chroma times 1 + strength."""
    lab = _lab(seen.picture)
    lab[..., 1:] *= 1 + strength
    return _rgb(lab)


def airbrush(seen: Look, strength: float) -> np.ndarray:
    """Skin without its detail, edges kept: a bilateral filter."""
    unit = enlarged(seen)
    return cv2.bilateralFilter(seen.picture, round(15 * unit), 150 * strength, 8 * unit)


def tint(seen: Look, strength: float) -> np.ndarray:
    """The red channel moved towards the green one's place."""
    return np.round((1 - strength) * seen.picture + strength * seen.picture[..., [1, 0, 2]]).astype(np.uint8)


def shine(seen: Look, strength: float) -> np.ndarray:
    """The brightest skin made brighter."""
    assert seen.landmarks is not None, "only faces are damaged"
    lab = _lab(seen.picture)
    bright = cv2.GaussianBlur(lab[..., 0], (0, 0), 2 * enlarged(seen))
    face = masks(torch.from_numpy(seen.landmarks[None, :, :2]), lab.shape[:2])["face"][0].numpy() > 0
    lab[..., 0] += 40 * strength * np.clip((bright - np.percentile(bright[face], 85)) / 10, 0, 1) * face
    return _rgb(lab)


def blur(seen: Look, strength: float) -> np.ndarray:
    """Out of focus."""
    return cv2.GaussianBlur(seen.picture, (0, 0), 2 * strength * enlarged(seen))


def jpeg(seen: Look, strength: float) -> np.ndarray:
    """JPEG of falling quality."""
    _, data = cv2.imencode(".jpg", seen.picture, [cv2.IMWRITE_JPEG_QUALITY, round(75 - 68 * strength)])
    return np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR))


def faded(seen: Look, strength: float) -> np.ndarray:
    """Contrast and colours towards the picture's mean grey."""
    left = 1 - 0.9 * strength
    return np.round(left * seen.picture + (1 - left) * seen.picture.mean()).astype(np.uint8)


def dark(seen: Look, strength: float) -> np.ndarray:
    """Under-exposed by up to three and a half stops (sRGB taken for a power of 2.2)."""
    return np.round(seen.picture * 2 ** (-3.5 * strength / 2.2)).astype(np.uint8)


def _lab(picture: np.ndarray) -> np.ndarray:
    return np.asarray(cv2.cvtColor(picture.astype(np.float32) / 255, cv2.COLOR_RGB2LAB))


def _rgb(lab: np.ndarray) -> np.ndarray:
    return np.round(cv2.cvtColor(lab, cv2.COLOR_LAB2RGB).clip(0, 1) * 255).astype(np.uint8)
