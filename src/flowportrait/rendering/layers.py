"""Layers drawn in addition to the warped face: eyeballs, the far side of a half profile, and the background.

``EyeLayer`` draws an eyeball between moving lids, ``FarSideLayer`` the side of a turned face that the photo does not
show, and ``Backdrop`` the person in front of a background that does not move.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import cv2
import numpy as np

from flowportrait.rendering.eyeball import complete_eyeball
from flowportrait.rendering.face_regions import (
    EYES,
    OUTER_LOWER,
    OUTER_UPPER,
    blend_over,
    box_around,
    opening_outline,
    outline_mask,
    smooth_chain,
)
from flowportrait.rendering.inpainting import inpaint_band
from flowportrait.rendering.mesh import (
    N_FACE,
    HeadMesh,
    Rasterizer,
    SourceMap,
    UpsampledPicture,
    face_triangles,
    facing_cosine,
)
from flowportrait.rendering.motion_basis import MotionBasis, mirror_partners

# --- Eyes ------------------------------------------------------------------------------------------------------------
#
# Lids are skin and belong to the mesh, but an open lid shows little except lashes: a lid that comes down is painted
# with the skin around it and keeps its lash line. The eyeball keeps its place in the head, and its iris slides with the
# gaze:
#
#     eye'(x) = eye(p − gaze · exp(−(|p − iris − gaze| / 1.7 r)⁴)),     p = head-aligned x

_SHADE = 0.45
"""Light that an eyeball loses in the shadow of a closed lid."""

_LID_SKIN = ((225, 224, 223, 222, 228, 229, 230, 231), (442, 443, 444, 445, 451, 450, 449, 448))
"""Landmarks on the skin between brow and lid fold, then below the eye, in the order of the lid's landmarks."""

_LASHES = 0.75
_OPACITY = 0.88
"""Opacity of painted lashes and of a painted lid."""

_NARROW, _WIDE = 0.2, 0.27
"""Height over width below which an eye is half closed, and above which it is open."""

_TOUCHING = 1.5
"""Opening in pixels below which lids fade into touching."""


