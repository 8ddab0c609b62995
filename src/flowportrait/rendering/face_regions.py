"""Regions of a portrait: outlines of eyes, lips and face, the person's silhouette, and skin without openings.

The first part lists the landmarks of each outline and turns chains of landmarks into smooth curves and masks. The
second finds, once per portrait, where the person is and how much of each pixel moves with the head:

    person          MediaPipe's selfie segmentation (weights/person), limited to the part that holds the face
    matte           share of the person in each pixel: one inside the outline, with a soft edge just outside it
    head_weight     how much each pixel moves with the head: one as far as the matte reaches, fading beyond it and
                    down the neck

The third, ``skin_without_openings``, is the photo with eyes and mouth filled by the skin around them. Lips that close
over a photographed smile, and lids that close over an eye, are drawn from it, so that they do not drag teeth or eye
white along.
"""

from __future__ import annotations

import math
from functools import lru_cache

import cv2
import numpy as np

from flowportrait.files import shipped_weights

# --- Outlines --------------------------------------------------------------------------------------------------------

FACE_OVAL = [
    10, 338, 297, 332, 284, 251, 389, 356, 454, 323, 361, 288, 397, 365, 379, 378, 400, 377,
    152, 148, 176, 149, 150, 136, 172, 58, 132, 93, 234, 127, 162, 21, 54, 103, 67, 109,
]  # fmt: skip

INNER_UPPER = [78, 191, 80, 81, 82, 13, 312, 311, 310, 415, 308]
INNER_LOWER = [78, 95, 88, 178, 87, 14, 317, 402, 318, 324, 308]
"""Landmarks of the inner lips, from the person's right corner to the left one."""

OUTER_UPPER = [61, 185, 40, 39, 37, 0, 267, 269, 270, 409, 291]
OUTER_LOWER = [61, 146, 91, 181, 84, 17, 314, 405, 321, 375, 291]
"""Landmarks of the outer lips in the same order."""

EYES = (
    ([33, 246, 161, 160, 159, 158, 157, 173, 133], [33, 7, 163, 144, 145, 153, 154, 155, 133], 468),
    ([362, 398, 384, 385, 386, 387, 388, 466, 263], [362, 382, 381, 380, 374, 373, 390, 249, 263], 473),
)
"""Landmarks of each eye: upper lid, lower lid (both from corner to corner) and iris centre; the four indices after the
centre are the rim of the iris."""

RIGID_LANDMARKS = [
    33, 133, 362, 263, 168, 6, 197, 195, 5, 4, 2, 98, 327, 10, 109, 338, 67, 297, 151, 9, 127, 356, 234, 454,
    21, 251,
]  # fmt: skip
"""Landmarks that move with the skull and hardly with speech."""

_SHIFT = 4
"""Fractional bits of the coordinates that OpenCV fills polygons with."""

_FINER = 4
"""Supersampling of masks."""

_STEPS = 4
"""Points of a smooth curve for each landmark."""


def smooth_chain(points: np.ndarray, steps: int = _STEPS) -> np.ndarray:
    """Return the Catmull-Rom curve ``[(N - 1) steps + 1, 2]`` through an open chain of points ``[N, 2]``."""
    result: np.ndarray = _catmull_rom(len(points), steps) @ points
    return result


@lru_cache
def _catmull_rom(count: int, steps: int) -> np.ndarray:
    """Return the weights ``[(N - 1) steps + 1, N]`` of N points in their Catmull-Rom curve."""
    points = np.eye(count)
    ends = np.concatenate([[2 * points[0] - points[1]], points, [2 * points[-1] - points[-2]]])
    a, b, c, d = (p[:, None] for p in (ends[:-3], ends[1:-2], ends[2:-1], ends[3:]))
    t = (np.arange(steps) / steps)[None, :, None]
    curve = 0.5 * (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - 3 * c + d - a) * t**3)
    return np.concatenate([curve.reshape(-1, count), points[-1:]])


