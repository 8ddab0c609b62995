"""Rewards of motion for the speech of unseen speakers: trained checkpoints beside their random-reward control."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.drawing import named_checkpoints
from benchmarks.material import use_one_thread
from benchmarks.motion_ratings import load_speech
from benchmarks.paired import Rows, compare_runs
from benchmarks.record import Record
from flowportrait.models.arflow import load_generator
from flowportrait.models.sampler import sample_from_mel
from flowportrait.rendering.motion_filters import postprocess_motion
from flowportrait.rewards.batch import RewardBatch
from flowportrait.rewards.registry import load_reward


@dataclass(frozen=True)
class AgainstControlOptions:
    """Compare the rewards of checkpoints with those of a random-reward control, clip by clip.

    Of 48 clips of unseen speakers, with the same noise for all; what is above the control was learned from rewards. The
    rewards themselves are no evidence that people would see a difference.
    """

    corpus: Path
    """Prepared corpus with dev speakers."""
    control: str
    """Checkpoint of the same training with random rewards, or the start of the training."""
    checkpoints: tuple[str, ...]
    """Trained checkpoints, NAME=FOLDER."""
    rewards: tuple[str, ...] = ("sync", "crowd_mouth", "crowd_eyes", "crowd_head", "expressiveness", "smoothness")
    """Rewards of motion."""
    samples: int = 4
    """Samples of each clip, which are averaged."""


@torch.no_grad()
def against_control(options: AgainstControlOptions, record: Record) -> None:
    """Add the mean rewards of every checkpoint and their differences from the control."""
    use_one_thread()
    mel = load_speech(options.corpus)
    rewards = {name: load_reward(name) for name in options.rewards}
    rows: dict[str, Rows] = {}
    for name, folder in {"control": options.control, **named_checkpoints(options.checkpoints)}.items():
        model = load_generator(folder).eval()
        values = torch.zeros(len(mel), len(rewards))
        for sample in range(options.samples):
            motion = sample_from_mel(model, mel, [len(mel) * sample + clip for clip in range(len(mel))])
            batch = RewardBatch(postprocess_motion(motion, model.config.chunk, model.config.ease), mel)
            values += torch.stack([reward(batch).value.float() for reward in rewards.values()], -1) / options.samples
        rows[name] = {
            str(clip): dict(zip(rewards, own, strict=True)) for clip, own in enumerate(values.tolist())
        }  # fmt: skip
    compare_runs(record, rows, options.rewards, baseline="control", group="rewards")
