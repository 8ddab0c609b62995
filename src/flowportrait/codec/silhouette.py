"""Where the person is in a portrait crop, found once per portrait with GrabCut (Rother et al. 2004).

The result is a weight, not a cut-out: one on the head, fading to zero just outside its outline and down the
neck, so that whatever is drawn with it bends no background further away than the fade.
"""

from __future__ import annotations

import cv2
import numpy as np

from flowportrait.codec.contours import FACE_OVAL

_SIDE = 160
_BAND = 0.075
_BORDER = 0.07
_NECK = 0.62


def head_weight(crop: np.ndarray, landmarks: np.ndarray, free_top: bool = False) -> np.ndarray:
    """How much each pixel of ``crop`` ``[S, S, 3]`` moves with the head: ``[160, 160]`` float32 in [0, 1]; nothing at
    the crop's border, but at its top with ``free_top``."""
    scale = _SIDE / crop.shape[0]
    small = cv2.resize(crop, (_SIDE, _SIDE), interpolation=cv2.INTER_AREA)
    points = landmarks[:, :2] * scale
    person = _person(small, points)
    outside = cv2.distanceTransform(1 - person, cv2.DIST_L2, 5)
    near = _smoothstep(1 - (outside - 2) / (_BAND * _SIDE))
    ys, xs = np.mgrid[:_SIDE, :_SIDE].astype(np.float32)
    up = points[10] - points[152]
    height = float(np.linalg.norm(up))
    up = up / height
    below = -((xs - points[152, 0]) * up[0] + (ys - points[152, 1]) * up[1])
    sideways = np.abs((xs - points[152, 0]) * up[1] - (ys - points[152, 1]) * up[0])
    # Beside the face the fade starts at the jaw's height, under the chin at the chin.
    start = -0.12 * height * _smoothstep(sideways / (0.5 * height))
    neck = _smoothstep(1 - (below - start) / (_NECK * height))
    edge = np.minimum(np.minimum(xs, _SIDE - 1 - xs), _SIDE - 1 - ys)
    edge = edge if free_top else np.minimum(edge, ys)
    border = _smoothstep(edge / (_BORDER * _SIDE))
    return cv2.GaussianBlur((near * neck * border).astype(np.float32), (0, 0), 1.5) * (edge > 0)


def _person(image: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Mask ``[160, 160]`` uint8 of head, hair and body."""
    oval = points[FACE_OVAL]
    low, high = oval.min(0), oval.max(0)
    centre, extent = (low + high) / 2, high - low
    mask = np.full(image.shape[:2], cv2.GC_PR_BGD, np.uint8)
    probable = np.zeros_like(mask)
    head = (centre[0], centre[1] - 0.12 * extent[1])
    cv2.ellipse(probable, (head, (1.6 * extent[0], 1.75 * extent[1]), 0), 1, -1)
    shoulders = int(min(high[1] + 0.25 * extent[1], image.shape[0] - 1))
    probable[shoulders:, int(max(centre[0] - extent[0], 0)) : int(centre[0] + extent[0])] = 1
    mask[probable > 0] = cv2.GC_PR_FGD
    cv2.ellipse(mask, (head, (2.9 * extent[0], 2.9 * extent[1]), 0), cv2.GC_BGD, 2)
    above = max(shoulders - int(0.3 * extent[1]), 1)
    mask[:above, : max(int(low[0] - 0.8 * extent[0]), 3)] = cv2.GC_BGD
    mask[:above, min(int(high[0] + 0.8 * extent[0]), image.shape[1] - 3) :] = cv2.GC_BGD
    sure = np.zeros_like(mask)
    cv2.fillConvexPoly(sure, cv2.convexHull(np.round(oval).astype(np.int32)), 1)
    cv2.ellipse(sure, (head, (1.05 * extent[0], 1.3 * extent[1]), 0), 1, -1)
    mask[sure > 0] = cv2.GC_FGD
    cv2.setRNGSeed(0)
    models = np.zeros((2, 1, 65))
    try:
        cv2.grabCut(image, mask, None, models[0], models[1], 4, cv2.GC_INIT_WITH_MASK)
        person = ((mask == cv2.GC_FGD) | (mask == cv2.GC_PR_FGD)).astype(np.uint8)
    except cv2.error:
        # A picture of one flat colour has no colour model to fit.
        person = probable
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (7, 7))
    person = cv2.morphologyEx(cv2.morphologyEx(person, cv2.MORPH_CLOSE, disc), cv2.MORPH_OPEN, disc)
    _, labels = cv2.connectedComponents(person)
    label = labels[int(centre[1].clip(0, image.shape[0] - 1)), int(centre[0].clip(0, image.shape[1] - 1))]
    person = (labels == label).astype(np.uint8)
    return person | sure


def _smoothstep(x: np.ndarray) -> np.ndarray:
    t = np.clip(x, 0.0, 1.0)
    return t * t * (3 - 2 * t)
