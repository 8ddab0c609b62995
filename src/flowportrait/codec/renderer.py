"""Landmarks to pictures: one portrait photo, drawn in any pose and expression.

    frame = retouch( skin(mesh warp of the person)  before the backdrop  +  eyeballs seen between the lids  +  mouth
    interior between the lips )

Landmarks equal to the portrait's own give the photo back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Protocol

import cv2
import numpy as np

from flowportrait.codec.backdrop import Backdrop
from flowportrait.codec.contours import EYES
from flowportrait.codec.eyes import Eye
from flowportrait.codec.far_side import FarSide
from flowportrait.codec.mesh import HeadMesh
from flowportrait.codec.mouth import Mouth
from flowportrait.codec.retouch import Network, Retouch
from flowportrait.codec.silhouette import head_weight, matte, person
from flowportrait.codec.skin import bare_skin
from flowportrait.codec.warp import Rasterizer
from flowportrait.media.portrait import Portrait
from flowportrait.media.workers import in_order

_EXACT = 1e-3
_AHEAD = 4
"""Frames under way at once: a chunk of motion."""


class Interior(Protocol):
    """What draws the inside of a mouth into a frame ``[S, S, 3]`` uint8 in place, for landmarks ``[478, 3]`` px."""

    def draw(self, frame: np.ndarray, target: np.ndarray) -> None:
        """Draw."""


class Renderer:
    """Draws one portrait; prepared once (about half a second), then called with any number of frames.

    size: side of the drawn square, the crop's own by default. Landmarks are in pixels of ``portrait.crop``
    in every case. retouch: let the network go over the lower face. workers: threads that draw frames at once. network:
    the retouching network, the shipped one on the processor by default.

    ::

        renderer = Renderer(Portrait.from_image(read_image("photo.jpg")))
        frames = list(renderer(landmarks))          # [T, 478, 3] -> T x [512, 512, 3]
    """

    def __init__(
        self,
        portrait: Portrait,
        size: int | None = None,
        retouch: bool = True,
        workers: int = 2,
        network: Network | None = None,
    ) -> None:
        crop = portrait.crop
        self._scale = 1.0 if size is None else size / crop.shape[0]
        if self._scale != 1.0:
            crop = cv2.resize(crop, (size, size), interpolation=cv2.INTER_AREA)
        landmarks = self._scaled(portrait.landmarks)
        free_top = _ends_at_top(portrait)
        mask = person(crop, landmarks)
        weight = head_weight(mask, landmarks, crop.shape[0], free_top)
        self._mesh = HeadMesh(crop, landmarks, weight, cut_off=mask[0] > 0 if free_top else None)
        self._rasterize = Rasterizer(self._mesh.triangles, self._mesh.source, crop.shape[0], free_top=free_top)
        self._eyes = [Eye(crop, landmarks, side) for side in range(len(EYES))]
        self.mouth: Interior = Mouth(crop, landmarks)
        self._retouch = Retouch(crop, landmarks, network) if retouch else None
        self._workers = workers
        skin = bare_skin(crop, landmarks)
        self.picture = Backdrop(skin, matte(mask, crop.shape[0]))
        far_side = FarSide(self._mesh, skin)
        self._far_side = far_side if far_side.needed else None

    def __call__(
        self, landmarks: Iterable[np.ndarray], finish: Callable[[np.ndarray], np.ndarray] | None = None
    ) -> Iterator[np.ndarray]:
        """Yield a frame ``[S, S, 3]`` uint8 RGB for each of ``landmarks`` ``[478, 3]``, in crop pixels; ``finish`` is
        done to each in the thread that drew it."""
        draw = self.draw if finish is None else lambda points: finish(self.draw(points))
        return in_order(draw, landmarks, self._workers, _AHEAD)

    def draw(self, landmarks: np.ndarray) -> np.ndarray:
        """One frame ``[S, S, 3]`` uint8 RGB for landmarks ``[478, 3]`` in crop pixels."""
        target = self._scaled(landmarks)
        vertices = self._mesh(target)
        frame = self.picture.at(self._rasterize(vertices))
        if self._far_side is not None:
            self._far_side.draw(frame, vertices)
        for eye in self._eyes:
            eye.draw(frame, target)
        self.mouth.draw(frame, target)
        if self._retouch is not None:
            self._retouch.draw(frame, target)
        return frame

    def _scaled(self, landmarks: np.ndarray) -> np.ndarray:
        points = np.asarray(landmarks, np.float64) * self._scale
        # Pixel centres, not corners, carry integer coordinates.
        points[..., :2] += 0.5 * (self._scale - 1)
        return points


def _ends_at_top(portrait: Portrait) -> bool:
    """Whether the crop's top is the photo's, so that nothing above it needs to fit."""
    scale, offset = portrait.to_crop[1, 1:]
    return bool(offset > 0.5 * scale - 0.5 - _EXACT)
