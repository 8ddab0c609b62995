"""Noise levels from 1 down to 0 at which a sampler stops."""

from __future__ import annotations

import torch


def shifted(steps: int, shift: float = 1.0) -> torch.Tensor:
    """``steps + 1`` levels σ = shift·u / (1 + (shift−1)·u), u linear from 1 to 0; shift 1 is uniform, more than 1
    spends more steps at high noise."""
    u = torch.linspace(1, 0, steps + 1)
    return shift * u / (1 + (shift - 1) * u)
