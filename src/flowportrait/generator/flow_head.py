"""The flow head: velocity of one chunk's latents, given the backbone's context.

    v(x_σ, σ | h): residual MLP blocks whose normalisation is shifted and scaled by h and σ (adaptive layer norm).

A chunk is small enough (120 numbers) that an MLP sees it whole; see MAR (2406.11838) for the pattern.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

FREQUENCIES = 32


class FlowHead(nn.Module):
    """Velocity field over chunk latents."""

    blocks: Any

    def __init__(self, latent_dim: int, context_dim: int, width: int, depth: int) -> None:
        super().__init__()
        self.read = nn.Linear(latent_dim, width)
        self.context = nn.Linear(context_dim, width)
        self.level = nn.Sequential(nn.Linear(2 * FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width))
        self.blocks = nn.ModuleList(_Block(width) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.write = nn.Linear(width, latent_dim)
        nn.init.zeros_(self.write.weight)
        nn.init.zeros_(self.write.bias)

    def forward(self, x: torch.Tensor, sigma: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        """x ``[..., latent_dim]``, sigma broadcastable to ``[...]``, context ``[..., context_dim]`` → v like x."""
        condition, y = self._condition(sigma, context), self.read(x)
        for block in self.blocks:
            y = block(y, condition)
        return self.write(self.norm(y))

    def modulations(self, sigma: torch.Tensor, context: torch.Tensor) -> list[torch.Tensor]:
        """Shift, scale and gate of each block ``[..., 3 width]``: all of ``forward`` that does not depend on x."""
        condition = self._condition(sigma, context)
        return [block.modulate(condition) for block in self.blocks]

    def modulated(self, x: torch.Tensor, modulations: Iterable[torch.Tensor]) -> torch.Tensor:
        """The rest of ``forward``, given what ``modulations`` returned."""
        y = self.read(x)
        for block, modulation in zip(self.blocks, modulations, strict=True):
            y = block.modulated(y, modulation)
        return self.write(self.norm(y))

    def _condition(self, sigma: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.silu(self.context(context) + self.level(fourier(sigma)))


class _Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.modulate = nn.Linear(width, 3 * width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.SiLU(), nn.Linear(2 * width, width))
        nn.init.zeros_(self.modulate.weight)
        nn.init.zeros_(self.modulate.bias)

    def forward(self, x: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        return self.modulated(x, self.modulate(condition))

    def modulated(self, x: torch.Tensor, modulation: torch.Tensor) -> torch.Tensor:
        scale, shift, gate = modulation.chunk(3, -1)
        return x + (1 + gate) * self.mlp(self.norm(x) * (1 + scale) + shift)


def fourier(sigma: torch.Tensor) -> torch.Tensor:
    """Sines and cosines of σ ``[...]`` at 32 frequencies, ``[..., 64]``."""
    exponent = torch.arange(FREQUENCIES, device=sigma.device) / (FREQUENCIES - 1)
    angle = sigma[..., None].float() * torch.exp(exponent * math.log(1000.0))
    return torch.cat([angle.sin(), angle.cos()], -1)
