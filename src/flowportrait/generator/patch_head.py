"""The head that draws a frame's patches together: patches mix, then numbers mix, shifted and scaled by h and σ.

    y ← y + mix over patches (norm y)        y ← y + mix over numbers (norm y)

A face crop is aligned, so a patch knows by its place what it shows, and mixing needs no attention (MLP-Mixer,
2105.01601; adaptive layer norm as in ``flow_head``).
"""

from __future__ import annotations

import torch
from torch import nn

from flowportrait.generator.flow_head import FREQUENCIES, fourier


class PatchHead(nn.Module):
    """Change of every patch ``[..., P, depth]`` from what is known of it ``[..., P, 3·depth]``."""

    def __init__(self, patches: int, depth: int, context_dim: int, width: int, blocks: int) -> None:
        super().__init__()
        self.read = nn.Linear(3 * depth, width)
        self.place = nn.Parameter(0.02 * torch.randn(patches, width))
        self.context = nn.Linear(context_dim, width)
        self.level = nn.Sequential(nn.Linear(2 * FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width))
        self.blocks = nn.ModuleList(_Block(patches, width) for _ in range(blocks))
        self.norm = nn.LayerNorm(width)
        self.write = nn.Linear(width, depth)
        nn.init.zeros_(self.write.weight)
        nn.init.zeros_(self.write.bias)

    def forward(self, cells: torch.Tensor, sigma: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        """cells ``[..., P, 3·depth]``, sigma ``[...]``, context ``[..., context_dim]``."""
        condition = nn.functional.silu(self.context(context) + self.level(fourier(sigma)))[..., None, :]
        y = self.read(cells) + self.place
        for block in self.blocks:
            y = block(y, condition)
        return self.write(self.norm(y))


class _Block(nn.Module):
    def __init__(self, patches: int, width: int) -> None:
        super().__init__()
        self.norm_patches = nn.LayerNorm(width, elementwise_affine=False)
        self.norm_numbers = nn.LayerNorm(width, elementwise_affine=False)
        self.modulate = nn.Linear(width, 4 * width)
        self.over_patches = nn.Sequential(nn.Linear(patches, 2 * patches), nn.SiLU(), nn.Linear(2 * patches, patches))
        self.over_numbers = nn.Sequential(nn.Linear(width, 2 * width), nn.SiLU(), nn.Linear(2 * width, width))
        nn.init.zeros_(self.modulate.weight)
        nn.init.zeros_(self.modulate.bias)

    def forward(self, y: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        scale, shift, scale_numbers, shift_numbers = self.modulate(condition).chunk(4, -1)
        y = y + self.over_patches((self.norm_patches(y) * (1 + scale) + shift).mT).mT
        return y + self.over_numbers(self.norm_numbers(y) * (1 + scale_numbers) + shift_numbers)
