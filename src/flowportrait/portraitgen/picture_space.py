"""Small framed faces as a few hundred whitened numbers: principal components, learned from footage.

    z = Wᵀ (picture − mean) / scale         picture ≈ mean + W (scale · z)

What a variational autoencoder is to a large generator: linear, exact to invert, and unit variance in every direction,
so that noise of unit variance reaches all of it.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

LATENTS = 192


class PictureSpace(nn.Module):
    """Buffers mean ``[P]``, modes ``[P, D]``, scale ``[D]`` for pictures of ``side`` pixels, P = 3 side²."""

    def __init__(self, side: int, latents: int = LATENTS) -> None:
        super().__init__()
        self.side = side
        self.register_buffer("mean", torch.zeros(3 * side * side))
        self.register_buffer("modes", torch.zeros(3 * side * side, latents))
        self.register_buffer("scale", torch.ones(latents))
        self.mean: torch.Tensor
        self.modes: torch.Tensor
        self.scale: torch.Tensor

    def encode(self, pictures: torch.Tensor) -> torch.Tensor:
        """Latents ``[N, D]`` of pictures ``[N, 3, S, S]`` in [0, 1]."""
        return (pictures.flatten(1) - self.mean) @ self.modes / self.scale

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Pictures ``[N, 3, S, S]`` in [0, 1] of latents ``[N, D]``."""
        pictures = self.mean + (latents * self.scale) @ self.modes.T
        return pictures.clamp(0, 1).unflatten(1, (3, self.side, self.side))

    @classmethod
    def fit(cls, pictures: torch.Tensor, latents: int = LATENTS) -> PictureSpace:
        """From pictures ``[N, 3, S, S]`` in [0, 1], N > D."""
        found = cls(pictures.shape[-1], latents)
        flat = pictures.flatten(1)
        found.mean.copy_(flat.mean(0))
        with torch.random.fork_rng():
            torch.manual_seed(0)
            _, values, modes = torch.svd_lowrank(flat - found.mean, q=latents, niter=3)
        found.modes.copy_(modes)
        found.scale.copy_((values / len(flat) ** 0.5).clamp_min(1e-5))
        return found


def as_pictures(frames: np.ndarray) -> torch.Tensor:
    """``[N, H, W, 3]`` uint8 as ``[N, 3, H, W]`` in [0, 1]."""
    return torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 255


def as_frames(pictures: torch.Tensor) -> np.ndarray:
    """Inverse of ``as_pictures``, rounded."""
    return (pictures.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
