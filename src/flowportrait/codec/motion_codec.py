"""MotionCodec: a portrait and 30 numbers a frame ⇄ video.

    encode: video → landmarks → motion [T, 30]        decode: motion → landmarks of this face → warped portrait
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from flowportrait.codec.basis import Identity, MotionBasis
from flowportrait.codec.renderer import Renderer
from flowportrait.media.face import Faces
from flowportrait.media.portrait import Portrait


class MotionCodec:
    """Draws one portrait in motion."""

    def __init__(self, portrait: Portrait, size: int | None = None, basis: MotionBasis | None = None) -> None:
        self.portrait = portrait
        self.basis = basis or MotionBasis.load()
        _, self.identity = self.basis.encode(portrait.landmarks[None], portrait.blendshapes[None], smooth=False)
        self.renderer = Renderer(portrait, size)

    def encode(self, faces: Faces) -> tuple[torch.Tensor, Identity]:
        """Motion ``[T, 30]`` of a tracked video and whose it is."""
        return self.basis.encode(faces.landmarks, faces.blendshapes)

    def landmarks(self, motion: torch.Tensor) -> np.ndarray:
        """Where this face's landmarks go, ``[T, 478, 3]`` in crop pixels, for motion ``[T, 30]``."""
        return self.basis.decode(motion, self.identity).numpy()

    def decode(self, motion: torch.Tensor) -> Iterator[np.ndarray]:
        """Frames ``[S, S, 3]`` uint8 for motion ``[T, 30]``."""
        return self.renderer(self.landmarks(motion))
