"""The ways of learning from preferences that are compared, each as a recipe over the one trainer with its clips."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from preference_material import FRAMES as WHOLE
from preference_material import WEIGHTS, Material

from flowportrait.data.motion_dataset import MotionClip
from flowportrait.rewards.registry import CompositeReward
from flowportrait.rl.config import Recipe
from flowportrait.rl.credit import CreditConfig
from flowportrait.rl.objectives.preference import DPO
from flowportrait.rl.offline_data import OfflineDataConfig, OfflineTask, clip_window_source, damaged_clip_source
from flowportrait.rl.post_trainer import recipe_for_pairs
from flowportrait.rl.recipes import find_recipe
from flowportrait.rl.task import SpeechItem, TalkingTask

FRAMES, CHUNK = 24, 4
ONLINE = {"sync": 0.7, "expressiveness": 0.15, "smoothness": 0.15}
Setup = tuple[TalkingTask | OfflineTask, Recipe, CompositeReward]

HARD = 2e-4
"""A learning rate at which DPO is expected to fail, ten times its own."""
CHANGES: dict[str, Callable[[Recipe], Recipe]] = {
    "derived": lambda recipe: replace(recipe, objective=DPO(level="derived")),
    "anchored": lambda recipe: replace(recipe, objective=DPO(anchor=1.0)),
    "hard": lambda recipe: replace(recipe, learning_rate=HARD),
    "hard anchored": lambda recipe: replace(recipe, learning_rate=HARD, objective=DPO(anchor=1.0)),
}
"""What comes after the name of a recipe."""
ARMS = (
    "supervised", "flow-dpo", "flow-dpo derived", "flow-dpo online", "sync-dpo", "sync-dpo anchored", "flow-rwr",
    "threshold", "flow-dpo hard", "flow-dpo hard anchored",
)  # fmt: skip
WITH_REAL = ("flow-grpo", "exemplar-ratio", "awm", "exemplar-awm", "exemplar-dpo")
"""Real clips in the groups, in the ratio, in matching and as winners, beside the same without (for winners:
``flow-dpo online``)."""
TRAINED = (*ARMS, *WITH_REAL)
CHOSEN = ("best of 2", "pruned 8", "best of 8")
"""The first two of about equal cost."""


def again(arm: str, seed: int) -> str:
    """The name of an arm trained with a seed: the first one's is the arm's own."""
    return f"{arm}@{seed}" if seed else arm


def trained(output: Path, system: str) -> Path:
    """Where what was trained lies."""
    return output / "arms" / system.replace(" ", "_")


def is_trained(system: str) -> bool:
    """Whether a system is an arm, of whatever seed."""
    return system.split("@")[0] in TRAINED


def several(system: str) -> int:
    """Of how many performances, or candidates of every chunk, the best is taken."""
    return int(system.rpartition(" ")[2])


def setup(arm: str, made: Material, clips: Sequence[MotionClip], seed: int = 0) -> Setup:
    """What a trainer of this arm is made of, beside the policy; the clips are the same for all seeds."""
    task, recipe, rewards = _setup(arm, made, clips)
    return task, replace(recipe, seed=seed), rewards


def _setup(arm: str, made: Material, clips: Sequence[MotionClip]) -> Setup:
    offline = CompositeReward((), WEIGHTS)
    if arm == "supervised":
        recipe = replace(
            find_recipe("flow-rwr"), offline_data=OfflineDataConfig(clips="rated"),
            credit=CreditConfig(baseline_scope="batch"), group_size=1, groups=48, frames=FRAMES, learning_rate=5e-5,
        )  # fmt: skip
        return OfflineTask(clip_window_source(made.real, FRAMES, ["sync"]), CHUNK), recipe, offline
    name, _, change = arm.partition(" ")
    changed = CHANGES.get(change, lambda recipe: recipe)
    if name == "sync-dpo":
        recipe = changed(replace(find_recipe(name), groups=24))
        assert recipe.offline_data is not None, "it damages clips"
        return OfflineTask(damaged_clip_source(clips, recipe.offline_data, recipe.frames), CHUNK), recipe, offline
    if arm in ("flow-dpo online", "flow-rwr", *WITH_REAL):
        items = [SpeechItem(clip.mel.float(), 0, clip.motion) for clip in clips if len(clip.motion) > WHOLE]
        recipe = replace(find_recipe(name), frames=WHOLE, groups=6, group_size=8)
        return TalkingTask(items, WHOLE, None, CHUNK), recipe, CompositeReward.of(ONLINE)
    rated = name == "threshold"
    families = made.rated if rated else made.pairs
    recipe = replace(recipe_for_pairs(find_recipe(name)), frames=FRAMES, groups=48 if rated else 24)
    return OfflineTask(clip_window_source(families, FRAMES, list(WEIGHTS)), CHUNK), changed(recipe), offline
