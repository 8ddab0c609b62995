"""The base class of both sync experts: an embedding of lips and of sound into one space."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Self

import torch
from torch import nn

from flowportrait.devices import Device, place_network, read_weights
from flowportrait.files import write_weights


class JointEmbedding(nn.Module, ABC):
    """An embedding of lips and of sound into one space, whose cosine scores lip sync.

        score[t] = cos( embed_face(lips)[t], embed_audio(mel)[t] )

    Embeddings are unit vectors ``[B, T − WINDOW + 1, DIM]``, one for each window of ``WINDOW`` frames.
    """

    WINDOW: int
    DIM: int
    log_scale: nn.Parameter
    """Logarithm of the scale (inverse temperature) of the cosines in the contrastive training loss."""

    @abstractmethod
    def embed_face(self, lips: torch.Tensor) -> torch.Tensor:
        """Embed lips ``[B, T, …]``."""

    @abstractmethod
    def embed_audio(self, mel: torch.Tensor) -> torch.Tensor:
        """Embed log-mel ``[B, 4T, 80]``; each window depends on exactly its own ``4 · WINDOW`` columns."""

    def score(self, lips: torch.Tensor, mel: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Score the synchrony of lips and sound.

        Returns:
            The cosine of every window ``[B, T − WINDOW + 1]``, where window t is centred on frame t + WINDOW // 2, and
            its mean over each clip ``[B]``.
        """
        cosine = (self.embed_face(lips) * self.embed_audio(mel)).sum(-1)
        return cosine, cosine.mean(-1)

    def save(self, path: Path) -> None:
        """Write float16 safetensors; the file appears only when it is complete."""
        write_weights(path, self.state_dict())

    @classmethod
    def read(cls, path: Path, device: Device | None = None, dtype: torch.dtype | None = None) -> Self:
        """Load what ``save`` wrote, in evaluation mode and with frozen weights."""
        expert = cls()
        expert.load_state_dict(read_weights(path))
        return place_network(expert.eval().requires_grad_(False), device, dtype)
