"""This module defines the configuration of a post-training run.

A recipe is a ``PostTrainConfig`` with the settings of one method. Every part (plan, objective, credit, stages, …) is a
frozen dataclass that holds its settings and implements the behaviour, so that ``--set objective.clip_low=0.1`` reaches
the setting and ``recipe.json`` records it:

    PostTrainConfig.from_recipe("flow-grpo", groups=4, **{"objective.kl_weight": 0.1})
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

from flowportrait.config import at_least, merge, replace_settings, upgrade_keys
from flowportrait.errors import BadInput
from flowportrait.flow.kernels import KERNELS
from flowportrait.flow.noise import NOISE_KEY_VERSION
from flowportrait.rewards.random import CHANCE, RANDOM_REWARDS
from flowportrait.rewards.registry import RewardWeights
from flowportrait.rl.allocation import Allocation
from flowportrait.rl.credit import CreditConfig
from flowportrait.rl.method_stages import Exemplars, HistoryRouting, Teacher
from flowportrait.rl.objectives.distribution import Critic
from flowportrait.rl.objectives.interface import FIXED_ROLES, Objective
from flowportrait.rl.objectives.ratio import ClippedRatio
from flowportrait.rl.offline_data import OfflineDataConfig
from flowportrait.rl.plan import AllSteps, Planner
from flowportrait.rl.recipes import find_recipe
from flowportrait.rl.stages import Stage
from flowportrait.rl.task import Disturbance
from flowportrait.training.learner import SlowCopy
from flowportrait.training.lora import LoraSettings

FIRST_VERSION = 1
"""The version of a recipe or state that does not name one. FlowPortrait 0.1 did not write a version."""


@dataclass(frozen=True)
class PostTrainConfig:
    """All settings of a post-training run. A recipe is one instance with the settings of a method."""

    name: str
    """Name of the recipe: a built-in name, an entry point, or MODULE:NAME. A resumed run must have the same name."""
    plan: Planner = field(default_factory=AllSteps)
    """Which denoising steps are stochastic, and which of them are trained on."""
    kernel: str = "flow-sde"
    """The stochastic kernel x' ~ N(a·x + b·v, s²) of noisy steps."""
    eta: float = 0.5
    """Scale of the kernel's noise."""
    same_start: bool = False
    """Whether the samples of a group share their initial noise."""
    groups: int = 6
    """Prompts per iteration over all processes. Each prompt has one group of samples."""
    group_size: int = 16
    """Samples per group (siblings), which are compared with each other."""
    frames: int = 72
    """Length of a rollout in frames, at 25 frames per second."""
    disturbance: Disturbance | None = None
    """Give the policy speech with noise and reverberation, while rewards get the clean recording."""
    exploration: HistoryRouting | None = None
    """Explore through the history of chunks instead of through noise."""
    exemplars: Exemplars | None = None
    """Add a real clip of the same speech to every group."""
    teacher: Teacher | None = None
    """Distil the starting policy, sampled in many guided steps, into one sampled in the plan's steps without
    guidance."""
    critic: Critic | None = None
    """Distil the starting policy like ``teacher``, by matching distributions with a critic."""
    offline_data: OfflineDataConfig | None = None
    """Learn from existing clips with known scores instead of from rollouts."""
    stages: tuple[Stage, ...] = ()
    """Further stages, for methods of your own. They are called after those in the fields above."""
    train_on: int | None = None
    """Samples of a group that are trained on: half of them the best, half the worst. None trains on all."""
    rollout_chunks: int = 2
    """Number of parts in which a rollout is sampled. Each part is scored while the next one is sampled."""
    staleness: int = 0
    """Iterations that a rollout waits before it is trained on, for slow rewards. Its importance weight is truncated."""
    rewards: RewardWeights = field(default_factory=RewardWeights)
    """Weight of every reward."""
    credit: CreditConfig = field(default_factory=CreditConfig)
    """How scores become advantages."""
    allocation: Allocation = field(default_factory=Allocation)
    """At which noise levels and in which latent regions each reward counts."""
    objective: Objective = field(default_factory=ClippedRatio)
    """The loss."""
    learning_rate: float = 5e-5
    """Learning rate of AdamW, constant."""
    updates: int = 2
    """Optimiser steps per rollout. Each uses an equal share of every group, or of the groups."""
    epochs: int = 1
    """Passes over one rollout, each of ``updates`` optimiser steps."""
    micro_batch: int | None = None
    """Samples per backward pass. Gradients are accumulated over the whole batch."""
    grad_clip: float = 1.0
    """Largest norm of a gradient."""
    ema: float = 0.9
    """Decay of the averaged weights, which are written to checkpoints."""
    old: SlowCopy | None = None
    """A slowly updated copy of the weights that samples the rollouts in place of the live weights."""
    lora: LoraSettings | None = None
    """Train adapters instead of all weights."""
    autocast: Literal["no", "bf16"] = "no"
    """Precision of the networks. Ratios are always float32."""
    checkpointing: bool = False
    """Recompute the backbone's activations in the backward pass instead of keeping them."""
    offload: bool = False
    """Keep trajectories on the host between rollout and update."""
    iterations: int = 100
    """Number of iterations: one rollout and its updates each."""
    checkpoint_every: int = 10
    """Iterations between saved states, from which a run can be resumed."""
    evaluate_every: int = 10
    """Iterations between held-out evaluations, if there are held-out prompts."""
    patience: int = 3
    """Consecutive held-out evaluations that must be worse than the start, while rewards rise, to stop a run."""
    give_up: int = 10
    """Consecutive iterations without an update, or consecutive failed attempts to save, after which a run ends."""
    render_size: int = 128
    """Side in pixels of the frames that rewards receive."""
    seed: int = 0
    """Seed of prompts, plans and noise."""
    version: int = NOISE_KEY_VERSION
    """Version of the numerics, kept when a run is resumed. Version 1 is FlowPortrait 0.1: its noise keys, its first
    step of flow-sde, and equal weights of all regions. A ``recipe.json`` or state without a version has version 1."""

    earlier_keys = (
        ("pieces", "rollout_chunks"), ("stale", "staleness"), ("explore", "exploration"), ("given", "offline_data"),
    )  # fmt: skip

    @classmethod
    def from_recipe(cls, recipe: str, /, **settings: Any) -> PostTrainConfig:
        """Return a recipe by name with some settings changed.

        Args:
            recipe: a built-in recipe, an entry point of ``flowportrait.recipes``, or ``MODULE:NAME``.
            **settings: values by key. Settings of parts have dotted keys, as in ``**{"objective.kl_weight": 0.1}``.

        Raises:
            BadInput: unknown recipe, unknown key, or a value that does not fit its field.
        """
        return replace_settings(find_recipe(recipe), settings)

    def with_random_rewards(self) -> PostTrainConfig:
        """Return the control of this configuration: the same weights, and random scores instead of every reward.

        What a run with it changes is the drift of the method, not something learned from rewards. Rewards of the same
        latent region become one random reward of that region.
        """
        weights: dict[str, float] = {}
        for reward, weight in self.rewards.by_name().items():
            name = f"{CHANCE}_{self.allocation.regions.get(reward)}"
            name = name if name in RANDOM_REWARDS else CHANCE
            weights[name] = weights.get(name, 0.0) + weight
        regions = {name: name.removeprefix(f"{CHANCE}_") for name in weights if name != CHANCE}
        allocation = replace(self.allocation, steps={}, regions=regions)
        return replace(self, rewards=RewardWeights.only(weights), allocation=allocation)

    @classmethod
    def from_json(cls, path: Path) -> PostTrainConfig:
        """Read the configuration of a run from its ``recipe.json``, written by this version or by version 0.1.

        Raises:
            BadInput: the file is not a recipe, or it has settings that the recipe does not have.
        """
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise BadInput(f"{path} cannot be read as a recipe: {error}.") from error
        if not isinstance(data, dict) or "name" not in data:
            raise BadInput(f"{path} is not a recipe: it has no name.")
        recipe = find_recipe(data["name"])
        return merge(recipe, recipe.upgrade(data))

    def upgrade(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """Return the settings of a run with this recipe, as written by any version, under the current keys."""
        return {"version": FIRST_VERSION, "stages": [], **upgrade_keys(self, data)}

    @property
    def active_stages(self) -> tuple[Stage, ...]:
        """Return all stages in call order: those in fields of their own, in the order of the fields, then
        ``stages``."""
        values = (getattr(self, part.name) for part in fields(self))
        return (*(value for value in values if isinstance(value, Stage)), *self.stages)

    @property
    def group_minibatches(self) -> int:
        """Return the number of minibatches of whole groups into which a process's groups are divided.

        It is one, unless the objective compares the samples of a group with each other.
        """
        return self.updates if self.objective.whole_groups else 1

    @property
    def whole_group_minibatches(self) -> bool:
        """Whether a minibatch holds whole groups, as an objective that compares siblings needs."""
        return self.objective.whole_groups

    def __post_init__(self) -> None:
        if self.kernel not in KERNELS:
            raise BadInput(f"kernel={self.kernel} is not possible: choose one of {', '.join(KERNELS)}.")
        if not FIRST_VERSION <= self.version <= NOISE_KEY_VERSION:
            raise BadInput(
                f"version={self.version} is not possible: this FlowPortrait knows {FIRST_VERSION} to "
                f"{NOISE_KEY_VERSION}; a run of a later one needs a later FlowPortrait."
            )
        smallest_group = 1 if self.credit.baseline_scope == "batch" else 2
        at_least(
            self, eta=0, groups=1, group_size=smallest_group, frames=4, learning_rate=0, updates=1, rollout_chunks=1
        )
        at_least(self, micro_batch=1, train_on=2, grad_clip=0, ema=0, iterations=1, checkpoint_every=1, render_size=32)
        at_least(self, evaluate_every=1, patience=1, give_up=1, epochs=1, staleness=0)
        if self.credit.aggregation == "sum_then_normalize" and (self.allocation.steps or self.allocation.regions):
            raise BadInput(
                "credit.aggregation=sum_then_normalize leaves one sum, which allocation cannot divide: leave one of "
                "them out."
            )
        roles = FIXED_ROLES.union(*(stage.roles for stage in self.active_stages))
        if missing := sorted(self.objective.needs - roles):
            raise BadInput(
                f"The objective learns from the role {missing[0]!r}, which no stage of this recipe adds: add the stage "
                "(a teacher for objective=Distil), or choose another objective."
            )
        if unused := sorted(roles - FIXED_ROLES - self.objective.needs):
            raise BadInput(
                f"A stage adds the role {unused[0]!r}, which the objective does not learn from: choose an objective "
                "that does (Distil for a teacher), or leave the stage out."
            )
        if self.disturbance and (self.exemplars or self.offline_data):
            raise BadInput("A disturbance is of the speech of prompts: leave out exemplars and offline_data.")
        distils = any(stage.distils for stage in self.active_stages)
        if distils and (self.exemplars or self.exploration or self.offline_data or self.staleness):
            raise BadInput(
                "A teacher or a critic goes with fresh rollouts alone: leave out exemplars, exploration, offline_data "
                "and staleness."
            )


Recipe = PostTrainConfig
"""The name of ``PostTrainConfig`` in version 0.1."""
