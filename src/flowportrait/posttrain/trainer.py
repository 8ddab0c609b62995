"""The one loop:  prompts → rollout → scores → credit → replay → objective → roles.

What differs between algorithms comes in with the recipe; nothing in here asks which one runs.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator

from flowportrait.errors import BadInput
from flowportrait.flow.kernel import Kernel, kernel_named
from flowportrait.posttrain.advantage import extremes, spread
from flowportrait.posttrain.collect import Batch, collect, pack_rollouts, unpack_rollouts
from flowportrait.posttrain.credit import assign
from flowportrait.posttrain.distil import TEACHER, apart, beside, compared, gated
from flowportrait.posttrain.exemplar import invert, set_exemplar_advantage
from flowportrait.posttrain.hazards import blanked, forget, numberless, unscored
from flowportrait.posttrain.learner import Metrics, PolicyLearner
from flowportrait.posttrain.objective.interface import Advantage
from flowportrait.posttrain.offline_data import OfflineTask
from flowportrait.posttrain.plan import NoNoise, Plan, Planner
from flowportrait.posttrain.policy import at_own_levels
from flowportrait.posttrain.recipe import FIRST_VERSION, Recipe
from flowportrait.posttrain.rollout import rollout
from flowportrait.posttrain.scale import Share, gather_scores, together
from flowportrait.posttrain.shard import micro
from flowportrait.posttrain.signals import describe
from flowportrait.posttrain.task import Task
from flowportrait.posttrain.trajectory import Trajectory, join
from flowportrait.reward.composite import Composite
from flowportrait.reward.interface import Score
from flowportrait.training.processes import roll_call
from flowportrait.training.roles import Weights


class Trainer(PolicyLearner):
    """Post-trains a policy on a task under a composite reward."""

    def __init__(
        self,
        policy: Any,
        task: Task | OfflineTask,
        recipe: Recipe,
        rewards: Composite,
        accelerator: Accelerator | None = None,
    ) -> None:
        super().__init__(policy, recipe, accelerator)
        self.task = task
        self.rewards = rewards
        self.share = Share.of(self.accelerator, recipe.groups, recipe.updates if recipe.objective.whole_groups else 1)
        self.waiting: list[tuple[Trajectory, dict[str, Score]]] = []

    @property
    def kernel(self) -> Kernel:
        """The recipe's stochastic kernel."""
        return kernel_named(self.recipe.kernel, self.recipe.eta, self.recipe.version)

    def step(self) -> Metrics:
        """One iteration; returns what to log."""
        started = time.monotonic()
        batch = self.collect()
        trajectory, scores = self.delayed(batch)
        metrics: Metrics = {}
        if trajectory is not None:
            advantage, metrics = self.credit(trajectory, scores)
            rows = extremes(advantage.per_sample, trajectory.group, self.recipe.train_on, advantage.is_judged)
            if any(roll_call(self.accelerator, bool(numberless(trajectory).any()))) or unscored(metrics):
                metrics |= {"skipped": 1.0, "grad_norm": 0.0}
            else:
                metrics |= self.update(trajectory.select(rows), advantage.select(rows))
        self.roles.after_iteration(self.iteration)
        self.iteration += 1
        own = time.monotonic() - started - batch.seconds["seconds/rollout"] - batch.seconds["seconds/waiting"]
        seconds = batch.seconds | {"seconds/update": own}
        return {"iteration": self.iteration, **together(self.accelerator, metrics, seconds)}

    def collect(self) -> Batch:
        """Roll out and score this process's groups of this iteration, or show what is given."""
        recipe, task = self.recipe, self.task
        prompts: Any = task.draw(recipe.groups, recipe.seed, self.iteration)
        if isinstance(task, OfflineTask):
            with self.acting():
                return task.show(self.policy, prompts.select(self.share.groups), self.share.groups)

        def act(groups: torch.Tensor, planner: Planner = recipe.plan, size: int = recipe.group_size) -> Trajectory:
            condition = task.condition(self.policy, prompts.select(groups)).repeat(size)
            plan = at_own_levels(self.policy, planner(recipe.seed, self.iteration, recipe.groups, condition.chunks))
            group = groups.repeat_interleave(size)
            sample = group * recipe.group_size + torch.arange(size).repeat(len(groups))
            explore, key = recipe.explore, self.noise_key
            session = explore.session(self.policy, condition, sample, key) if explore else None
            made = rollout(
                self.policy, condition, group, sample, plan, self.kernel, key, recipe.same_start, size, session
            )
            if recipe.exemplars:
                made = join([made, self.exemplars(task, prompts.select(groups), groups, plan)])
            return made.to("cpu") if recipe.offload else made

        def score(trajectory: Trajectory, groups: torch.Tensor) -> dict[str, Score]:
            own, lost = prompts.select(trajectory.group), numberless(trajectory)
            return forget(self.rewards(task.batch(self.policy, blanked(trajectory, lost), own)), lost)

        pieces = [part for part in self.share.groups.tensor_split(recipe.pieces) if len(part)]
        with self.acting():
            made = collect(pieces, act, score)
        if not (recipe.teacher and recipe.teacher.witnesses):
            return made
        slowly = partial(act, planner=NoNoise(recipe.teacher.steps), size=recipe.teacher.witnesses)
        with self.acting(TEACHER):
            return beside(made, collect(pieces, slowly, score))

    def exemplars(self, task: Task, prompts: Any, groups: torch.Tensor, plan: Plan) -> Trajectory:
        """The real clips of these groups, inverted under the acting weights.

        Raises:
            BadInput: the task has none.
        """
        recipe = self.recipe
        assert recipe.exemplars is not None, "only recipes with exemplars ask for them"
        latents = task.real(self.policy, prompts)
        if latents is None:
            raise BadInput(f"The recipe {recipe.name} needs real clips: give a prepared corpus with --exemplars.")
        sample = recipe.groups * recipe.group_size + groups
        return invert(
            self.policy, task.condition(self.policy, prompts), latents, groups, sample, plan, self.kernel,
            self.noise_key, recipe.exemplars.inversion,
        )  # fmt: skip

    def delayed(self, batch: Batch) -> tuple[Trajectory | None, dict[str, Score]]:
        """The batch to train on now: this one, or the one made ``stale`` iterations ago (none at first)."""
        if self.recipe.stale == 0:
            return batch.trajectory, batch.scores
        made = batch.trajectory
        with self.acting():
            behaviour = torch.cat([self.velocity(made.select(rows)) for rows in micro(made, self.recipe)])
        self.waiting.append((replace(made, v_behaviour=behaviour), batch.scores))
        return self.waiting.pop(0) if len(self.waiting) > self.recipe.stale else (None, {})

    def credit(self, trajectory: Trajectory, scores: dict[str, Score]) -> tuple[Advantage, Metrics]:
        """Advantages of this process's samples; statistics are those of all processes' samples."""
        scores, shown = apart(scores)
        exemplars, reference = self.recipe.exemplars, None
        everyone, group = gather_scores(self.accelerator, scores, trajectory.group)
        if exemplars and exemplars.baseline == "rollouts":
            reference = ~torch.cat(roll_call(self.accelerator, trajectory.real))
        chunks = trajectory.latents.shape[1]
        better = None
        if shown:
            theirs = gather_scores(self.accelerator, shown, trajectory.group)[0]
            credit, better = compared(everyone, group, theirs, chunks, self.rewards.weights, self.recipe.credit)
        else:
            credit = assign(everyone, group, chunks, self.rewards.weights, self.recipe.credit, reference)
        own = self.share.own_rows(group)
        credit = credit.select(own)
        plan = self.recipe.plan(self.recipe.seed, self.iteration, self.recipe.groups, chunks)
        advantage = spread(
            credit, trajectory, self.recipe.allocation, self.task.regions, bool(plan.forks), self.recipe.credit.limit,
            equal_regions=self.recipe.version == FIRST_VERSION,
        )  # fmt: skip
        metrics = {**credit.metrics, **describe(credit.parts)}
        metrics["invalid_samples"] = float((~advantage.is_judged).float().mean())
        if better is not None:
            advantage = gated(advantage, better[own])
        if exemplars:
            advantage, seen = set_exemplar_advantage(advantage, trajectory, exemplars)
            metrics |= seen
        return advantage, metrics

    def any_condition(self) -> Any:
        """One row of what the policy is told, to know the kind."""
        with self.acting():
            prompts: Any = self.task.draw(self.recipe.groups, self.recipe.seed, self.iteration)
            return self.task.condition(self.policy, prompts.select(self.share.groups[:1]))

    def process_state(self) -> Weights:
        """The rollouts of this process that wait to be trained on."""
        return pack_rollouts(self.waiting)

    def load_process_states(self, states: Sequence[Weights]) -> None:
        """The waiting rollouts of this process's groups, whoever drew them."""
        if states and self.recipe.stale:
            waiting = unpack_rollouts(states, self.share.groups, self.any_condition(), self.device)
            self.waiting = waiting[-self.recipe.stale :]
