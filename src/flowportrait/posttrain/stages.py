"""Stages: what a method adds to the trainer's loop, handed over by the recipe.

    collect_batch ─► start_session · augment_rollout ─► adjust_scores ─► baseline_rows ─► adjust_advantage
    whose samples    how they are explored, and what    before credit    what means       after credit
                     stands beside them                                  and spreads are of

The trainer calls every hook of every stage of its recipe, in order, and knows none of them. A stage is a frozen
dataclass that is both its settings and the thing itself; it overrides the hooks that its method needs, and every other
hook leaves things as they are. A recipe has stages in fields of its own (``exploration``, ``exemplars``, ``teacher``,
``offline_data``; see ``methods`` and ``given``) and any others in ``stages``:

    @dataclass(frozen=True)
    class Curriculum(Stage):
        hardest: float = 0.5

        def adjust_scores(self, scores, trajectory):
            ...

    replace(find_recipe("flow-grpo"), stages=(Curriculum(),))
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from flowportrait.flow.kernel import Kernel
from flowportrait.flow.noise import NoiseKey
from flowportrait.posttrain.collect import Batch
from flowportrait.posttrain.credit import BatchCredit
from flowportrait.posttrain.objective.interface import Advantage
from flowportrait.posttrain.plan import Plan, Planner
from flowportrait.posttrain.policy import Session
from flowportrait.posttrain.rollout import Trajectory
from flowportrait.reward.interface import Score

Metrics = dict[str, float]


@dataclass(frozen=True)
class RoleView:
    """A role that a stage adds to ``live``, ``old``, ``ref`` and ``ema``: other weights, or other settings of the
    policy.

    Args:
        weights: the role that lends its weights.
        settings: puts the policy into this role's settings for a while.
        strides: Euler steps over which velocities are averaged, down to ``Points.until``; 0: the velocity itself.
    """

    weights: str
    settings: Callable[[], AbstractContextManager[None]] = nullcontext
    strides: int = 0


class IterationRollouts(Protocol):
    """The rollouts of one process in one iteration, as stages see them."""

    @property
    def policy(self) -> Any:
        """The policy that is trained."""
        ...

    @property
    def task(self) -> Any:
        """Where prompts come from, and conditions and batches of them."""
        ...

    @property
    def prompts(self) -> Any:
        """Prompts of all groups of all processes, one row per group."""
        ...

    @property
    def groups(self) -> torch.Tensor:
        """Ids ``[G]`` of this process's groups; they index ``prompts`` and the rows of plans."""
        ...

    @property
    def sample_count(self) -> int:
        """How many samples the rollouts of all processes have together; ids from there on are free."""
        ...

    @property
    def recipe_name(self) -> str:
        """What the recipe is called, for messages."""
        ...

    @property
    def kernel(self) -> Kernel:
        """The stochastic kernel."""
        ...

    @property
    def noise_key(self) -> NoiseKey:
        """The key of all noise of this iteration."""
        ...

    def rollout_mode(self, role: str | None = None) -> AbstractContextManager[None]:
        """The weights of a role (those that make rollouts), in evaluation mode, without gradients."""
        ...

    def sample_and_score(self, planner: Planner, group_size: int, role: str | None = None) -> Batch:
        """Further scored samples of every prompt under another plan and role, from the noise of the first siblings."""
        ...


class Stage:
    """One part of a method; every hook here leaves things as they are."""

    roles: frozenset[str] = frozenset()
    """Names of the roles that ``prepare_policy`` adds; an objective may need them."""

    def prepare_policy(self, policy: Any, steps: int) -> tuple[Any, Mapping[str, RoleView]]:
        """The policy to train, and roles by name. It must not change the policy that it is given.

        Args:
            policy: as it was handed to the trainer, or to the stage before.
            steps: denoising steps of the recipe's plan.
        """
        return policy, {}

    def collect_batch(self, rollouts: IterationRollouts, collect: Callable[[], Batch]) -> Batch:
        """The scored samples of an iteration; ``collect`` makes those of the stages behind, at last the rollouts."""
        return collect()

    def start_session(self, policy: Any, condition: Any, sample: torch.Tensor, key: NoiseKey) -> Session | None:
        """A session that explores, for samples with the ids ``[B]``; None for the policy's own."""
        return None

    def augment_rollout(
        self, trajectory: Trajectory, groups: torch.Tensor, plan: Plan, rollouts: IterationRollouts
    ) -> Trajectory:
        """The rollout of some groups with further samples of them."""
        return trajectory

    def adjust_scores(self, scores: Mapping[str, Score], trajectory: Trajectory) -> Mapping[str, Score]:
        """This process's scores ``[B]`` before they become credit."""
        return scores

    def baseline_rows(self, trajectory: Trajectory) -> torch.Tensor | None:
        """Which samples ``[B]`` means and spreads of groups are of; None for all."""
        return None

    def adjust_advantage(
        self, advantage: Advantage, trajectory: Trajectory, credit: BatchCredit
    ) -> tuple[Advantage, Metrics]:
        """This process's advantages after credit, and what to log."""
        return advantage, {}
