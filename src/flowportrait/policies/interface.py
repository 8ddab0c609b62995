"""What a generator must be to be post-trained: a shape and three methods.

    encode(items) ─► known            velocity(x_σ, σ, known) ─► v            decode(x_0, known) ─► DecodedSamples

    x_σ = (1 − σ)·x_0 + σ·ε,   v = dx/dσ = ε − x_0,   σ from 1 (noise) to 0 (data)

``known`` is opaque to everybody else: a tuple (named or nested, if you like) of tensors with one row per item.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch


@dataclass(frozen=True)
class Item:
    """What is asked for: a text, a portrait, speech, or several of these; ``id`` tells items apart."""

    id: str
    text: str = ""
    image: Path | None = None
    audio: Path | None = None


class DecodedSamples(NamedTuple):
    """B samples as they would be delivered.

    frames: RGB ``[T, H, W, 3]`` uint8 per sample (T = 1: a picture) at ``fps``; or motion ``[B, T, 30]`` at 25 fps in
    the numbers of ``codec.basis``, for generators of motion.
    """

    frames: Sequence[np.ndarray] | None = None
    fps: float = 25.0
    motion: torch.Tensor | None = None


Shown = DecodedSamples
"""Its name in version 0.1."""


class Generator(Protocol):
    """A generator of one's own; as an ``nn.Module`` its parameters are what is trained.

    It may also have ``levels(sigmas)``, its own noise schedule for levels from 1 to 0, ``save_pretrained(folder)`` and
    ``recompute_activations()``.
    """

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the latents of one sample."""
        ...

    def encode(self, items: Sequence[Item]) -> Any:
        """What is known of each item, a row each; asked once per item and kept, so nothing here is trained."""
        ...

    def velocity(self, x: torch.Tensor, sigma: torch.Tensor, known: Any) -> torch.Tensor:
        """v ``[B, *shape]`` at x ``[B, *shape]`` float32 and noise levels ``[B]``, guidance included."""
        ...

    def decode(self, x: torch.Tensor, known: Any) -> DecodedSamples:
        """Clean latents ``[B, *shape]`` as they would be delivered."""
        ...
