"""MotionCodec: a portrait and 30 numbers a frame ⇄ video.

encode: video → landmarks → motion [T, 30]        decode: motion → landmarks of this face → warped portrait
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np
import torch

from flowportrait.codec import lips
from flowportrait.codec.basis import LOWER, Identity, MotionBasis
from flowportrait.codec.renderer import Renderer
from flowportrait.codec.retouch import Network
from flowportrait.media.face import Faces
from flowportrait.media.portrait import Portrait

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
    return Identity(lips.close(identity.neutral + kept * (shape - identity.neutral)), identity.pose)


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