def opening_outline(upper: np.ndarray, lower: np.ndarray, steps: int = _STEPS) -> np.ndarray:
    """Return the closed outline ``[M, 2]`` between two chains ``[N, 2]`` with common ends.

    Where the chains cross, the outline is shut.
    """
    both = smooth_chain(np.concatenate([upper, lower], 1), steps)
    top, bottom = both[:, :2], both[:, 2:]
    crossed = top[:, 1] > bottom[:, 1]
    if crossed.any():
        middle = (top + bottom) / 2
        top = np.where(crossed[:, None], middle, top)
        bottom = np.where(crossed[:, None], middle, bottom)
    return np.concatenate([top, bottom[-2:0:-1]])


def box_around(points: np.ndarray, size: tuple[int, int], before: int, after: int) -> tuple[int, int, int, int]:
    """Return left, top, right and bottom of the whole pixels around points ``[N, 2]`` px, inside a picture.

    Args:
        points: what the box holds.
        size: width and height of the picture.
        before: margin to the left and above.
        after: margin to the right and below.
    """
    (left, top), (right, bottom) = points.min(0).tolist(), points.max(0).tolist()
    width, height = size
    return (
        min(max(math.floor(left) - before, 0), width - 1),
        min(max(math.floor(top) - before, 0), height - 1),
        min(max(math.ceil(right) + after, 1), width),
        min(max(math.ceil(bottom) + after, 1), height),
    )


def outline_mask(shape: tuple[int, int], outline: np.ndarray, feather: float = 0.0) -> np.ndarray:
    """Return a mask ``[H, W]`` float32 of the area inside ``outline`` ``[M, 2]`` px, blurred by ``feather`` px.

    The mask is supersampled: each pixel holds the share of it that is inside, so that slow motion looks smooth.
    """
    mask = np.zeros(shape, np.float32)
    (left, top), (right, bottom) = outline.min(0).tolist(), outline.max(0).tolist()
    left, top = max(math.floor(left), 0), max(math.floor(top), 0)
    width = min(math.ceil(right) + 1, shape[1]) - left
    height = min(math.ceil(bottom) + 1, shape[0]) - top
    if width <= 0 or height <= 0:
        return mask
    fine = np.zeros((height * _FINER, width * _FINER), np.uint8)
    points = (outline - (left, top) + 0.5) * _FINER - 0.5
    cv2.fillPoly(fine, [np.round(points * (1 << _SHIFT)).astype(np.int32)], 255, cv2.LINE_8, _SHIFT)
    share = cv2.resize(fine, (width, height), interpolation=cv2.INTER_AREA)
    np.multiply(share, np.float32(1 / 255), out=mask[top : top + height, left : left + width])
    return cv2.GaussianBlur(mask, (0, 0), feather) if feather > 0.2 else mask


def blend_over(region: np.ndarray, drawn: np.ndarray, mask: np.ndarray) -> None:
    """Blend ``drawn`` ``[h, w, 3]`` float32 over ``region`` ``[h, w, 3]`` uint8 in place, by ``mask`` ``[h, w]``."""
    mixed = cv2.subtract(drawn, region, dtype=cv2.CV_32F)
    mixed *= cv2.cvtColor(mask, cv2.COLOR_GRAY2RGB)
    cv2.add(region, mixed, region, dtype=cv2.CV_8U)


# --- The person ------------------------------------------------------------------------------------------------------

_MASK_SIDE = 256
"""Side of the square that the segmentation network takes."""

_WEIGHT_SIDE = 160
"""Side of the head weight."""

_BAND = 0.075
"""Share of the side over which the head weight fades outside the matte."""

_BORDER, _TOUCHING = 0.07, 3.0
"""Share of the side over which the motion of a person who crosses the crop's border fades to zero; distance to the
border, in pixels, that counts as crossing."""

_NECK = 0.62
"""Distance over which the head weight fades down the neck, in distances from the forehead to the chin."""

