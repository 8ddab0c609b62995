"""What one optimiser step sees of a batch of rollouts: which samples, and everything about them that stays fixed.

batch ─ divided: a share of every group ─► optimiser steps ─ micro: as many as fit ─► backward passes
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from flowportrait.posttrain.objective.interface import Advantage, Points
from flowportrait.posttrain.recipe import Recipe
from flowportrait.posttrain.trajectory import Trajectory


@dataclass(frozen=True)
class Shard:
    """Samples of one backward pass, with everything that is fixed before the first update."""

    trajectory: Trajectory
    points: Points
    others: dict[str, torch.Tensor]
    advantage: Advantage

    def to(self, device: torch.device | str) -> Shard:
        """The same on a device."""
        x, sigma, target, until = self.points
        points = Points(
            x.to(device), sigma.to(device), None if target is None else target.to(device),
            None if until is None else until.to(device),
        )  # fmt: skip
        others = {name: velocity.to(device) for name, velocity in self.others.items()}
        return Shard(self.trajectory.to(device), points, others, self.advantage.to(device))


def divided(trajectory: Trajectory, recipe: Recipe) -> list[torch.Tensor]:
    """Rows of every optimiser step: a share of every group, or where siblings are compared, of the groups."""
    group = trajectory.group
    # Ids and places within a group, and not places in this process's batch: the same for any process count.
    order = group if recipe.objective.whole_groups else (group[:, None] == group).tril(-1).sum(1)
    found = [(order % recipe.updates == part).nonzero()[:, 0] for part in range(recipe.updates)]
    return [rows for rows in found if len(rows)]


def micro(trajectory: Trajectory, recipe: Recipe, rows: torch.Tensor | None = None) -> list[torch.Tensor]:
    """Rows of every backward pass."""
    rows = torch.arange(len(trajectory)) if rows is None else rows
    if recipe.micro_batch is None:
        return [rows]
    if recipe.objective.whole_groups:
        return [rows[trajectory.group[rows] == group] for group in trajectory.group[rows].unique()]
    return list(rows.split(recipe.micro_batch))
