"""This module updates the weights of a policy from rollouts and their advantages.

    rollouts, advantages ─► freeze: points, and velocities of old, ref, teacher ─► learn: live, loss, gradient, step

The parts, in order: exclusion of samples that are not finite, division of a batch over processes and steps, merging of
the metrics of all processes, and ``PolicyLearner``. Where rollouts and scores come from is the matter of
``rl.trainer``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
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
from flowportrait.rewards.interface import Failure, Score, failures_per_row
from flowportrait.rl.collection import join_scores
from flowportrait.rl.config import PostTrainConfig, Recipe
from flowportrait.rl.manifest import changed_settings
from flowportrait.rl.objectives.interface import Advantage, LossInputs, Objective
from flowportrait.rl.plan import as_module
from flowportrait.rl.rollout import EvaluationPoints, Trajectory, VelocityReplay, check_replayed_noise
from flowportrait.rl.stages import Metrics, RoleView
from flowportrait.terminal import log
from flowportrait.training.distributed import all_gather_object, create_accelerator, full_weights, gradient_sync
from flowportrait.training.learner import Learner
from flowportrait.training.lora import insert_adapters

# --- Samples that must not reach the weights ---
#
# These cases are counted as ``skipped``. All processes skip together:
#
#     a sample that is not finite       its scores are invalid, and there is no update in this iteration
#     no reward gave a score            there is no update in this iteration
#     a gradient that is not finite     this optimiser step is left out (see ``PolicyLearner.learn``)


def non_finite_mask(trajectory: Trajectory) -> torch.Tensor:
    """Return the mask ``[B]`` of samples with latents that are infinite or NaN."""
    return ~torch.isfinite(trajectory.latents).flatten(1).all(1).cpu()


def zero_masked(trajectory: Trajectory, broken: torch.Tensor) -> Trajectory:
    """Return the trajectory with zero latents for the samples in the mask ``broken`` ``[B]``, so that it can be
    scored."""
    if not broken.any():
        return trajectory
    where = broken.to(trajectory.latents.device)[:, None, None]
    return replace(trajectory, latents=torch.where(where, 0, trajectory.latents))


def invalidate_scores(scores: Mapping[str, Score], broken: torch.Tensor) -> dict[str, Score]:
    """Return the scores with those of the samples in the mask ``broken`` ``[B]`` marked invalid."""
    if not broken.any():
        return dict(scores)
    reason = Failure("not_finite", "the generator gave something that is not a number")
    rows = dict.fromkeys(broken.nonzero()[:, 0].tolist(), reason)
    return {
        name: score._replace(
            value=score.value.masked_fill(broken, torch.nan), valid=score.valid & ~broken,
            failures=failures_per_row(score.reasons | rows, len(broken)),
        )
        for name, score in scores.items()
    }  # fmt: skip


def all_rewards_failed(metrics: Mapping[str, float]) -> bool:
    """Return whether no reward scored any sample of any process, from the metrics ``invalid/NAME``."""
    shares = [value for key, value in metrics.items() if key.startswith("invalid/")]
    return bool(shares) and min(shares) == 1.0


# --- Division of a batch ---
#
#     groups 0 1 2 3 4 5  on two processes:  0 1 2 | 3 4 5
#     batch of a process ─ minibatch_rows: a share of every group ─► optimiser steps ─ microbatch_rows ─► backward
#     passes
#
# Ids of groups and samples are global and noise is keyed by them, so that any number of processes draws the same
# samples. Credit is computed from the scores of all processes. Gradients are averaged by torch, over whole weights or
# shards (``training/distributed.py``).


@dataclass(frozen=True)
class MicroBatch:
    """The samples of one backward pass with everything that is fixed before the first update.

    Attributes:
        trajectory: the samples.
        points: states at which velocities are compared.
        others: role → velocities ``[B, N, R, D]`` at the points.
        advantage: of the samples.
    """

    trajectory: Trajectory
    points: EvaluationPoints
    others: dict[str, torch.Tensor]
    advantage: Advantage

    def to(self, device: torch.device | str) -> MicroBatch:
        """Return a copy on a device."""
        x, sigma, target, until = self.points
        points = EvaluationPoints(
            x.to(device), sigma.to(device), None if target is None else target.to(device),
            None if until is None else until.to(device),
        )  # fmt: skip
        others = {name: velocity.to(device) for name, velocity in self.others.items()}
        return MicroBatch(self.trajectory.to(device), points, others, self.advantage.to(device))


def minibatch_rows(trajectory: Trajectory, config: PostTrainConfig) -> list[torch.Tensor]:
    """Return the rows of every optimiser step.

    They are a share of every group, or a share of the groups if the objective compares the samples of a group.
    """
    group = trajectory.group
    # Group ids and positions within a group, not positions in this batch: the same for any number of processes.
    order = group if config.whole_group_minibatches else (group[:, None] == group).tril(-1).sum(1)
    found = [(order % config.updates == part).nonzero()[:, 0] for part in range(config.updates)]
    return [rows for rows in found if len(rows)]


def microbatch_rows(
    trajectory: Trajectory, config: PostTrainConfig, rows: torch.Tensor | None = None
) -> list[torch.Tensor]:
    """Return the rows of every backward pass over ``rows``, or over all samples."""
    rows = torch.arange(len(trajectory)) if rows is None else rows
    if config.micro_batch is None:
        return [rows]
    if config.whole_group_minibatches:
        return [rows[trajectory.group[rows] == group] for group in trajectory.group[rows].unique()]
    return list(rows.split(config.micro_batch))


@dataclass(frozen=True)
class RankGroups:
    """The ids ``[G/W]`` of the groups of this process among W processes."""

    groups: torch.Tensor

    @classmethod
    def of(cls, accelerator: Accelerator, groups: int, parts: int = 1) -> RankGroups:
        """Return the contiguous, equal share of this process.

        Args:
            accelerator: the processes.
            groups: number of groups of all processes.
            parts: number of minibatches of whole groups into which a share must be divisible.

        Raises:
            BadInput: the groups cannot be divided evenly.
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

    def local_rows(self, group: torch.Tensor) -> torch.Tensor:
        """Return the rows of this process among the samples of all processes, from the ids of their groups ``[B]``."""
        return torch.isin(group, self.groups).nonzero()[:, 0]


