"""Landmarks to pictures: one portrait photo, drawn in any pose and expression.

    frame = skin(mesh warp of the photo)  +  eyeballs seen between the lids  +  mouth interior between the
    lips

Landmarks equal to the portrait's own give the photo back.
"""

from __future__ import annotations

from collections.abc import Iterator

import cv2
import numpy as np

from flowportrait.codec.contours import EYES
from flowportrait.codec.eyes import Eye
from flowportrait.codec.mesh import HeadMesh
from flowportrait.codec.mouth import Mouth
from flowportrait.codec.skin import bare_skin
from flowportrait.codec.warp import Rasterizer
from flowportrait.media.portrait import Portrait


class Renderer:
    """Draws one portrait; prepared once (about half a second), then called with any number of frames.

    size: side of the drawn square, the crop's own by default. Landmarks are in pixels of ``portrait.crop``
    in every case.

    ::

        renderer = Renderer(Portrait.from_image(read_image("photo.jpg")))
        frames = list(renderer(landmarks))          # [T, 478, 3] -> T x [512, 512, 3]
    """

    def __init__(self, portrait: Portrait, size: int | None = None) -> None:
        crop = portrait.crop
        self._scale = 1.0 if size is None else size / crop.shape[0]
        if self._scale != 1.0:
            crop = cv2.resize(crop, (size, size), interpolation=cv2.INTER_AREA)
        landmarks = self._scaled(portrait.landmarks)
        self._mesh = HeadMesh(crop, landmarks)
        self._rasterize = Rasterizer(self._mesh.triangles, self._mesh.source, crop.shape[0])
        self._eyes = [Eye(crop, landmarks, side) for side in range(len(EYES))]
        self._mouth = Mouth(crop, landmarks)
        self._skin = bare_skin(crop, landmarks)

    def __call__(self, landmarks: np.ndarray) -> Iterator[np.ndarray]:
        """Yield a frame ``[S, S, 3]`` uint8 RGB for each of ``landmarks`` ``[T, 478, 3]``, in crop pixels."""
        for target in landmarks:
            yield self.draw(target)

    def draw(self, landmarks: np.ndarray) -> np.ndarray:
        """One frame ``[S, S, 3]`` uint8 RGB for landmarks ``[478, 3]`` in crop pixels."""
        target = self._scaled(landmarks)
        source = self._rasterize(self._mesh(target))
        # Cubic: what moves by half a pixel must not look softer than what stands still.
        frame = cv2.remap(self._skin, source, None, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
        for eye in self._eyes:
            eye.draw(frame, target)
        self._mouth.draw(frame, target)
        return frame

    def _scaled(self, landmarks: np.ndarray) -> np.ndarray:
        points = np.asarray(landmarks, np.float64) * self._scale
        # Pixel centres, not corners, carry integer coordinates.
        points[..., :2] += 0.5 * (self._scale - 1)
        return points
