"""Which denoising steps are stochastic, which of them are trained on, and the policy's own schedule.

Plans: which denoising steps of a rollout are stochastic, and which of them are trained on.

    flow-grpo    ● ● ● ● ● ○      every step but the last
    mix-grpo     ○ ● ● ○ ○ ○      a window that slides from high to low noise
    flash-grpo   ○ ○ ● ○ ○ ○      one step, drawn once per group
    nft, awm     ○ ○ ○ ○ ○ ○      none
    branch       ● ─┬─ ● ─┬─ ●    noise shared up to each fork

A planner is a pure function of (seed, iteration, groups, chunks), so that a resumed run plans the same.

Rollouts with forks share a past: noise is a function of its key, so siblings whose noise has the same source up to a
fork go the same way up to it, without any bookkeeping of states. Sample i of a group takes, at fork f, the branch that
is the f-th digit of i written in base ``width``; the id of its noise source at a place is made of the digits of the
forks it has passed.

    group of 4, two forks:   ──┬── 0 ──┬── 00      digits of sample 2: 1, 0
                               │       └── 01
                               └── 1 ──┬── 10
                                       └── 11

What post-training asks of a generator: a velocity field over chunks of latents, given what came before.

    condition ─► session: context of chunk 1, append z_1, context of chunk 2, …     (rollout)
    condition, all z ─► contexts of every chunk in one pass                          (replay)
    velocity(x_σ, σ, context)                                                        (both)

A generator that is not autoregressive has one chunk. Nothing here says what a condition or a context holds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, Protocol, TypeVar

import torch
from torch import nn

from flowportrait.config import at_least
from flowportrait.errors import BadInput
from flowportrait.flow.noise import seed_of
from flowportrait.flow.paths import shifted


class Fork(NamedTuple):
    """A place where siblings part: the noise of this denoising step of this chunk is their own."""

    chunk: int
    step: int


def branching_factor(group_size: int, forks: int) -> int:
    """How many ways every fork goes.

    Raises:
        BadInput: the group is not a power of a whole number, or too small to part that often.
    """
    width = round(group_size ** (1 / forks))
    if width < 2 or width**forks != group_size:
        raise BadInput(f"group_size={group_size} cannot part {forks} times evenly: choose a power such as {2**forks}.")
    return width


def noise_source_ids(
    sample: torch.Tensor, group: torch.Tensor, group_size: int, forks: Sequence[Fork], chunks: int, steps: int
) -> torch.Tensor:
    """Ids ``[B, N, K+1]`` of whose noise sample b uses in chunk n at the start (column 0) and at step k (column
    k + 1). Without forks it is the sample's own."""
    if not forks:
        return sample[:, None, None].expand(-1, chunks, steps + 1)
    width = branching_factor(group_size, len(forks))
    table = torch.empty(len(sample), chunks, steps + 1, dtype=torch.long)
    time = torch.arange(chunks)[:, None] * (steps + 1) + torch.arange(steps + 1)
    passed = torch.stack([time >= fork.chunk * (steps + 1) + fork.step + 1 for fork in forks]).sum(0)
    for row, (own, family) in enumerate(zip(sample.tolist(), group.tolist(), strict=True)):
        digits = [own % group_size // width ** (len(forks) - 1 - f) % width for f in range(len(forks))]
        ids = torch.tensor([seed_of(family, depth, *digits[:depth]) for depth in range(len(forks) + 1)])
        table[row] = ids[passed]
    table[:, :, 0] = table[:, :1, 0]  # later chunks start alike, so that a fork's effect is its own
    return table


def node_means(value: torch.Tensor, source: torch.Tensor, group: torch.Tensor) -> torch.Tensor:
    """Mean of leaf values ``[B, ...]`` over the leaves of one's group with one's noise source id ``[B, ...]``, at every
    place."""
    result = torch.empty_like(value)
    for family in group.unique():
        rows = (group == family).nonzero()[:, 0]
        own = source[rows]
        same = (own[:, None] == own[None]).to(value.dtype)
        result[rows] = torch.einsum("ij...,j...->i...", same, value[rows]) / same.sum(1)
    return result


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
class AllSteps:
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
class SingleStep:
    """Noise at one step among the first ``first_steps``, drawn per group (Flash-GRPO, 2605.15980) or, with
    ``shared``, once for all groups (LongCat-Video, 2510.22200). Siblings always have theirs at the same step."""

    steps: int = 6
    shift: float = 1.0
    first_steps: int = 3
    shared: bool = False

    earlier_keys = (("among", "first_steps"),)

    def __post_init__(self) -> None:
        at_least(self, steps=2, shift=1e-3, first_steps=1)

    def __call__(self, seed: int, iteration: int, groups: int, chunks: int) -> Plan:
        first = min(self.first_steps, self.steps - 1)
        step = torch.tensor([_draw(first, 1, seed, iteration, 1, 0 if self.shared else g)[0] for g in range(groups)])
        stochastic = torch.zeros(groups, chunks, self.steps, dtype=torch.bool)
        stochastic[torch.arange(groups), :, step] = True
        return Plan(shifted(self.steps, self.shift), stochastic, step[:, None])


@dataclass(frozen=True)
class OdePlan:
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
    first_steps: int = 4
    """Forks are at one of the first steps: late ones hardly change the reward."""

    earlier_keys = (("among", "first_steps"),)

    def __post_init__(self) -> None:
        at_least(self, steps=2, shift=1e-3, forks=1, first_steps=1)

    def __call__(self, seed: int, iteration: int, groups: int, chunks: int) -> Plan:
        first = min(self.first_steps, self.steps - 1)
        places = sorted(_draw(chunks * first, min(self.forks, chunks * first), seed, iteration, 1))
        forks = tuple(Fork(place // first, place % first) for place in places)
        stochastic = torch.zeros(groups, chunks, self.steps, dtype=torch.bool)
        if self.elsewhere == "sde":
            stochastic[..., :-1] = True
        for fork in forks:
            stochastic[:, fork.chunk, fork.step] = True
        record = torch.tensor(range(self.steps - 1) if self.elsewhere == "sde" else sorted({f.step for f in forks}))
        return Plan(shifted(self.steps, self.shift), stochastic, record.expand(groups, -1), forks)


def _draw(choices: int, count: int, *key: int) -> list[int]:
    generator = torch.Generator().manual_seed(seed_of(*key))
    return torch.randperm(choices, generator=generator)[:count].tolist()


Self = TypeVar("Self", bound="Condition")


class Condition(Protocol):
    """What is known before the first chunk, one row per sample."""

    @property
    def chunks(self) -> int:
        """N, how many chunks there are to generate."""
        ...

    def select(self: Self, rows: torch.Tensor) -> Self:
        """The rows at these indices."""
        ...

    def repeat(self: Self, times: int) -> Self:
        """Each row ``times`` times in a row."""
        ...


class Session(Protocol):
    """Generation under way: ``context`` of the next chunk, then ``append`` its latents; repeat."""

    def context(self) -> Any:
        """Context of the next chunk, a tensor ``[B, …]`` or nested tuples of such; once per chunk."""
        ...

    def append(self, latents: torch.Tensor) -> Any:
        """Accept the chunk's clean latents ``[B, D]``."""
        ...


class Policy(Protocol):
    """A generator seen by the trainer; it is also an ``nn.Module``."""

    @property
    def latent_dim(self) -> int:
        """D, numbers per chunk."""
        ...

    def session(self, condition: Any) -> Session:
        """Start generating."""
        ...

    def contexts(self, condition: Any, latents: torch.Tensor) -> Any:
        """Contexts of all chunks ``[B, N, …]``, given the clean latents ``[B, N, D]``; of a session's kind."""
        ...

    def velocity(self, x: torch.Tensor, sigma: torch.Tensor, context: Any) -> torch.Tensor:
        """v ``[..., D]`` at x and noise level sigma (broadcastable to ``[...]``)."""
        ...

    def recompute_activations(self) -> None:
        """Keep fewer activations in training mode, for recipes with ``checkpointing``."""
        ...


def module(policy: Policy) -> nn.Module:
    """The policy as an ``nn.Module``."""
    assert isinstance(policy, nn.Module), "a policy is an nn.Module"
    return policy


def apply_policy_schedule(policy: Any, plan: Plan) -> Plan:
    """A plan with the policy's own noise schedule, where it has one (a method ``levels``); else the plan itself."""
    levels = getattr(policy, "levels", None)
    return replace(plan, sigmas=levels(plan.sigmas)) if levels else plan


def begin(policy: Any, noise: torch.Tensor) -> torch.Tensor:
    """Where sampling starts at σ = 1, from unit noise ``[B, D]``; a generator may say so in a method ``begin``.

    No ratio depends on it.
    """
    own = getattr(policy, "begin", None)
    return own(noise) if own else noise
