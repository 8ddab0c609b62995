"""What ``recipes.py`` compares: every contestant is a recipe and what is changed in it.

name ─► (recipe, settings)        studies: which contestants stand on one table
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import NamedTuple

import torch

from flowportrait.rewards.batch import RewardBatch
from flowportrait.rewards.interface import Score, all_valid
from flowportrait.rewards.registry import REWARDS, register_reward

SMALL = (
    "groups=4", "group_size=8", "frames=48", "rollout_chunks=1", "render_size=96",
)  # fmt: skip
"""Rollouts small enough for many iterations a minute on one core; the same for everybody."""


class Contestant(NamedTuple):
    recipe: str
    settings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Chance:
    """Pays at random: what a run that learns from it becomes is the objective's own drift."""

    name: str
    needs = frozenset({"motion"})

    def __call__(self, batch: RewardBatch) -> Score:
        seed = int(batch.motion.double().abs().sum() * 1e6) + zlib.crc32(self.name.encode())
        return all_valid(torch.rand(len(batch), generator=torch.Generator().manual_seed(seed % 2**31)))


CHANCES = ("chance", "chance_mouth", "chance_eyes", "chance_head")
for _name in CHANCES:
    if _name not in REWARDS:
        register_reward(_name, lambda options, name=_name: Chance(name))

ALONE = ("rewards.judge=0", "rewards.perceptual=0", "rewards.temporal=0", "objective.kl_weight=0", "learning_rate=2e-4")
AT_RANDOM = ("rewards.judge=0", "rewards.perceptual=0", "rewards.temporal=0", "rewards.other.chance=1")
GRPO = (
    "flow-grpo", "dance-grpo", "mix-grpo", "flash-grpo", "longcat-grpo", "cps", "guard", "dppo", "branch-grpo",
    "tempflow", "otca", "vipo", "pref-grpo", "solace", "kvpo", "gspo",
)  # fmt: skip
FORWARD = ("nft", "nft-regions", "awm", "flow-rwr", "exemplar-ratio", "exemplar-awm")
"""The rest of those that need neither pairs nor a teacher: learning from finished clips, or from real ones."""

CONTESTANTS: dict[str, Contestant] = {
    **{name: Contestant(name) for name in (*GRPO, *FORWARD)},
    "branch-grpo": Contestant("branch-grpo", ("plan.forks=3",)),  # eight leaves part in two, three times
    **{f"{recipe} at random": Contestant(recipe, AT_RANDOM) for recipe in ("flow-grpo", "nft")},
    **{f"eta {eta}": Contestant("flow-grpo", (f"eta={eta}",)) for eta in (0.1, 0.3, 0.7, 1.0)},
    **{
        f"{recipe}, no {group}": Contestant(recipe, (f"rewards.{group}=0",))
        for recipe in ("flow-grpo", "nft")
        for group in ("judge", "perceptual", "temporal")
    },
    "flow-rwr, slower": Contestant("flow-rwr", ("learning_rate=2e-5",)),
    "per clip": Contestant("nft-regions", ("credit.dense=0",)),
    "per window": Contestant("nft-regions", ("credit.dense=1",)),
    "sync alone": Contestant("nft", (*ALONE, "rewards.sync=1")),
    "temporal alone": Contestant("nft", (*ALONE, "rewards.temporal=1")),
    "chance alone": Contestant("nft", (*ALONE, "rewards.other.chance=1")),
}

CONTROLS = ("sft", "supervised on", "sft tuned", "flow-grpo at random", "nft at random")
PARTS = ("share", "neither", "power", "half power", "eyes and head", "crowd", "three quarters", "rl_0", "rl")
"""Results of ``flowportrait posttrain``, put into ``RUNS/NAME/0/checkpoint`` by hand: what was tried, what became of
seed 0, and ``rl``, the mean of three seeds."""
PAID = ("crowd", "paid at random", "without crowd_eyes", "without crowd_head", "without crowd_mouth", "without sync")
"""The shipped recipe and what ``shipped.py`` changes in its rewards."""

STUDIES: dict[str, tuple[str, ...]] = {
    "recipes": (*CONTROLS, *GRPO, *FORWARD, "flow-rwr, slower", "rl"),
    "leaders": (
        "flow-grpo", "gspo", "vipo", "dppo", "kvpo", "nft", "awm", "flow-grpo at random", "nft at random",
    ),
    "noise": ("sft", "eta 0.1", "eta 0.3", "flow-grpo", "eta 0.7", "eta 1.0"),
    "groups": (
        "sft", "flow-grpo", "flow-grpo, no judge", "flow-grpo, no perceptual", "flow-grpo, no temporal", "nft",
        "nft, no judge", "nft, no perceptual", "nft, no temporal",
    ),
    "credit": ("sft", "per clip", "nft-regions", "per window"),
    "hacks": ("sft", "sync alone", "temporal alone", "chance alone"),
    "parts": ("sft", *PARTS),
    "paid": ("sft", *PAID),
}  # fmt: skip
"""Contestants of every table of ``docs/results.md``."""
