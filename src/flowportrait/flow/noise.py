"""Noise as a function of where it is used: the same key gives the same numbers on any batch size or process."""

from __future__ import annotations

import torch

_MASK = 0xFFFFFFFFFFFFFFFF


def seed_of(*key: int) -> int:
    """Mix integers (seed, iteration, sample id, chunk, step, …) into one 63-bit seed by splitmix64 rounds."""
    state = 0x9E3779B97F4A7C15
    for part in key:
        state = ((state ^ (part & _MASK)) * 0xBF58476D1CE4E5B9) & _MASK
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
        state ^= state >> 31
    return state >> 1


def unit_noise(size: int | tuple[int, ...], *key: int) -> torch.Tensor:
    """Standard normal float32 numbers belonging to ``key``."""
    return torch.randn(size, generator=torch.Generator().manual_seed(seed_of(*key)))