_EDGE = 0.012
"""Share of the crop's side over which the matte fades outside the outline."""

_DOUBT = 6
"""Pixels of the mask on either side of the network's outline in which colours decide."""

_LOCK = 8
"""Length in pixels of the mask up to which thin parts of it are locks of hair."""

_SURE, _POSSIBLE = 0.5, 0.15
"""Shares that the network gives to what is taken for the person unless colours say otherwise far from the outline, and
to what colours may add: the top of a hat."""

_FACE_SHARE = 0.5
"""Least share of the face that the network must take for a person."""

_ASIDE = 0.8
"""Distance beside the face, in face widths, up to which hair belongs to it; further away it is another person's."""


def segment_person(crop: np.ndarray, landmarks: np.ndarray) -> np.ndarray:
    """Return the mask ``[256, 256]`` uint8 of a person's head, hair and body.

    Args:
        crop: the portrait crop ``[S, S, 3]`` uint8.
        landmarks: the landmarks ``[478, 3]`` px of the person's face in it.
    """
    network = cv2.dnn.readNetFromTFLite(str(shipped_weights("person/selfie_segmentation.tflite")))
    small = cv2.resize(crop, (_MASK_SIDE, _MASK_SIDE), interpolation=cv2.INTER_AREA)
    network.setInput(cv2.dnn.blobFromImage(small, 1 / 255))
    share = network.forward().reshape(_MASK_SIDE, _MASK_SIDE)
    mask = _refine_by_colour(small, *((share > least).astype(np.uint8) for least in (_SURE, _POSSIBLE)))
    oval = landmarks[FACE_OVAL, :2] * (_MASK_SIDE / crop.shape[0])
    low, high = oval.min(0), oval.max(0)
    centre, extent = (low + high) / 2, high - low
    above = int(np.clip(high[1], 1, _MASK_SIDE))
    mask[:above, : max(int(low[0] - _ASIDE * extent[0]), 0)] = 0
    mask[:above, min(int(high[0] + _ASIDE * extent[0]), _MASK_SIDE) :] = 0
    face = np.zeros_like(mask)
    cv2.fillConvexPoly(face, cv2.convexHull(np.round(oval).astype(np.int32)), 1)
    if mask[face > 0].mean() < _FACE_SHARE:
        # If the network takes the face for background, assume a head of the usual shape.
        cv2.ellipse(mask, ((centre[0], centre[1] - 0.12 * extent[1]), (1.6 * extent[0], 1.75 * extent[1]), 0), 1, -1)
    mask |= face
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (7, 7))
    closed = cv2.morphologyEx(mask, cv2.MORPH_CLOSE, disc)
    mask = cv2.morphologyEx(closed, cv2.MORPH_OPEN, disc)
    # Opening cuts off locks of hair together with narrow bridges to other things; short ones grow back.
    for _ in range(_LOCK):
        mask = cv2.dilate(mask, np.ones((3, 3), np.uint8)) & closed
    _, labels = cv2.connectedComponents(mask)
    row, column = centre[::-1].clip(0, _MASK_SIDE - 1).astype(int)
    return (labels == labels[row, column]).astype(np.uint8)


def _refine_by_colour(picture: np.ndarray, mask: np.ndarray, likely: np.ndarray) -> np.ndarray:
    """Return the mask with its outline moved by a few pixels to where colours change (GrabCut, Rother et al. 2004).

    Args:
        picture: ``[256, 256, 3]`` uint8.
        mask: what the network takes for the person, ``[256, 256]``.
        likely: the same with what is only likely to be the person.
    """
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * _DOUBT + 1, 2 * _DOUBT + 1))
    likely = mask | likely
    sure, possible = cv2.erode(mask, disc), cv2.dilate(likely, disc)
    if sure.all() or not sure.any() or possible.all():
        return mask
    known = np.where(likely > 0, cv2.GC_PR_FGD, cv2.GC_PR_BGD).astype(np.uint8)
    known[sure > 0], known[possible == 0] = cv2.GC_FGD, cv2.GC_BGD
    models = np.zeros((2, 1, 65))
    cv2.setRNGSeed(0)
    try:
        cv2.grabCut(picture, known, None, models[0], models[1], 2, cv2.GC_INIT_WITH_MASK)
    except cv2.error:
        # A picture of one flat colour has no colour model to fit.
        return mask
    return ((known == cv2.GC_FGD) | (known == cv2.GC_PR_FGD)).astype(np.uint8)


