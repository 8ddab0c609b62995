"""The one loop:  prompts → rollout → scores → credit → replay → objective → roles.

What differs between algorithms comes in with the recipe; nothing in here asks which one runs.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from flowportrait.errors import BadInput
from flowportrait.flow.kernel import KERNELS
from flowportrait.posttrain.advantage import extremes, spread
from flowportrait.posttrain.collect import Batch, collect
from flowportrait.posttrain.credit import assign
from flowportrait.posttrain.distil import TEACHER, Pace, apart, beside, compared, gated
from flowportrait.posttrain.exemplar import invert, own_scores, pay
from flowportrait.posttrain.given import GivenTask
from flowportrait.posttrain.hazards import blanked, forget, numberless, unscored
from flowportrait.posttrain.objective.interface import Advantage, Evidence, Points
from flowportrait.posttrain.plan import NoNoise, Plan, Planner
from flowportrait.posttrain.policy import at_own_levels, module
from flowportrait.posttrain.recipe import Recipe
from flowportrait.posttrain.replay import Replay, check_noise
from flowportrait.posttrain.roles import Roles
from flowportrait.posttrain.rollout import rollout
from flowportrait.posttrain.scale import Share, gather_scores, together
from flowportrait.posttrain.shard import Shard, divided, micro
from flowportrait.posttrain.signals import describe
from flowportrait.posttrain.task import Task
from flowportrait.posttrain.trajectory import Trajectory, join
from flowportrait.reward.composite import Composite
from flowportrait.reward.interface import Score
from flowportrait.training.adapter import insert
from flowportrait.training.processes import processes, roll_call
from flowportrait.training.shards import distribute, exchanging, gathered, outline, whole

Metrics = dict[str, float]


def averaged(records: Sequence[Metrics]) -> Metrics:
    """Means over those that have each key: a step without pairs has no margin."""
    known = {key: [record[key] for record in records if key in record] for record in records for key in record}
    return {key: sum(values) / len(values) for key, values in known.items()}


class Trainer:
    """Post-trains a policy on a task under a composite reward. Deterministic: all randomness is keyed."""

    def __init__(
        self,
        policy: Any,
        task: Task | GivenTask,
        recipe: Recipe,
        rewards: Composite,
        accelerator: Accelerator | None = None,
    ) -> None:
        self.accelerator = accelerator or processes()
        self.device = self.accelerator.device
        self.task = task
        self.recipe = recipe
        self.rewards = rewards
        self.share = Share.of(self.accelerator, recipe.groups, recipe.updates if recipe.objective.whole_groups else 1)
        self.pace = Pace(policy, recipe.plan.steps) if recipe.teacher else None
        network = module(policy).to(self.device)
        if recipe.lora:
            insert(network, recipe.lora, recipe.seed)
        if recipe.checkpointing:
            policy.recompute_activations()
        network.train()
        self.policy = policy
        self.outline = outline(network)
        self.replay = distribute(self.accelerator, Replay(policy))
        self.roles = Roles(network, recipe.ema, recipe.old, self.replay)
        trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=recipe.learning_rate, weight_decay=0.0)
        self.kernel = KERNELS[recipe.kernel](recipe.eta)
        self.iteration = 0
        self.updates = 0
        self.waiting: list[tuple[Trajectory, dict[str, Score]]] = []

    def step(self) -> Metrics:
        """One iteration; returns what to log."""
        started = time.monotonic()
        batch = self.collect()
        trajectory, scores = self.delayed(batch)
        metrics: Metrics = {}
        if trajectory is not None:
            advantage, metrics = self.credit(trajectory, scores)
            rows = extremes(advantage.per_sample, trajectory.group, self.recipe.train_on)
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
        if isinstance(task, GivenTask):
            with self.acting():
                return task.show(self.policy, prompts.select(self.share.groups), self.share.groups)

        def act(groups: torch.Tensor, planner: Planner = recipe.plan, size: int = recipe.group_size) -> Trajectory:
            condition = task.condition(self.policy, prompts.select(groups)).repeat(size)
            plan = at_own_levels(self.policy, planner(recipe.seed, self.iteration, recipe.groups, condition.chunks))
            group = groups.repeat_interleave(size)
            sample = group * recipe.group_size + torch.arange(size).repeat(len(groups))
            key = (recipe.seed, self.iteration)
            session = recipe.explore.session(self.policy, condition, sample, key) if recipe.explore else None
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
            (recipe.seed, self.iteration), recipe.exemplars.inversion,
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
        exemplars, judged = self.recipe.exemplars, scores
        if exemplars and exemplars.baseline == "rollouts":
            judged = own_scores(scores, trajectory.real)
        everyone, group = gather_scores(self.accelerator, judged, trajectory.group)
        chunks = trajectory.latents.shape[1]
        better = None
        if shown:
            theirs = gather_scores(self.accelerator, shown, trajectory.group)[0]
            credit, better = compared(everyone, group, theirs, chunks, self.rewards.weights, self.recipe.credit)
        else:
            credit = assign(everyone, group, chunks, self.rewards.weights, self.recipe.credit)
        own = self.share.own_rows(group)
        credit = replace(
            credit, advantage=credit.advantage[own], parts={name: part[own] for name, part in credit.parts.items()}
        )
        plan = self.recipe.plan(self.recipe.seed, self.iteration, self.recipe.groups, chunks)
        advantage = spread(
            credit, trajectory, self.recipe.allocation, self.task.regions, bool(plan.forks), self.recipe.credit.limit
        )
        metrics = {**credit.metrics, **describe(credit.parts)}
        if better is not None:
            advantage = gated(advantage, better[own])
        if exemplars:
            advantage, seen = pay(advantage, trajectory, scores, self.rewards.weights, exemplars)
            metrics |= seen
        return advantage, metrics

    def update(self, trajectory: Trajectory, advantage: Advantage) -> Metrics:
        """Optimiser steps on one batch of rollouts; metrics are means over the steps."""
        recipe = self.recipe
        parts = [
            [self.freeze(trajectory.select(rows), advantage.select(rows)) for rows in micro(trajectory, recipe, part)]
            for part in divided(trajectory, recipe)
        ]
        if trajectory.v_behaviour is None:
            half = self.recipe.autocast == "bf16"
            frozen = [shard for part in parts for shard in part if "old" in shard.others]
            gap = max((check_noise(shard.trajectory, shard.others["old"], half) for shard in frozen), default=0.0)
        else:
            gap = 0.0
        sizes = [sum(len(shard.trajectory) for shard in part) for part in parts]
        everyone = torch.tensor(roll_call(self.accelerator, sizes)).float().mean(0).tolist()
        again = list(zip(parts, everyone, strict=True)) * self.recipe.epochs
        collected = [self.learn(part, size) for part, size in again]
        means = averaged(collected)
        if "ratio/mean" in collected[0]:
            means["ratio/first_error"] = max(abs(collected[0]["ratio/mean"] - 1), collected[0]["ratio/std"])
        return {**means, "noise_gap": gap}

    def learn(self, shards: Sequence[Shard], total: float) -> Metrics:
        """One optimiser step on the shards together; ``total``: how many samples the processes have for it on
        average, by which torch's mean over processes becomes that over samples."""
        metrics = Metrics()
        self.optimizer.zero_grad()
        for number, held in enumerate(shards):
            shard = held.to(self.device)
            with exchanging(self.replay, number == len(shards) - 1):
                live = self.velocity(shard.trajectory, shard.points)
                loss = self.recipe.objective(
                    Evidence(shard.trajectory, shard.advantage, shard.points, live, shard.others)
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
    def freeze(self, trajectory: Trajectory, advantage: Advantage) -> Shard:
        """Points, and the other roles' velocities there, before any update of this iteration."""
        objective = self.recipe.objective
        points = objective.points(trajectory, (self.recipe.seed, self.iteration, 2))
        others = {}
        for role in sorted(objective.needs):
            with self.being(role):
                others[role] = self.velocity(trajectory, points, self.strides if role == TEACHER else 0)
        shard = Shard(trajectory, points, others, advantage)
        return shard.to("cpu") if self.recipe.offload else shard

    def velocity(self, trajectory: Trajectory, points: Points | None = None, strides: int = 0) -> torch.Tensor:
        """Float32 velocities of the weights now in the policy, at ``points`` or the recorded states."""
        with self.precision():
            return self.replay(trajectory, points or Points(trajectory.x, trajectory.sigma), strides)

    @property
    def strides(self) -> int:
        """Of the teacher within a step of the student; 0 without a teacher."""
        return self.recipe.teacher.strides(self.recipe.plan.steps) if self.recipe.teacher else 0

    @contextmanager
    def being(self, role: str) -> Iterator[None]:
        """A role's weights inside the block; the teacher is the start at its own pace."""
        slowly = self.pace.slow() if self.pace and role == TEACHER else nullcontext()
        with self.roles.use("ref" if role == TEACHER else role), slowly:
            yield

    @contextmanager
    def acting(self, role: str | None = None) -> Iterator[None]:
        """A role's weights (the acting one's), as they are delivered: whole, in evaluation mode, without gradients."""
        role = role or self.roles.actor
        self.roles.policy.eval()
        try:
            with torch.no_grad(), self.being(role), gathered(self.replay), self.precision():
                yield
        finally:
            self.roles.policy.train()

    def precision(self) -> AbstractContextManager[None]:
        """Autocast, if the recipe asks for it."""
        if self.recipe.autocast == "no":
            return nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16)

    def any_condition(self) -> Any:
        """One row of what the policy is told, to know the kind."""
        with self.acting():
            prompts: Any = self.task.draw(self.recipe.groups, self.recipe.seed, self.iteration)
            return self.task.condition(self.policy, prompts.select(self.share.groups[:1]))

    def whole(self) -> nn.Module | None:
        """A copy of the policy as it is now, for the main process; all processes together."""
        return whole(self.accelerator, self.roles.policy, self.outline)

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Weights of all roles and the optimiser's moments, by name; noise, prompts and plans are functions of the
        iteration and need none."""
        roles = self.roles.state_dict()
        state = {f"{role}/{name}": value for role, weights in roles.items() for name, value in weights.items()}
        for name, parameter in self.roles.parameters().items():
            moments = self.optimizer.state.get(parameter, {})
            state |= {f"optimizer.{moment}/{name}": value for moment, value in moments.items()}
        return state

    def load_state_dict(self, state: dict[str, torch.Tensor], iteration: int, updates: int) -> None:
        """Inverse of ``state_dict``, and where the run stood."""
        kinds: dict[str, dict[str, torch.Tensor]] = {}
        for key, value in state.items():
            kind, _, name = key.partition("/")
            kinds.setdefault(kind, {})[name] = value
        self.roles.load_state_dict(kinds)
        moments = {kind.removeprefix("optimizer."): kinds[kind] for kind in kinds if kind.startswith("optimizer.")}
        for name, parameter in self.roles.parameters().items():
            self.optimizer.state[parameter] = {kind: own[name] for kind, own in moments.items() if name in own}
        self.iteration, self.updates = iteration, updates
