"""Noise levels from 1 down to 0 at which a sampler stops."""

from __future__ import annotations

import torch


def shifted(steps: int, shift: float = 1.0) -> torch.Tensor:
    """``steps + 1`` levels σ = shift·u / (1 + (shift−1)·u), u linear from 1 to 0; shift 1 is uniform, more than 1
    spends more steps at high noise."""
    return shift_levels(torch.linspace(1, 0, steps + 1), shift)


def shift_levels(sigmas: torch.Tensor, shift: float) -> torch.Tensor:
    """Levels shifted once more, as ``shifted`` does from uniform ones: two shifts multiply."""
    return shift * sigmas / (1 + (shift - 1) * sigmas)


def shift_of(sigmas: torch.Tensor) -> float:
    """The shift that ``shifted`` made these levels ``[K + 1]`` with; 1 for a single step, which no shift moves."""
    steps = len(sigmas) - 1
    return 1.0 if steps < 2 else float(sigmas[1] / (1 - sigmas[1])) / (steps - 1)
