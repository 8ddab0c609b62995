"""A triangle mesh over the whole portrait: the tracked face, and a grid for hair, neck and background around
it.

    face vertices   follow their landmarks exactly, except on the side the photo does not show
    grid vertices   p + w(p) (rigid(p) - p) + sum_i k_i(p) residual_i

w is the head weight (one on hair, zero on the background), ``rigid`` the head's similarity motion in 3-D,
and residual_i what the jaw line does beyond it, felt only close by. The grid's border never moves, except at the top of
the picture itself: hair that is cut off there rises with the head and leaves the picture.
"""

from __future__ import annotations

from functools import lru_cache
from importlib.resources import files

import cv2
import numpy as np
from safetensors.numpy import load

from flowportrait.codec.contours import EYES, FACE_OVAL, INNER_LOWER, INNER_UPPER, RIGID
from flowportrait.codec.silhouette import head_weight, person

N_FACE = 468
_GRID = 32
_CLEARANCE = 0.45
_REACH = 0.22
_HIDDEN = 0.03
_TURNED_AWAY = 0.25
_STILL = 0.01
_TOP = 0.07
"""Share of the picture's height over which hair that its top cuts off does not sink: there is nothing above to come
down."""


@lru_cache(maxsize=1)
def face_triangles() -> np.ndarray:
    """Triangles ``[900, 3]`` int32 of the face: MediaPipe's tesselation with eyes and mouth closed."""
    data = load(files("flowportrait").joinpath("weights/mouth/triangles.safetensors").read_bytes())
    holes = [_strip(upper, lower) for upper, lower, _ in EYES] + [_strip(INNER_UPPER, INNER_LOWER)]
    return np.concatenate([data["face"].astype(np.int32), *holes])


def _strip(upper: list[int], lower: list[int]) -> np.ndarray:
    """Triangles between two chains that share their ends."""
    quads = zip(upper[:-1], upper[1:], lower[:-1], lower[1:], strict=True)
    triangles = [t for a, b, c, d in quads for t in ((a, b, d), (a, d, c)) if len(set(t)) == 3]
    return np.array(triangles, np.int32)


