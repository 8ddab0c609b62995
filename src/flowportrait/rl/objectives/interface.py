"""What an objective sees and returns.

    points(trajectory) ─► live, old, ref velocities there ─► loss(inputs)

The trainer evaluates the roles an objective ``needs``; ``old`` and ``ref`` are fixed before an iteration's first
update, ``live`` carries the gradient. Losses are means over what is trainable, so that equal micro-batches, or
equal shares on several processes, average to the loss of the whole.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, Protocol

import torch

from flowportrait.flow.noise import NoiseKey
from flowportrait.flow.paths import interpolate, target_velocity
from flowportrait.rl.rollout import Points, Trajectory

Reduce = Literal["sum", "mean"]

FIXED_ROLES = frozenset({"old", "ref"})
"""Roles that every run has beside ``live``: the weights that made the rollouts, and those of the start."""


@dataclass(frozen=True)
class Advantage:
    """The advantage of every sample, and whether it was judged at all.

    A region weighs by its number of latent elements, so that the same advantage in all regions is that of no regions.

    Args:
        value: ``[B, N, R, P]`` of every sample, chunk, denoising step and region; N, R and P may be 1.
        regions: ``[P, D]``, 1 where a latent element belongs to a region; None: all elements belong to one.
        valid: ``[B, 1, 1, P]`` (P may be 1), false where a sample could not be judged: its zero is then no score, and
            it has no weight and is in no pair. None: all were judged.
        equal_regions: all regions weigh the same in means, as in version 0.1.
    """

    value: torch.Tensor
    regions: torch.Tensor | None = None
    valid: torch.Tensor | None = None
    equal_regions: bool = False

    def select(self, rows: torch.Tensor) -> Advantage:
        """The samples at ``rows``."""
        return replace(self, value=self.value[rows], valid=None if self.valid is None else self.valid[rows])

    def to(self, device: torch.device | str) -> Advantage:
        """A copy on a device; ``regions`` stays where it is."""
        return replace(self, value=self.value.to(device), valid=None if self.valid is None else self.valid.to(device))

    def mask_invalid(self, parts: torch.Tensor) -> torch.Tensor:
        """Values ``[B, N, R, P]`` with zeros where the sample was not judged in the region."""
        return parts if self.valid is None else torch.where(self.valid, parts, 0)

    @property
    def is_judged(self) -> torch.Tensor:
        """Samples ``[B]`` that were judged in some region."""
        if self.valid is None:
            return torch.ones(len(self.value), dtype=torch.bool, device=self.value.device)
        return self.valid.flatten(1).any(1)

    def average(self, parts: torch.Tensor) -> torch.Tensor:
        """The mean of a loss ``[B, N, R, P]`` over samples, chunks, states and regions.

        Samples that were not judged add nothing and count in the number that it is divided by, so that it does not
        depend on how a batch is divided.
        """
        parts = self.mask_invalid(parts)
        return parts.mean() if self.equal_regions else self.combine_regions(parts, "mean").mean()

    def average_elements(self, elements: torch.Tensor) -> torch.Tensor:
        """The same for a loss of latent elements ``[B, N, R, D]`` without regions, as a pull to a reference."""
        return (elements.mean(-1) * self.is_judged[:, None, None]).mean()

    def reduce(self, elements: torch.Tensor, how: Reduce) -> torch.Tensor:
        """Values per region ``[B, N, R, P]`` from values per latent element ``[B, N, R, D]``."""
        if self.regions is None:
            return elements.sum(-1, keepdim=True) if how == "sum" else elements.mean(-1, keepdim=True)
        weights = self.regions.to(elements) if how == "sum" else self.regions / self.regions.sum(1, keepdim=True)
        return elements @ weights.to(elements).T

    def combine_regions(self, parts: torch.Tensor, how: Reduce) -> torch.Tensor:
        """Values of all regions together ``[B, N, R, 1]`` from those per region ``[B, N, R, P]``.

        They are added; where each is a mean over its elements, they are averaged with the numbers of elements as
        weights.
        """
        if self.regions is None or how == "sum":
            return parts.sum(-1, keepdim=True)
        size = self.regions.to(parts).sum(1)
        return (parts * size / size.sum()).sum(-1, keepdim=True)

    @property
    def per_sample(self) -> torch.Tensor:
        """The mean advantage of every sample ``[B]``."""
        return self.value.flatten(1).mean(1)


@dataclass(frozen=True)
class LossInputs:
    """Samples, their advantage, the points, and the roles' velocities ``[B, N, R, D]`` there."""

    trajectory: Trajectory
    advantage: Advantage
    points: Points
    live: torch.Tensor
    others: Mapping[str, torch.Tensor]


class Loss(NamedTuple):
    """The scalar to minimise and what to log."""

    total: torch.Tensor
    metrics: dict[str, float]


class Objective(Protocol):
    """A loss; implementations are frozen dataclasses of their settings."""

    @property
    def needs(self) -> frozenset[str]:
        """Roles beside ``live``: some of ``FIXED_ROLES``, and of those that the recipe's stages add."""
        ...

    @property
    def whole_groups(self) -> bool:
        """Whether it compares siblings, so that groups must not be divided."""
        ...

    def points(self, trajectory: Trajectory, key: NoiseKey) -> Points:
        """Where velocities are needed; all randomness comes from ``key``."""
        ...

    def __call__(self, inputs: LossInputs) -> Loss:
        """The loss."""
        ...


def masked_mean(value: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean of ``[B, N, R, P]`` where mask ``[B, N, R]`` is true; zero if it nowhere is."""
    where = mask[..., None].expand_as(value)
    return torch.where(where, value, 0).sum() / where.sum().clamp_min(1)


def noised_points(trajectory: Trajectory, count: int, key: NoiseKey, by_group: bool = False) -> Points:
    """``count`` noised states of every clean chunk: σ stratified over (0, 1) per sample, noise per sample, chunk and
    state, or with ``by_group`` shared by siblings."""
    ids = (trajectory.group if by_group else trajectory.sample).tolist()
    chunks, size = trajectory.latents.shape[1:]
    sigma, noise = [], []
    for i in ids:
        sigma.append((torch.arange(count) + key.uniform(count, "level", i)) / count)
        noise.append(key.normal((chunks, count, size), "forward", i))
    x0 = trajectory.latents[:, :, None]
    level = torch.stack(sigma)[:, None].to(x0.device)
    eps = torch.stack(noise).to(x0.device)
    return Points(interpolate(x0, eps, level[..., None]), level, target_velocity(x0, eps))
