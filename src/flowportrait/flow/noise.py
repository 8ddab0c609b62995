"""Noise as a function of where it is used.

Post-training keys its noise by a place: what the noise is for, and the sample, chunk and step that it belongs to.

    version 2   Philox with key (seed, iteration) and counter (position, use, chunk and step, sample): places map to
                counters one to one and the generator permutes counters, so that no two places share any number
    version 1   FlowPortrait 0.1: a hash of a list of integers, of which torch's generator reads 32 bits. Different
                places met by chance (about one pair in 4·10⁹), and by construction: noise that is put on sample i was
                the rollout noise of sample 2, chunk i, step 1. Kept for runs that began with it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

_MASK = 0xFFFFFFFFFFFFFFFF

KEY_VERSION = 2
"""Version of the noise keys of new runs."""

Use = Literal["start", "step", "real", "forward", "level", "history", "window"]
"""What keyed numbers are for: a rollout's initial noise, a stochastic step, the noise that a real clip is inverted to,
noise put on a finished sample, the noise levels of that, which past a chunk looks at, and the chunks that look at a
changed past."""

_USES: tuple[Use, ...] = ("start", "step", "real", "forward", "level", "history", "window")


@dataclass(frozen=True)
class NoiseKey:
    """The key of one iteration of one run. ``version``: of the mapping from places to numbers; see the module."""

    seed: int
    iteration: int = 0
    version: int = KEY_VERSION

    def normal(self, size: int | tuple[int, ...], use: Use, sample: int, chunk: int = 0, step: int = 0) -> torch.Tensor:
        """Standard normal float32 numbers that belong to this place alone."""
        if self.version == 1:
            return unit_noise(size, *self._integers(use, sample, chunk, step))
        return torch.from_numpy(self._numbers(use, sample, chunk, step).standard_normal(size, np.float32))

    def uniform(self, count: int, use: Use, sample: int = 0) -> torch.Tensor:
        """``count`` float32 numbers in [0, 1)."""
        if self.version == 1:
            return torch.rand(count, generator=self._torch(use, sample, 0))
        return torch.from_numpy(self._numbers(use, sample).random(count, np.float32))

    def integers(self, below: int, count: int, use: Use, sample: int = 0, chunk: int = 0) -> torch.Tensor:
        """``count`` whole numbers ``[count]`` from 0 to ``below`` − 1."""
        if self.version == 1:
            return torch.randint(below, (count,), generator=self._torch(use, sample, chunk))
        return torch.from_numpy(self._numbers(use, sample, chunk).integers(below, size=count))

    def counter(self, use: Use, sample: int, chunk: int = 0, step: int = 0) -> tuple[int, int, int, int]:
        """Philox's first counter of a place, four 64-bit words; the first one counts the numbers drawn there."""
        return 0, _USES.index(use), (chunk << 32) + step, sample & _MASK

    def _numbers(self, use: Use, sample: int, chunk: int = 0, step: int = 0) -> np.random.Generator:
        key = np.array([self.seed & _MASK, self.iteration], np.uint64)
        counter = np.array(self.counter(use, sample, chunk, step), np.uint64)
        return np.random.Generator(np.random.Philox(counter=counter, key=key))

    def _torch(self, use: Use, sample: int, chunk: int) -> torch.Generator:
        return torch.Generator().manual_seed(seed_of(*self._integers(use, sample, chunk, 0)))

    def _integers(self, use: Use, sample: int, chunk: int, step: int) -> tuple[int, ...]:
        """The integers that version 1 hashed; in "forward" the noise of all chunks is drawn at once."""
        run = (self.seed, self.iteration)
        return {
            "start": (*run, sample, chunk, -1), "real": (*run, sample, chunk, -1), "step": (*run, sample, chunk, step),
            "forward": (*run, 2, sample, 1), "level": (*run, 2, sample), "window": (*run, 3),
            "history": (*run, sample, chunk, 4),
        }[use]  # fmt: skip


def seed_of(*key: int) -> int:
    """Mix integers (a seed, an iteration, …) into one 63-bit seed by splitmix64 rounds.

    For choices such as which prompts an iteration draws; torch's generators read its lower 32 bits. Noise of
    post-training has ``NoiseKey``.
    """
    state = 0x9E3779B97F4A7C15
    for part in key:
        state = ((state ^ (part & _MASK)) * 0xBF58476D1CE4E5B9) & _MASK
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
        state ^= state >> 31
    return state >> 1


def unit_noise(size: int | tuple[int, ...], *key: int) -> torch.Tensor:
    """Standard normal float32 numbers that belong to ``key``, for generating with a seed: the noise of videos."""
    return torch.randn(size, generator=torch.Generator().manual_seed(seed_of(*key)))
