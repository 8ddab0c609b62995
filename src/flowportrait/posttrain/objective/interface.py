"""What an objective is: where velocities are needed, and a loss of them.

    points(trajectory) ─► live, old, ref velocities there ─► loss(evidence)

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
from flowportrait.flow.path import interpolate, target_velocity
from flowportrait.posttrain.trajectory import Trajectory

Reduce = Literal["sum", "mean"]


class Points(NamedTuple):
    """States ``[B, N, R, D]`` and their noise levels, broadcastable to ``[B, N, R]``; where the states were made by
    noising a clean sample, target is the velocity ε − x₀ there; until, like sigma, is how far a teacher is to go from
    there."""

    x: torch.Tensor
    sigma: torch.Tensor
    target: torch.Tensor | None = None
    until: torch.Tensor | None = None


@dataclass(frozen=True)
class Advantage:
    """What every sample earned, and whether it was judged at all.

    value ``[B, N, R, P]`` (N, R and P may be 1) of every sample, chunk, step and region; regions ``[P, D]`` says which
    latent numbers belong to which region (none: all to one); valid ``[B, 1, 1, P]`` (P may be 1) is false where a
    sample could not be judged: its zero is no opinion, so that it wins and loses nothing and has no weight (none: all
    were judged). A region weighs as much as it has latent numbers, so that paying all of them alike is having none;
    with ``equal_regions`` all weigh alike in means, as they did in version 0.1.
    """

    value: torch.Tensor
    regions: torch.Tensor | None = None
    valid: torch.Tensor | None = None
    equal_regions: bool = False

    def select(self, rows: torch.Tensor) -> Advantage:
        """The samples at ``rows``."""
        return replace(self, value=self.value[rows], valid=None if self.valid is None else self.valid[rows])

    def to(self, device: torch.device | str) -> Advantage:
        """The same on a device; what belongs to which region stays where it is."""
        return replace(self, value=self.value.to(device), valid=None if self.valid is None else self.valid.to(device))

    def mask_invalid(self, parts: torch.Tensor) -> torch.Tensor:
        """Numbers ``[B, N, R, P]``, zero where the sample was not judged in the region."""
        return parts if self.valid is None else torch.where(self.valid, parts, 0)

    @property
    def is_judged(self) -> torch.Tensor:
        """Samples ``[B]`` that were judged in some region."""
        if self.valid is None:
            return torch.ones(len(self.value), dtype=torch.bool, device=self.value.device)
        return self.valid.flatten(1).any(1)

    def average(self, parts: torch.Tensor) -> torch.Tensor:
        """The mean of a loss ``[B, N, R, P]`` over samples, chunks, states and regions. Samples that were not judged
        add nothing and count in the number it is divided by, so that it does not depend on how a batch is cut."""
        parts = self.mask_invalid(parts)
        return parts.mean() if self.equal_regions else self.whole(parts, "mean").mean()

    def average_elements(self, elements: torch.Tensor) -> torch.Tensor:
        """The same of a loss of latent elements ``[B, N, R, D]`` that no region pays, as a pull to a reference."""
        return (elements.mean(-1) * self.is_judged[:, None, None]).mean()

    def reduce(self, elements: torch.Tensor, how: Reduce) -> torch.Tensor:
        """Numbers per latent element ``[B, N, R, D]`` to numbers per region ``[B, N, R, P]``."""
        if self.regions is None:
            return elements.sum(-1, keepdim=True) if how == "sum" else elements.mean(-1, keepdim=True)
        weights = self.regions.to(elements) if how == "sum" else self.regions / self.regions.sum(1, keepdim=True)
        return elements @ weights.to(elements).T

    def whole(self, parts: torch.Tensor, how: Reduce) -> torch.Tensor:
        """What regions ``[B, N, R, P]`` come to together ``[B, N, R, 1]``, so that paying all of them alike is having
        none: their sum, or where each is a mean over its numbers, their mean by how many those are."""
        if self.regions is None or how == "sum":
            return parts.sum(-1, keepdim=True)
        size = self.regions.to(parts).sum(1)
        return (parts * size / size.sum()).sum(-1, keepdim=True)

    @property
    def per_sample(self) -> torch.Tensor:
        """One number per sample ``[B]``."""
        return self.value.flatten(1).mean(1)


@dataclass(frozen=True)
class Evidence:
    """Some samples, their advantage, the points and the velocities of the roles there, ``[B, N, R, D]`` each."""

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
    """A loss on evidence; implementations are frozen dataclasses of their settings."""

    @property
    def needs(self) -> frozenset[str]:
        """Roles beside ``live``: ``old`` (the weights that acted), ``ref`` (the start), ``teacher`` (the start in
        many steps, guided: its mean velocity down to ``until``)."""
        ...

    @property
    def whole_groups(self) -> bool:
        """Whether it compares siblings, so that groups must not be divided."""
        ...

    def points(self, trajectory: Trajectory, key: NoiseKey) -> Points:
        """Where velocities are needed; all randomness comes from ``key``."""
        ...

    def __call__(self, evidence: Evidence) -> Loss:
        """The loss."""
        ...


def masked_mean(value: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean of ``[B, N, R, P]`` where mask ``[B, N, R]`` is true; zero if it nowhere is."""
    where = mask[..., None].expand_as(value)
    return torch.where(where, value, 0).sum() / where.sum().clamp_min(1)


def noised(trajectory: Trajectory, count: int, key: NoiseKey, by_group: bool = False) -> Points:
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
