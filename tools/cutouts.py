"""People cut out of their photos, with soft outlines, and put in front of other backgrounds.

    photo ──► share of the person [H, W], colours of the person alone [H, W, 3] ──► composite = share · colours +
    (1 − share) · background

Photos with a class mask (CelebAMask-HQ) are cut along it; photos in front of a plain wall (Face Research Lab London
Set) by how much they differ from the wall, which finds single hairs.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from flowportrait.media.image import read_image

_INSIDE = 0.95
"""Share of the person from which a pixel's colour is taken for the person's alone."""

_PLAIN, _DISTINCT = 7.0, 40.0
"""Differences from the wall, of 255, up to which a pixel is wall, and from which it is person."""

_HOLE, _FACE, _SHIRT = 4e-4, 0.09, 0.8
"""Largest share of a studio photo's area that is a hole in the mask, ten times that in the face, which lies up to a
share of the width beside the middle; share of its height below which a shirt is filled from side to side."""

_WALL_ROWS, _WALL_COLUMNS = 0.1, 0.07
"""Shares of a studio photo's height and width, at its top and sides, that show nothing but the wall."""


@dataclass(frozen=True)
class Cutout:
    """A person without a background.

    Attributes:
        colours: ``[H, W, 3]`` float32 in [0, 255], continued beyond the outline.
        share: the person's share of each pixel ``[H, W]`` float32.
    """

    colours: np.ndarray
    share: np.ndarray

    def before(self, background: np.ndarray) -> np.ndarray:
        """Return the picture ``[H, W, 3]`` uint8 of the person before a background ``[H, W, 3]``."""
        share = self.share[..., None]
        return np.round(share * self.colours + (1 - share) * background).clip(0, 255).astype(np.uint8)


def cut_out_by_mask(photo: Path) -> Cutout:
    """Return the person of a photo whose class mask is a PNG of the same name; black is what is no person."""
    picture = read_image(photo)
    person = (read_image(photo.with_suffix(".png")).max(-1) > 0).astype(np.uint8)
    # Small holes are slips of the annotation.
    person = cv2.morphologyEx(person, cv2.MORPH_CLOSE, np.ones((5, 5), np.uint8))
    inner = cv2.erode(person, np.ones((3, 3), np.uint8))
    share = cv2.GaussianBlur(inner.astype(np.float32), (0, 0), 1.0)
    return Cutout(_continue_colours(picture, cv2.erode(inner, np.ones((5, 5), np.uint8))), share)


def cut_out_by_wall(photo: Path) -> Cutout:
    """Return the person of a studio photo: what differs from the wall, as the photo's top and sides show it."""
    picture = read_image(photo).astype(np.float32)
    height, width = picture.shape[:2]
    rows, columns = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    terms = np.stack([np.ones_like(rows), rows, columns, rows * columns, rows**2, columns**2], -1)
    known = np.zeros((height, width), bool)
    known[: round(_WALL_ROWS * height)] = True
    side = round(_WALL_COLUMNS * width)
    known[: height // 2, :side] = known[: height // 2, -side:] = True
    wall = (terms @ np.linalg.lstsq(terms[known], picture[known], rcond=None)[0]).astype(np.float32)
    difference = np.abs(picture - wall).max(-1)
    share = ((difference - _PLAIN) / (_DISTINCT - _PLAIN)).clip(0, 1)
    person = _largest_part((share > 0.3).astype(np.uint8))
    person = cv2.morphologyEx(person, cv2.MORPH_CLOSE, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (5, 5)))
    solid = cv2.erode(_fill_inside(person), cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (9, 9)))
    near = cv2.dilate(person, np.ones((3, 3), np.uint8))
    share = np.maximum(share * near, solid).astype(np.float32)
    alone = (picture - (1 - share[..., None]) * wall) / share[..., None].clip(0.2)
    continued = _continue_colours(picture, (share > _INSIDE).astype(np.uint8))
    mixed = np.where(share[..., None] > 0.35, alone.clip(0, 255), continued)
    return Cutout(mixed.astype(np.float32), share)


def _continue_colours(picture: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Return the picture ``[H, W, 3]`` float32 with the nearest colours of ``inside`` ``[H, W]`` everywhere else."""
    _, nearest = cv2.distanceTransformWithLabels(1 - inside, cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL)
    places = np.argwhere(inside > 0)
    lookup = np.zeros((nearest.max() + 1, 2), int)
    lookup[nearest[tuple(places.T)]] = places
    source = lookup[nearest]
    return picture[source[..., 0], source[..., 1]].astype(np.float32)


def _largest_part(mask: np.ndarray) -> np.ndarray:
    _, labels, stats, _ = cv2.connectedComponentsWithStats(mask)
    return (labels == 1 + stats[1:, cv2.CC_STAT_AREA].argmax()).astype(np.uint8)


def _fill_inside(mask: np.ndarray) -> np.ndarray:
    """Return a mask without small holes, and filled from side to side where it shows a shirt as bright as the wall."""
    holes, labels, stats, centres = cv2.connectedComponentsWithStats(1 - mask)
    in_face = np.abs(centres[:, 0] / mask.shape[1] - 0.5) < _FACE
    small = np.flatnonzero(stats[:, cv2.CC_STAT_AREA] < np.where(in_face, 10, 1) * _HOLE * mask.size)
    filled = mask | np.isin(labels, small[small > 0] if holes > 1 else []).astype(np.uint8)
    for row in range(round(_SHIRT * len(mask)), len(mask)):
        columns = np.flatnonzero(mask[row])
        if len(columns):
            filled[row, columns[0] : columns[-1] + 1] = 1
    return filled