def rigid_motion(source: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Similarity of the skull, ``target ≈ source @ matrix.T + shift`` (Umeyama 1991), from landmarks
    ``[478, 3]`` to landmarks ``[478, 3]``: matrix ``[3, 3]``, shift ``[3]``."""
    a, b = source[RIGID].astype(np.float64), target[RIGID].astype(np.float64)
    a_mean, b_mean = a.mean(0), b.mean(0)
    a, b = a - a_mean, b - b_mean
    u, s, vt = np.linalg.svd(b.T @ a)
    sign = np.array([1.0, 1.0, np.sign(np.linalg.det(u) * np.linalg.det(vt))])
    matrix = (u * sign) @ vt * ((s * sign).sum() / (a**2).sum())
    return matrix, b_mean - matrix @ a_mean


class HeadMesh:
    """Mesh of one portrait crop ``[S, S, 3]`` with landmarks ``[478, 3]`` px.

    ``source`` ``[V, 2]`` are the vertices' places in the crop, ``triangles`` ``[F, 3]`` int32; calling the
    mesh with target landmarks gives the vertices' new places. weight: the head weight, any square size;
    found in the crop by default. cut_off: of a crop that ends at the top because the picture does, where along it that
    cuts through the person, ``[n]`` bool; None where the picture goes on.
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
            weight = head_weight(person(crop, landmarks), landmarks, size, free_top=cut_off is not None)
        shrunk = (grid * weight.shape[0] / size).astype(np.float32)
        self._weight = cv2.remap(
            weight, shrunk[None, :, 0], shrunk[None, :, 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
        )[0].astype(np.float64)
        # What would hardly move does not move at all.
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

    def __call__(self, target: np.ndarray) -> np.ndarray:
        """Vertices ``[V, 3]`` px (z: depth, smaller is nearer) for target landmarks ``[478, 3]`` px."""
        matrix, shift = rigid_motion(self.landmarks, target)
        moved = self._grid @ matrix.T + shift
        face = target[:N_FACE] + self._flatter[:, None] * (matrix[:, 2] - [0, 0, 1])
        outline = self.landmarks[self._outline]
        outline[:, 2] += self._flatter[self._outline]
        residual = face[self._outline, :2] - (outline @ matrix.T + shift)[:, :2]
        shift = self._weight[:, None] * (moved - self._grid)[:, :2] + self._felt @ residual
        shift[:, 1] = np.where(shift[:, 1] > 0, self._sinks * shift[:, 1], shift[:, 1])
        place = self._grid[:, :2] + shift
        # Where the head moves further than its fade is wide the mesh folds: what moves with it is in front.
        depth = self._grid[:, 2] + self._behind + (1 - self._weight) * self._height
        outer = np.column_stack([place, depth])
        return np.concatenate([face, outer])

    @staticmethod
    def _grid_outside(outline: np.ndarray, size: int) -> np.ndarray:
        line = np.linspace(0, size - 1, _GRID + 1)
        grid = np.stack(np.meshgrid(line, line), -1).reshape(-1, 2)
        hull = cv2.convexHull(outline.astype(np.float32))
        inside = np.array([cv2.pointPolygonTest(hull, (float(x), float(y)), True) for x, y in grid])
        return grid[inside < -_CLEARANCE * size / _GRID]

    def _outer_triangles(self, grid: np.ndarray) -> np.ndarray:
        """Delaunay triangles from the outline to the grid, as vertex numbers of the whole mesh."""
        from scipy.spatial import Delaunay

        number = np.concatenate([self._outline, N_FACE + np.arange(len(grid))])
        points = np.concatenate([self.landmarks[self._outline, :2], grid])
        triangles = Delaunay(points).simplices
        outer = (triangles >= len(self._outline)).any(1)
        # Among outline vertices only, a triangle is wanted where the face has a bay, not across the face.
        face = np.zeros(np.ceil(points.max(0)).astype(int)[::-1] + 1, np.uint8)
        for triangle in np.round(self.landmarks[face_triangles(), :2]).astype(np.int32):
            cv2.fillConvexPoly(face, triangle, 1)
        middle = np.round(points[triangles].mean(1)).astype(int).clip(0, np.array(face.shape[::-1]) - 1)
        return number[triangles[outer | (face[middle[:, 1], middle[:, 0]] == 0)]].astype(np.int32)


def _distance_to_cut(points: np.ndarray, size: int, cut_off: np.ndarray | None) -> np.ndarray:
    """Px ``[N]`` from points ``[N, 2]`` to where the picture's top cuts through the person."""
    if cut_off is None or not cut_off.any():
        return np.full(len(points), np.inf)
    columns = (np.flatnonzero(cut_off) + 0.5) * size / len(cut_off)
    return np.hypot(np.abs(points[:, :1] - columns).min(1), points[:, 1])


def facing_camera(points: np.ndarray) -> np.ndarray:
    """Cosine ``[468]`` between each face vertex's normal and the line of sight, for landmarks ``[468, 3]`` px."""
    triangles = face_triangles()
    a, b, c = (points[triangles[:, i]] for i in range(3))
    across = np.cross(b - a, c - a)
    normal = np.zeros_like(points)
    for corner in range(3):
        np.add.at(normal, triangles[:, corner], across)
    facing = normal[:, 2] / np.linalg.norm(normal, axis=1).clip(1e-9)
    return facing * np.sign(np.median(facing))


def _flatten_hidden(points: np.ndarray) -> np.ndarray:
    """Change of depth ``[468]`` px that brings vertices facing away to the depth of the nearest visible one.

    A photo in half profile has no pixels of the far temple. With its own depth the temple would come forth
    as smeared background when the head turns back; flattened, it stays behind the edge that is seen.
    """
    from scipy.spatial import cKDTree

    facing = facing_camera(points)
    seen = np.flatnonzero(facing >= 0)
    nearest = seen[cKDTree(points[seen]).query(points)[1]]
    hidden = np.clip(-facing / _TURNED_AWAY, 0, 1)
    return hidden * (points[nearest, 2] - points[:, 2])


def _visible_outline(points: np.ndarray) -> np.ndarray:
    """Vertices on the rim of the face as it is seen in the photo.

    In a turned face the far part of the oval hides behind the cheek; there the cheek's edge is the rim.
    """
    hull = cv2.convexHull(points.astype(np.float32), returnPoints=False)[:, 0]
    rim = points[hull].astype(np.float32)
    reach = _HIDDEN * np.ptp(points[:, 1])
    depth = [cv2.pointPolygonTest(rim, (float(x), float(y)), True) for x, y in points[FACE_OVAL]]
    seen = [vertex for vertex, inside in zip(FACE_OVAL, depth, strict=True) if inside < reach]
    return np.array(sorted({*hull.tolist(), *seen}))
