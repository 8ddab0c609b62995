"""This module defines the interface of objectives, the losses of post-training.

    points(trajectory) ─► live, old, ref velocities there ─► loss(inputs)

The learner evaluates the velocities of the roles that an objective ``needs``. Those of ``old`` and ``ref`` are computed
before the first update of an iteration, and ``live`` has the gradient. Losses are means over trainable transitions, so
that micro-batches of equal size, or equal shares on several processes, average to the loss of the whole batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, Protocol

import torch

from flowportrait.flow.noise import NoiseKey
from flowportrait.flow.schedules import interpolate, target_velocity
from flowportrait.rl.rollout import EvaluationPoints, Trajectory

Reduce = Literal["sum", "mean"]

FIXED_ROLES = frozenset({"old", "ref"})
"""Roles that every run has beside ``live``: the weights that made the rollouts, and the starting weights."""


@dataclass(frozen=True)
class Advantage:
    """The advantages of a batch, and which samples have a score at all.

    The weight of a region is its number of latent elements, so that equal advantages in all regions have the same
    effect as one advantage without regions.

    Attributes:
        value: ``[B, N, R, P]`` of every sample, chunk, denoising step and region; N, R and P may be 1.
        regions: ``[P, D]``, 1 where a latent element belongs to a region. None: there is one region of all elements.
        valid: ``[B, 1, 1, P]`` (P may be 1), false where a sample could not be scored: it has no weight and is in no
            pair. None: all samples were scored.
        equal_regions: give all regions the same weight in means, as in version 0.1.
    """

    value: torch.Tensor
    regions: torch.Tensor | None = None
    valid: torch.Tensor | None = None
    equal_regions: bool = False

    def select(self, rows: torch.Tensor) -> Advantage:
        """Return the samples at ``rows``."""
        return replace(self, value=self.value[rows], valid=None if self.valid is None else self.valid[rows])

    def to(self, device: torch.device | str) -> Advantage:
        """Return a copy on a device. ``regions`` stays where it is."""
        return replace(self, value=self.value.to(device), valid=None if self.valid is None else self.valid.to(device))

    def mask_invalid(self, parts: torch.Tensor) -> torch.Tensor:
        """Return values ``[B, N, R, P]`` with zeros where the sample has no score in the region."""
        return parts if self.valid is None else torch.where(self.valid, parts, 0)

    @property
    def is_judged(self) -> torch.Tensor:
        """Return the mask ``[B]`` of samples with a score in some region."""
        if self.valid is None:
            return torch.ones(len(self.value), dtype=torch.bool, device=self.value.device)
        return self.valid.flatten(1).any(1)

    def average(self, parts: torch.Tensor) -> torch.Tensor:
        """Return the mean of a loss ``[B, N, R, P]`` over samples, chunks, states and regions.

        Samples without a score add nothing but count in the divisor, so that the mean does not depend on how a batch is
        divided.
        """
        parts = self.mask_invalid(parts)
        return parts.mean() if self.equal_regions else self.combine_regions(parts, "mean").mean()

    def average_elements(self, elements: torch.Tensor) -> torch.Tensor:
        """Return the mean of a loss of latent elements ``[B, N, R, D]`` that has no regions, such as a KL term."""
        return (elements.mean(-1) * self.is_judged[:, None, None]).mean()

    def reduce(self, elements: torch.Tensor, how: Reduce) -> torch.Tensor:
        """Return the sum or mean ``[B, N, R, P]`` over each region of values per latent element ``[B, N, R, D]``."""
        if self.regions is None:
            return elements.sum(-1, keepdim=True) if how == "sum" else elements.mean(-1, keepdim=True)
        weights = self.regions.to(elements) if how == "sum" else self.regions / self.regions.sum(1, keepdim=True)
        return elements @ weights.to(elements).T

    def combine_regions(self, parts: torch.Tensor, how: Reduce) -> torch.Tensor:
        """Return the values of all regions together ``[B, N, R, 1]`` from those per region ``[B, N, R, P]``.

        Sums are added. Means are averaged with the numbers of elements as weights.
        """
        if self.regions is None or how == "sum":
            return parts.sum(-1, keepdim=True)
        size = self.regions.to(parts).sum(1)
        return (parts * size / size.sum()).sum(-1, keepdim=True)

    @property
    def per_sample(self) -> torch.Tensor:
        """Return the mean advantage of every sample ``[B]``."""
        return self.value.flatten(1).mean(1)


@dataclass(frozen=True)
class LossInputs:
    """Samples, their advantage, the points, and the velocities ``[B, N, R, D]`` of the live weights and other roles."""

    trajectory: Trajectory
    advantage: Advantage
    points: EvaluationPoints
    live: torch.Tensor
    others: Mapping[str, torch.Tensor]


class Loss(NamedTuple):
    """The scalar to minimise, and metrics to log."""

    total: torch.Tensor
    metrics: dict[str, float]


class Objective(Protocol):
    """A loss of post-training. Implementations are frozen dataclasses of their settings."""

    @property
    def needs(self) -> frozenset[str]:
        """Return the roles that it uses beside ``live``: ``FIXED_ROLES``, or roles that stages of the recipe add."""
        ...

    @property
    def whole_groups(self) -> bool:
        """Return whether it compares the samples of a group, so that groups must not be divided."""
        ...

    def points(self, trajectory: Trajectory, key: NoiseKey) -> EvaluationPoints:
        """Return the states at which it needs velocities. All randomness comes from ``key``."""
        ...

    def __call__(self, inputs: LossInputs) -> Loss:
        """Return the loss of a batch."""
        ...


def masked_mean(value: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Return the mean of values ``[B, N, R, P]`` where the mask ``[B, N, R]`` is true, or zero if it is true
    nowhere."""
    where = mask[..., None].expand_as(value)
    return torch.where(where, value, 0).sum() / where.sum().clamp_min(1)


def noised_points(trajectory: Trajectory, count: int, key: NoiseKey, by_group: bool = False) -> EvaluationPoints:
    """Return ``count`` noised states of every clean chunk.

    The noise levels of a sample are stratified over (0, 1). The noise is that of sample, chunk and state; with
    ``by_group`` all samples of a group share levels and noise.
    """
    ids = (trajectory.group if by_group else trajectory.sample).tolist()
    chunks, size = trajectory.latents.shape[1:]
    sigma, noise = [], []
    for i in ids:
        sigma.append((torch.arange(count) + key.uniform(count, "level", i)) / count)
        noise.append(key.normal((chunks, count, size), "forward", i))
    x0 = trajectory.latents[:, :, None]
    level = torch.stack(sigma)[:, None].to(x0.device)
    eps = torch.stack(noise).to(x0.device)
    return EvaluationPoints(interpolate(x0, eps, level[..., None]), level, target_velocity(x0, eps))
