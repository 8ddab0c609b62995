"""This module defines stages, by which a method extends the trainer's loop, and the stages of the built-in methods.

    collect_batch ─► start_session · augment_rollout ─► adjust_scores ─► baseline_rows ─► adjust_advantage
    which samples    exploration,     further samples   before credit    samples of the   after credit
                                                                         statistics          │
                                                                         before_update ◄─────┘
                                                                         train further roles

The trainer calls every hook of every stage of its recipe, in order, and does not depend on any particular stage. A
stage is a frozen dataclass of its settings that overrides the hooks that its method needs; the default hooks change
nothing. A recipe has built-in stages in fields of their own (``exploration``, ``exemplars``, ``teacher``,
``critic``, ``offline_data``) and any others in ``stages``:

    @dataclass(frozen=True)
    class Curriculum(Stage):
        hardest: float = 0.5

        def adjust_scores(self, scores, trajectory):
            ...

    replace(find_recipe("flow-grpo"), stages=(Curriculum(),))

The parts, in order: the interface (``Stage``), real clips in groups (``Exemplars``), exploration through the history
(``HistoryRouting``), and distillation (``Teacher``). The stage that learns from existing clips is in
``rl.offline_data``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from flowportrait.flow.kernels import Kernel
from flowportrait.flow.noise import NoiseKey
from flowportrait.rewards.interface import Score
from flowportrait.rewards.registry import CompositeReward
from flowportrait.rl.collection import ScoredRollouts
from flowportrait.rl.credit import BatchCredit
from flowportrait.rl.objectives.interface import Advantage, Objective
from flowportrait.rl.plan import Plan, Planner, PolicySession
from flowportrait.rl.rollout import EvaluationPoints, Trajectory

Metrics = dict[str, float]


@dataclass(frozen=True)
class RoleView:
    """A role that a stage adds to ``live``, ``old``, ``ref`` and ``ema``, with settings of its own.

    Attributes:
        weights: the role of which the weights are used.
        settings: a context manager in which the policy has the settings of this role.
        strides: number of Euler steps, down to ``EvaluationPoints.until``, over which velocities are averaged. With 0
            the velocity itself is used.
        learning_rate: of a role whose weights are a copy that is trained by itself (``RoleLearner.learn_role``). With 0
            the weights are those of another role.
    """

    weights: str
    settings: Callable[[], AbstractContextManager[None]] = nullcontext
    strides: int = 0
    learning_rate: float = 0.0


class RoleLearner(Protocol):
    """The learner of a run, as stages see it that train further roles or compare velocities of roles."""

    @property
    def policy(self) -> Any:
        """Return the policy that is trained."""
        ...

    @property
    def noise_key(self) -> NoiseKey:
        """Return the key of all noise of this iteration."""
        ...

    def learn_role(self, role: str, objective: Objective, trajectory: Trajectory) -> Metrics:
        """Take one optimiser step on a role with a ``learning_rate`` of its own and return its metrics.

        All processes call it together. The live weights do not change.
        """
        ...

    def role_velocity(
        self, role: str, trajectory: Trajectory, points: Callable[[Trajectory], EvaluationPoints]
    ) -> torch.Tensor:
        """Return the velocities ``[B, N, R, D]`` of a role at the points of the samples, without gradients."""
        ...

    def average(self, value: torch.Tensor) -> torch.Tensor:
        """Return the mean of a scalar over all processes, which call it together."""
        ...


class IterationRollouts(Protocol):
    """The rollouts of one process in one iteration, as stages see them."""

    @property
    def policy(self) -> Any:
        """Return the policy that is trained."""
        ...

    @property
    def task(self) -> Any:
        """Return the task, which makes prompts, conditions and reward batches."""
        ...

    @property
    def prompts(self) -> Any:
        """Return the prompts of all groups of all processes, one row per group."""
        ...

    @property
    def groups(self) -> torch.Tensor:
        """Return the ids ``[G]`` of this process's groups, which are rows of ``prompts`` and of plans."""
        ...

    @property
    def sample_count(self) -> int:
        """Return the number of samples in the rollouts of all processes. Ids from this number on are free."""
        ...

    @property
    def recipe_name(self) -> str:
        """Return the name of the recipe, for messages."""
        ...

    @property
    def kernel(self) -> Kernel:
        """Return the stochastic kernel."""
        ...

    @property
    def rewards(self) -> CompositeReward:
        """Return the rewards of the run with their weights."""
        ...

    @property
    def noise_key(self) -> NoiseKey:
        """Return the key of all noise of this iteration."""
        ...

    def average(self, value: torch.Tensor) -> torch.Tensor:
        """Return the mean of a scalar over all processes, which call it together."""
        ...

    def rollout_mode(self, role: str | None = None) -> AbstractContextManager[None]:
        """Load the weights of a role inside the block, in evaluation mode and without gradients.

        Without a role these are the weights that sample rollouts.
        """
        ...

    def sample_and_score(self, planner: Planner, group_size: int, role: str | None = None) -> ScoredRollouts:
        """Return further scored samples of every prompt under another plan and role.

        They start from the noise of the first samples of their group.
        """
        ...


class Stage:
    """A part of a method that extends the trainer's loop. The hooks of this base class change nothing."""

    roles: frozenset[str] = frozenset()
    """Names of the roles that ``prepare_policy`` adds for objectives, which must need them."""
    distils: bool = False
    """Whether the policy becomes a student of itself with another number of steps. It then needs fresh rollouts."""

    def prepare_policy(self, policy: Any, steps: int) -> tuple[Any, Mapping[str, RoleView]]:
        """Return the policy to train, and roles by name. The policy that is passed in must not be changed.

        Args:
            policy: the policy that the trainer or the previous stage passes in.
            steps: denoising steps of the recipe's plan.
        """
        return policy, {}

    def collect_batch(self, rollouts: IterationRollouts, collect: Callable[[], ScoredRollouts]) -> ScoredRollouts:
        """Return the scored samples of an iteration.

        Args:
            rollouts: the rollouts of this process in this iteration.
            collect: returns the samples of the stages that follow, and of the rollouts after the last stage.
        """
        return collect()

    def start_session(self, policy: Any, condition: Any, sample: torch.Tensor, key: NoiseKey) -> PolicySession | None:
        """Return a session that explores, for samples with the ids ``[B]``, or None for the policy's own."""
        return None

    def augment_rollout(
        self, trajectory: Trajectory, groups: torch.Tensor, plan: Plan, rollouts: IterationRollouts
    ) -> Trajectory:
        """Return the rollout of some groups with further samples added."""
        return trajectory

    def adjust_scores(self, scores: Mapping[str, Score], trajectory: Trajectory) -> Mapping[str, Score]:
        """Return this process's scores ``[B]`` as they are used for credit."""
        return scores

    def baseline_rows(self, trajectory: Trajectory) -> torch.Tensor | None:
        """Return the mask ``[B]`` of the samples from which group means and spreads are computed; None for all."""
        return None

    def adjust_advantage(
        self, advantage: Advantage, trajectory: Trajectory, credit: BatchCredit
    ) -> tuple[Advantage, Metrics]:
        """Return this process's advantages as they are trained on, and metrics to log."""
        return advantage, {}

    def before_update(self, trajectory: Trajectory, learner: RoleLearner) -> tuple[Trajectory, Metrics]:
        """Return this process's samples as they are trained on, and metrics to log, before the policy's update.

        All processes call it together, so that further roles can be trained.
        """
        return trajectory, {}
