"""What post-training asks of a generator: a velocity field over chunks of latents, given what came before.

    condition ─► session: context of chunk 1, append z_1, context of chunk 2, …     (rollout)
    condition, all z ─► contexts of every chunk in one pass                          (replay)
    velocity(x_σ, σ, context)                                                        (both)

A generator that is not autoregressive has one chunk. Nothing here says what a condition or a context holds.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Protocol, TypeVar

import torch
from torch import nn

from flowportrait.posttrain.plan import Plan

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
