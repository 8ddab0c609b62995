"""The ways of learning from preferences that are compared, each as a recipe over the one trainer with its clips."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from preference_material import FRAMES as WHOLE
from preference_material import WEIGHTS, Material

from flowportrait.corpus.motion_set import MotionClip
from flowportrait.posttrain.credit import CreditConfig
from flowportrait.posttrain.given import Given, GivenTask, damaged, windows
from flowportrait.posttrain.items import Item
from flowportrait.posttrain.objective.dpo import DPO
from flowportrait.posttrain.recipe import Recipe
from flowportrait.posttrain.recipes import named
from flowportrait.posttrain.run import from_pairs
from flowportrait.posttrain.task import TalkingTask
from flowportrait.reward.composite import Composite

FRAMES, CHUNK = 24, 4
ONLINE = {"sync": 0.7, "expressiveness": 0.15, "smoothness": 0.15}
Setup = tuple[TalkingTask | GivenTask, Recipe, Composite]

ARMS = (
    "supervised", "flow-dpo", "flow-dpo derived", "flow-dpo online", "sync-dpo", "flow-rwr", "threshold",
    "flow-dpo hard", "flow-dpo hard anchored",
)  # fmt: skip
HARD = 2e-4
"""A learning rate at which flow-dpo is expected to fail, ten times its own."""


def setup(arm: str, made: Material, clips: Sequence[MotionClip]) -> Setup:
    """What a trainer of this arm is made of, beside the policy."""
    offline = Composite((), WEIGHTS)
    if arm == "supervised":
        recipe = replace(
            named("flow-rwr"), given=Given(clips="rated"), credit=CreditConfig(among="batch"), group_size=1, groups=48,
            frames=FRAMES, learning_rate=5e-5,
        )  # fmt: skip
        return GivenTask(windows(made.real, FRAMES, ["sync"]), CHUNK), recipe, offline
    if arm == "sync-dpo":
        recipe = replace(named("sync-dpo"), groups=24)
        assert recipe.given is not None, "it damages clips"
        return GivenTask(damaged(clips, recipe.given, recipe.frames), CHUNK), recipe, offline
    if arm in ("flow-dpo online", "flow-rwr"):
        items = [Item(clip.mel.float(), 0) for clip in clips if len(clip.motion) >= WHOLE]
        recipe = replace(named(arm.split()[0]), frames=WHOLE, groups=6, group_size=8)
        return TalkingTask(items, WHOLE, None, CHUNK), recipe, Composite.of(ONLINE)
    given = partial(windows, frames=FRAMES, aspects=list(WEIGHTS))
    recipe = replace(from_pairs(named(arm.split()[0])), frames=FRAMES, groups=24)
    if arm == "threshold":
        return GivenTask(given(made.rated), CHUNK), replace(recipe, groups=48), offline
    changes = {
        "flow-dpo derived": {"objective": DPO(level="derived")},
        "flow-dpo hard": {"learning_rate": HARD},
        "flow-dpo hard anchored": {"learning_rate": HARD, "objective": DPO(anchor=1.0)},
    }.get(arm, {})
    return GivenTask(given(made.pairs), CHUNK), replace(recipe, **changes), offline  # type: ignore[arg-type]
