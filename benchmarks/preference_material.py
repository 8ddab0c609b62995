"""What the preference methods learn from, all of it of training speakers and rated by the reward side alone.

speech of a real clip ─► four performances of ``sft`` ─► sync, expressiveness, smoothness, each standardised
    pairs    the best against the worst, per aspect A, B or tie (within a quarter of a standard deviation)
    rated    every performance by itself, 1 to 5 points per aspect
    real     real clips, all rated alike: matching them is supervised training
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from flowportrait.data.motion_dataset import MotionClip
from flowportrait.media.mel import MELS_PER_FRAME
from flowportrait.models.arflow import ARFlow
from flowportrait.models.sampler import sample_from_mel
from flowportrait.preferences.clips import MotionMelClip
from flowportrait.preferences.dataset import Label
from flowportrait.rewards.batch import RewardBatch
from flowportrait.rewards.motion import ExpressivenessReward, SmoothnessReward
from flowportrait.rewards.sync import LipSyncReward
from flowportrait.rl.offline_data import PreferenceGroup, labels_to_scores

FRAMES = 28
"""Of a performance; windows of 24 are learned from."""
TAKES = 4
TIE = 0.25
WEIGHTS = {"sync": 0.7, "expression": 0.15, "motion": 0.15}


@dataclass(frozen=True)
class Material:
    """See the module."""

    pairs: list[PreferenceGroup]
    rated: list[PreferenceGroup]
    real: list[PreferenceGroup]


def material(policy: ARFlow, clips: Sequence[MotionClip], prompts: int) -> Material:
    """Performances of the first window of ``prompts`` clips, evenly taken."""
    usable = [clip for clip in clips if len(clip.motion) >= FRAMES]
    chosen = [usable[i] for i in torch.linspace(0, len(usable) - 1, min(prompts, len(usable))).long().tolist()]
    mel = torch.stack([clip.mel[: MELS_PER_FRAME * FRAMES].float() for clip in chosen])
    takes = [sample_from_mel(policy, mel, [1000 * take + i for i in range(len(mel))]) for take in range(TAKES)]
    motion = torch.stack(takes, 1)
    scores = torch.stack([rate(motion[:, take], mel) for take in range(TAKES)], 1)
    scores = (scores - scores.mean((0, 1))) / scores.std((0, 1))
    total = scores @ torch.tensor(list(WEIGHTS.values()))
    pairs, rated = [], []
    for row, (best, worst) in enumerate(zip(total.argmax(1).tolist(), total.argmin(1).tolist(), strict=True)):
        gap = scores[row, best] - scores[row, worst]
        labels = [Label.from_margin(float(own), TIE).value for own in gap]
        verdict = {aspect: labels_to_scores(torch.tensor(labels[column])) for column, aspect in enumerate(WEIGHTS)}
        clips_of_pair = [MotionMelClip(motion[row, take], mel[row]) for take in (best, worst)]
        pairs.append(PreferenceGroup(clips_of_pair, verdict))
        points = (3 + scores[row]).clamp(1, 5)
        rated += [
            PreferenceGroup(
                [MotionMelClip(motion[row, take], mel[row])], {a: points[take, c][None] for c, a in enumerate(WEIGHTS)}
            )
            for take in range(TAKES)
        ]
    real = [PreferenceGroup([MotionMelClip(clip.motion, clip.mel)], {"sync": torch.ones(1)}) for clip in usable]
    return Material(pairs, rated, real)


def rate(motion: torch.Tensor, mel: torch.Tensor) -> torch.Tensor:
    """Sync, expressiveness and smoothness ``[B, 3]`` by the reward side."""
    batch = RewardBatch(motion, mel)
    rewards = (LipSyncReward.load(), ExpressivenessReward.load(), SmoothnessReward.load())
    return torch.stack([reward(batch).value.float() for reward in rewards], -1)
