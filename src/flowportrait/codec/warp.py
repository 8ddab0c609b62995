"""Backward warping through a mesh: which source pixel does each output pixel show?

The mesh is rasterised at its target place with the source coordinates as vertex colours; nearer triangles
hide farther ones. Reading the picture at the result draws it (``Enlarged``).
"""

from __future__ import annotations

import cv2
import numpy as np

_DISTANCE = 20.0
_HALF_ANGLE = 0.05
_DEPTH = 0.1
_HALF_FROM = 384
_JUMP = 2.0
_SOFT, _ROOM = 1.0, 5
"""Pixels of the rasterised map over which a share ends, and room for that."""

_CROSS = np.ones((3, 3), np.uint8)


class Rasterizer:
    """Source maps ``[S, S, 2]`` float32 for meshes with fixed triangles ``[F, 3]`` and source places ``[V,
    2]``.

    Large maps are rasterised at half size and enlarged: a map is straight nearly everywhere, and where one
    part hides another its jump becomes a soft edge instead of a jagged one.
    """

    def __init__(
        self, triangles: np.ndarray, source: np.ndarray, size: int, share: np.ndarray | None = None,
        free_top: bool = False,
    ) -> None:  # fmt: skip
        self._triangles = np.ascontiguousarray(triangles, np.int32)
        self._size, self._free_top = size, free_top
        self._half = size >= _HALF_FROM and size % 2 == 0
        small = size // 2 if self._half else size
        # OpenCV interpolates colours in [0, 1] exactly; the third channel carries any share of each vertex.
        self._colours = np.zeros((len(source), 3), np.float32)
        self._colours[:, :2] = source / (size - 1)
        if share is not None:
            self._colours[:, 2] = share
        # A pixel no triangle covers (rounding along the border) shows itself.
        own = ((np.arange(small) + 0.5) * (size / small) - 0.5).astype(np.float32) / (size - 1)
        self._empty = np.dstack([*np.meshgrid(own, own), np.zeros((small, small), np.float32)])
        self._far = np.full((small, small), 2 * _DISTANCE, np.float32)
        self._camera = np.eye(4, dtype=np.float32)
        self._settings = cv2.TriangleRasterizeSettings()
        self._settings.setShadingType(cv2.RASTERIZE_SHADING_SHADED)
        self._settings.setCullingMode(cv2.RASTERIZE_CULLING_NONE)

    def __call__(self, vertices: np.ndarray) -> np.ndarray:
        """Source coordinates seen at each pixel for vertices ``[V, 3]`` px; pixels left empty map to
        themselves."""
        return self._source(self._coloured(vertices))

    def with_share(self, vertices: np.ndarray) -> tuple[tuple[slice, slice], np.ndarray, np.ndarray] | None:
        """The same where vertices have a share: rows and columns of that part, its source ``[h, w, 2]`` and its share
        ``[h, w]``, both float32; the share ends softly. None where nothing has one."""
        colour = self._coloured(vertices)
        known = (colour[..., 2] > 0).astype(np.uint8)
        left, top, width, height = cv2.boundingRect(known)
        if not width:
            return None
        top, left, bottom, right = max(top - _ROOM, 0), max(left - _ROOM, 0), top + height + _ROOM, left + width + _ROOM
        colour, known = np.ascontiguousarray(colour[top:bottom, left:right]), known[top:bottom, left:right]
        # Carried on beyond its end, so that the soft edge is not drawn from somewhere in between.
        beyond = cv2.GaussianBlur(cv2.copyTo(colour, known), (0, 0), _SOFT)
        weight = np.maximum(cv2.GaussianBlur(known.astype(np.float32), (0, 0), _SOFT), 1e-6)
        source = cv2.copyTo(colour, known, beyond / weight[..., None])[..., :2] * np.float32(self._size - 1)
        share = beyond[..., 2]
        times = self._size // len(self._far)
        if times > 1:
            share, source = (cv2.resize(part, None, fx=times, fy=times) for part in (share, source))
        top, left = times * top, times * left
        return np.s_[top : top + share.shape[0], left : left + share.shape[1]], source, share

    def _coloured(self, vertices: np.ndarray) -> np.ndarray:
        """The mesh, each pixel in the colour of its place in the source ``[s, s, 3]``."""
        last = self._size - 1
        unit = _DISTANCE * np.tan(_HALF_ANGLE) / (self._size / 2)
        # Offsets are scaled by depth to undo the perspective of OpenCV's only camera.
        away = _DISTANCE + vertices[:, 2] * (unit * _DEPTH)
        world = np.empty((len(vertices), 3), np.float32)
        world[:, 0] = (vertices[:, 0] - last / 2) * unit * away / _DISTANCE
        world[:, 1] = (last / 2 - vertices[:, 1]) * unit * away / _DISTANCE
        world[:, 2] = -away
        # Fresh each time, so that frames can be drawn at once in several threads.
        colour, depth = self._empty.copy(), self._far.copy()
        cv2.triangleRasterize(
            world, self._triangles, self._colours, colour, depth, self._camera,
            2 * _HALF_ANGLE, 1.0, 2 * _DISTANCE, self._settings,
        )  # fmt: skip
        return colour

    def _source(self, colour: np.ndarray) -> np.ndarray:
        last = self._size - 1
        source = colour[..., :2] * np.float32(last)
        # Where one part hides another the map jumps along pixel steps: soften the steps, and only there.
        soft = cv2.GaussianBlur(source, (7, 7), 1.6)
        apart = cv2.transform(cv2.absdiff(soft, source), np.ones((1, 2), np.float32))
        # A blur bends any map at the border, where nothing hides anything.
        apart[:2], apart[-2:], apart[:, :2], apart[:, -2:] = 0, 0, 0, 0
        source = cv2.copyTo(soft, cv2.dilate(cv2.compare(apart, _JUMP, cv2.CMP_GT), _CROSS), source)
        if self._half:
            source = cv2.resize(source, (self._size, self._size), interpolation=cv2.INTER_LINEAR)
            # Enlarging cannot extrapolate; the border is the fixed frame of the picture, but for a top that moves.
            line = np.arange(self._size, dtype=np.float32)
            top = 2 * source[1] - source[2] if self._free_top else np.column_stack([line, 0 * line])
            source[0], source[-1] = top, np.column_stack([line, 0 * line + last])
            source[:, 0], source[:, -1] = (
                np.column_stack([0 * line, line]),
                np.column_stack([0 * line + last, line]),
            )
        return source


class Enlarged:
    """A picture ``[H, W, 3]`` uint8 to be read between its pixels again and again, as by cubic interpolation.

    Cubic, because what moves by half a pixel must not look softer than what stands still. It is done once, to
    three times the size; a straight line between those samples is within a step of 255 of the curve (54 dB), and
    is read in half the time.
    """

    _TIMES = 3

    def __init__(self, picture: np.ndarray) -> None:
        self._samples = cv2.resize(picture, None, fx=self._TIMES, fy=self._TIMES, interpolation=cv2.INTER_CUBIC)

    def at(self, source: np.ndarray) -> np.ndarray:
        """Colours ``[h, w, 3]`` uint8 at places ``[h, w, 2]`` float32 px of the picture."""
        # Pixel centres, not corners, carry integer coordinates.
        place = source * np.float32(self._TIMES)
        place += np.float32((self._TIMES - 1) / 2)
        return cv2.remap(self._samples, place, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
