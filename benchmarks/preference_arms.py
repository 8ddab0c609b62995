"""Ways of learning from preferences, each a recipe over the one trainer, and the clips that they learn from.

All clips are of training speakers and rated by the reward side alone:

    speech of a real clip ─► four samples of ``sft`` ─► sync, expressiveness, smoothness, each standardised
        pairs    the best against the worst, per aspect A, B or tie (within a quarter of a standard deviation)
        rated    every sample by itself, 1 to 5 points per aspect
        real     real clips, all rated alike: matching them is supervised training
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from benchmarks.motion_ratings import FRAMES, rate
from flowportrait.data.motion_dataset import MotionClip
from flowportrait.media.mel import MELS_PER_FRAME
from flowportrait.models.arflow import ARFlow
from flowportrait.models.sampler import sample_from_mel
from flowportrait.preferences.clips import MotionMelClip
from flowportrait.preferences.dataset import Label
from flowportrait.rewards.registry import CompositeReward
from flowportrait.rl.config import Recipe
from flowportrait.rl.credit import CreditConfig
from flowportrait.rl.objectives.preference import DPO
from flowportrait.rl.offline_data import (
    OfflineDataConfig,
    OfflineTask,
    PreferenceGroup,
    clip_window_source,
    damaged_clip_source,
    labels_to_scores,
)
from flowportrait.rl.post_trainer import recipe_for_pairs
from flowportrait.rl.recipes import find_recipe
from flowportrait.rl.task import SpeechItem, TalkingTask

WINDOW_FRAMES, CHUNK = 24, 4
SAMPLES = 4
"""Samples of every prompt."""
TIE = 0.25
WEIGHTS = {"sync": 0.7, "expression": 0.15, "motion": 0.15}
ONLINE_REWARDS = {"sync": 0.7, "expressiveness": 0.15, "smoothness": 0.15}
HIGH_LEARNING_RATE = 2e-4
"""Ten times that of DPO, which is expected to fail there."""
CHANGES: dict[str, Callable[[Recipe], Recipe]] = {
    "derived": lambda recipe: replace(recipe, objective=DPO(level="derived")),
    "anchored": lambda recipe: replace(recipe, objective=DPO(anchor=1.0)),
    "hard": lambda recipe: replace(recipe, learning_rate=HIGH_LEARNING_RATE),
    "hard anchored": lambda recipe: replace(recipe, learning_rate=HIGH_LEARNING_RATE, objective=DPO(anchor=1.0)),
}
"""What may follow the name of a recipe."""
ARMS = (
    "supervised", "flow-dpo", "flow-dpo derived", "flow-dpo online", "sync-dpo", "sync-dpo anchored", "flow-rwr",
    "threshold", "flow-dpo hard", "flow-dpo hard anchored",
)  # fmt: skip
EXEMPLAR_ARMS = ("flow-grpo", "exemplar-ratio", "awm", "exemplar-awm", "exemplar-dpo")
"""Real clips in the groups, in the ratio, in matching and as winners, beside the same without (for winners:
``flow-dpo online``)."""
TRAINED = (*ARMS, *EXEMPLAR_ARMS)


@dataclass(frozen=True)
class TrainingClips:
    """What the arms learn from."""

    pairs: list[PreferenceGroup]
    rated: list[PreferenceGroup]
    real: list[PreferenceGroup]


def make_training_clips(policy: ARFlow, clips: Sequence[MotionClip], prompts: int) -> TrainingClips:
    """Sample and rate motion for the first window of ``prompts`` clips, evenly chosen."""
    usable = [clip for clip in clips if len(clip.motion) >= FRAMES]
    chosen = [usable[i] for i in torch.linspace(0, len(usable) - 1, min(prompts, len(usable))).long().tolist()]
    mel = torch.stack([clip.mel[: MELS_PER_FRAME * FRAMES].float() for clip in chosen])
    samples = [sample_from_mel(policy, mel, [1000 * sample + i for i in range(len(mel))]) for sample in range(SAMPLES)]
    motion = torch.stack(samples, 1)
    scores = torch.stack([rate(own, mel) for own in samples], 1)
    scores = (scores - scores.mean((0, 1))) / scores.std((0, 1))
    total = scores @ torch.tensor(list(WEIGHTS.values()))
    pairs, rated = [], []
    for row, (best, worst) in enumerate(zip(total.argmax(1).tolist(), total.argmin(1).tolist(), strict=True)):
        gap = scores[row, best] - scores[row, worst]
        labels = [Label.from_margin(float(own), TIE).value for own in gap]
        verdict = {aspect: labels_to_scores(torch.tensor(label)) for aspect, label in zip(WEIGHTS, labels, strict=True)}
        group = [MotionMelClip(motion[row, sample], mel[row]) for sample in (best, worst)]
        pairs.append(PreferenceGroup(group, verdict))
        points = (3 + scores[row]).clamp(1, 5)
        rated += [
            PreferenceGroup(
                [MotionMelClip(motion[row, sample], mel[row])],
                {aspect: points[sample, column][None] for column, aspect in enumerate(WEIGHTS)},
            )
            for sample in range(SAMPLES)
        ]
    real = [PreferenceGroup([MotionMelClip(clip.motion, clip.mel)], {"sync": torch.ones(1)}) for clip in usable]
    return TrainingClips(pairs, rated, real)


def run_name(arm: str, seed: int) -> str:
    """Return the name of an arm's run with a seed."""
    return f"{arm}@{seed}"


