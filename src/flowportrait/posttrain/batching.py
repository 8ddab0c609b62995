"""How a batch is divided: groups over processes, samples over optimiser steps and backward passes.

    groups 0 1 2 3 4 5  on two processes:  0 1 2 | 3 4 5
    a process's batch ─ minibatch_rows: a share of every group ─► optimiser steps ─ microbatch_rows ─► backward passes

Group and sample ids are global and noise is keyed by them, so every number of processes draws the same samples. Credit
is computed from the scores of all processes; gradients are averaged by torch, over whole weights or shards
(``training/shards.py``).

What must not reach the weights is kept out here, and counted as ``skipped``; all processes skip together:

    a sample that is not finite       its scores are invalid; nobody updates in this iteration
    no reward answered                nobody updates in this iteration
    a gradient that is not finite     nobody takes this optimiser step (see ``Learner.learn``)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from statistics import median_low

import torch
from accelerate import Accelerator

from flowportrait.errors import BadInput
from flowportrait.posttrain.collect import join_scores
from flowportrait.posttrain.objective.interface import Advantage
from flowportrait.posttrain.recipe import PostTrainConfig
from flowportrait.posttrain.rollout import Points, Trajectory
from flowportrait.reward.interface import Failure, Score, per_row
from flowportrait.training.processes import roll_call


def non_finite_mask(trajectory: Trajectory) -> torch.Tensor:
    """Samples ``[B]`` with latents that are infinite or not numbers."""
    return ~torch.isfinite(trajectory.latents).flatten(1).all(1).cpu()


def zero_masked(trajectory: Trajectory, broken: torch.Tensor) -> Trajectory:
    """The trajectory with zero latents for the broken samples ``[B]``, so that rewards can look at the others."""
    if not broken.any():
        return trajectory
    where = broken.to(trajectory.latents.device)[:, None, None]
    return replace(trajectory, latents=torch.where(where, 0, trajectory.latents))


def invalidate_scores(scores: Mapping[str, Score], broken: torch.Tensor) -> dict[str, Score]:
    """Scores in which those of the broken samples ``[B]`` are invalid."""
    if not broken.any():
        return dict(scores)
    reason = Failure("not_finite", "the generator gave something that is not a number")
    rows = dict.fromkeys(broken.nonzero()[:, 0].tolist(), reason)
    return {
        name: score._replace(
            value=score.value.masked_fill(broken, torch.nan), valid=score.valid & ~broken,
            failures=per_row(score.reasons | rows, len(broken)),
        )
        for name, score in scores.items()
    }  # fmt: skip


def all_rewards_failed(metrics: Mapping[str, float]) -> bool:
    """Whether no reward scored any sample of any process, from the metrics ``invalid/NAME``."""
    shares = [value for key, value in metrics.items() if key.startswith("invalid/")]
    return bool(shares) and min(shares) == 1.0


@dataclass(frozen=True)
class MicroBatch:
    """Samples of one backward pass, with everything that is fixed before the first update."""

    trajectory: Trajectory
    points: Points
    others: dict[str, torch.Tensor]
    advantage: Advantage

    def to(self, device: torch.device | str) -> MicroBatch:
        """A copy on a device."""
        x, sigma, target, until = self.points
        points = Points(
            x.to(device), sigma.to(device), None if target is None else target.to(device),
            None if until is None else until.to(device),
        )  # fmt: skip
        others = {name: velocity.to(device) for name, velocity in self.others.items()}
        return MicroBatch(self.trajectory.to(device), points, others, self.advantage.to(device))


def minibatch_rows(trajectory: Trajectory, config: PostTrainConfig) -> list[torch.Tensor]:
    """Rows of every optimiser step: a share of every group, or where siblings are compared, of the groups."""
    group = trajectory.group
    # Ids and places within a group, and not places in this process's batch: the same for any process count.
    order = group if config.objective.whole_groups else (group[:, None] == group).tril(-1).sum(1)
    found = [(order % config.updates == part).nonzero()[:, 0] for part in range(config.updates)]
    return [rows for rows in found if len(rows)]


def microbatch_rows(
    trajectory: Trajectory, config: PostTrainConfig, rows: torch.Tensor | None = None
) -> list[torch.Tensor]:
    """Rows of every backward pass."""
    rows = torch.arange(len(trajectory)) if rows is None else rows
    if config.micro_batch is None:
        return [rows]
    if config.objective.whole_groups:
        return [rows[trajectory.group[rows] == group] for group in trajectory.group[rows].unique()]
    return list(rows.split(config.micro_batch))


WORST = frozenset({"noise_gap", "ratio/first_error", "skipped"})
"""Metrics of which the largest of any process counts."""


@dataclass(frozen=True)
class RankGroups:
    """This process's groups ``[G/W]`` among W processes."""

    groups: torch.Tensor

    @classmethod
    def of(cls, accelerator: Accelerator, groups: int, parts: int = 1) -> RankGroups:
        """The contiguous, equal share of this process, which must be divisible into ``parts`` of whole groups.

        Raises:
            BadInput: the groups cannot be dealt out evenly.
        """
        world = accelerator.num_processes
        if groups % world:
            raise BadInput(f"groups={groups} cannot be dealt out evenly to {world} processes: choose a multiple.")
        size = groups // world
        if world > 1 and size % parts:
            raise BadInput(
                f"updates={parts} takes whole groups, which {size} per process do not divide into: choose groups as a "
                f"multiple of {world * parts}."
            )
        first = accelerator.process_index * size
        return cls(torch.arange(first, first + size))

    def own_rows(self, group: torch.Tensor) -> torch.Tensor:
        """Rows that belong to this process among the samples of all processes, from their groups ``[B]``."""
        return torch.isin(group, self.groups).nonzero()[:, 0]


def gather_scores(
    accelerator: Accelerator, scores: Mapping[str, Score], group: torch.Tensor
) -> tuple[dict[str, Score], torch.Tensor]:
    """The scores of all processes and their groups, in the order of the groups."""
    everyone = roll_call(accelerator, (dict(scores), group))
    return join_scores([own for own, _ in everyone]), torch.cat([own for _, own in everyone])


def combine_metrics(
    accelerator: Accelerator, metrics: Mapping[str, float], seconds: Mapping[str, float]
) -> dict[str, float]:
    """The metrics of an iteration of all processes as one: means, except for errors and times, of which the largest.

    With several processes also which one was slowest before they met, and how much slower than the median one.
    """
    everyone = roll_call(accelerator, dict(metrics))
    times = roll_call(accelerator, dict(seconds))
    found: dict[str, float] = {}
    for key in dict.fromkeys(key for own in everyone for key in own):
        values = [own[key] for own in everyone if key in own]
        found[key] = max(values) if key in WORST else sum(values) / len(values)
    found |= {key: max(own[key] for own in times) for key in seconds}
    if len(times) > 1:
        alone = [own["seconds/rollout"] + own["seconds/waiting"] for own in times]
        slowest = max(range(len(alone)), key=alone.__getitem__)
        found |= {"slowest/process": slowest, "slowest/times": alone[slowest] / max(median_low(alone), 1e-9)}
    return found
