"""The weights that a run trains: in their roles, replayed under any of them, and an optimiser step on a batch.

    rollouts, advantages ─► freeze: points, and velocities of old, ref, teacher ─► learn: live, loss, gradient, step

Nothing in here knows where rollouts come from or what paid them; see ``trainer``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from flowportrait.config import to_dict
from flowportrait.flow.noise import NoiseKey
from flowportrait.posttrain.batching import MicroBatch, microbatch_rows, minibatch_rows
from flowportrait.posttrain.manifest import changed_settings
from flowportrait.posttrain.objective.interface import Advantage, LossInputs
from flowportrait.posttrain.policy import module
from flowportrait.posttrain.recipe import Recipe
from flowportrait.posttrain.rollout import Points, Replay, Trajectory, check_noise
from flowportrait.posttrain.stages import Metrics, RoleView
from flowportrait.terminal import say
from flowportrait.training.adapter import insert
from flowportrait.training.learner import Learner
from flowportrait.training.processes import processes, roll_call
from flowportrait.training.shards import exchanging, gathered


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
