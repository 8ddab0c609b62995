"""What can be said of a portrait by measuring it: the condition of the small flow, and what a prompt asked for.

yaw       slant of the eye line in depth, right of the picture positive, degrees
opening   gap between the inner lips over the distance of the eye corners
smile     mean of the two smile blendshapes
tone      individual typology angle of the cheeks, arctan((L* − 50) / b*) in degrees: 55 very light … −30 dark
light     mean L* of the face
"""

from __future__ import annotations

import cv2
import numpy as np

from flowportrait.media.face import yaw
from flowportrait.portraitgen.framing import eye_distance

ATTRIBUTES = ("yaw", "opening", "smile", "tone", "light")
_CHEEKS = ([117, 118, 101, 36, 205, 187, 123], [346, 347, 330, 266, 425, 411, 352])
_INNER_LIPS = (13, 14)
_SMILES = slice(44, 46)
"""mouthSmileLeft and mouthSmileRight among the 52 blendshapes."""


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
