"""One portrait photo, drawn in any pose and expression: motion to video and back.

Landmarks to pictures: one portrait photo, drawn in any pose and expression.

    frame = retouch( skin(mesh warp of the person)  before the backdrop  +  eyeballs seen between the lids  +  mouth
    interior between the lips )

Landmarks equal to the portrait's own give the photo back.

MotionCodec: a portrait and 30 numbers a frame ⇄ video.

encode: video → landmarks → motion [T, 30]        decode: motion → landmarks of this face → warped portrait
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Protocol

import cv2
import numpy as np
import torch

from flowportrait.media.faces import Faces
from flowportrait.media.portrait import Portrait
from flowportrait.media.video import in_order
from flowportrait.rendering.face_regions import EYES, bare_skin, head_weight, matte, person
from flowportrait.rendering.layers import Backdrop, Eye, FarSide
from flowportrait.rendering.mesh import HeadMesh, Rasterizer
from flowportrait.rendering.motion_basis import LOWER, Identity, MotionBasis, close_lips
from flowportrait.rendering.mouth import Mouth
from flowportrait.rendering.retouch import Network, Retouch

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


_HUMAN, _UNLIKE = 9.0, 13.0
"""Up to which length of lower-face motion, in standard deviations, a photo's expression is believed and taken off;
photos of people stay under the first, a drawn boy with doll's proportions reads as 13.5."""


def resting(basis: MotionBasis, portrait: Portrait) -> Identity:
    """Whose face it is. What looks like an impossible expression is how this face is made, and stays."""
    motion, identity = basis.encode(portrait.landmarks[None], portrait.blendshapes[None], smooth=False)
    length = float(motion[0, LOWER].norm())
    kept = min(max((length - _HUMAN) / (_UNLIKE - _HUMAN), 0.0), 1.0)
    if kept == 0.0:
        return identity
    shape = identity.pose.remove(torch.as_tensor(portrait.landmarks[None]))[0]
    return Identity(close_lips(identity.neutral + kept * (shape - identity.neutral)), identity.pose)


class MotionCodec:
    """Draws one portrait in motion."""

    def __init__(
        self,
        portrait: Portrait,
        size: int | None = None,
        basis: MotionBasis | None = None,
        retouch: bool = True,
        network: Network | None = None,
    ) -> None:
        """Prepare a portrait.

        Args:
            portrait: who is drawn.
            size: side of the drawn square in pixels, the crop's own by default.
            basis: what the motion's numbers mean; the shipped one by default.
            retouch: let the network go over the lower face.
            network: the retouching network; the shipped one on the processor by default.
        """
        self.portrait = portrait
        self.basis = basis or MotionBasis.load()
        self.identity = resting(self.basis, portrait)
        self.renderer = Renderer(portrait, size, retouch, network=network)

    def encode(self, faces: Faces) -> tuple[torch.Tensor, Identity]:
        """Motion ``[T, 30]`` of a tracked video and whose it is."""
        return self.basis.encode(faces.landmarks, faces.blendshapes)

    def landmarks(self, motion: torch.Tensor) -> np.ndarray:
        """Where this face's landmarks go, ``[T, 478, 3]`` in crop pixels, for motion ``[T, 30]``."""
        return self.basis.decode(motion.to("cpu", torch.float32), self.identity).numpy()

    def decode(self, motion: torch.Tensor) -> Iterator[np.ndarray]:
        """Frames ``[S, S, 3]`` uint8 for motion ``[T, 30]``."""
        return self.decode_all([motion])

    def decode_all(
        self, chunks: Iterable[torch.Tensor], finish: Callable[[np.ndarray], np.ndarray] | None = None
    ) -> Iterator[np.ndarray]:
        """Frames ``[S, S, 3]`` uint8 for motion that comes in chunks ``[t, 30]``, each after ``finish``.

        The first frames of a chunk are drawn while the next one is asked for, so a frame can come out a chunk late.
        """
        return self.renderer((points for chunk in chunks for points in self.landmarks(chunk)), finish)
