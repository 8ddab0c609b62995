"""This module runs one iteration of post-training.

    collect rollouts and scores ─► (delay) ─► credit: advantages ─► select samples ─► update

Methods differ in the parts of their recipe: plan, kernel, credit, allocation, objective, roles and stages. The trainer
calls these parts in the same order for every recipe, and does not depend on the method.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator

from flowportrait.flow.kernels import Kernel, build_kernel
from flowportrait.flow.noise import NoiseKey
from flowportrait.rewards.interface import Score
from flowportrait.rewards.registry import CompositeReward
from flowportrait.rl.allocation import allocate_advantage, select_best_and_worst
from flowportrait.rl.collection import ScoredRollouts, collect_rollouts, pack_rollouts, unpack_rollouts
from flowportrait.rl.config import FIRST_VERSION, PostTrainConfig
from flowportrait.rl.credit import credit_batch, signal_metrics
from flowportrait.rl.learner import (
    Metrics,
    PolicyLearner,
    RankGroups,
    all_rewards_failed,
    combine_metrics,
    gather_scores,
    invalidate_scores,
    microbatch_rows,
    non_finite_mask,
    zero_masked,
)
from flowportrait.rl.objectives.interface import Advantage
from flowportrait.rl.plan import Planner, apply_policy_schedule
from flowportrait.rl.remote_scoring import RayScorer
from flowportrait.rl.rollout import Trajectory, rollout
from flowportrait.rl.stages import Stage
from flowportrait.rl.task import PromptSource
from flowportrait.training.distributed import all_gather_object
from flowportrait.training.learner import Weights


class Trainer(PolicyLearner):
    """Post-trains a policy on a task with a composite reward, which a ``scorer`` may compute on other machines."""

    def __init__(
        self,
        policy: Any,
        task: PromptSource,
        recipe: PostTrainConfig,
        rewards: CompositeReward,
        accelerator: Accelerator | None = None,
        scorer: RayScorer | None = None,
    ) -> None:
        super().__init__(policy, recipe, accelerator)
        self.task = task
        self.rewards = rewards
        self.scorer = scorer
        self.share = RankGroups.of(self.accelerator, recipe.groups, recipe.group_minibatches)
        self.waiting: list[tuple[Trajectory, dict[str, Score]]] = []

    @property
    def kernel(self) -> Kernel:
        """Return the recipe's stochastic kernel."""
        return build_kernel(self.recipe.kernel, self.recipe.eta, self.recipe.version)

    def step(self) -> Metrics:
        """Run one iteration and return its metrics. All processes call it together."""
        started = time.monotonic()
        batch = self.collect()
        due = self.delay(batch)
        metrics: Metrics = {}
        if due is not None:
            trajectory = due.trajectory
            advantage, metrics = self.credit(due)
            rows = select_best_and_worst(
                advantage.per_sample, trajectory.group, self.recipe.train_on, advantage.is_judged
            )
            if any(all_gather_object(self.accelerator, bool(non_finite_mask(trajectory).any()))) or all_rewards_failed(
                metrics
            ):
                metrics |= {"skipped": 1.0, "grad_norm": 0.0}
            else:
                trajectory, stage_metrics = self.prepare_update(trajectory.select(rows))
                metrics |= stage_metrics | self.update(trajectory, advantage.select(rows))
        self.roles.after_iteration(self.iteration)
        self.iteration += 1
        update = time.monotonic() - started - batch.seconds["seconds/rollout"] - batch.seconds["seconds/waiting"]
        seconds = batch.seconds | {"seconds/update": update}
        return {"iteration": self.iteration, **combine_metrics(self.accelerator, metrics, seconds)}

    def collect(self) -> ScoredRollouts:
        """Return the scored samples of this process's groups in this iteration, as the stages collect them."""
        rollouts = Rollouts(self)
        collect_batch: Callable[[], ScoredRollouts] = rollouts.collect
        for stage in reversed(self.recipe.active_stages):
            collect_batch = partial(stage.collect_batch, rollouts, collect_batch)
        return collect_batch()

    def delay(self, batch: ScoredRollouts) -> ScoredRollouts | None:
        """Return the batch to train on now: this one, or that of ``staleness`` iterations ago (none at first)."""
        if self.recipe.staleness == 0:
            return batch
        new = batch.trajectory
        with self.rollout_mode():
            behaviour = torch.cat([self.velocity(new.select(rows)) for rows in microbatch_rows(new, self.recipe)])
        self.waiting.append((replace(new, v_behaviour=behaviour), batch.scores))
        if len(self.waiting) <= self.recipe.staleness:
            return None
        trajectory, scores = self.waiting.pop(0)
        return ScoredRollouts(trajectory, scores, batch.seconds)

    def credit(self, batch: ScoredRollouts) -> tuple[Advantage, Metrics]:
        """Return the advantages of this process's samples. Statistics are over the samples of all processes."""
        recipe, trajectory, scores = self.recipe, batch.trajectory, batch.scores
        for stage in recipe.active_stages:
            scores = dict(stage.adjust_scores(scores, trajectory))
        all_scores, group = gather_scores(self.accelerator, scores, trajectory.group)
        comparison_scores = (
            batch.comparison_scores and gather_scores(self.accelerator, batch.comparison_scores, trajectory.group)[0]
        )
        chunks, local_rows = trajectory.latents.shape[1], self.share.local_rows(group)
        credit = credit_batch(
            all_scores, comparison_scores, group, local_rows, chunks, self.rewards.weights, recipe.credit,
            self.baseline_rows(trajectory),
        )  # fmt: skip
        local_credit, plan = credit.local, recipe.plan(recipe.seed, self.iteration, recipe.groups, chunks)
        advantage = allocate_advantage(
            local_credit, trajectory, recipe.allocation, self.task.regions, plan.forks, recipe.credit.limit,
            equal_regions=recipe.version == FIRST_VERSION,
        )  # fmt: skip
        metrics = {**local_credit.metrics, **signal_metrics(local_credit.parts)}
        metrics["invalid_samples"] = float((~advantage.is_judged).float().mean())
        for stage in recipe.active_stages:
            advantage, stage_metrics = stage.adjust_advantage(advantage, trajectory, credit)
            metrics |= stage_metrics
        return advantage, metrics

    def prepare_update(self, trajectory: Trajectory) -> tuple[Trajectory, Metrics]:
        """Return the samples as they are trained on, after stages trained their own roles on them, and metrics."""
        metrics: Metrics = {}
        for stage in self.recipe.active_stages:
            trajectory, stage_metrics = stage.before_update(trajectory, self)
            metrics |= stage_metrics
        return trajectory, metrics

    def baseline_rows(self, trajectory: Trajectory) -> torch.Tensor | None:
        """Return the mask of the samples of all processes from which means and spreads are computed; None for all."""
        stage_masks = [stage.baseline_rows(trajectory) for stage in self.recipe.active_stages]
        masks = [mask for mask in stage_masks if mask is not None]
        return torch.cat(all_gather_object(self.accelerator, torch.stack(masks).all(0))) if masks else None

    def any_condition(self) -> Any:
        """Return one row of a condition of this task, as a template of its type."""
        with self.rollout_mode():
            prompts: Any = self.task.draw(self.recipe.groups, self.recipe.seed, self.iteration)
            return self.task.condition(self.policy, prompts.select(self.share.groups[:1]))

    def process_state(self) -> Weights:
        """Return the rollouts of this process that wait to be trained on, packed as tensors."""
        return pack_rollouts(self.waiting)

    def load_process_states(self, states: Sequence[Weights]) -> None:
        """Restore the waiting rollouts of this process's groups, whichever process sampled them."""
        if states and self.recipe.staleness:
            waiting = unpack_rollouts(states, self.share.groups, self.any_condition(), self.device)
            self.waiting = waiting[-self.recipe.staleness :]


