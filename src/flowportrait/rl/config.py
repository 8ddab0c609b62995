"""The configuration of post-training.

Every part is a frozen dataclass that is both its settings and the thing itself, so ``--set objective.clip_low=0.1``
reaches it and ``recipe.json`` shows it:

    PostTrainConfig.from_recipe("flow-grpo", groups=4, **{"objective.kl_weight": 0.1})
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from flowportrait.config import at_least, merge, replace_settings, upgrade_keys
from flowportrait.errors import BadInput
from flowportrait.flow.kernels import KERNELS
from flowportrait.flow.noise import KEY_VERSION
from flowportrait.rewards.registry import RewardWeights
from flowportrait.rl.credit import Allocation, CreditConfig
from flowportrait.rl.objectives.interface import FIXED_ROLES, Objective
from flowportrait.rl.objectives.ratio import ClippedRatio
from flowportrait.rl.offline_data import OfflineDataConfig
from flowportrait.rl.plan import AllSteps, Planner
from flowportrait.rl.recipes import find_recipe
from flowportrait.rl.stages import Exemplars, HistoryRouting, Stage, Teacher
from flowportrait.rl.task import Disturbance
from flowportrait.training.learner import SlowCopy
from flowportrait.training.lora import Lora

FIRST_VERSION = 1
"""The version of a recipe or state that names none: FlowPortrait 0.1 wrote none."""


@dataclass(frozen=True)
class PostTrainConfig:
    """Every setting of a post-training run; a recipe is one of these with the settings of a method."""

    name: str
    """The recipe that this is: a built-in name, an entry point, or MODULE:NAME; a run is resumed by it."""
    plan: Planner = field(default_factory=AllSteps)
    """Which denoising steps are stochastic, and which of them are trained on."""
    kernel: str = "flow-sde"
    """The stochastic kernel x' ~ N(a·x + b·v, s²) of noisy steps."""
    eta: float = 0.5
    """Scale of the kernel's noise."""
    same_start: bool = False
    """Whether siblings of a group share their initial noise."""
    groups: int = 6
    """Prompts per iteration, each with a group of samples; the processes share them."""
    group_size: int = 16
    """Samples per group (siblings), which are compared with each other."""
    frames: int = 72
    """Length of a rollout in frames, 25 a second."""
    disturbance: Disturbance | None = None
    """Let the policy hear noise and rooms where rewards hear the clean track."""
    exploration: HistoryRouting | None = None
    """Explore through the history of chunks instead of through noise."""
    exemplars: Exemplars | None = None
    """Put a real clip of the same speech into every group."""
    teacher: Teacher | None = None
    """Learn to draw in the plan's steps, without guidance, what the start draws in many with it."""
    offline_data: OfflineDataConfig | None = None
    """Learn from clips that exist already instead of from rollouts; their scores come with them."""
    stages: tuple[Stage, ...] = ()
    """Further stages of a method of your own, called after those above."""
    train_on: int | None = None
    """Samples of a group that are trained on: half of them its best, half its worst; none means all."""
    rollout_chunks: int = 2
    """A rollout is made in this many parts; each is scored while the next is made."""
    staleness: int = 0
    """Iterations that a rollout waits before it is trained on, for rewards slower than everything else; its
    importance weight is truncated."""
    rewards: RewardWeights = field(default_factory=RewardWeights)
    """Weight of every reward."""
    credit: CreditConfig = field(default_factory=CreditConfig)
    """How scores become advantages."""
    allocation: Allocation = field(default_factory=Allocation)
    """Which rewards count at which noise levels and in which latent regions."""
    objective: Objective = field(default_factory=ClippedRatio)
    """The loss."""
    learning_rate: float = 5e-5
    """Learning rate of AdamW, constant."""
    updates: int = 2
    """Optimiser steps per rollout; each sees an equal share of every group, or of the groups."""
    epochs: int = 1
    """Passes over one rollout, each of ``updates`` optimiser steps."""
    micro_batch: int | None = None
    """Samples per backward pass; gradients add up to those of the whole."""
    grad_clip: float = 1.0
    """Largest norm of a gradient."""
    ema: float = 0.9
    """Decay of the averaged weights, which are delivered."""
    old: SlowCopy | None = None
    """A slow copy of the weights that makes the rollouts in place of the live ones."""
    lora: Lora | None = None
    """Train adapters instead of all weights."""
    autocast: Literal["no", "bf16"] = "no"
    """Precision of the networks; ratios are float32 in any case."""
    checkpointing: bool = False
    """Recompute the backbone's activations in the backward pass instead of keeping them."""
    offload: bool = False
    """Keep trajectories on the host between rollout and update."""
    iterations: int = 100
    """Iterations of the run: a rollout and its updates each."""
    checkpoint_every: int = 10
    """Iterations between states on disk to resume from."""
    evaluate_every: int = 10
    """Iterations between held-out evaluations, where there are held-out prompts."""
    patience: int = 3
    """Held-out evaluations in a row that must be worse than the start, while rewards rise, before a run is stopped."""
    give_up: int = 10
    """Iterations in a row in which nothing was learned, or failed attempts in a row to save, before a run is ended."""
    render_size: int = 128
    """Side in pixels of the frames that rewards look at."""
    seed: int = 0
    """Seed of prompts, plans and noise."""
    version: int = KEY_VERSION
    """What a run must keep to go on as it began: 1 is FlowPortrait 0.1 (noise keys, the first step of flow-sde, and
    regions that all weigh alike). A ``recipe.json`` or a state that names none is of version 1."""

    earlier_keys = (
        ("pieces", "rollout_chunks"), ("stale", "staleness"), ("explore", "exploration"), ("given", "offline_data"),
    )  # fmt: skip

    @classmethod
    def from_recipe(cls, recipe: str, /, **settings: Any) -> PostTrainConfig:
        """A recipe by name with some settings changed.

        Args:
            recipe: a built-in recipe, an entry point of ``flowportrait.recipes``, or ``MODULE:NAME``.
            settings: values by key; settings of parts by dotted keys, as in ``**{"objective.kl_weight": 0.1}``.

        Raises:
            BadInput: unknown recipe, unknown key, or a value that does not fit its field.
        """
        return replace_settings(find_recipe(recipe), settings)

    @classmethod
    def from_json(cls, path: Path) -> PostTrainConfig:
        """The configuration of a run from its ``recipe.json``, of this version or of version 0.1.

        Raises:
            BadInput: not such a file, or settings that the recipe does not have.
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
        """Settings as any version wrote them, of a run with this recipe, under today's keys."""
        return {"version": FIRST_VERSION, "stages": [], **upgrade_keys(self, data)}

    @property
    def active_stages(self) -> tuple[Stage, ...]:
        """The stages of the method: those in fields of their own in the order of the fields, then ``stages``."""
        own = (getattr(self, part.name) for part in fields(self))
        return (*(part for part in own if isinstance(part, Stage)), *self.stages)

    @property
    def group_minibatches(self) -> int:
        """Into how many minibatches of whole groups a process's groups are divided: one, unless the objective compares
        siblings."""
        return self.updates if self.objective.whole_groups else 1

    def __post_init__(self) -> None:
        if self.kernel not in KERNELS:
            raise BadInput(f"kernel={self.kernel} is not possible: choose one of {', '.join(KERNELS)}.")
        if not FIRST_VERSION <= self.version <= KEY_VERSION:
            raise BadInput(
                f"version={self.version} is not possible: this FlowPortrait knows {FIRST_VERSION} to {KEY_VERSION}; a "
                "run of a later one needs a later FlowPortrait."
            )
        fewest = 1 if self.credit.baseline_scope == "batch" else 2
        at_least(self, eta=0, groups=1, group_size=fewest, frames=4, learning_rate=0, updates=1, rollout_chunks=1)
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
        if self.teacher and (self.exemplars or self.exploration or self.offline_data or self.staleness):
            raise BadInput(
                "A teacher goes with fresh rollouts alone: leave out exemplars, exploration, offline_data and "
                "staleness."
            )


Recipe = PostTrainConfig
"""The name of ``PostTrainConfig`` in version 0.1."""