def run_folder(output: Path, run: str) -> Path:
    """Return the folder of a run."""
    return output / "arms" / run.replace(" ", "_")


def is_arm(system: str) -> bool:
    """Return whether a system is the run of an arm."""
    return system.partition("@")[0] in TRAINED


ArmSetup = tuple[TalkingTask | OfflineTask, Recipe, CompositeReward]


def arm_setup(arm: str, clips_of_arms: TrainingClips, clips: Sequence[MotionClip], seed: int = 0) -> ArmSetup:
    """Return what a trainer of an arm is made of beside the policy; the clips are the same for all seeds."""
    task, recipe, rewards = _arm_setup(arm, clips_of_arms, clips)
    return task, replace(recipe, seed=seed), rewards


def _arm_setup(arm: str, made: TrainingClips, clips: Sequence[MotionClip]) -> ArmSetup:
    offline = CompositeReward((), WEIGHTS)
    if arm == "supervised":
        recipe = replace(
            find_recipe("flow-rwr"), offline_data=OfflineDataConfig(clips="rated"),
            credit=CreditConfig(baseline_scope="batch"), group_size=1, groups=48, frames=WINDOW_FRAMES,
            learning_rate=5e-5,
        )  # fmt: skip
        return OfflineTask(clip_window_source(made.real, WINDOW_FRAMES, ["sync"]), CHUNK), recipe, offline
    name, _, change = arm.partition(" ")
    changed = CHANGES.get(change, lambda recipe: recipe)
    if name == "sync-dpo":
        recipe = changed(replace(find_recipe(name), groups=24))
        assert recipe.offline_data is not None, "it damages clips"
        return OfflineTask(damaged_clip_source(clips, recipe.offline_data, recipe.frames), CHUNK), recipe, offline
    if arm in ("flow-dpo online", "flow-rwr", *EXEMPLAR_ARMS):
        items = [SpeechItem(clip.mel.float(), 0, clip.motion) for clip in clips if len(clip.motion) > FRAMES]
        recipe = replace(find_recipe(name), frames=FRAMES, groups=6, group_size=8)
        return TalkingTask(items, FRAMES, None, CHUNK), recipe, CompositeReward.of(ONLINE_REWARDS)
    rated = name == "threshold"
    groups = made.rated if rated else made.pairs
    recipe = replace(recipe_for_pairs(find_recipe(name)), frames=WINDOW_FRAMES, groups=48 if rated else 24)
    return OfflineTask(clip_window_source(groups, WINDOW_FRAMES, list(WEIGHTS)), CHUNK), changed(recipe), offline
