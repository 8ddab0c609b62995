"""What both sync experts are, whatever they look at: lips and sound embedded into one space.

    score[t] = cos( embed_face(lips)[t], embed_audio(mel)[t] )

The reward's and the evaluation's expert know nothing of each other; they share this, and neither networks nor input.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Self

import torch
from torch import nn

from flowportrait.devices import Device, place, read_weights
from flowportrait.written import write_weights


class JointEmbedding(nn.Module, ABC):
    """Unit vectors ``[B, T − WINDOW + 1, DIM]`` of lips seen for ``WINDOW`` frames, and of the sound meanwhile."""

    WINDOW: int
    DIM: int
    log_scale: nn.Parameter
    """ln of how sharply training tells pairs apart."""

    @abstractmethod
    def embed_face(self, lips: torch.Tensor) -> torch.Tensor:
        """Of lips ``[B, T, …]``."""

    @abstractmethod
    def embed_audio(self, mel: torch.Tensor) -> torch.Tensor:
        """Of log-mel ``[B, 4T, 80]``; each window hears exactly its own ``4 · WINDOW`` columns."""

    def score(self, lips: torch.Tensor, mel: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosine per window ``[B, T − WINDOW + 1]``, the t-th centred on frame t + WINDOW // 2, and its mean per clip
        ``[B]``."""
        cosine = (self.embed_face(lips) * self.embed_audio(mel)).sum(-1)
        return cosine, cosine.mean(-1)

    def save(self, path: Path) -> None:
        """Write float16 safetensors, whole or not at all."""
        write_weights(path, self.state_dict())

    @classmethod
    def read(cls, path: Path, device: Device | None = None, dtype: torch.dtype | None = None) -> Self:
        """Load an expert written by ``save``, ready to score (no dropout, weights frozen)."""
        expert = cls()
        expert.load_state_dict(read_weights(path))
        return place(expert.eval().requires_grad_(False), device, dtype)
