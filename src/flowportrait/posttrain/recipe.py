"""A recipe: plan + kernel + credit + allocation + objective + role rule over the one trainer.

Every part is a frozen dataclass that is both its settings and the thing itself, so ``--set objective.clip_low=0.1``
reaches it and ``recipe.json`` shows it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from flowportrait.config import at_least
from flowportrait.errors import BadInput
from flowportrait.flow.kernel import KERNELS
from flowportrait.flow.noise import KEY_VERSION
from flowportrait.posttrain.advantage import Allocation
from flowportrait.posttrain.credit import CreditConfig
from flowportrait.posttrain.distil import TEACHER, Teacher
from flowportrait.posttrain.disturbance import Disturbance
from flowportrait.posttrain.exemplar import Exemplars
from flowportrait.posttrain.explore import HistoryRouting
from flowportrait.posttrain.objective.interface import Objective
from flowportrait.posttrain.objective.ratio import ClippedRatio
from flowportrait.posttrain.offline_data import OfflineDataConfig
from flowportrait.posttrain.plan import EveryStep, Planner
from flowportrait.reward.composite import RewardWeights
from flowportrait.training.adapter import Lora
from flowportrait.training.roles import SlowCopy

FIRST_VERSION = 1
"""The version of a recipe or state that names none: FlowPortrait 0.1 wrote none."""


@dataclass(frozen=True)
class Recipe:
    name: str
    plan: Planner = field(default_factory=EveryStep)
    kernel: str = "flow-sde"
    eta: float = 0.5
    same_start: bool = False
    """Whether siblings of a group share their initial noise."""
    groups: int = 6
    group_size: int = 16
    frames: int = 72
    """Length of a rollout, 25 frames a second."""
    disturbance: Disturbance | None = None
    """Let the policy hear noise and rooms where rewards hear the clean track."""
    explore: HistoryRouting | None = None
    """Explore through the past instead of through noise."""
    exemplars: Exemplars | None = None
    """Put a real clip of the same speech into every group."""
    teacher: Teacher | None = None
    """Learn to draw in the plan's steps, without guidance, what the start draws in many with it."""
    given: OfflineDataConfig | None = None
    """Learn from clips that are there already instead of from rollouts; their scores come with them."""
    train_on: int | None = None
    """Samples of a group that are trained on: half of them its best, half its worst; none means all."""
    pieces: int = 2
    """A rollout comes in this many pieces; each is scored while the next is made."""
    stale: int = 0
    """Iterations that a rollout waits before it is trained on, for rewards slower than everything else; its
    importance weight is truncated."""
    rewards: RewardWeights = field(default_factory=RewardWeights)
    credit: CreditConfig = field(default_factory=CreditConfig)
    allocation: Allocation = field(default_factory=Allocation)
    objective: Objective = field(default_factory=ClippedRatio)
    learning_rate: float = 5e-5
    updates: int = 2
    """Optimiser steps per rollout; each sees an equal share of every group, or of the groups."""
    epochs: int = 1
    """How often all of them are taken on one rollout."""
    micro_batch: int | None = None
    """Samples per backward pass; gradients add up to those of the whole."""
    grad_clip: float = 1.0
    ema: float = 0.9
    old: SlowCopy | None = None
    """A slow copy that acts in the live policy's place."""
    lora: Lora | None = None
    """Train adapters instead of all weights."""
    autocast: Literal["no", "bf16"] = "no"
    """Precision of the networks; ratios are float32 in any case."""
    checkpointing: bool = False
    """Recompute the backbone's activations in the backward pass instead of keeping them."""
    offload: bool = False
    """Keep trajectories on the host between rollout and update."""
    iterations: int = 100
    checkpoint_every: int = 10
    evaluate_every: int = 10
    """Iterations between looks at held-out prompts, where there are any."""
    patience: int = 3
    """Looks in a row that must be worse than the start, while rewards rise, before a run is stopped."""
    give_up: int = 10
    """Iterations in a row of which nothing was learned, or failed attempts in a row to save, before a run is ended."""
    render_size: int = 128
    seed: int = 0
    version: int = KEY_VERSION
    """Of what a run must keep to go on as it began: 1 is FlowPortrait 0.1 (noise keys, the first step of flow-sde, and
    regions that all weigh alike). A ``recipe.json`` or a state that names none is of version 1."""

    def __post_init__(self) -> None:
        if self.kernel not in KERNELS:
            raise BadInput(f"kernel={self.kernel} is not possible: choose one of {', '.join(KERNELS)}.")
        if not FIRST_VERSION <= self.version <= KEY_VERSION:
            raise BadInput(
                f"version={self.version} is not possible: this FlowPortrait knows {FIRST_VERSION} to {KEY_VERSION}; a "
                "run of a later one needs a later FlowPortrait."
            )
        fewest = 1 if self.credit.among == "batch" else 2
        at_least(self, eta=0, groups=1, group_size=fewest, frames=4, learning_rate=0, updates=1, pieces=1, stale=0)
        at_least(self, micro_batch=1, train_on=2, grad_clip=0, ema=0, iterations=1, checkpoint_every=1, render_size=32)
        at_least(self, evaluate_every=1, patience=1, give_up=1, epochs=1)
        if self.credit.when == "summed" and (self.allocation.steps or self.allocation.regions):
            raise BadInput("credit.when=summed leaves one sum, which allocation cannot divide: leave one of them out.")
        if (TEACHER in self.objective.needs) != (self.teacher is not None):
            raise BadInput("A recipe has a teacher if, and only if, its objective learns from one (objective=Distil).")
        if self.disturbance and (self.exemplars or self.given):
            raise BadInput("A disturbance is of the speech of prompts: leave out exemplars and given.")
        if self.teacher and (self.exemplars or self.explore or self.given):
            raise BadInput("A teacher goes with rollouts alone: leave out exemplars, explore and given.")

    @classmethod
    def from_recipe(cls, name: str, /, **settings: object) -> Recipe:
        """The recipe of that name with other settings: ``from_recipe("flow-grpo", groups=4)``."""
        from flowportrait.config import override
        from flowportrait.posttrain.recipes import named

        return override(named(name), [f"{key}={value}" for key, value in settings.items()])


PostTrainConfig = Recipe