# --- Results of all processes ---

MAXIMUM_METRICS = frozenset({"noise_gap", "ratio/first_error", "skipped"})
"""Metrics that are merged by their maximum over processes. The others are merged by their mean."""


def gather_scores(
    accelerator: Accelerator, scores: Mapping[str, Score], group: torch.Tensor
) -> tuple[dict[str, Score], torch.Tensor]:
    """Return the scores of all processes and the ids of their groups ``[B]``, in the order of the groups."""
    results = all_gather_object(accelerator, (dict(scores), group))
    return join_scores([part for part, _ in results]), torch.cat([ids for _, ids in results])


def combine_metrics(
    accelerator: Accelerator, metrics: Mapping[str, float], seconds: Mapping[str, float]
) -> dict[str, float]:
    """Merge the metrics of an iteration of all processes: means, but maxima of errors and times.

    With several processes, the result also has the slowest process before they synchronise (``slowest/process``) and
    its time relative to the median (``slowest/times``).
    """
    all_metrics = all_gather_object(accelerator, dict(metrics))
    times = all_gather_object(accelerator, dict(seconds))
    merged: dict[str, float] = {}
    for key in dict.fromkeys(key for record in all_metrics for key in record):
        values = [record[key] for record in all_metrics if key in record]
        merged[key] = max(values) if key in MAXIMUM_METRICS else sum(values) / len(values)
    merged |= {key: max(record[key] for record in times) for key in seconds}
    if len(times) > 1:
        unsynchronised = [record["seconds/rollout"] + record["seconds/waiting"] for record in times]
        slowest = max(range(len(unsynchronised)), key=unsynchronised.__getitem__)
        factor = unsynchronised[slowest] / max(median_low(unsynchronised), 1e-9)
        merged |= {"slowest/process": slowest, "slowest/times": factor}
    return merged


def average_metrics(records: Sequence[Metrics]) -> Metrics:
    """Return the mean of every key over the records that have it; a step without pairs has no margin."""
    by_key = {key: [record[key] for record in records if key in record] for record in records for key in record}
    return {key: sum(values) / len(values) for key, values in by_key.items()}


# --- The learner ---


