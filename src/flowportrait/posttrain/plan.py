"""Where the noise is: which denoising steps of a rollout are stochastic, and which of them are trained on.

    flow-grpo    ● ● ● ● ● ○      every step but the last
    mix-grpo     ○ ● ● ○ ○ ○      a window that slides from high to low noise
    flash-grpo   ○ ○ ● ○ ○ ○      one step, drawn once per group
    nft, awm     ○ ○ ○ ○ ○ ○      none
    branch       ● ─┬─ ● ─┬─ ●    noise shared up to each fork (see ``tree``)

A planner is a pure function of (seed, iteration, groups, chunks), so that a resumed run plans the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import torch

from flowportrait.config import at_least
from flowportrait.flow.noise import seed_of
from flowportrait.flow.schedule import shifted
from flowportrait.posttrain.tree import Fork


@dataclass(frozen=True)
class Plan:
    """sigmas ``[K+1]``; stochastic ``[G, N, K]`` bool per group and chunk; record ``[G, R]`` the step indices kept
    for training, ascending; forks, in order of time, where siblings part (none: they part at the start)."""

    sigmas: torch.Tensor
    stochastic: torch.Tensor
    record: torch.Tensor
    forks: tuple[Fork, ...] = ()

    def __post_init__(self) -> None:
        assert not self.stochastic[..., -1].any(), "the last step is never stochastic"


class Planner(Protocol):
    """A plan for an iteration."""

    @property
    def steps(self) -> int:
        """K, denoising steps per chunk."""
        ...

    def __call__(self, seed: int, iteration: int, groups: int, chunks: int) -> Plan:
        """The plan of all groups of an iteration."""
        ...


@dataclass(frozen=True)
class EveryStep:
    """Noise at every step but the last. ``trained``: how many of them, drawn per iteration, are trained on (all if
    none is said; DanceGRPO trains on a fraction)."""

    steps: int = 6
    shift: float = 1.0
    trained: int | None = None

    def __post_init__(self) -> None:
        at_least(self, steps=2, shift=1e-3, trained=1)

    def __call__(self, seed: int, iteration: int, groups: int, chunks: int) -> Plan:
        noisy = list(range(self.steps - 1))
        if self.trained is not None and self.trained < len(noisy):
            noisy = sorted(_draw(len(noisy), self.trained, seed, iteration, 1))
        stochastic = torch.ones(groups, chunks, self.steps, dtype=torch.bool)
        stochastic[..., -1] = False
        return Plan(shifted(self.steps, self.shift), stochastic, torch.tensor(noisy).expand(groups, -1))


@dataclass(frozen=True)
class SlidingWindow:
    """MixGRPO (2507.21802): noise in ``width`` consecutive steps, the ODE elsewhere; the window moves one step
    towards low noise every ``dwell`` iterations and starts again at the top, or is drawn at random."""

    steps: int = 6
    shift: float = 1.0
    width: int = 2
    dwell: int = 10
    order: Literal["progressive", "random"] = "progressive"

    def __post_init__(self) -> None:
        at_least(self, steps=2, shift=1e-3, width=1, dwell=1)

    def __call__(self, seed: int, iteration: int, groups: int, chunks: int) -> Plan:
        width = min(self.width, self.steps - 1)
        places = self.steps - width
        turn = iteration // self.dwell
        first = turn % places if self.order == "progressive" else _draw(places, 1, seed, turn, 1)[0]
        window = torch.arange(first, first + width)
        stochastic = torch.zeros(groups, chunks, self.steps, dtype=torch.bool)
        stochastic[..., window] = True
        return Plan(shifted(self.steps, self.shift), stochastic, window.expand(groups, -1))


@dataclass(frozen=True)
class OneStep:
    """Noise at one step among the first ``among``, drawn per group (Flash-GRPO, 2605.15980) or, with
    ``shared``, once for all groups (LongCat-Video, 2510.22200). Siblings always have theirs at the same step."""

    steps: int = 6
    shift: float = 1.0
    among: int = 3
    shared: bool = False

    def __post_init__(self) -> None:
        at_least(self, steps=2, shift=1e-3, among=1)

    def __call__(self, seed: int, iteration: int, groups: int, chunks: int) -> Plan:
        among = min(self.among, self.steps - 1)
        step = torch.tensor([_draw(among, 1, seed, iteration, 1, 0 if self.shared else g)[0] for g in range(groups)])
        stochastic = torch.zeros(groups, chunks, self.steps, dtype=torch.bool)
        stochastic[torch.arange(groups), :, step] = True
        return Plan(shifted(self.steps, self.shift), stochastic, step[:, None])


@dataclass(frozen=True)
class NoNoise:
    """The ODE throughout: for objectives that need only the samples, or with ``keep_path`` the way to them."""

    steps: int = 6
    shift: float = 1.0
    keep_path: bool = False

    def __post_init__(self) -> None:
        at_least(self, steps=1, shift=1e-3)

    def __call__(self, seed: int, iteration: int, groups: int, chunks: int) -> Plan:
        stochastic = torch.zeros(groups, chunks, self.steps, dtype=torch.bool)
        record = torch.arange(self.steps if self.keep_path else 0).expand(groups, -1)
        return Plan(shifted(self.steps, self.shift), stochastic, record)


@dataclass(frozen=True)
class Branching:
    """BranchGRPO (2509.06040) and TempFlow-GRPO (2508.04324): siblings share all noise up to a fork, which is a
    denoising step of a chunk.

    ``forks`` steps are drawn per iteration, each in a chunk drawn with it. ``elsewhere`` says what the other steps
    are: ``sde``, noise shared by those who have not parted yet (BranchGRPO), or ``ode``, so that what a fork led to
    is its own doing (TempFlow).
    """

    steps: int = 6
    shift: float = 1.0
    forks: int = 1
    elsewhere: Literal["ode", "sde"] = "ode"
    among: int = 4
    """Forks are at one of the first steps: late ones hardly change the reward."""

    def __post_init__(self) -> None:
        at_least(self, steps=2, shift=1e-3, forks=1, among=1)

    def __call__(self, seed: int, iteration: int, groups: int, chunks: int) -> Plan:
        among = min(self.among, self.steps - 1)
        places = sorted(_draw(chunks * among, min(self.forks, chunks * among), seed, iteration, 1))
        forks = tuple(Fork(place // among, place % among) for place in places)
        stochastic = torch.zeros(groups, chunks, self.steps, dtype=torch.bool)
        if self.elsewhere == "sde":
            stochastic[..., :-1] = True
        for fork in forks:
            stochastic[:, fork.chunk, fork.step] = True
        record = torch.tensor(range(self.steps - 1) if self.elsewhere == "sde" else sorted({f.step for f in forks}))
        return Plan(shifted(self.steps, self.shift), stochastic, record.expand(groups, -1), forks)


def _draw(among: int, count: int, *key: int) -> list[int]:
    generator = torch.Generator().manual_seed(seed_of(*key))
    return torch.randperm(among, generator=generator)[:count].tolist()
