"""Where the person is in a portrait crop, and what of it moves with the head; found once per portrait.

person    MediaPipe's selfie segmentation (weights/person), the part that holds the face
matte     how much of each pixel is the person: one inside the outline, ending softly just outside it
weight    how much each pixel moves with the head: one as far as the matte reaches, fading beyond and down the neck
"""

from __future__ import annotations

from importlib.resources import files

import cv2
import numpy as np

from flowportrait.codec.contours import FACE_OVAL

_SEEN = 256
"""Side of the square that the network looks at."""

_SIDE = 160
_BAND = 0.075
_BORDER, _TOUCHING = 0.07, 3.0
"""Share of the side over which a person at the crop's border comes to rest; how near to it that is, in pixels."""

_NECK = 0.62
_EDGE = 0.012
"""Share of the crop's side over which the matte ends, beyond the outline."""

_DOUBT = 6
"""Pixels of that square on either side of the network's outline among which colours decide."""

_KNOWN = 0.5
_ASIDE = 0.8
"""How far beside the face, in its widths, hair is its own; further away it is somebody else's."""


def person(crop: np.ndarray, landmarks: np.ndarray) -> np.ndarray:
    """Mask ``[256, 256]`` uint8 of head, hair and body of the face with ``landmarks`` ``[478, 3]`` in ``crop`` ``[S, S,
    3]`` uint8."""
    network = cv2.dnn.readNetFromTFLite(str(files("flowportrait") / "weights/person/selfie_segmentation.tflite"))
    seen = cv2.resize(crop, (_SEEN, _SEEN), interpolation=cv2.INTER_AREA)
    network.setInput(cv2.dnn.blobFromImage(seen, 1 / 255))
    mask = _by_colour(seen, (network.forward().reshape(_SEEN, _SEEN) > 0.5).astype(np.uint8))
    oval = landmarks[FACE_OVAL, :2] * (_SEEN / crop.shape[0])
    low, high = oval.min(0), oval.max(0)
    centre, extent = (low + high) / 2, high - low
    above = int(np.clip(high[1], 1, _SEEN))
    mask[:above, : max(int(low[0] - _ASIDE * extent[0]), 0)] = 0
    mask[:above, min(int(high[0] + _ASIDE * extent[0]), _SEEN) :] = 0
    face = np.zeros_like(mask)
    cv2.fillConvexPoly(face, cv2.convexHull(np.round(oval).astype(np.int32)), 1)
    if mask[face > 0].mean() < _KNOWN:
        # A face that the network takes for background: a head of the usual shape.
        cv2.ellipse(mask, ((centre[0], centre[1] - 0.12 * extent[1]), (1.6 * extent[0], 1.75 * extent[1]), 0), 1, -1)
    mask |= face
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (7, 7))
    mask = cv2.morphologyEx(cv2.morphologyEx(mask, cv2.MORPH_CLOSE, disc), cv2.MORPH_OPEN, disc)
    _, labels = cv2.connectedComponents(mask)
    row, column = centre[::-1].clip(0, _SEEN - 1).astype(int)
    return (labels == labels[row, column]).astype(np.uint8)


def _by_colour(picture: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The mask with its outline where colours change, within a few pixels (GrabCut, Rother et al. 2004)."""
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * _DOUBT + 1, 2 * _DOUBT + 1))
    sure, possible = cv2.erode(mask, disc), cv2.dilate(mask, disc)
    if sure.all() or not sure.any() or possible.all():
        return mask
    known = np.where(mask > 0, cv2.GC_PR_FGD, cv2.GC_PR_BGD).astype(np.uint8)
    known[sure > 0], known[possible == 0] = cv2.GC_FGD, cv2.GC_BGD
    models = np.zeros((2, 1, 65))
    cv2.setRNGSeed(0)
    try:
        cv2.grabCut(picture, known, None, models[0], models[1], 2, cv2.GC_INIT_WITH_MASK)
    except cv2.error:
        # A picture of one flat colour has no colour model to fit.
        return mask
    return ((known == cv2.GC_FGD) | (known == cv2.GC_PR_FGD)).astype(np.uint8)


def matte(mask: np.ndarray, size: int) -> np.ndarray:
    """Share ``[size, size]`` float32 of the person in each pixel, for a mask ``[256, 256]``."""
    outside = cv2.distanceTransform(1 - mask, cv2.DIST_L2, 5)
    soft = _smoothstep(1 - (outside - 1) / (_EDGE * _SEEN)).astype(np.float32)
    return cv2.resize(cv2.GaussianBlur(soft, (0, 0), 1.0), (size, size), interpolation=cv2.INTER_LINEAR)


def head_weight(mask: np.ndarray, landmarks: np.ndarray, size: int, free_top: bool = False) -> np.ndarray:
    """How much each pixel of a crop of side ``size`` moves with the head: ``[160, 160]`` float32 in [0, 1], for its
    person's mask and landmarks in its pixels; nothing on the crop's border and near where the person crosses it, except
    at its top with ``free_top``."""
    points = landmarks[:, :2] * (_SIDE / size)
    inside = cv2.resize(mask, (_SIDE, _SIDE), interpolation=cv2.INTER_NEAREST)
    outside = cv2.distanceTransform(1 - inside, cv2.DIST_L2, 5) - 2 * _EDGE * _SIDE
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
    # Only a person who goes on beyond the crop is held there; a wall stays by itself.
    held = ((edge == 0) & (outside < _TOUCHING - 2 * _EDGE * _SIDE)).astype(np.uint8)
    border = _smoothstep(cv2.distanceTransform(1 - held, cv2.DIST_L2, 5) / (_BORDER * _SIDE)) if held.any() else 1.0
    return cv2.GaussianBlur((near * neck * border).astype(np.float32), (0, 0), 1.5) * (edge > 0)


def _smoothstep(x: np.ndarray) -> np.ndarray:
    t = np.clip(x, 0.0, 1.0)
    return t * t * (3 - 2 * t)