class PolicyLearner(Learner):
    """A policy with the weights of its roles, its optimiser, and the updates of a recipe.

    All randomness is keyed, so that updates are deterministic.
    """

    def __init__(self, policy: Any, recipe: Recipe, accelerator: Accelerator | None = None) -> None:
        accelerator = accelerator or create_accelerator()
        self.recipe = recipe
        self.views: dict[str, RoleView] = {}
        for stage in recipe.active_stages:
            policy, views = stage.prepare_policy(policy, recipe.plan.steps)
            self.views |= views
        network = as_module(policy).to(accelerator.device)
        if recipe.lora:
            insert_adapters(network, recipe.lora, recipe.seed)
        if recipe.checkpointing:
            policy.recompute_activations()
        network.train()
        self.policy = policy
        rates = {view.weights: view.learning_rate for view in self.views.values() if view.learning_rate}
        super().__init__(network, VelocityReplay(policy), accelerator, recipe.ema, recipe.old, further=tuple(rates))
        self.replay = self.network
        self.optimizer = torch.optim.AdamW(self.trained, lr=recipe.learning_rate, weight_decay=0.0)
        self.role_optimizers = {
            role: torch.optim.AdamW(self.trained, lr=rate, weight_decay=0.0) for role, rate in rates.items()
        }
        self.updates = 0

    @property
    def noise_key(self) -> NoiseKey:
        """Return the key of all noise of this iteration."""
        return NoiseKey(self.recipe.seed, self.iteration, self.recipe.version)

    def update(self, trajectory: Trajectory, advantage: Advantage) -> Metrics:
        """Take all optimiser steps on one batch of rollouts and return the means of their metrics.

        Raises:
            ReplayMismatch: the replayed noise is not the noise that was drawn.
        """
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
            gap = max(
                (check_replayed_noise(shard.trajectory, shard.others["old"], half) for shard in frozen), default=0.0
            )
        sizes = [sum(len(shard.trajectory) for shard in part) for part in parts]
        mean_sizes = torch.tensor(all_gather_object(self.accelerator, sizes)).float().mean(0).tolist()
        steps = list(zip(parts, mean_sizes, strict=True)) * recipe.epochs
        records = [self.learn(part, size) for part, size in steps]
        means = average_metrics(records)
        if "ratio/mean" in records[0]:
            means["ratio/first_error"] = max(abs(records[0]["ratio/mean"] - 1), records[0].get("ratio/std", 0.0))
        return {**means, "noise_gap": gap}

    def learn(self, shards: Sequence[MicroBatch], total: float) -> Metrics:
        """Take one optimiser step on micro-batches, the gradients of which are accumulated.

        Args:
            shards: micro-batches of this process.
            total: mean number of samples per process in this step. With it as divisor, torch's mean of gradients over
                processes is the mean over samples.
        """
        metrics, learned = self._descend(self.optimizer, self.recipe.objective, shards, total)
        if learned:
            self.updates += 1
            self.roles.after_update(self.updates)
        return {**metrics, "skipped": float(not learned)}

    def learn_role(self, role: str, objective: Objective, trajectory: Trajectory) -> Metrics:
        """Take one optimiser step on a further role; see ``stages.RoleLearner``. Its batch is all the samples."""
        unused = Advantage(torch.zeros(len(trajectory), 1, 1, 1))
        shards = [
            self.freeze(trajectory.select(rows), unused.select(rows), objective)
            for rows in microbatch_rows(trajectory, self.recipe)
        ]
        sizes = all_gather_object(self.accelerator, len(trajectory))
        view = self.views[role]
        with self.roles.train(view.weights), view.settings():
            optimizer = self.role_optimizers[view.weights]
            return self._descend(optimizer, objective, shards, sum(sizes) / len(sizes))[0]

    @torch.no_grad()
    def role_velocity(
        self, role: str, trajectory: Trajectory, points: Callable[[Trajectory], EvaluationPoints]
    ) -> torch.Tensor:
        """Return the velocities of a role at points of the samples; see ``stages.RoleLearner``."""
        strides = self.views[role].strides if role in self.views else 0
        parts = [trajectory.select(rows).to(self.device) for rows in microbatch_rows(trajectory, self.recipe)]
        with self.use_weights(role):
            found = [self.velocity(part, points(part), strides) for part in parts]
        return torch.cat(found).to(trajectory.latents.device)

    def average(self, value: torch.Tensor) -> torch.Tensor:
        """Return the mean of a scalar over all processes, which call it together."""
        return torch.stack([part.to(value.device) for part in all_gather_object(self.accelerator, value.cpu())]).mean()

    def _descend(
        self, optimizer: torch.optim.Optimizer, objective: Objective, shards: Sequence[MicroBatch], total: float
    ) -> tuple[Metrics, bool]:
        """Take one step of an optimiser on the current weights and return metrics and whether the step was taken."""
        metrics = Metrics()
        optimizer.zero_grad()
        for number, stored in enumerate(shards):
            shard = stored.to(self.device)
            with gradient_sync(self.replay, number == len(shards) - 1):
                live = self.velocity(shard.trajectory, shard.points)
                loss = objective(LossInputs(shard.trajectory, shard.advantage, shard.points, live, shard.others))
                part = len(shard.trajectory) / total
                loss.metrics["velocity"] = float(live.detach().square().mean().sqrt())
                (loss.total * part).backward()
            for key, value in loss.metrics.items():
                metrics[key] = metrics.get(key, 0.0) + part * value
        norm = float(self.accelerator.clip_grad_norm_(self.replay.parameters(), self.recipe.grad_clip))
        learned = math.isfinite(norm)
        if learned:
            optimizer.step()
        return {**metrics, "grad_norm": norm if learned else 0.0}, learned

    @torch.no_grad()
    def freeze(self, trajectory: Trajectory, advantage: Advantage, objective: Objective | None = None) -> MicroBatch:
        """Return the samples with their points and the other roles' velocities there, before any update.

        Args:
            trajectory: the samples.
            advantage: of the samples.
            objective: the loss; the recipe's by default.
        """
        objective = objective or self.recipe.objective
        points = objective.points(trajectory, self.noise_key)
        others = {}
        for role in sorted(objective.needs):
            with self.use_weights(role):
                others[role] = self.velocity(trajectory, points, self.views[role].strides if role in self.views else 0)
        shard = MicroBatch(trajectory, points, others, advantage)
        return shard.to("cpu") if self.recipe.offload else shard

    def velocity(
        self, trajectory: Trajectory, points: EvaluationPoints | None = None, strides: int = 0
    ) -> torch.Tensor:
        """Return the float32 velocities ``[B, N, R, D]`` of the policy's current weights.

        Args:
            trajectory: the samples.
            points: states at which to evaluate; without them the recorded states.
            strides: see ``rl.rollout.velocity_at``.
        """
        with self.precision():
            return self.replay(trajectory, points or EvaluationPoints(trajectory.x, trajectory.sigma), strides)

    @contextmanager
    def use_weights(self, role: str) -> Iterator[None]:
        """Load a role's weights inside the block, with the policy settings of a role that a stage added."""
        view = self.views.get(role, RoleView(role))
        with self.roles.use(view.weights), view.settings():
            yield

    @contextmanager
    def rollout_mode(self, role: str | None = None) -> Iterator[None]:
        """Load the weights of a role inside the block, unsharded, in evaluation mode and without gradients.

        Without a role these are the weights that sample rollouts.
        """
        role = role or self.roles.rollout_role
        self.roles.policy.eval()
        try:
            with torch.no_grad(), self.use_weights(role), full_weights(self.replay), self.precision():
                yield
        finally:
            self.roles.policy.train()

    def precision(self) -> AbstractContextManager[None]:
        """Return the autocast context of the recipe's precision."""
        if self.recipe.autocast == "no":
            return nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16)

    def progress(self) -> dict[str, Any]:
        return {"updates": self.updates, "recipe": to_dict(self.recipe)}

    def load_progress(self, progress: Mapping[str, Any]) -> None:
        self.updates = progress["updates"]

    def check_progress(self, progress: Mapping[str, Any], run: Path) -> None:
        """Adopt the numerics version that a resumed run began with (``Recipe.version``) and warn of changed settings.

        Raises:
            BadInput: the run was begun with another recipe.
        """
        before = self.recipe.upgrade(progress["recipe"])
        self.recipe = replace(self.recipe, version=before["version"])
        for change in changed_settings(before, to_dict(self.recipe), run):
            log(f"Warning: {change}, from iteration {progress['iteration']} on.")
