"""Keyed noise: random numbers as a function of where they are used.

Post-training keys its noise by a place: the use of the noise, and the sample, chunk and step that it belongs to. The
mapping from places to numbers has two versions.

    version 2   Philox with key (seed, iteration) and counter (position, use, chunk and step, sample). Places map to
                counters one to one and the generator permutes counters, so no two places share a number.
    version 1   FlowPortrait 0.1: a hash of a list of integers, of which torch's generator reads 32 bits. Two places
                could collide by chance (about one pair in 4·10⁹), and some did by construction: the noise put on sample
                i was the rollout noise of sample 2, chunk i, step 1. It is kept for runs that were started with it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

_MASK = 0xFFFFFFFFFFFFFFFF

NOISE_KEY_VERSION = 2
"""Version of the mapping from places to numbers that new runs use."""

NoiseUse = Literal["start", "step", "real", "forward", "level", "history", "window", "critic"]
"""Use of keyed numbers.

start: initial noise of a rollout; step: noise of a stochastic step; real: noise that a real clip is inverted to;
forward: noise added to a finished sample; level: noise levels of that; history: which history a chunk attends to;
window: the chunks that attend to a changed history; critic: noise and noise levels at which a critic is trained and
scores are compared.
"""

_USES: tuple[NoiseUse, ...] = ("start", "step", "real", "forward", "level", "history", "window", "critic")


@dataclass(frozen=True)
class NoiseKey:
    """The key of the noise in one iteration of one run.

    ``version`` is that of the mapping from places to numbers, 1 or 2.
    """

    seed: int
    iteration: int = 0
    version: int = NOISE_KEY_VERSION

    def normal(
        self, size: int | tuple[int, ...], use: NoiseUse, sample: int, chunk: int = 0, step: int = 0
    ) -> torch.Tensor:
        """Return standard normal float32 numbers of shape ``size`` that belong to this place alone."""
        if self.version == 1:
            return keyed_noise(size, *self._version_1_key(use, sample, chunk, step))
        return torch.from_numpy(self._philox_generator(use, sample, chunk, step).standard_normal(size, np.float32))

    def uniform(self, count: int, use: NoiseUse, sample: int = 0, chunk: int = 0, step: int = 0) -> torch.Tensor:
        """Return ``count`` uniform float32 numbers in [0, 1), ``[count]``."""
        if self.version == 1:
            return torch.rand(count, generator=self._torch_generator(use, sample, chunk, step))
        return torch.from_numpy(self._philox_generator(use, sample, chunk, step).random(count, np.float32))

    def integers(self, below: int, count: int, use: NoiseUse, sample: int = 0, chunk: int = 0) -> torch.Tensor:
        """Return ``count`` uniform integers ``[count]`` from 0 to ``below`` − 1."""
        if self.version == 1:
            return torch.randint(below, (count,), generator=self._torch_generator(use, sample, chunk))
        return torch.from_numpy(self._philox_generator(use, sample, chunk).integers(below, size=count))

    def counter(self, use: NoiseUse, sample: int, chunk: int = 0, step: int = 0) -> tuple[int, int, int, int]:
        """Return the first Philox counter of a place, four 64-bit words; word 0 counts the numbers drawn there."""
        return 0, _USES.index(use), (chunk << 32) + step, sample & _MASK

    def _philox_generator(self, use: NoiseUse, sample: int, chunk: int = 0, step: int = 0) -> np.random.Generator:
        philox_key = np.array([self.seed & _MASK, self.iteration], np.uint64)
        counter = np.array(self.counter(use, sample, chunk, step), np.uint64)
        return np.random.Generator(np.random.Philox(counter=counter, key=philox_key))

    def _torch_generator(self, use: NoiseUse, sample: int, chunk: int, step: int = 0) -> torch.Generator:
        return torch.Generator().manual_seed(mix_seed(*self._version_1_key(use, sample, chunk, step)))

    def _version_1_key(self, use: NoiseUse, sample: int, chunk: int, step: int) -> tuple[int, ...]:
        """Return the integers that version 1 hashes; for "forward" the noise of all chunks is drawn at once."""
        run_key = (self.seed, self.iteration)
        return {
            "start": (*run_key, sample, chunk, -1), "real": (*run_key, sample, chunk, -1),
            "step": (*run_key, sample, chunk, step), "forward": (*run_key, 2, sample, 1),
            "level": (*run_key, 2, sample), "window": (*run_key, 3), "history": (*run_key, sample, chunk, 4),
            "critic": (*run_key, sample, chunk, step, 5),
        }[use]  # fmt: skip


def mix_seed(*key: int) -> int:
    """Return one 63-bit seed mixed from integers (a seed, an iteration, …) by splitmix64 rounds.

    It seeds choices such as which prompts an iteration draws; torch's generators read its lower 32 bits. The noise of
    post-training uses ``NoiseKey``.
    """
    state = 0x9E3779B97F4A7C15
    for part in key:
        state = ((state ^ (part & _MASK)) * 0xBF58476D1CE4E5B9) & _MASK
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
        state ^= state >> 31
    return state >> 1


def keyed_noise(size: int | tuple[int, ...], *key: int) -> torch.Tensor:
    """Return standard normal float32 numbers of shape ``size`` for ``key``; videos generated with a seed use these."""
    return torch.randn(size, generator=torch.Generator().manual_seed(mix_seed(*key)))
