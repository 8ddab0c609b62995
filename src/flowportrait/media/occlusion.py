"""Is there a mouth to move? Landmarks are found on a mask as readily as on lips; colour tells.

    covered  ⇔  |lips − forehead| > 14  and  |lips − chin| < 0.35 |lips − forehead|        (CIELAB, medians)

A mask is one colour from lips to chin and not the skin's; on faces the second ratio is 0.6 and more, bearded or not. A
hand is skin and passes unseen.
"""

from __future__ import annotations

import cv2
import numpy as np

_LIPS = [0, 17, 13, 14, 37, 267, 84, 314, 61, 291]
_CHIN = [199, 200, 201, 421, 208, 428, 32, 262]
_FOREHEAD = [9, 151, 108, 337, 107, 336, 6, 168]
_APART = 14.0
_ALIKE = 0.35


def mouth_covered(image: np.ndarray, landmarks: np.ndarray) -> bool:
    """Whether the mouth of the face with landmarks ``[478, 3]`` px in ``image`` ``[H, W, 3]`` uint8 seems hidden."""
    radius = max(1, round(0.02 * float(np.ptp(landmarks[:, 1]))))
    lips, chin, forehead = (_colour(image, landmarks[group, :2], radius) for group in (_LIPS, _CHIN, _FOREHEAD))
    strange = float(np.linalg.norm(lips - forehead))
    return strange > _APART and float(np.linalg.norm(lips - chin)) < _ALIKE * strange


def _colour(image: np.ndarray, places: np.ndarray, radius: int) -> np.ndarray:
    """Median CIELAB colour ``[3]`` of small squares around ``places`` ``[N, 2]`` px."""
    height, width = image.shape[:2]
    samples = []
    for x, y in np.round(places).astype(int):
        patch = image[max(y - radius, 0) : min(y + radius + 1, height), max(x - radius, 0) : min(x + radius + 1, width)]
        if patch.size:
            samples.append(np.median(patch.reshape(-1, 3), axis=0))
    lab = cv2.cvtColor(np.array(samples, np.float32)[None] / 255, cv2.COLOR_RGB2LAB)[0]
    return np.median(lab, axis=0)
