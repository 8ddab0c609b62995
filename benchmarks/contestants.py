"""What ``recipes.py`` compares: every contestant is a recipe and what is changed in it.

    name ─► (recipe, settings)        studies: which contestants stand on one table
"""

from __future__ import annotations

from typing import NamedTuple

SMALL = (
    "groups=4", "group_size=8", "frames=48", "pieces=1", "render_size=96",
)  # fmt: skip
"""Rollouts small enough for many iterations a minute on one core; the same for everybody."""


class Contestant(NamedTuple):
    recipe: str
    settings: tuple[str, ...] = ()


ALONE = ("rewards.judge=0", "rewards.perceptual=0", "rewards.temporal=0", "objective.reference=0", "learning_rate=2e-4")

CONTESTANTS: dict[str, Contestant] = {
    **{name: Contestant(name) for name in ("flow-grpo", "nft", "nft-regions")},
    "no judge": Contestant("nft", ("rewards.judge=0",)),
    "no perceptual": Contestant("nft", ("rewards.perceptual=0",)),
    "no temporal": Contestant("nft", ("rewards.temporal=0",)),
    "eta 0.1": Contestant("flow-grpo", ("eta=0.1",)),
    "eta 1.0": Contestant("flow-grpo", ("eta=1.0",)),
    "per clip": Contestant("nft-regions", ("credit.dense=0",)),
    "per window": Contestant("nft-regions", ("credit.dense=1",)),
    "sync alone": Contestant("nft", (*ALONE, "rewards.sync=1")),
    "temporal alone": Contestant("nft", (*ALONE, "rewards.temporal=1")),
}

CONTROLS = ("sft", "supervised on", "sft tuned")
PARTS = ("share", "neither", "power", "half power", "eyes and head", "crowd", "rl")
"""Results of ``flowportrait posttrain``, put into ``RUNS/NAME/0/checkpoint`` by hand: what was tried, and ``rl``."""

STUDIES: dict[str, tuple[str, ...]] = {
    "recipes": (*CONTROLS, "flow-grpo", "nft", "nft-regions"),
    "rewards": ("sft", "nft", "no judge", "no perceptual", "no temporal"),
    "noise": ("sft", "eta 0.1", "flow-grpo", "eta 1.0"),
    "credit": ("sft", "per clip", "nft-regions", "per window"),
    "hacks": ("sft", "sync alone", "temporal alone"),
    "parts": ("sft", *PARTS),
}
"""Contestants of every table of ``docs/results.md``."""
