"""Motion for the speech of unseen speakers, rated by the reward side without drawing it: quick, and no final word.

Sync is the reward side's expert, expressiveness and smoothness compare with statistics of real motion. No network of
the evaluation is involved.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from benchmarks.paired import Rows
from benchmarks.record import Record
from flowportrait.data.motion_dataset import load_motion_clips
from flowportrait.evaluation.statistics import Estimate, bootstrap_mean
from flowportrait.media.mel import MELS_PER_FRAME
from flowportrait.rewards.batch import RewardBatch
from flowportrait.rewards.motion import (
    MOTION_GROUPS,
    ExpressivenessReward,
    SmoothnessReward,
    log_amplitude,
    log_flutter,
    log_speed,
)
from flowportrait.rewards.sync import LipSyncReward

RATINGS = ("sync", "expressiveness", "smoothness")
FRAMES = 28
"""Length of the motion in frames."""
CLIPS = 48


def load_speech(corpus: Path) -> torch.Tensor:
    """Return the log-mel ``[48, 4·28, 80]`` of clips of unseen speakers, evenly chosen; fewer where there are fewer."""
    clips = [clip for clip in load_motion_clips(corpus, ("dev",)) if len(clip.motion) >= FRAMES]
    chosen = torch.linspace(0, len(clips) - 1, min(CLIPS, len(clips))).long().tolist()
    return torch.stack([clips[place].mel[: MELS_PER_FRAME * FRAMES].float() for place in chosen])


def rate(motion: torch.Tensor, mel: torch.Tensor) -> torch.Tensor:
    """Return sync, expressiveness and smoothness ``[B, 3]`` of motion ``[B, T, 30]``."""
    batch = RewardBatch(motion, mel)
    rewards = (LipSyncReward.load(), ExpressivenessReward.load(), SmoothnessReward.load())
    return torch.stack([reward(batch).value.float() for reward in rewards], -1)


def rating_rows(ratings: torch.Tensor) -> Rows:
    """Return ratings ``[B, 3]`` as metrics by clip."""
    return {str(clip): dict(zip(RATINGS, own, strict=True)) for clip, own in enumerate(ratings.tolist())}


def add_amplitudes(record: Record, system: str, motion: torch.Tensor, start: torch.Tensor, baseline: str) -> None:
    """Add how much more each part of the face moves than in ``start``, and how the head's power above 6 Hz changes."""
    group = f"factor of the motion of {baseline}"
    for column, part in enumerate(MOTION_GROUPS):
        record.add(system, part, _factor((log_amplitude(motion) - log_amplitude(start))[:, column]), group=group)
    share = (log_flutter(motion) - log_flutter(start))[:, -1]
    faster = 2 * (log_speed(motion) - log_speed(start))[:, -1]
    record.add(system, "head's power > 6 Hz", _factor(share + faster), group=group)
    record.add(system, "its share", _factor(share), group=group)


def _factor(logs: torch.Tensor) -> Estimate:
    found = bootstrap_mean(logs.double().numpy())
    low, high = (None if end is None else float(np.exp(end)) for end in (found.low, found.high))
    return Estimate(float(np.exp(found.mean)), low, high, found.clips)
