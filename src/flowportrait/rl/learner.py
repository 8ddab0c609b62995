"""The weights that a run trains, replayed on minibatches of whole groups.

How a batch is divided: groups over processes, samples over optimiser steps and backward passes.

    groups 0 1 2 3 4 5  on two processes:  0 1 2 | 3 4 5
    a process's batch ─ minibatch_rows: a share of every group ─► optimiser steps ─ microbatch_rows ─► backward passes

Group and sample ids are global and noise is keyed by them, so every number of processes draws the same samples. Credit
is computed from the scores of all processes; gradients are averaged by torch, over whole weights or shards
(``training/distributed.py``).

What must not reach the weights is kept out here, and counted as ``skipped``; all processes skip together:

    a sample that is not finite       its scores are invalid; nobody updates in this iteration
    no reward answered                nobody updates in this iteration
    a gradient that is not finite     nobody takes this optimiser step (see ``Learner.learn``)

The weights that a run trains: in their roles, replayed under any of them, and an optimiser step on a batch.

    rollouts, advantages ─► freeze: points, and velocities of old, ref, teacher ─► learn: live, loss, gradient, step

Nothing in here knows where rollouts come from or what paid them; see ``trainer``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median_low
from typing import Any

import torch
from accelerate import Accelerator

from flowportrait.config import to_dict
from flowportrait.errors import BadInput
from flowportrait.flow.noise import NoiseKey
from flowportrait.rewards.interface import Failure, Score, per_row
from flowportrait.rl.config import PostTrainConfig, Recipe
from flowportrait.rl.manifest import changed_settings
from flowportrait.rl.objectives.interface import Advantage, LossInputs
from flowportrait.rl.plan import module
from flowportrait.rl.rollout import Points, Replay, Trajectory, check_noise, join_scores
from flowportrait.rl.stages import Metrics, RoleView
from flowportrait.terminal import say
from flowportrait.training.distributed import exchanging, gathered, processes, roll_call
from flowportrait.training.learner import Learner
from flowportrait.training.lora import insert


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


def averaged(records: Sequence[Metrics]) -> Metrics:
    """Means over those that have each key: a step without pairs has no margin."""
    known = {key: [record[key] for record in records if key in record] for record in records for key in record}
    return {key: sum(values) / len(values) for key, values in known.items()}


class PolicyLearner(Learner):
    """A policy under a recipe. Deterministic: all randomness is keyed."""

    def __init__(self, policy: Any, recipe: Recipe, accelerator: Accelerator | None = None) -> None:
        accelerator = accelerator or processes()
        self.recipe = recipe
        self.views: dict[str, RoleView] = {}
        for stage in recipe.active_stages:
            policy, views = stage.prepare_policy(policy, recipe.plan.steps)
            self.views |= views
        network = module(policy).to(accelerator.device)
        if recipe.lora:
            insert(network, recipe.lora, recipe.seed)
        if recipe.checkpointing:
            policy.recompute_activations()
        network.train()
        self.policy = policy
        super().__init__(network, Replay(policy), accelerator, recipe.ema, recipe.old)
        self.replay = self.network
        self.optimizer = torch.optim.AdamW(self.trained, lr=recipe.learning_rate, weight_decay=0.0)
        self.updates = 0

    @property
    def noise_key(self) -> NoiseKey:
        """The key of all noise of this iteration."""
        return NoiseKey(self.recipe.seed, self.iteration, self.recipe.version)

    def update(self, trajectory: Trajectory, advantage: Advantage) -> Metrics:
        """Optimiser steps on one batch of rollouts; metrics are means over the steps."""
        recipe = self.recipe
        parts = [
            [
                self.freeze(trajectory.select(rows), advantage.select(rows))
                for rows in microbatch_rows(trajectory, recipe, part)
            ]
            for part in minibatch_rows(trajectory, recipe)
        ]
        gap = 0.0
        if trajectory.v_behaviour is None:
            half = recipe.autocast == "bf16"
            frozen = [shard for part in parts for shard in part if "old" in shard.others]
            gap = max((check_noise(shard.trajectory, shard.others["old"], half) for shard in frozen), default=0.0)
        sizes = [sum(len(shard.trajectory) for shard in part) for part in parts]
        everyone = torch.tensor(roll_call(self.accelerator, sizes)).float().mean(0).tolist()
        again = list(zip(parts, everyone, strict=True)) * recipe.epochs
        collected = [self.learn(part, size) for part, size in again]
        means = averaged(collected)
        if "ratio/mean" in collected[0]:
            means["ratio/first_error"] = max(abs(collected[0]["ratio/mean"] - 1), collected[0].get("ratio/std", 0.0))
        return {**means, "noise_gap": gap}

    def learn(self, shards: Sequence[MicroBatch], total: float) -> Metrics:
        """One optimiser step on the shards together; ``total``: how many samples the processes have for it on
        average, by which torch's mean over processes becomes that over samples."""
        metrics = Metrics()
        self.optimizer.zero_grad()
        for number, held in enumerate(shards):
            shard = held.to(self.device)
            with exchanging(self.replay, number == len(shards) - 1):
                live = self.velocity(shard.trajectory, shard.points)
                loss = self.recipe.objective(
                    LossInputs(shard.trajectory, shard.advantage, shard.points, live, shard.others)
                )
                part = len(shard.trajectory) / total
                loss.metrics["velocity"] = float(live.detach().square().mean().sqrt())
                (loss.total * part).backward()
            for key, value in loss.metrics.items():
                metrics[key] = metrics.get(key, 0.0) + part * value
        norm = float(self.accelerator.clip_grad_norm_(self.replay.parameters(), self.recipe.grad_clip))
        learned = math.isfinite(norm)
        if learned:
            self.optimizer.step()
            self.updates += 1
            self.roles.after_update(self.updates)
        return {**metrics, "grad_norm": norm if learned else 0.0, "skipped": float(not learned)}

    @torch.no_grad()
    def freeze(self, trajectory: Trajectory, advantage: Advantage) -> MicroBatch:
        """Points, and the other roles' velocities there, before any update of this iteration."""
        objective = self.recipe.objective
        points = objective.points(trajectory, self.noise_key)
        others = {}
        for role in sorted(objective.needs):
            with self.use_weights(role):
                others[role] = self.velocity(trajectory, points, self.views[role].strides if role in self.views else 0)
        shard = MicroBatch(trajectory, points, others, advantage)
        return shard.to("cpu") if self.recipe.offload else shard

    def velocity(self, trajectory: Trajectory, points: Points | None = None, strides: int = 0) -> torch.Tensor:
        """Float32 velocities of the weights now in the policy, at ``points`` or the recorded states."""
        with self.precision():
            return self.replay(trajectory, points or Points(trajectory.x, trajectory.sigma), strides)

    @contextmanager
    def use_weights(self, role: str) -> Iterator[None]:
        """A role's weights inside the block, and the settings of a role that a stage added."""
        view = self.views.get(role, RoleView(role))
        with self.roles.use(view.weights), view.settings():
            yield

    @contextmanager
    def rollout_mode(self, role: str | None = None) -> Iterator[None]:
        """A role's weights (the acting one's), as they are delivered: whole, in evaluation mode, without gradients."""
        role = role or self.roles.actor
        self.roles.policy.eval()
        try:
            with torch.no_grad(), self.use_weights(role), gathered(self.replay), self.precision():
                yield
        finally:
            self.roles.policy.train()

    def precision(self) -> AbstractContextManager[None]:
        """Autocast, if the recipe asks for it."""
        if self.recipe.autocast == "no":
            return nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16)

    def progress(self) -> dict[str, Any]:
        return {"updates": self.updates, "recipe": to_dict(self.recipe)}

    def load_progress(self, progress: Mapping[str, Any]) -> None:
        self.updates = progress["updates"]

    def check_progress(self, progress: Mapping[str, Any], run: Path) -> None:
        """Go on with the noise keys and the kernel that the run began with (``Recipe.version``); other settings than
        its own print a warning.

        Raises:
            BadInput: it was begun with another recipe.
        """
        before = self.recipe.upgrade(progress["recipe"])
        self.recipe = replace(self.recipe, version=before["version"])
        for change in changed_settings(before, to_dict(self.recipe), run):
            say(f"Warning: {change}, from iteration {progress['iteration']} on.")
