"""What ``recipes.py`` compares: every contestant is a recipe and what is changed in it.

    name ─► (recipe, settings)        studies: which contestants stand on one table
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from flowportrait.reward.interface import RewardBatch, Score, all_valid
from flowportrait.reward.registry import REWARDS, register

SMALL = (
    "groups=4", "group_size=8", "frames=48", "pieces=1", "render_size=96",
)  # fmt: skip
"""Rollouts small enough for many iterations a minute on one core; the same for everybody."""


class Contestant(NamedTuple):
    recipe: str
    settings: tuple[str, ...] = ()


class Chance:
    """Pays at random: what a run that learns from it becomes is the objective's own drift."""

    name = "chance"
    needs = frozenset({"motion"})

    def __call__(self, batch: RewardBatch) -> Score:
        seed = int(batch.motion.double().abs().sum() * 1e6) % 2**31
        return all_valid(torch.rand(len(batch), generator=torch.Generator().manual_seed(seed)))


if Chance.name not in REWARDS:
    register(Chance.name, lambda options: Chance())

ALONE = ("rewards.judge=0", "rewards.perceptual=0", "rewards.temporal=0", "objective.reference=0", "learning_rate=2e-4")

CONTESTANTS: dict[str, Contestant] = {
    **{name: Contestant(name) for name in ("flow-grpo", "nft", "nft-regions")},
    "eta 0.1": Contestant("flow-grpo", ("eta=0.1",)),
    "eta 1.0": Contestant("flow-grpo", ("eta=1.0",)),
    "per clip": Contestant("nft-regions", ("credit.dense=0",)),
    "per window": Contestant("nft-regions", ("credit.dense=1",)),
    "sync alone": Contestant("nft", (*ALONE, "rewards.sync=1")),
    "temporal alone": Contestant("nft", (*ALONE, "rewards.temporal=1")),
    "chance alone": Contestant("nft", (*ALONE, "rewards.other.chance=1")),
}

CONTROLS = ("sft", "supervised on", "sft tuned")
PARTS = ("share", "neither", "power", "half power", "eyes and head", "crowd", "three quarters", "rl")
"""Results of ``flowportrait posttrain``, put into ``RUNS/NAME/0/checkpoint`` by hand: what was tried, and ``rl``."""

STUDIES: dict[str, tuple[str, ...]] = {
    "recipes": (*CONTROLS, "flow-grpo", "nft", "nft-regions"),
    "noise": ("sft", "eta 0.1", "flow-grpo", "eta 1.0"),
    "credit": ("sft", "per clip", "nft-regions", "per window"),
    "hacks": ("sft", "sync alone", "temporal alone", "chance alone"),
    "parts": ("sft", *PARTS),
}
"""Contestants of every table of ``docs/results.md``."""
