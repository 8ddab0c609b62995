"""Chunks joined without a jolt. A chunk begins where the last one ended, but not at its speed: drawn as they come, lips
and lids start anew six times a second, which is seen as trembling.

    x'[t] = x[t] + a (x[t−1] − 2 x[t] + x[t+1])      for the two frames on either side of a border between chunks

With a = 0.15 the acceleration at borders is what it is inside chunks, and what real lips have everywhere; 0 changes
nothing. Head and brows need none: ``calm`` smooths all of their frames. ``benchmarks/easing.py`` shows both.
"""

from __future__ import annotations

import torch

from flowportrait.codec.basis import BLINK, GAZE, LOWER, MOTION_DIM


def ease(motion: torch.Tensor, chunk: int, share: float) -> torch.Tensor:
    """Motion ``[B, T, 30]`` made of chunks of so many frames, joined."""
    at = [t for t in range(1, motion.shape[1] - 1) if _beside_border(t, chunk)]
    bend = motion[:, [t - 1 for t in at]] - 2 * motion[:, at] + motion[:, [t + 1 for t in at]]
    result = motion.clone()
    result[:, at] += share * bend * _eased(motion)
    return result


class Ease:
    """``ease`` for one stream: the last frame of a chunk is held back until the next chunk is there."""

    def __init__(self, share: float) -> None:
        self.share = share
        self._held = torch.zeros(0, MOTION_DIM)

    def __call__(self, chunk: torch.Tensor) -> torch.Tensor:
        """The next frames ``[n, 30]``; returns what is ready: the one held back, and all of these but the last."""
        known = torch.cat([self._held, chunk])
        ready, first = known.clone(), len(self._held)
        for t in (first - 1, first):
            if first and 0 < t < len(known) - 1:
                ready[t] += self.share * (known[t - 1] - 2 * known[t] + known[t + 1]) * _eased(known)
        told = max(first - 1, 0)
        self._held = known[-2:]
        return ready[told:-1]

    def finish(self) -> torch.Tensor:
        """The frame still held back ``[≤ 1, 30]``."""
        return self._held[-1:]


def _beside_border(t: int, chunk: int) -> bool:
    return chunk > 1 and ((t % chunk == 0) or (t % chunk == chunk - 1))


def _eased(like: torch.Tensor) -> torch.Tensor:
    """One for numbers that are eased ``[30]``."""
    numbers = like.new_zeros(MOTION_DIM)
    for part in (LOWER, BLINK, GAZE):
        numbers[part] = 1
    return numbers