class Rollouts:
    """The rollouts of this process in one iteration. Stages use it as ``stages.IterationRollouts``."""

    def __init__(self, trainer: Trainer) -> None:
        recipe = trainer.recipe
        self.trainer = trainer
        self.policy: Any = trainer.policy
        self.task: Any = trainer.task
        self.prompts: Any = trainer.task.draw(recipe.groups, recipe.seed, trainer.iteration)
        self.groups: torch.Tensor = trainer.share.groups
        self.sample_count: int = recipe.groups * recipe.group_size
        self.recipe_name: str = recipe.name
        self.kernel: Kernel = trainer.kernel
        self.rewards: CompositeReward = trainer.rewards
        self.noise_key: NoiseKey = trainer.noise_key

    def average(self, value: torch.Tensor) -> torch.Tensor:
        """Return the mean of a scalar over all processes; see ``stages.IterationRollouts``."""
        return self.trainer.average(value)

    def rollout_mode(self, role: str | None = None) -> AbstractContextManager[None]:
        """Load the weights of a role inside the block; see ``PolicyLearner.rollout_mode``."""
        return self.trainer.rollout_mode(role)

    def collect(self) -> ScoredRollouts:
        """Return the iteration's scored samples, as the recipe's stages explore and augment them."""
        recipe = self.trainer.recipe
        return self._collect(partial(self._sample, recipe.plan, recipe.group_size, recipe.active_stages))

    def sample_and_score(self, planner: Planner, group_size: int, role: str | None = None) -> ScoredRollouts:
        """Return further scored samples of every prompt under another plan and role.

        They start from the noise of the first samples of their group.
        """
        return self._collect(partial(self._sample, planner, group_size, ()), role)

    def _collect(self, sample: Callable[[torch.Tensor], Trajectory], role: str | None = None) -> ScoredRollouts:
        parts = [part for part in self.groups.tensor_split(self.trainer.recipe.rollout_chunks) if len(part)]
        with self.rollout_mode(role):
            scorer = self.trainer.scorer
            return collect_rollouts(parts, sample, self._score, scorer.parts if scorer else 1)

    def _sample(self, planner: Planner, group_size: int, stages: tuple[Stage, ...], groups: torch.Tensor) -> Trajectory:
        recipe, policy, key = self.trainer.recipe, self.policy, self.noise_key
        condition = self.task.condition(policy, self.prompts.select(groups)).repeat(group_size)
        plan = apply_policy_schedule(
            policy, planner(recipe.seed, self.trainer.iteration, recipe.groups, condition.chunks)
        )
        group = groups.repeat_interleave(group_size)
        sample = group * recipe.group_size + torch.arange(group_size).repeat(len(groups))
        sessions = [stage.start_session(policy, condition, sample, key) for stage in stages]
        session = next((candidate for candidate in sessions if candidate is not None), None)
        trajectory = rollout(
            policy, condition, group, sample, plan, self.kernel, key, recipe.same_start, group_size, session
        )  # fmt: skip
        for stage in stages:
            trajectory = stage.augment_rollout(trajectory, groups, plan, self)
        return trajectory.to("cpu") if recipe.offload else trajectory

    def _score(self, trajectory: Trajectory, groups: torch.Tensor) -> dict[str, Score]:
        prompts, broken = self.prompts.select(trajectory.group), non_finite_mask(trajectory)
        batch = self.task.batch(self.policy, zero_masked(trajectory, broken), prompts)
        return invalidate_scores((self.trainer.scorer or self.trainer.rewards)(batch), broken)
