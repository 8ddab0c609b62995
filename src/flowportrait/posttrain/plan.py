"""Where the noise is: which denoising steps of a rollout are stochastic, and which of them are trained on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from flowportrait.flow.noise import seed_of
from flowportrait.flow.schedule import shifted


@dataclass(frozen=True)
class Plan:
    """sigmas ``[K+1]``; stochastic ``[K]`` bool; record: the step indices kept for training, ascending."""

    sigmas: torch.Tensor
    stochastic: torch.Tensor
    record: tuple[int, ...]


Planner = Callable[[int], Plan]
"""Iteration → plan. A pure function of the iteration, so that a resumed run plans the same."""


def every_step(steps: int, shift: float, seed: int, trained: int | None = None) -> Planner:
    """Flow-GRPO: noise at every step but the last; train on all of them or on ``trained`` drawn per iteration."""
    sigmas = shifted(steps, shift)
    stochastic = torch.ones(steps, dtype=torch.bool)
    stochastic[-1] = False

    def planner(iteration: int) -> Plan:
        noisy = stochastic.nonzero()[:, 0].tolist()
        if trained is not None and trained < len(noisy):
            generator = torch.Generator().manual_seed(seed_of(seed, iteration, 1))
            order = torch.randperm(len(noisy), generator=generator)[:trained].tolist()
            noisy = sorted(noisy[i] for i in order)
        return Plan(sigmas, stochastic, tuple(noisy))

    return planner