def person_matte(mask: np.ndarray, size: int) -> np.ndarray:
    """Return the share ``[size, size]`` float32 of the person in each pixel, for a mask ``[256, 256]``."""
    outside = cv2.distanceTransform(1 - mask, cv2.DIST_L2, 5)
    soft = _smoothstep(1 - (outside - 1) / (_EDGE * _MASK_SIDE)).astype(np.float32)
    return cv2.resize(cv2.GaussianBlur(soft, (0, 0), 1.0), (size, size), interpolation=cv2.INTER_LINEAR)


def head_weight(mask: np.ndarray, landmarks: np.ndarray, size: int, free_top: bool = False) -> np.ndarray:
    """Return how much each pixel of a crop moves with the head, ``[160, 160]`` float32 in [0, 1].

    It is zero on the crop's border and fades to zero where the person crosses it.

    Args:
        mask: the person's mask ``[256, 256]``.
        landmarks: landmarks ``[478, 3]`` in pixels of the crop.
        size: side of the crop.
        free_top: let the crop's top border move.
    """
    points = landmarks[:, :2] * (_WEIGHT_SIDE / size)
    inside = cv2.resize(mask, (_WEIGHT_SIDE, _WEIGHT_SIDE), interpolation=cv2.INTER_NEAREST)
    outside = cv2.distanceTransform(1 - inside, cv2.DIST_L2, 5) - 2 * _EDGE * _WEIGHT_SIDE
    near = _smoothstep(1 - (outside - 2) / (_BAND * _WEIGHT_SIDE))
    ys, xs = np.mgrid[:_WEIGHT_SIDE, :_WEIGHT_SIDE].astype(np.float32)
    up = points[10] - points[152]
    height = float(np.linalg.norm(up))
    up = up / height
    below = -((xs - points[152, 0]) * up[0] + (ys - points[152, 1]) * up[1])
    sideways = np.abs((xs - points[152, 0]) * up[1] - (ys - points[152, 1]) * up[0])
    # Beside the face the fade starts at the jaw's height, under the chin at the chin.
    start = -0.12 * height * _smoothstep(sideways / (0.5 * height))
    neck = _smoothstep(1 - (below - start) / (_NECK * height))
    edge = np.minimum(np.minimum(xs, _WEIGHT_SIDE - 1 - xs), _WEIGHT_SIDE - 1 - ys)
    edge = edge if free_top else np.minimum(edge, ys)
    # Only a person who continues beyond the crop is held at its border; the background does not move anyway.
    held = ((edge == 0) & (outside < _TOUCHING - 2 * _EDGE * _WEIGHT_SIDE)).astype(np.uint8)
    border = (
        _smoothstep(cv2.distanceTransform(1 - held, cv2.DIST_L2, 5) / (_BORDER * _WEIGHT_SIDE)) if held.any() else 1.0
    )
    return cv2.GaussianBlur((near * neck * border).astype(np.float32), (0, 0), 1.5) * (edge > 0)


def _smoothstep(x: np.ndarray) -> np.ndarray:
    t = np.clip(x, 0.0, 1.0)
    return t * t * (3 - 2 * t)


# --- Skin without openings -------------------------------------------------------------------------------------------


