"""A triangle mesh over a portrait, and backward warping of the picture through it.

The mesh has the tracked face in the middle, and a grid around it for hair, neck and background:

    face vertices   follow their landmarks exactly, except on the side that the photo does not show
    grid vertices   p + w(p) (rigid(p) − p) + Σ_i k_i(p) residual_i

w is the head weight (one on hair, zero on the background), ``rigid`` the similarity motion of the head in 3-D, and
residual_i the motion of the jaw line beyond it, which acts only close by. The border of the grid does not move, except
at the top of the picture itself: hair that is cut off there rises with the head and leaves the picture.

``HeadMesh`` gives the vertices for target landmarks, ``Rasterizer`` the source pixel that each output pixel shows, and
``UpsampledPicture`` reads the picture there.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import cv2
import numpy as np
from safetensors.numpy import load

from flowportrait.files import shipped_weights
from flowportrait.rendering.face_regions import (
    EYES,
    FACE_OVAL,
    INNER_LOWER,
    INNER_UPPER,
    RIGID_LANDMARKS,
    head_weight,
    segment_person,
)

# --- The mesh --------------------------------------------------------------------------------------------------------

N_FACE = 468
"""Number of face vertices: the landmarks without the irises."""

_GRID = 32
"""Grid cells along the side of the crop."""

_CLEARANCE = 0.45
"""Least distance of grid vertices from the face, in grid cells."""

_REACH = 0.22
"""Distance over which residual motion of the outline fades, in face heights."""

_HIDDEN = 0.03
"""Smallest depth inside the hull, in face heights, at which a vertex of the face oval is hidden."""

_TURNED_AWAY = 0.25
"""Smallest negative cosine with the line of sight at which a vertex is flattened completely."""

_STILL = 0.01
"""Weight below which a vertex does not move at all."""

_TOP = 0.07
"""Share of the picture's height below its top over which cut-off hair cannot move down, as nothing could follow it."""


@lru_cache(maxsize=1)
def face_triangles() -> np.ndarray:
    """Return the triangles ``[900, 3]`` int32 of the face: MediaPipe's tesselation, with eyes and mouth filled."""
    data = load(shipped_weights("mouth/triangles.safetensors").read_bytes())
    holes = [_strip(upper, lower) for upper, lower, _ in EYES] + [_strip(INNER_UPPER, INNER_LOWER)]
    return np.concatenate([data["face"].astype(np.int32), *holes])


def _strip(upper: list[int], lower: list[int]) -> np.ndarray:
    """Return triangles ``[F, 3]`` between two chains of vertices that share their ends."""
    quads = zip(upper[:-1], upper[1:], lower[:-1], lower[1:], strict=True)
    triangles = [t for a, b, c, d in quads for t in ((a, b, d), (a, d, c)) if len(set(t)) == 3]
    return np.array(triangles, np.int32)


