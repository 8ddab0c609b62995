"""Recipes: an algorithm is a choice of plan, kernel, credit, objective and regulariser over one trainer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from flowportrait.config import at_least
from flowportrait.posttrain.credit import CreditConfig
from flowportrait.posttrain.objective import ObjectiveConfig
from flowportrait.reward.composite import RewardWeights


@dataclass(frozen=True)
class Recipe:
    name: str
    kernel: str = "flow-sde"
    eta: float = 0.5
    steps: int = 6
    """Denoising steps per chunk in a rollout."""
    shift: float = 1.0
    trained_steps: int | None = None
    """Recorded steps that an update trains on, drawn per iteration; none means all."""
    same_start: bool = False
    """Whether siblings of a group share their initial noise."""
    groups: int = 6
    group_size: int = 16
    frames: int = 72
    """Length of a rollout, 25 frames a second."""
    rewards: RewardWeights = field(default_factory=RewardWeights)
    credit: CreditConfig = field(default_factory=CreditConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    learning_rate: float = 5e-5
    updates: int = 2
    """Optimiser steps per rollout; each sees an equal share of every group."""
    grad_clip: float = 1.0
    ema: float = 0.9
    iterations: int = 100
    checkpoint_every: int = 10
    render_size: int = 128
    seed: int = 0

    def __post_init__(self) -> None:
        at_least(self, eta=0, steps=2, trained_steps=1, groups=1, group_size=2, frames=4, learning_rate=0, updates=1)
        at_least(self, ema=0, iterations=1, checkpoint_every=1, render_size=32)


def flow_grpo() -> Recipe:
    """Flow-GRPO (2505.05470): noise at every step but the last, group-normalised advantages, clipped ratio, KL to
    the supervised policy. Denoising reduction is moot at six steps. Differs in that the ratio is that of a whole
    chunk's step (log-ratios summed, clip 0.2), and that lip sync pays single chunks."""
    return Recipe("flow-grpo")


RECIPES: dict[str, Callable[[], Recipe]] = {"flow-grpo": flow_grpo}
"""Every recipe by the name the command line takes."""