def skin_without_openings(crop: np.ndarray, landmarks: np.ndarray, eyes: bool = True) -> np.ndarray:
    """Return a crop ``[S, S, 3]`` uint8 with mouth and eyes painted over.

    The inside of the lips, and with ``eyes`` that of the lids, is inpainted from the skin around it.
    """
    points = landmarks[:, :2].astype(np.float64)
    width = float(np.linalg.norm(points[33] - points[263]))
    result = crop.copy()
    for upper, lower, _ in EYES if eyes else ():
        # Lashes at the rim belong to the lid, so the filled area begins a little inside the opening.
        _paint_over(result, opening_outline(points[upper], points[lower]), -0.012 * width)
    lips = opening_outline(points[INNER_UPPER], points[INNER_LOWER])
    gap = float((points[INNER_LOWER] - points[INNER_UPPER])[:, 1].max())
    if gap > 0.03 * width:
        # Teeth shine into the rim of the lips, so the filled area begins a little outside the opening.
        outer = opening_outline(points[OUTER_UPPER], points[OUTER_LOWER])
        _paint_over(result, lips, 0.018 * width, _teeth_outside(crop, lips, outer, width))
    return result


_TOOTH_RIM, _ALIKE_TEETH, _LEAST_CONTRAST = 0.06, 0.4, 20.0
"""Width of the rim of the lips, in eye distances, in which tracked lips may lie on teeth; share of the way from the
colour of the lips to that of the teeth from which a pixel is one; least difference (CIELAB) that tells them apart."""


def _teeth_outside(crop: np.ndarray, inner: np.ndarray, outer: np.ndarray, width: float) -> np.ndarray:
    """Return which pixels ``[S, S]`` uint8 between the outlines of the lips, ``[M, 2]`` px each, show teeth."""
    shape = crop.shape[:2]
    hole, lips = outline_mask(shape, inner) > 0.5, outline_mask(shape, outer) > 0.5
    distance = cv2.distanceTransform((~hole).astype(np.uint8), cv2.DIST_L2, 5)
    rim = lips & ~hole & (distance < _TOOTH_RIM * width)
    skin = lips & ~hole & (distance > 0.03 * width)
    if not (hole.any() and skin.any()):
        return np.zeros(shape, np.uint8)
    lab = cv2.cvtColor(crop.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
    bright = lab[hole][lab[hole][:, 0] >= np.median(lab[hole][:, 0])]
    lip = np.median(lab[skin], axis=0)
    axis = np.median(bright, axis=0) - lip
    length = float(np.linalg.norm(axis))
    if length < _LEAST_CONTRAST or axis[0] < 0:
        return np.zeros(shape, np.uint8)
    teeth = rim & ((lab - lip) @ (axis / length**2) > _ALIKE_TEETH)
    # A highlight on a lip is as bright, but does not touch the opening.
    _, labels = cv2.connectedComponents((teeth | hole).astype(np.uint8))
    touching = np.isin(labels, np.unique(labels[hole]))
    return cv2.dilate((teeth & touching).astype(np.uint8), np.ones((3, 3), np.uint8))


def _paint_over(image: np.ndarray, outline: np.ndarray, grow: float, more: np.ndarray | None = None) -> None:
    """Inpaint the inside of an outline ``[M, 2]`` px, grown by ``grow`` px, and pixels ``more``, in place."""
    size = image.shape[0]
    margin = 12 + 2 * abs(grow)
    low = np.floor(outline.min(0) - margin).astype(int).clip(0, size - 1)
    high = np.ceil(outline.max(0) + margin).astype(int).clip(1, size)
    patch = np.ascontiguousarray(image[low[1] : high[1], low[0] : high[0]])
    inside = (outline_mask(patch.shape[:2], outline - low) > 0.5).astype(np.uint8)
    radius = round(abs(grow))
    if radius:
        disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))
        inside = cv2.dilate(inside, disc) if grow > 0 else cv2.erode(inside, disc)
    if more is not None:
        inside |= more[low[1] : high[1], low[0] : high[0]]
    image[low[1] : high[1], low[0] : high[0]] = cv2.inpaint(patch, inside, 3, cv2.INPAINT_TELEA)
