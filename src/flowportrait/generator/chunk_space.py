"""The space a chunk is drawn in: change since the last frame, in whitened temporal modes.

    u = motion[t … t+3] − motion[t−1]        z = Λ⁻¹ Vᵀ u   per motion number, V and Λ from the corpus

A chunk continues where the last one ended, and what hardly varies in real motion (a head's jump within 40 ms)
is small by construction: the sampler's errors are errors in z, of unit size, and shrink with Λ.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from flowportrait.codec.basis import MOTION_DIM

_SMALLEST = 1e-3


class ChunkSpace(nn.Module):
    """Motion chunks ⇄ latents of ``chunk · 30`` numbers."""

    def __init__(self, chunk: int) -> None:
        super().__init__()
        self.chunk = chunk
        self.register_buffer("modes", torch.eye(chunk).repeat(MOTION_DIM, 1, 1))
        self.register_buffer("scale", torch.ones(MOTION_DIM, chunk))

    modes: torch.Tensor
    scale: torch.Tensor

    @torch.no_grad()
    def fit(self, tracks: Iterable[torch.Tensor]) -> None:
        """Learn modes ``[30, chunk, chunk]`` (columns) and scales ``[30, chunk]`` from motion tracks ``[T, 30]``."""
        changes = [
            track[1:].unfold(0, self.chunk, 1) - track[: -self.chunk, :, None]
            for track in tracks
            if len(track) > self.chunk
        ]
        stacked = torch.cat(changes).permute(1, 0, 2).double()
        values, vectors = torch.linalg.eigh(stacked.mT @ stacked / stacked.shape[1])
        self.modes.copy_(vectors.flip(-1))
        self.scale.copy_(values.flip(-1).clamp_min(0).sqrt().clamp_min(_SMALLEST))

    @property
    def step_size(self) -> torch.Tensor:
        """Typical change over a chunk per motion number ``[30]``."""
        return self.scale.square().sum(-1).sqrt() / self.chunk**0.5

    def encode(self, motion: torch.Tensor, base: torch.Tensor) -> torch.Tensor:
        """Chunks ``[..., chunk, 30]`` after a frame ``[..., 30]`` to latents ``[..., chunk · 30]``."""
        change = (motion - base[..., None, :]).transpose(-1, -2)
        return (torch.einsum("...df,dfk->...dk", change, self.modes) / self.scale).flatten(-2)

    def decode(self, latents: torch.Tensor, base: torch.Tensor) -> torch.Tensor:
        """Inverse of ``encode``."""
        coefficients = latents.unflatten(-1, (MOTION_DIM, self.chunk)) * self.scale
        return torch.einsum("...dk,dfk->...fd", coefficients, self.modes) + base[..., None, :]

    def decode_track(self, latents: torch.Tensor, start: torch.Tensor) -> torch.Tensor:
        """Latents of successive chunks ``[B, N, chunk · 30]`` after a frame ``[B, 30]`` to ``[B, N, chunk, 30]``."""
        change = self.decode(latents, latents.new_zeros(*latents.shape[:2], MOTION_DIM))
        ends = start[:, None] + change[:, :, -1].cumsum(1)
        base = torch.cat([start[:, None], ends[:, :-1]], 1)
        return change + base[:, :, None]
