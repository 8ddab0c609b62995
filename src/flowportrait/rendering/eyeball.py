"""The part of an eyeball that lids hide in the photo, for eyes that open further or look elsewhere.

    known: inside of the lids, without the rim where lashes are
    iris:  hidden pixels within its radius get the median colour of the visible ones at their distance from the centre
    white: hidden pixels outside it are inpainted from the visible ones

An iris is nearly the same all around, so a half-closed eye still shows all of its colours: the pupil, the coloured
ring and the dark edge.
"""

from __future__ import annotations

import cv2
import numpy as np

_RINGS = 9
"""Number of distances from the centre of the iris at which its colour is measured."""

_FEW = 3
"""Least number of visible pixels at a distance."""

_GLINT = 60.0
"""Luma above the median of the iris from which a pixel is a reflection of light, and not the iris."""

_EDGE = 0.12
"""Share of the radius over which the iris fades into the white of the eye."""

_LASHES = 0.15
"""Width of the rim of lashes in radii of the iris."""

_LEAST_RINGS = 3
"""Distances at which the iris must be visible; an eye that shows fewer is inpainted as a whole."""


def complete_eyeball(
    patch: np.ndarray, opening: np.ndarray, centre: np.ndarray, radius: float, narrow: float = 0.0
) -> np.ndarray:
    """Return a picture ``[h, w, 3]`` float32 of an eye in which the eyeball continues under the lids.

    Args:
        patch: the eye ``[h, w, 3]`` uint8.
        opening: share of each pixel inside the lids, without the lashes ``[h, w]``.
        centre: centre of the iris ``[2]`` px.
        radius: radius of the iris in px.
        narrow: from 0 to 1, how far the eye is from being open: the lids of a narrow eye will move away from where they
            are in the photo, and the lashes must not stay behind.
    """
    if narrow:
        inner = cv2.GaussianBlur(opening, (0, 0), max(_LASHES * radius, 0.3))
        opening = np.minimum(opening, opening + np.float32(narrow) * ((2 * inner - 1).clip(0, 1) - opening))
    visible = opening >= 0.5
    white = cv2.inpaint(np.ascontiguousarray(patch), (~visible).astype(np.uint8), 3, cv2.INPAINT_TELEA)
    result = white.astype(np.float32)
    ys, xs = np.mgrid[: patch.shape[0], : patch.shape[1]]
    distance = np.hypot(xs - centre[0], ys - centre[1]) / max(radius, 1e-3)
    colours = _ring_colours(patch, visible, distance)
    if colours is None:
        return result
    # What lies beyond the iris is inpainted without it, or its colour would be spread over the white.
    beyond = visible & (distance > 1 + _EDGE)
    if beyond.sum() > _FEW:
        result = cv2.inpaint(np.ascontiguousarray(patch), (~beyond).astype(np.uint8), 3, cv2.INPAINT_TELEA)
        result = cv2.GaussianBlur(result, (0, 0), max(0.15 * radius, 0.5)).astype(np.float32)
    along = (distance * _RINGS - 0.5).clip(0, _RINGS - 1)
    rings = np.arange(_RINGS)
    iris = np.stack([np.interp(along, rings, colours[:, channel]) for channel in range(3)], -1)
    share = ((1 + _EDGE / 2 - distance) / _EDGE).clip(0, 1)[..., None]
    hidden = result + share * (iris - result)
    known = np.clip(2 * opening, 0, 1)[..., None]
    return (known * patch + (1 - known) * hidden).astype(np.float32)


def _ring_colours(patch: np.ndarray, visible: np.ndarray, distance: np.ndarray) -> np.ndarray | None:
    """Return the colour of the iris at each distance ``[9, 3]``, or None if too little of it is visible."""
    luma = cv2.cvtColor(patch, cv2.COLOR_RGB2GRAY).astype(np.float32)
    iris = visible & (distance < 1)
    if iris.sum() <= _FEW:
        return None
    iris &= luma < np.median(luma[iris]) + _GLINT
    ring = (distance * _RINGS).astype(int)
    found = [index for index in range(_RINGS) if (iris & (ring == index)).sum() > _FEW]
    if len(found) < _LEAST_RINGS:
        return None
    colours = np.array([np.median(patch[iris & (ring == index)], axis=0) for index in found])
    return np.stack([np.interp(np.arange(_RINGS), found, colours[:, channel]) for channel in range(3)], -1)
