"""This module decides which denoising steps are stochastic, and defines the interface of a policy.

A plan says which denoising steps of a rollout are stochastic (●) and which follow the ODE (○), and which of the
stochastic steps are trained on:

    flow-grpo    ● ● ● ● ● ○      every step but the last
    mix-grpo     ○ ● ● ○ ○ ○      a window that slides from high to low noise
    flash-grpo   ○ ○ ● ○ ○ ○      one step, drawn once per group
    nft, awm     ○ ○ ○ ○ ○ ○      none
    branch       ● ─┬─ ● ─┬─ ●    noise shared up to each fork

A planner is a pure function of (seed, iteration, groups, chunks), so that a resumed run makes the same plans.

The parts, in order: forks and noise sources, planners, and what post-training requires of a generator (``Policy``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, Protocol, TypeVar

import torch
from torch import nn

from flowportrait.config import at_least
from flowportrait.errors import BadInput
from flowportrait.flow.noise import mix_seed
from flowportrait.flow.schedules import noise_schedule

# --- Forks and noise sources ---
#
# The samples of a group can share their noise up to a fork. Noise is a function of its key, so samples with the same
# noise source up to a fork pass through the same states up to it, and no states need to be copied. At fork f, sample i
# of a group takes the branch given by the f-th digit of i written in base ``width``. The id of its noise source at a
# step is made of the digits of the forks it has passed.
#
#     group of 4, two forks:   ──┬── 0 ──┬── 00      digits of sample 2: 1, 0
#                                │       └── 01
#                                └── 1 ──┬── 10
#                                        └── 11


class Fork(NamedTuple):
    """A denoising step of a chunk at which the samples of a group get noise of their own."""

    chunk: int
    step: int


def branching_factor(group_size: int, forks: int) -> int:
    """Return the number of branches at every fork, ``group_size ** (1 / forks)``.

    Raises:
        BadInput: the group size is not such a power of a whole number of at least 2.
    """
    width = round(group_size ** (1 / forks))
    if width < 2 or width**forks != group_size:
        raise BadInput(f"group_size={group_size} cannot part {forks} times evenly: choose a power such as {2**forks}.")
    return width


def noise_source_ids(
    sample: torch.Tensor, group: torch.Tensor, group_size: int, forks: Sequence[Fork], chunks: int, steps: int
) -> torch.Tensor:
    """Return the ids ``[B, N, K+1]`` of the noise sources of every sample in every chunk.

    Column 0 is the source of the initial noise, column k + 1 that of step k. Without forks the source of a sample is
    the sample itself.
    """
    if not forks:
        return sample[:, None, None].expand(-1, chunks, steps + 1)
    width = branching_factor(group_size, len(forks))
    table = torch.empty(len(sample), chunks, steps + 1, dtype=torch.long)
    time = torch.arange(chunks)[:, None] * (steps + 1) + torch.arange(steps + 1)
    passed = torch.stack([time >= fork.chunk * (steps + 1) + fork.step + 1 for fork in forks]).sum(0)
    for row, (sample_id, group_id) in enumerate(zip(sample.tolist(), group.tolist(), strict=True)):
        digits = [sample_id % group_size // width ** (len(forks) - 1 - f) % width for f in range(len(forks))]
        ids = torch.tensor([mix_seed(group_id, depth, *digits[:depth]) for depth in range(len(forks) + 1)])
        table[row] = ids[passed]
    # Later chunks start from shared noise, so that differences come from the forks alone.
    table[:, :, 0] = table[:, :1, 0]
    return table


def node_means(value: torch.Tensor, source: torch.Tensor, group: torch.Tensor) -> torch.Tensor:
    """Return the mean of the values ``[B, ...]`` over the samples of a group with the same noise source.

    Args:
        value: one value per sample and place, ``[B, ...]``.
        source: ids of the noise sources ``[B, ...]``; samples with the same id are in the same node of the tree.
        group: ids of the groups ``[B]``.
    """
    result = torch.empty_like(value)
    for group_id in group.unique():
        rows = (group == group_id).nonzero()[:, 0]
        ids = source[rows]
        same = (ids[:, None] == ids[None]).to(value.dtype)
        result[rows] = torch.einsum("ij...,j...->i...", same, value[rows]) / same.sum(1)
    return result


# --- Planners ---


@dataclass(frozen=True)
class Plan:
    """The denoising schedule of an iteration with its stochastic and recorded steps.

    Attributes:
        sigmas: noise levels ``[K+1]``, from 1 to 0.
        stochastic: ``[G, N, K]`` bool, whether a step of a group and chunk is stochastic. The last step never is.
        record: ``[G, R]``, ascending indices of the steps that are recorded for training.
        forks: where the samples of a group get noise of their own, in order of time; empty if from the start.
        group_forks: the same for every group, if groups have forks of their own; else empty.
        second_order: whether steps after the recorded ones are second-order multistep (Adams–Bashforth) ODE steps.
    """

    sigmas: torch.Tensor
    stochastic: torch.Tensor
    record: torch.Tensor
    forks: tuple[Fork, ...] = ()
    group_forks: tuple[tuple[Fork, ...], ...] = ()
    second_order: bool = False

    def noise_sources(self, sample: torch.Tensor, group: torch.Tensor, group_size: int) -> torch.Tensor:
        """Return the ids ``[B, N, K+1]`` of the noise sources of samples; see ``noise_source_ids``."""
        chunks, steps = self.stochastic.shape[1:]
        if not self.group_forks:
            return noise_source_ids(sample, group, group_size, self.forks, chunks, steps)
        table = torch.empty(len(sample), chunks, steps + 1, dtype=torch.long)
        for one in group.unique():
            rows = group == one
            forks = self.group_forks[int(one)]
            table[rows] = noise_source_ids(sample[rows], group[rows], group_size, forks, chunks, steps)
        return table

    def __post_init__(self) -> None:
        assert not self.stochastic[..., -1].any(), "the last step is never stochastic"


class Planner(Protocol):
    """A function that makes the plan of an iteration."""

    @property
    def steps(self) -> int:
        """Return K, the number of denoising steps per chunk."""
        ...

    def __call__(self, seed: int, iteration: int, groups: int, chunks: int) -> Plan:
        """Return the plan of all groups of an iteration."""
        ...


@dataclass(frozen=True)
class AllSteps:
    """A plan with noise at every step but the last (Flow-GRPO, 2505.05470)."""

    steps: int = 6
    """Denoising steps from noise to sample."""
    shift: float = 1.0
    """Shift of the noise schedule; 1 is even."""
    trained: int | None = None
    """Stochastic steps that are trained on, drawn per iteration (DanceGRPO, 2505.07818). None trains on all."""

    def __post_init__(self) -> None:
        at_least(self, steps=2, shift=1e-3, trained=1)

    def __call__(self, seed: int, iteration: int, groups: int, chunks: int) -> Plan:
        noisy = list(range(self.steps - 1))
        if self.trained is not None and self.trained < len(noisy):
            noisy = sorted(_draw(len(noisy), self.trained, seed, iteration, 1))
        stochastic = torch.ones(groups, chunks, self.steps, dtype=torch.bool)
        stochastic[..., -1] = False
        return Plan(noise_schedule(self.steps, self.shift), stochastic, torch.tensor(noisy).expand(groups, -1))


@dataclass(frozen=True)
class SlidingWindow:
    """A plan with noise in ``width`` consecutive steps and the ODE elsewhere (MixGRPO, 2507.21802).

    The window moves one step towards low noise every ``dwell`` iterations and then starts again at high noise, or it is
    drawn at random.
    """

    steps: int = 6
    """Denoising steps from noise to sample."""
    shift: float = 1.0
    """Shift of the noise schedule; 1 is even."""
    width: int = 2
    """Number of stochastic steps in the window."""
    dwell: int = 10
    """Iterations until the window moves on."""
    order: Literal["progressive", "random"] = "progressive"
    """Whether the window moves from noise to sample, or to a random place."""
    second_order: bool = False
    """Whether steps after the window are second-order multistep steps of the ODE (after MixGRPO-Flash)."""

    values_before = (("second_order", False),)

    def __post_init__(self) -> None:
        at_least(self, steps=2, shift=1e-3, width=1, dwell=1)

    def __call__(self, seed: int, iteration: int, groups: int, chunks: int) -> Plan:
        width = min(self.width, self.steps - 1)
        positions = self.steps - width
        turn = iteration // self.dwell
        first = turn % positions if self.order == "progressive" else _draw(positions, 1, seed, turn, 1)[0]
        window = torch.arange(first, first + width)
        stochastic = torch.zeros(groups, chunks, self.steps, dtype=torch.bool)
        stochastic[..., window] = True
        sigmas = noise_schedule(self.steps, self.shift)
        return Plan(sigmas, stochastic, window.expand(groups, -1), second_order=self.second_order)


@dataclass(frozen=True)
class SingleStep:
    """A plan with noise at one step, drawn among the first ``first_steps``.

    The step is drawn per group (Flash-GRPO, 2605.15980) or, with ``shared``, once for all groups (LongCat-Video,
    2510.22200). It is always the same for all samples of a group.
    """

    steps: int = 6
    """Denoising steps from noise to sample."""
    shift: float = 1.0
    """Shift of the noise schedule; 1 is even."""
    first_steps: int = 3
    """The stochastic step is one of this many first steps."""
    shared: bool = False
    """Whether all groups of an iteration have the same stochastic step."""

    earlier_keys = (("among", "first_steps"),)

    def __post_init__(self) -> None:
        at_least(self, steps=2, shift=1e-3, first_steps=1)

    def __call__(self, seed: int, iteration: int, groups: int, chunks: int) -> Plan:
        first = min(self.first_steps, self.steps - 1)
        step = torch.tensor([_draw(first, 1, seed, iteration, 1, 0 if self.shared else g)[0] for g in range(groups)])
        stochastic = torch.zeros(groups, chunks, self.steps, dtype=torch.bool)
        stochastic[torch.arange(groups), :, step] = True
        return Plan(noise_schedule(self.steps, self.shift), stochastic, step[:, None])


@dataclass(frozen=True)
class OdePlan:
    """A plan without noise, for objectives that need only final samples or the deterministic path to them."""

    steps: int = 6
    """Denoising steps from noise to sample."""
    shift: float = 1.0
    """Shift of the noise schedule; 1 is even."""
    keep_path: bool = False
    """Record the states of all steps."""

    def __post_init__(self) -> None:
        at_least(self, steps=1, shift=1e-3)

    def __call__(self, seed: int, iteration: int, groups: int, chunks: int) -> Plan:
        stochastic = torch.zeros(groups, chunks, self.steps, dtype=torch.bool)
        record = torch.arange(self.steps if self.keep_path else 0).expand(groups, -1)
        return Plan(noise_schedule(self.steps, self.shift), stochastic, record)


@dataclass(frozen=True)
class Branching:
    """A plan in which the samples of a group share all noise up to a fork, which is a denoising step of a chunk.

    Sources: BranchGRPO (2509.06040) and TempFlow-GRPO (2508.04324).
    """

    steps: int = 6
    """Denoising steps from noise to sample."""
    shift: float = 1.0
    """Shift of the noise schedule; 1 is even."""
    forks: int = 1
    """Forks per iteration; the step and the chunk of each are drawn at random."""
    elsewhere: Literal["ode", "sde"] = "ode"
    """What the other steps do. ``sde``: noise, shared by samples that have not separated yet (BranchGRPO). ``ode``: no
    noise, so that the effect of a fork comes from the fork alone (TempFlow-GRPO)."""
    first_steps: int = 4
    """Forks are among this many first steps, since late ones hardly change the reward."""
    per_group: bool = False
    """Whether every group has a fork of its own, so that an iteration tries as many forks as it has groups."""

    earlier_keys = (("among", "first_steps"),)
    values_before = (("per_group", False),)

    def __post_init__(self) -> None:
        at_least(self, steps=2, shift=1e-3, forks=1, first_steps=1)
        if self.per_group and (self.forks > 1 or self.elsewhere == "sde"):
            raise BadInput(
                "plan.per_group=true gives every group one fork on a path without other noise: set plan.forks=1 and "
                "plan.elsewhere=ode, or plan.per_group=false."
            )

    def __call__(self, seed: int, iteration: int, groups: int, chunks: int) -> Plan:
        first = min(self.first_steps, self.steps - 1)
        if self.per_group:
            return self._plan_of_groups(seed, iteration, groups, chunks, first)
        positions = sorted(_draw(chunks * first, min(self.forks, chunks * first), seed, iteration, 1))
        forks = tuple(Fork(position // first, position % first) for position in positions)
        stochastic = torch.zeros(groups, chunks, self.steps, dtype=torch.bool)
        if self.elsewhere == "sde":
            stochastic[..., :-1] = True
        for fork in forks:
            stochastic[:, fork.chunk, fork.step] = True
        record = torch.tensor(range(self.steps - 1) if self.elsewhere == "sde" else sorted({f.step for f in forks}))
        return Plan(noise_schedule(self.steps, self.shift), stochastic, record.expand(groups, -1), forks)

    def _plan_of_groups(self, seed: int, iteration: int, groups: int, chunks: int, first: int) -> Plan:
        drawn = [_draw(chunks * first, 1, seed, iteration, 1, group)[0] for group in range(groups)]
        forks = tuple(Fork(position // first, position % first) for position in drawn)
        stochastic = torch.zeros(groups, chunks, self.steps, dtype=torch.bool)
        for group, fork in enumerate(forks):
            stochastic[group, fork.chunk, fork.step] = True
        record = torch.tensor([[fork.step] for fork in forks])
        sigmas = noise_schedule(self.steps, self.shift)
        return Plan(sigmas, stochastic, record, forks, tuple((fork,) for fork in forks))


def _draw(choices: int, count: int, *key: int) -> list[int]:
    """Return ``count`` different numbers below ``choices``, drawn with a seed made of ``key``."""
    generator = torch.Generator().manual_seed(mix_seed(*key))
    return torch.randperm(choices, generator=generator)[:count].tolist()


# --- What post-training requires of a generator ---
#
# A policy is a velocity field over chunks of latents, conditioned on the chunks before:
#
#     condition ─► session: context of chunk 1, append z_1, context of chunk 2, …     (rollout)
#     condition, all z ─► contexts of every chunk in one pass                          (replay)
#     velocity(x_σ, σ, context)                                                        (both)
#
# A generator that is not autoregressive has one chunk. The trainer does not look into conditions and contexts.

Self = TypeVar("Self", bound="PolicyCondition")


class PolicyCondition(Protocol):
    """The inputs of a policy that are known before the first chunk, with one row per sample."""

    @property
    def chunks(self) -> int:
        """Return N, the number of chunks to generate."""
        ...

    def select(self: Self, rows: torch.Tensor) -> Self:
        """Return the rows at these indices."""
        ...

    def repeat(self: Self, times: int) -> Self:
        """Return every row ``times`` times in succession."""
        ...


class PolicySession(Protocol):
    """A generation in progress: for every chunk, call ``context``, sample the chunk, and ``append`` its latents."""

    def context(self) -> Any:
        """Return the context of the next chunk, a tensor ``[B, …]`` or nested tuples of tensors. Call it once per
        chunk."""
        ...

    def append(self, latents: torch.Tensor) -> Any:
        """Add the chunk's clean latents ``[B, D]`` to the history."""
        ...