class EyeLayer:
    """One eye of a portrait crop ``[S, S, 3]`` with landmarks ``[478, 3]`` px; ``side`` 0 is the person's right."""

    def __init__(self, crop: np.ndarray, landmarks: np.ndarray, side: int) -> None:
        self._upper, self._lower, self._iris = EYES[side]
        points = landmarks[:, :2].astype(np.float64)
        self._corners = points[[self._upper[0], self._upper[-1]]]
        self._middle = self._corners.mean(0)
        self._width = float(np.linalg.norm(np.diff(self._corners, axis=0)))
        self._centre = points[self._iris]
        rim = points[self._iris + 1 : self._iris + 5]
        self._radius = float(np.linalg.norm(rim - self._centre, axis=1).mean())
        self._height = self._gap(points)
        self._photo_edge = points[self._upper]
        self.outline = opening_outline(points[self._upper], points[self._lower])
        self._origin, self._ball = self._eyeball(crop)
        self._lid, self._lash = self._lid_colours(crop, points[list(_LID_SKIN[side])])

    def _gap(self, points: np.ndarray) -> float:
        return float(np.linalg.norm(points[self._upper[4]] - points[self._lower[4]]))

    def _eyeball(self, crop: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the corner of a box around the eye, and the picture in it with the eyeball continued under the
        lids."""
        size = crop.shape[0]
        margin = 0.55 * self._width
        low = np.floor(self.outline.min(0) - margin).astype(int).clip(0, size - 2)
        high = np.ceil(self.outline.max(0) + margin).astype(int).clip(2, size)
        patch = crop[low[1] : high[1], low[0] : high[0]]
        inside = outline_mask(patch.shape[:2], self.outline - low)
        narrow = (_WIDE - self._height / self._width) / (_WIDE - _NARROW)
        ball = complete_eyeball(patch, inside, self._centre - low, self._radius, min(max(narrow, 0.0), 1.0))
        soft = cv2.GaussianBlur(ball, (0, 0), max(0.02 * self._width, 0.3))
        # The hidden part is smooth; a thin rim of real skin keeps the lash line where it is.
        sharp = outline_mask(patch.shape[:2], self.outline - low, 0.012 * self._width)[..., None]
        return low.astype(np.float64), sharp * ball + (1 - sharp) * soft

    def _lid_colours(self, crop: np.ndarray, skin: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the lid colour along the eye ``[9, 3]`` and the lash colour ``[3]``."""
        smooth = cv2.GaussianBlur(crop, (0, 0), max(0.05 * self._width, 0.5))
        index = np.round(skin).astype(int).clip(0, crop.shape[0] - 1)
        # The brow shades the skin above more than a lid; the skin below catches more light.
        samples = smooth[index[:, 1], index[:, 0]].astype(np.float32).reshape(2, 4, 3).mean(0)
        along = np.linspace(0, 1, 9)
        lid = np.stack([np.interp(along, np.linspace(0, 1, 4), samples[:, c]) for c in range(3)], -1)
        rim = np.round(self.outline[8:25]).astype(int).clip(0, crop.shape[0] - 1)
        dark = crop[rim[:, 1], rim[:, 0]].astype(np.float32)
        lash = dark[np.argsort(dark.sum(1))[: len(dark) // 3]].mean(0)
        return lid.astype(np.float32) * np.float32(0.96), np.minimum(lash, lid.mean(0) * 0.5)

    def _draw_lid(
        self, frame: np.ndarray, upper: np.ndarray, mapping: np.ndarray, shift: np.ndarray, closed: float
    ) -> None:
        """Paint the lid between its edge in the photo and its edge now, and its lashes."""
        photo_edge = (self._photo_edge - shift) @ np.linalg.inv(mapping).T
        edge = smooth_chain(upper)
        fold = smooth_chain(photo_edge)
        fold = fold + (fold - edge) * 0.1
        outline = np.concatenate([edge, fold[-2:0:-1]])
        left, top, right, bottom = box_around(outline, frame.shape[1::-1], 4, 5)
        low, region = np.array([left, top]), frame[top:bottom, left:right]
        soft = 0.055 * self._width
        mask = outline_mask(region.shape[:2], outline - low, soft)
        along = np.linspace(edge[0, 0], edge[-1, 0], 9) - low[0]
        xs = np.arange(region.shape[1])
        order = 1 if along[-1] > along[0] else -1
        colour = np.stack([np.interp(xs, along[::order], self._lid[::order, c]) for c in range(3)], -1)
        strength = _OPACITY * min(closed / 0.35, 1.0)
        mixed = region + (mask * np.float32(strength))[..., None] * (colour[None].astype(np.float32) - region)
        thick = np.sin(np.linspace(0, np.pi, len(edge)))[:, None] ** 0.5 * np.array([0.0, 0.018 * self._width])
        lashes = np.concatenate([edge - thick, (edge + (0.6 + closed * closed) * thick)[-2:0:-1]])
        dark = outline_mask(region.shape[:2], lashes - low, 0.016 * self._width)[..., None]
        mixed += dark * np.float32(_LASHES * strength) * (self._lash - mixed)
        region[:] = cv2.convertScaleAbs(mixed)

    def draw(self, frame: np.ndarray, target: np.ndarray) -> None:
        """Draw the eye into ``frame`` ``[S, S, 3]`` uint8 in place for target landmarks ``[478, 3]`` px."""
        points = target[:, :2].astype(np.float64, copy=False)
        outline = opening_outline(points[self._upper], points[self._lower])
        # Similarity from the target's eye corners to those of the portrait, as complex numbers.
        corners = points[[self._upper[0], self._upper[-1]]]
        turn = complex(*(self._corners[1] - self._corners[0])) / complex(*(corners[1] - corners[0]))
        mapping = np.array([[turn.real, -turn.imag], [turn.imag, turn.real]])
        shift = self._middle - mapping @ ((corners[0] + corners[1]) / 2)
        gap = self._gap(points)
        closed = 1 - min(gap * abs(turn) / max(self._height, 1e-3), 1.0)
        if closed > 0.02:
            self._draw_lid(frame, points[self._upper], mapping, shift, closed)
        left, top, right, bottom = box_around(outline, frame.shape[1::-1], 3, 4)
        if min(right - left, bottom - top) < 2:
            return
        ball = self._ball_at((left, top, right, bottom), mapping, shift, mapping @ points[self._iris] + shift)
        # A lid that comes down casts a shadow on the eyeball.
        if closed > 0:
            ball *= np.float32(1 - _SHADE * closed)
        mask = outline_mask(ball.shape[:2], outline - (left, top), 0.012 * self._width)
        # Lids a fraction of a pixel apart touch.
        mask *= np.float32(min(gap / _TOUCHING, 1.0))
        blend_over(frame[top:bottom, left:right], ball, mask)

    def _ball_at(
        self, box: tuple[int, int, int, int], mapping: np.ndarray, shift: np.ndarray, iris: np.ndarray
    ) -> np.ndarray:
        """Return the eyeball ``[h, w, 3]`` float32 in a box of the frame, for the iris at a place in the portrait."""
        left, top, right, bottom = box
        (xx, xy), (yx, yy) = mapping.tolist()
        gaze_x, gaze_y = (iris - self._centre).tolist()
        # Relative to the iris, so that float32 is exact enough anywhere in a large picture.
        xs = np.arange(left, right, dtype=np.float64)
        ys = np.arange(top, bottom, dtype=np.float64)[:, None]
        px = (xx * xs + (xy * ys + (shift[0] - iris[0]))).astype(np.float32)
        py = (yx * xs + (yy * ys + (shift[1] - iris[1]))).astype(np.float32)
        radius2 = px * px
        radius2 += py * py
        radius2 *= np.float32(1 / (1.7 * self._radius) ** 2)
        radius2 *= radius2
        fade = cv2.exp(np.negative(radius2, out=radius2))
        px += np.float32(iris[0] - self._origin[0])
        px -= fade * np.float32(gaze_x)
        py += np.float32(iris[1] - self._origin[1])
        py -= fade * np.float32(gaze_y)
        return cv2.remap(self._ball, px, py, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


# --- The far side of a half profile ----------------------------------------------------------------------------------
#
# The side of the face that a half profile hides is taken from the visible side, as faces are nearly symmetric:
#
#     frame = (1 − h) skin(source) + h (light · skin)(source of the mirror partners)
#
# h is one on vertices that face away in the photo and zero on those that are well visible. One side often lies in
# shadow, so ``light`` brings the colours of the near side to those of the far side: it is their ratio where both are
# visible, extrapolated smoothly from there.

_DRAWN_ELSEWHERE = sorted(
    {*OUTER_UPPER, *OUTER_LOWER, *(point for upper, lower, _ in EYES for point in (*upper, *lower))}
)
_WELL_SEEN = 0.35
"""Smallest cosine with the line of sight at which a vertex is well visible."""

_LITTLE, _MUCH = 3, 35
"""Nothing is mirrored up to the first number of hidden vertices; from the second on, not even uneven light prevents
it."""

_ALIKE = 0.12
"""Largest difference (log) at the rim between the ratio of light and its smooth field; beyond it the mirror image would
show as a patch."""

_RIM = (0.05, 0.4)
"""Cosines with the line of sight: below the first the light cannot be measured, above the second is not the rim."""

_SMOOTH = 0.15
"""Width of the smoothing of the light field, in outer-eye-corner distances."""

_DARK = 4.0
"""Added to colours, so that ratios with black are defined."""

_FIELD = 64
"""Side at which the light field is computed."""

_NOSE = 0.22
"""Half the width of the nose in outer-eye-corner distances; its shadow is not mirrored."""

_BETTER = 0.2
"""Difference in the cosine by which a mirror partner must face the camera more to be used."""

_LARGEST = 1.1
"""Bound of the ratio of light (log): a factor of three."""


class FarSideLayer:
    """Fills the hidden side of one portrait with the mirror image of the visible side.

    Takes the portrait's mesh and its skin ``[S, S, 3]`` uint8. ``needed`` tells whether there is anything to fill.
    """

    def __init__(self, mesh: HeadMesh, skin: np.ndarray) -> None:
        points = mesh.landmarks[:N_FACE]
        canonical = MotionBasis.load().canonical
        other = mirror_partners(canonical).numpy()[:N_FACE]
        facing = facing_cosine(points)
        away = np.clip(1 - facing / _WELL_SEEN, 0, 1)
        better = np.clip((facing[other] - facing) / _BETTER - 1, 0, 1)
        across = canonical[:N_FACE, 0].numpy()
        aside = np.clip(-across * np.sign((facing * across).sum()) / _NOSE - 1, 0, 1)
        share = away * better * aside
        # Eyes and lips are drawn separately, and lashes are not where their mirror image would be.
        share[_DRAWN_ELSEWHERE] = 0
        self._rasterize = Rasterizer(face_triangles(), points[other, :2], skin.shape[0], share)
        light, disagreement = _light(skin, points, other, facing)
        hidden = int((share > 0.5).sum())
        # The mirror image of a cast shadow looks like a patch, which is accepted only where much of the face is hidden.
        self.needed = hidden > _LITTLE and (disagreement < _ALIKE or hidden >= _MUCH)
        self._skin = np.round(skin * light).clip(0, 255).astype(np.uint8)

    def draw(self, frame: np.ndarray, vertices: np.ndarray) -> None:
        """Fill the far side of ``frame`` ``[S, S, 3]`` uint8 in place, for mesh vertices ``[V, 3]`` px."""
        part = self._rasterize.with_share(vertices[:N_FACE])
        if part is None:
            return
        box, source, share = part
        drawn = cv2.remap(self._skin, source, None, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
        frame[box] = cv2.blendLinear(drawn, np.ascontiguousarray(frame[box]), share, 1 - share)


def _light(skin: np.ndarray, points: np.ndarray, other: np.ndarray, facing: np.ndarray) -> tuple[np.ndarray, float]:
    """Return the factor ``[S, S, 3]`` that gives the near side the light of the far side, and its misfit at the rim
    (log).

    Args:
        skin: the skin of the portrait ``[S, S, 3]`` uint8.
        points: face landmarks ``[468, 3]`` px.
        other: index of each landmark's mirror partner ``[468]``.
        facing: cosine of each vertex with the line of sight ``[468]``.
    """
    size = skin.shape[0]
    partner = facing[other] - facing > 0.5 * _BETTER
    both = partner & (facing > _RIM[0])
    if both.sum() < 5:
        return np.ones_like(skin, np.float32), 0.0
    smooth = cv2.GaussianBlur(skin, (0, 0), 0.01 * size)
    index = np.round(points[:, :2]).astype(int).clip(0, size - 1)
    colour = np.log(smooth[index[:, 1], index[:, 0]].astype(np.float64) + _DARK)
    ratio = (colour - colour[other])[both].clip(-_LARGEST, _LARGEST)
    place = points[other[both], :2]
    reach = _SMOOTH * float(np.linalg.norm(points[33] - points[263]))
    line = (np.arange(_FIELD) + 0.5) * size / _FIELD - 0.5
    field = _smoothed(place, ratio, np.stack(np.meshgrid(line, line), -1).reshape(-1, 2), reach)
    light = cv2.resize(np.exp(field).reshape(_FIELD, _FIELD, 3).astype(np.float32), (size, size))
    rim = facing[both] < _RIM[1]
    gap = np.abs(ratio - _smoothed(place, ratio, place, reach)).mean(1)
    return light, float(np.median(gap[rim])) if rim.any() else 0.0


def _smoothed(place: np.ndarray, values: np.ndarray, at: np.ndarray, reach: float) -> np.ndarray:
    """Return values ``[N, C]`` given at ``place`` ``[N, 2]``, smoothly interpolated at ``at`` ``[M, 2]``.

    Far from all given places the nearest value is returned.
    """
    distance = ((at[:, None] - place) ** 2).sum(-1) / (2 * reach**2)
    weight = np.exp(distance.min(1, keepdims=True) - distance)
    return weight @ values / weight.sum(1, keepdims=True)


# --- The background --------------------------------------------------------------------------------------------------
#
# The person moves and the background does not:
#
#     photo = P + (1 − a) B           a   share of the person in each pixel
#     frame = P(s) + (1 − a(s)) B     B   the photo without the person, inpainted from around the outline
#                                     P   what the person adds to it;  s  the source of each pixel of the frame
#
# In the photo's own pose s is the identity and the frame is the photo, however well B was inpainted.

_UNCOVERED = 0.08
"""Share of the side up to which a head that turns or leans uncovers what it hides."""

_CLEAR_OF_HAIR = 0.004
"""Share of the side by which a background begins outside the matte, so that no hair is spread over it."""

_BEHIND = 12.0
"""Only inpainted colours are used where the person covers more than 1 / 12 of a pixel; below, the photo is blended
in."""

_RESTS = 0.02
"""Head weight below which a person does not move enough to uncover anything."""

_BANDS = 16
"""Bands of rows in which the person is drawn."""

_SAMPLED = 2
"""Reach in pixels of the cubic interpolation between the picture's pixels."""

_ALL = 0.99
"""Least share at a pixel of a triangle whose vertices all have a share of one, as rounding leaves it."""

_STEP_REACH = 5
"""Pixels of the rasterised map over which its steps are softened."""


class Backdrop:
    """A picture split into a moving person and a still background.

    Args:
        picture: ``[S, S, 3]`` uint8.
        matte: the person's share of each pixel ``[S, S]`` float32.
        behind: the background ``[S, S, 3]`` uint8; by default the picture's, continued behind the person.
    """

    def __init__(self, picture: np.ndarray, matte: np.ndarray, behind: np.ndarray | None = None) -> None:
        self._behind = still_background(picture, matte) if behind is None else behind
        through = np.round((1 - _opaque(picture, self._behind, matte)) * 255).astype(np.uint8)
        person = np.round(picture - self._behind * (through[..., None] / 255.0)).clip(0, 255).astype(np.uint8)
        self._person = UpsampledPicture(np.dstack([person, through]))
        # Where the person adds nothing, neither do the samples around those pixels.
        adds = ((person > 0).any(-1) | (through < 255)).astype(np.uint8)
        self.extent = cv2.dilate(adds, np.ones((2 * _SAMPLED + 1, 2 * _SAMPLED + 1), np.uint8))
        """The pixels ``[S, S]`` uint8 around which the picture differs from the background."""
        self._edge = self.extent.copy()
        self._edge[1:-1, 1:-1] = 0

    def at(self, source: np.ndarray) -> np.ndarray:
        """Return the frame ``[S, S, 3]`` uint8 in which the person is read at ``source`` ``[S, S, 2]`` float32 px."""
        return _before(self._person.at(source), self._behind)

    def draw(self, place: SourceMap) -> np.ndarray:
        """Return the same frame for positions in the picture enlarged ``UpsampledPicture.TIMES`` times.

        Rows are drawn in bands, each as far as ``place.share`` is one, which it must be on all triangles that reach
        into ``extent``; outside, the frame is the background.
        """
        frame = self._behind.copy()
        for band in self._bands(place.share):
            frame[band] = _before(self._person.at_samples(place.x[band], place.y[band]), self._behind[band])
        return frame

    def _bands(self, share: np.ndarray) -> Iterator[tuple[slice, slice]]:
        """Yield rows and columns that together hold all pixels that show the person."""
        size, small = len(self._behind), len(share)
        shown = cv2.compare(share, _ALL, cv2.CMP_GT)
        # Softened steps of the map reach a little further than the triangles.
        shown = cv2.dilate(shown, np.ones((2 * _STEP_REACH + 1, 2 * _STEP_REACH + 1), np.uint8))
        times = size // small
        # The border of a map never moves, so it shows what the photo has there.
        shown |= cv2.resize(self._edge, (small, small), interpolation=cv2.INTER_AREA) if times > 1 else self._edge
        rows = np.linspace(0, small, _BANDS + 1).astype(int)
        for top, bottom in pairwise(rows.tolist()):
            columns = np.flatnonzero(shown[top:bottom].any(0))
            if len(columns):
                left, right = int(columns[0]), int(columns[-1]) + 1
                yield np.s_[times * top : times * bottom, times * left : times * right]


def _before(person: np.ndarray, behind: np.ndarray) -> np.ndarray:
    """Return what a person ``[h, w, 4]`` uint8, colours and the share that shows through, adds to the background."""
    # OpenCV functions split channels far faster than slicing does.
    through = cv2.cvtColor(cv2.extractChannel(person, 3), cv2.COLOR_GRAY2RGB)
    return cv2.add(cv2.cvtColor(person, cv2.COLOR_RGBA2RGB), cv2.multiply(behind, through, scale=1 / 255))


def _opaque(picture: np.ndarray, behind: np.ndarray, matte: np.ndarray) -> np.ndarray:
    """Return the matte, raised to the least share with which some colour in [0, 255] explains the picture.

    Dark hair in front of a bright wall covers at least as much as the wall is darkened.
    """
    picture, behind = picture.astype(np.float32), behind.astype(np.float32)
    darker = (behind - picture) / behind.clip(1)
    brighter = (picture - behind) / (255 - behind).clip(1)
    return np.maximum(matte, np.maximum(darker, brighter).max(-1)).clip(0, 1)


def still_background(picture: np.ndarray, matte: np.ndarray, moves: np.ndarray | None = None) -> np.ndarray:
    """Return the picture ``[S, S, 3]`` uint8 without the person.

    Args:
        picture: ``[S, S, 3]`` uint8.
        matte: the person's share of each pixel ``[S, S]`` float32.
        moves: how much each part of the picture moves with the head, a square of any size; what does not move is
            filled with less care.
    """
    size = len(picture)
    radius = max(round(_CLEAR_OF_HAIR * size), 1)
    hidden = cv2.dilate((matte > 0).astype(np.uint8), np.ones((2 * radius + 1, 2 * radius + 1), np.uint8))
    moving = None if moves is None else cv2.resize(moves, (size, size), interpolation=cv2.INTER_LINEAR) > _RESTS
    inpainted = inpaint_band(picture, hidden, _UNCOVERED * size, moving)
    share = np.clip(_BEHIND * matte, 0, 1)[..., None]
    return np.round(picture + share * (inpainted.astype(np.float32) - picture)).astype(np.uint8)