def rigid_motion(source: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the similarity of the skull between two sets of landmarks (Umeyama 1991).

    Args:
        source: landmarks ``[478, 3]``.
        target: landmarks ``[478, 3]``.

    Returns:
        matrix ``[3, 3]`` and shift ``[3]`` with ``target ≈ source @ matrix.T + shift``.
    """
    a, b = source[RIGID_LANDMARKS].astype(np.float64), target[RIGID_LANDMARKS].astype(np.float64)
    a_mean, b_mean = a.mean(0), b.mean(0)
    a, b = a - a_mean, b - b_mean
    u, s, vt = np.linalg.svd(b.T @ a)
    sign = np.array([1.0, 1.0, np.sign(np.linalg.det(u) * np.linalg.det(vt))])
    matrix = (u * sign) @ vt * ((s * sign).sum() / (a**2).sum())
    return matrix, b_mean - matrix @ a_mean


class HeadMesh:
    """The mesh of one portrait; calling it with target landmarks returns the new positions of its vertices.

    Args:
        crop: the portrait crop ``[S, S, 3]``.
        landmarks: its landmarks ``[478, 3]`` px.
        weight: the head weight, a square of any size; computed from the crop by default.
        cut_off: for a crop that ends at the top of its picture, where along its top the picture cuts through the
            person, ``[n]`` bool; None where the picture continues above the crop.

    Attributes:
        source: positions of the vertices in the crop ``[V, 2]`` px.
        triangles: ``[F, 3]`` int32.
    """

    def __init__(
        self,
        crop: np.ndarray,
        landmarks: np.ndarray,
        weight: np.ndarray | None = None,
        cut_off: np.ndarray | None = None,
    ) -> None:
        size = crop.shape[0]
        self.landmarks = landmarks.astype(np.float64)
        self._flatter = _flatten_hidden(self.landmarks[:N_FACE])
        self._outline = _visible_outline(self.landmarks[:N_FACE, :2])
        outline = self.landmarks[self._outline]
        outline[:, 2] += self._flatter[self._outline]
        grid = self._grid_outside(outline[:, :2], size)
        distance = np.linalg.norm(grid[:, None] - outline[None, :, :2], axis=-1)
        kernel = (distance**2 + (0.01 * size) ** 2) ** -2
        self._blend = kernel / kernel.sum(1, keepdims=True)
        height = np.ptp(outline[:, 1])
        depth = self._blend @ outline[:, 2]
        self._grid = np.column_stack([grid, depth])
        if weight is None:
            weight = head_weight(segment_person(crop, landmarks), landmarks, size, free_top=cut_off is not None)
        shrunk = (grid * weight.shape[0] / size).astype(np.float32)
        self._weight = cv2.remap(
            weight, shrunk[None, :, 0], shrunk[None, :, 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
        )[0].astype(np.float64)
        # Vertices that would hardly move do not move at all.
        self._weight = (self._weight - _STILL).clip(0) / (1 - _STILL)
        fade = np.exp(-((distance.min(1) / (_REACH * height)) ** 2))
        edge = np.minimum(grid, size - 1 - grid).min(1)
        if cut_off is not None:
            edge = np.minimum(size - 1 - grid, grid[:, :1]).min(1)
        fade = (fade - _STILL).clip(0) / (1 - _STILL)
        self._felt = (fade * np.clip(edge / (0.06 * size), 0, 1))[:, None] * self._blend
        near_top = (_distance_to_cut(grid, size, cut_off) / (_TOP * size)).clip(0, 1)
        self._sinks = near_top * near_top * (3 - 2 * near_top)
        self.source = np.concatenate([self.landmarks[:N_FACE, :2], grid])
        self.triangles = np.concatenate([face_triangles(), self._outer_triangles(grid)])
        self._height, self._behind = height, height * 0.05

    def __call__(self, target: np.ndarray, skull: tuple[np.ndarray, np.ndarray] | None = None) -> np.ndarray:
        """Return vertices ``[V, 3]`` px (z: depth, smaller is nearer) for target landmarks ``[478, 3]`` px.

        ``skull`` is ``rigid_motion`` to the target, where it is known already.
        """
        matrix, shift = skull or rigid_motion(self.landmarks, target)
        moved = self._grid @ matrix.T + shift
        face = target[:N_FACE] + self._flatter[:, None] * (matrix[:, 2] - [0, 0, 1])
        outline = self.landmarks[self._outline]
        outline[:, 2] += self._flatter[self._outline]
        residual = face[self._outline, :2] - (outline @ matrix.T + shift)[:, :2]
        shift = self._weight[:, None] * (moved - self._grid)[:, :2] + self._felt @ residual
        shift[:, 1] = np.where(shift[:, 1] > 0, self._sinks * shift[:, 1], shift[:, 1])
        place = self._grid[:, :2] + shift
        # Where the head moves further than the fade is wide, the mesh folds; the vertices that move more are in front.
        depth = self._grid[:, 2] + self._behind + (1 - self._weight) * self._height
        outer = np.column_stack([place, depth])
        return np.concatenate([face, outer])

    def vertices_around(self, pixels: np.ndarray) -> np.ndarray:
        """Return which vertices ``[V]`` bool belong to triangles of the face, or to ones whose bounding box holds any
        of ``pixels`` ``[S, S]``, nonzero where marked."""
        last, count = len(pixels) - 1, cv2.integral(pixels)
        corners = self.source[self.triangles]
        left, top = np.floor(corners.min(1)).astype(int).clip(0, last).T
        right, bottom = np.ceil(corners.max(1)).astype(int).clip(0, last).T + 1
        inside = count[bottom, right] - count[top, right] - count[bottom, left] + count[top, left]
        inside[: len(face_triangles())] = 1
        result = np.zeros(len(self.source), bool)
        result[self.triangles[inside > 0]] = True
        return result

    @staticmethod
    def _grid_outside(outline: np.ndarray, size: int) -> np.ndarray:
        line = np.linspace(0, size - 1, _GRID + 1)
        grid = np.stack(np.meshgrid(line, line), -1).reshape(-1, 2)
        hull = cv2.convexHull(outline.astype(np.float32))
        inside = np.array([cv2.pointPolygonTest(hull, (float(x), float(y)), True) for x, y in grid])
        return grid[inside < -_CLEARANCE * size / _GRID]

    def _outer_triangles(self, grid: np.ndarray) -> np.ndarray:
        """Return Delaunay triangles from the outline to the grid, as vertex numbers of the whole mesh."""
        from scipy.spatial import Delaunay

        number = np.concatenate([self._outline, N_FACE + np.arange(len(grid))])
        points = np.concatenate([self.landmarks[self._outline, :2], grid])
        triangles = Delaunay(points).simplices
        outer = (triangles >= len(self._outline)).any(1)
        # A triangle of outline vertices alone is kept in a bay of the face, but not across the face.
        face = np.zeros(np.ceil(points.max(0)).astype(int)[::-1] + 1, np.uint8)
        for triangle in np.round(self.landmarks[face_triangles(), :2]).astype(np.int32):
            cv2.fillConvexPoly(face, triangle, 1)
        middle = np.round(points[triangles].mean(1)).astype(int).clip(0, np.array(face.shape[::-1]) - 1)
        return number[triangles[outer | (face[middle[:, 1], middle[:, 0]] == 0)]].astype(np.int32)


def _distance_to_cut(points: np.ndarray, size: int, cut_off: np.ndarray | None) -> np.ndarray:
    """Return the distance ``[N]`` px of points ``[N, 2]`` to where the top of the picture cuts through the person."""
    if cut_off is None or not cut_off.any():
        return np.full(len(points), np.inf)
    columns = (np.flatnonzero(cut_off) + 0.5) * size / len(cut_off)
    return np.hypot(np.abs(points[:, :1] - columns).min(1), points[:, 1])


def facing_cosine(points: np.ndarray) -> np.ndarray:
    """Return the cosine ``[468]`` between each face vertex's normal and the line of sight.

    ``points`` are face landmarks ``[468, 3]`` px.
    """
    triangles = face_triangles()
    a, b, c = (points[triangles[:, i]] for i in range(3))
    across = np.cross(b - a, c - a)
    normal = np.zeros_like(points)
    for corner in range(3):
        np.add.at(normal, triangles[:, corner], across)
    facing = normal[:, 2] / np.linalg.norm(normal, axis=1).clip(1e-9)
    return facing * np.sign(np.median(facing))


def _flatten_hidden(points: np.ndarray) -> np.ndarray:
    """Return the change of depth ``[468]`` px that moves vertices facing away to the depth of the nearest visible one.

    A photo in half profile has no pixels of the far temple. With its true depth the temple would appear as smeared
    background when the head turns back; flattened, it stays behind the visible edge.
    """
    from scipy.spatial import cKDTree

    facing = facing_cosine(points)
    visible = np.flatnonzero(facing >= 0)
    nearest = visible[cKDTree(points[visible]).query(points)[1]]
    hidden = np.clip(-facing / _TURNED_AWAY, 0, 1)
    return hidden * (points[nearest, 2] - points[:, 2])


def _visible_outline(points: np.ndarray) -> np.ndarray:
    """Return the vertices on the rim of the face as visible in the photo.

    In a turned face the far part of the oval is hidden behind the cheek; there the edge of the cheek is the rim.
    """
    hull = cv2.convexHull(points.astype(np.float32), returnPoints=False)[:, 0]
    rim = points[hull].astype(np.float32)
    reach = _HIDDEN * np.ptp(points[:, 1])
    depth = [cv2.pointPolygonTest(rim, (float(x), float(y)), True) for x, y in points[FACE_OVAL]]
    visible = [vertex for vertex, inside in zip(FACE_OVAL, depth, strict=True) if inside < reach]
    return np.array(sorted({*hull.tolist(), *visible}))


# --- Backward warping ------------------------------------------------------------------------------------------------
#
# The mesh is rasterised at its target position with the source coordinates as vertex colours; nearer triangles hide
# farther ones. Reading the picture at the result draws it.

_DISTANCE = 20.0
_HALF_ANGLE = 0.05
_DEPTH = 0.1
"""Distance and half viewing angle (rad) of OpenCV's camera; scale of depths in front of it."""

_HALF_FROM = 384
"""Smallest side in pixels of maps that are rasterised at half size."""

_JUMP = 2.0
"""Difference in pixels between a map and its blur that marks an edge where one part hides another."""

_SOFT, _ROOM = 1.0, 5
"""Pixels of the rasterised map over which a share fades out, and margin for that."""

_CROSS = np.ones((3, 3), np.uint8)


class SourceMap(NamedTuple):
    """The positions in a picture that the pixels of a frame show.

    Attributes:
        x: column of each pixel's source, ``[S, S]`` float32 px.
        y: row of each pixel's source, ``[S, S]`` float32 px.
        share: the vertices' share at each pixel of the rasterised mesh, ``[s, s]`` float32; s is S or S / 2.
    """

    x: np.ndarray
    y: np.ndarray
    share: np.ndarray


@lru_cache(maxsize=1)
def _rasterize_settings() -> cv2.TriangleRasterizeSettings:
    """Return OpenCV's settings, which cannot be pickled; a rasterizer can, since it does not hold them."""
    settings = cv2.TriangleRasterizeSettings()
    settings.setShadingType(cv2.RASTERIZE_SHADING_SHADED)
    settings.setCullingMode(cv2.RASTERIZE_CULLING_NONE)
    return settings


class Rasterizer:
    """Computes source maps for meshes with fixed triangles.

    Large maps are rasterised at half size and enlarged: a map is linear nearly everywhere, and its jumps, where one
    part hides another, become soft edges instead of jagged ones.

    Args:
        triangles: ``[F, 3]``.
        source: positions of the vertices in the picture ``[V, 2]`` px.
        size: side S of the map.
        share: a further value of each vertex ``[V]``, which ``with_share`` and ``source_map`` interpolate.
        free_top: let the top row of the map move.
        times: the maps give positions in a copy of the picture that is so many times larger.
        fine: number of triangles, the first ones, that need the full resolution. In large maps the others, which have
            to be larger, are rasterised at half of it.
    """

    def __init__(
        self, triangles: np.ndarray, source: np.ndarray, size: int, share: np.ndarray | None = None,
        free_top: bool = False, times: int = 1, fine: int | None = None,
    ) -> None:  # fmt: skip
        self._triangles = np.ascontiguousarray(triangles, np.int32)
        self._size, self._free_top, self._times = size, free_top, times
        self._half = size >= _HALF_FROM and size % 2 == 0
        small = size // 2 if self._half else size
        # OpenCV interpolates colours in [0, 1] exactly; the third channel carries any share of each vertex.
        self._colours = np.zeros((len(source), 3), np.float32)
        self._colours[:, :2] = source / (size - 1)
        if share is not None:
            self._colours[:, 2] = share
        coarse = fine is not None and self._half and small % 2 == 0
        self._fine: np.ndarray | None = self._triangles[:fine] if coarse else None
        self._rest = self._triangles[fine:] if coarse else self._triangles
        first = small // 2 if coarse else small
        # A pixel that no triangle covers (by rounding along the border) maps to itself.
        line = ((np.arange(first) + 0.5) * (size / first) - 0.5).astype(np.float32) / (size - 1)
        self._empty = np.dstack([*np.meshgrid(line, line), np.zeros((first, first), np.float32)])
        self._far = np.full((first, first), 2 * _DISTANCE, np.float32)
        self._shape = (small, small)
        self._camera = np.eye(4, dtype=np.float32)

    def __call__(self, vertices: np.ndarray) -> np.ndarray:
        """Return the source ``[S, S, 2]`` float32 px that each pixel shows, for vertices ``[V, 3]`` px; empty pixels
        map to themselves."""
        result: np.ndarray = cv2.merge(self.source_map(vertices)[:2])
        return result

    def source_map(self, vertices: np.ndarray) -> SourceMap:
        """Return the same map in separate planes, with which OpenCV is several times faster, and the share."""
        *planes, share = cv2.split(self._rasterize(vertices))
        for plane in planes:
            np.multiply(plane, np.float32(self._size - 1), out=plane)
        # Where one part hides another the map jumps in pixel steps: soften the steps, and only there.
        soft = [cv2.GaussianBlur(plane, (7, 7), 1.6) for plane in planes]
        difference = cv2.add(*(cv2.absdiff(*pair) for pair in zip(soft, planes, strict=True)))
        # At the border the blur changes any map, so differences there mean nothing.
        difference[:2], difference[-2:], difference[:, :2], difference[:, -2:] = 0, 0, 0, 0
        steps = cv2.dilate(cv2.compare(difference, _JUMP, cv2.CMP_GT), _CROSS)
        for axis, plane in enumerate(planes):
            planes[axis] = self._enlarged(cv2.copyTo(soft[axis], steps, plane), axis)
        return SourceMap(planes[0], planes[1], share)

    def with_share(self, vertices: np.ndarray) -> tuple[tuple[slice, slice], np.ndarray, np.ndarray] | None:
        """Return the map of the part in which vertices have a share, or None if there is none.

        Returns:
            rows and columns of the part, its source ``[h, w, 2]`` and its share ``[h, w]``, both float32; the share has
            a soft edge.
        """
        colour = self._rasterize(vertices)
        known = cv2.compare(cv2.extractChannel(colour, 2), 0, cv2.CMP_GT) // 255
        left, top, width, height = cv2.boundingRect(known)
        if not width:
            return None
        top, left, bottom, right = max(top - _ROOM, 0), max(left - _ROOM, 0), top + height + _ROOM, left + width + _ROOM
        colour, known = np.ascontiguousarray(colour[top:bottom, left:right]), known[top:bottom, left:right]
        # The map is extrapolated beyond its edge, so that the soft edge is not drawn from mixed coordinates.
        extended = cv2.GaussianBlur(cv2.copyTo(colour, known), (0, 0), _SOFT)
        weight = np.maximum(cv2.GaussianBlur(known.astype(np.float32), (0, 0), _SOFT), 1e-6)
        source = cv2.copyTo(colour, known, extended / weight[..., None])[..., :2] * np.float32(self._size - 1)
        share = extended[..., 2]
        times = self._size // self._shape[0]
        if times > 1:
            share, source = (cv2.resize(part, None, fx=times, fy=times) for part in (share, source))
        top, left = times * top, times * left
        return np.s_[top : top + share.shape[0], left : left + share.shape[1]], source, share

    def _rasterize(self, vertices: np.ndarray) -> np.ndarray:
        """Return the rasterised mesh ``[s, s, 3]``, with the source coordinates and the share of each pixel as its
        colour."""
        last = self._size - 1
        unit = _DISTANCE * np.tan(_HALF_ANGLE) / (self._size / 2)
        # Offsets are scaled by depth to undo the perspective of OpenCV's only camera.
        away = _DISTANCE + vertices[:, 2] * (unit * _DEPTH)
        world = np.empty((len(vertices), 3), np.float32)
        world[:, 0] = (vertices[:, 0] - last / 2) * unit * away / _DISTANCE
        world[:, 1] = (last / 2 - vertices[:, 1]) * unit * away / _DISTANCE
        world[:, 2] = -away
        # New buffers each time, so that several threads can draw frames at once.
        colour, depth = self._empty.copy(), self._far.copy()
        self._fill(world, self._rest, colour, depth)
        if self._fine is None:
            return colour
        # The fine triangles are drawn at both resolutions, so that nothing but the map is interpolated at their edges.
        far = cv2.resize(depth, self._shape, interpolation=cv2.INTER_LINEAR)
        self._fill(world, self._fine, colour, depth)
        # Enlarging would narrow the area of a share of one.
        cv2.insertChannel(cv2.dilate(cv2.extractChannel(colour, 2), _CROSS), colour, 2)
        colour = cv2.resize(colour, self._shape, interpolation=cv2.INTER_LINEAR)
        # Enlarging repeats the border, but the map goes on.
        for border, inner, next_inner in ((0, 1, 2), (-1, -2, -3)):
            colour[border] = 2 * colour[inner] - colour[next_inner]
            colour[:, border] = 2 * colour[:, inner] - colour[:, next_inner]
        self._fill(world, self._fine, colour, far)
        return colour

    def _fill(self, world: np.ndarray, triangles: np.ndarray, colour: np.ndarray, depth: np.ndarray) -> None:
        """Rasterise triangles into a colour and a depth buffer in place."""
        cv2.triangleRasterize(
            world, triangles, self._colours, colour, depth, self._camera,
            2 * _HALF_ANGLE, 1.0, 2 * _DISTANCE, _rasterize_settings(),
        )  # fmt: skip

    def _enlarged(self, plane: np.ndarray, axis: int) -> np.ndarray:
        """Return one plane of a map at full size, in pixels of the enlarged picture; ``axis`` is 0 for x, 1 for y."""
        size, line = self._size, np.arange(self._size, dtype=np.float32)
        if self._times > 1:
            # Pixel centres, not corners, carry integer coordinates.
            plane *= np.float32(self._times)
            plane += np.float32((self._times - 1) / 2)
            line = line * np.float32(self._times) + np.float32((self._times - 1) / 2)
        if not self._half:
            return plane
        plane = cv2.resize(plane, (size, size), interpolation=cv2.INTER_LINEAR)
        # Enlarging cannot extrapolate; the border is the fixed frame of the picture, except for a free top.
        first, last = (line[0], line[-1]) if axis else (line, line)
        plane[0] = 2 * plane[1] - plane[2] if self._free_top else first
        plane[-1] = last
        plane[:, 0], plane[:, -1] = (line, line) if axis else (line[0], line[-1])
        return plane


class UpsampledPicture:
    """A picture ``[H, W, 3]`` uint8 that can be sampled between its pixels many times, with cubic interpolation.

    The interpolation is cubic so that parts that move by half a pixel do not look softer than still ones. It is done
    once, to three times the size; linear interpolation between those samples is within one level of 255 of the cubic
    curve (54 dB) and takes half the time.
    """

    TIMES = 3

    def __init__(self, picture: np.ndarray) -> None:
        self._samples = cv2.resize(picture, None, fx=self.TIMES, fy=self.TIMES, interpolation=cv2.INTER_CUBIC)

    def at(self, source: np.ndarray) -> np.ndarray:
        """Return the colours ``[h, w, 3]`` uint8 at positions ``[h, w, 2]`` float32 px of the picture."""
        # Pixel centres, not corners, carry integer coordinates.
        place = source * np.float32(self.TIMES)
        place += np.float32((self.TIMES - 1) / 2)
        return cv2.remap(self._samples, place, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)

    def at_samples(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Return the colours ``[h, w, 3]`` uint8 at columns and rows ``[h, w]`` float32 px of the enlarged picture."""
        return cv2.remap(self._samples, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