class Policy(Protocol):
    """A generator as the trainer uses it. It must also be an ``nn.Module``."""

    @property
    def latent_dim(self) -> int:
        """Return D, the number of latent elements per chunk."""
        ...

    def session(self, condition: Any) -> PolicySession:
        """Start the generation of samples under a condition."""
        ...

    def contexts(self, condition: Any, latents: torch.Tensor) -> Any:
        """Return the contexts ``[B, N, …]`` of all chunks, given the clean latents ``[B, N, D]``.

        They have the same structure as the contexts of a session.
        """
        ...

    def velocity(self, x: torch.Tensor, sigma: torch.Tensor, context: Any) -> torch.Tensor:
        """Return the velocity ``[..., D]`` at the state x and noise level sigma (broadcastable to ``[...]``)."""
        ...

    def recompute_activations(self) -> None:
        """Keep fewer activations in training mode, for recipes with ``checkpointing``."""
        ...


def as_module(policy: Policy) -> nn.Module:
    """Return the policy as an ``nn.Module``."""
    assert isinstance(policy, nn.Module), "a policy is an nn.Module"
    return policy


def apply_policy_schedule(policy: Any, plan: Plan) -> Plan:
    """Return the plan with the policy's own noise schedule if it has a method ``levels``, else the plan itself."""
    levels = getattr(policy, "levels", None)
    return replace(plan, sigmas=levels(plan.sigmas)) if levels else plan


def initial_state(policy: Any, noise: torch.Tensor) -> torch.Tensor:
    """Return the state ``[B, D]`` at σ = 1 from unit noise ``[B, D]``.

    It is the noise itself, unless the policy has a method ``initial_state``. Likelihood ratios do not depend on it.
    """
    own_state = getattr(policy, "initial_state", None)
    return own_state(noise) if own_state else noise
