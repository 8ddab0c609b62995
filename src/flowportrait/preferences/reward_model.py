"""A reward model of motion and sound, and its training.

Each score reads only what it may depend on:

    sync        lower face + mel ─► the sync expert of the rewards, frozen ─► mean cosine ─► learned scale
    expression  lower face, brows, lids, gaze (no sound) ─► conv ─► mean and spread over time ─► score
    motion      speed and acceleration of everything (no sound) ─► conv ─► mean and spread over time ─► score

Richer sync heads were tried, on the expert's channels and on the cosine's margin, worst moment and best other delay: on
unseen speakers none was better than the plain cosine. Longer clips are scored in windows of ``WINDOW_FRAMES`` frames,
as in training. Scores are standardised on real clips: 0 is ordinary footage, 1 is one standard deviation better.

The model is trained on damaged pairs from a prepared corpus, mixed with pairs of people or judges (``pairs.jsonl``):

    batch = damaged pairs (curriculum coarse → subtle) + annotated pairs ─► pair_loss ─► AdamW

Of a corpus only the split ``reward`` is used, so the other splits measure on unseen speakers. The same network with
another sync expert, trained on speakers of the evaluation alone, is a judge of pairs (``evaluation.pair_judge``). Its
file says so, and ``read`` refuses it wherever a reward is wanted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from safetensors import SafetensorError
from torch import nn

from flowportrait.corruption import MOTION_CORRUPTIONS
from flowportrait.data.motion_dataset import MotionClip
from flowportrait.devices import Device, cached_per_device, place_network, read_weights, read_weights_metadata
from flowportrait.errors import BadInput
from flowportrait.files import shipped_weights, write_weights
from flowportrait.media.mel import MELS_PER_FRAME
from flowportrait.preferences.clips import (
    MIN_CLIP_FRAMES,
    MotionMelClip,
    PairObjective,
    PreferenceBatch,
    pair_loss,
    read_motion_mel,
)
from flowportrait.preferences.dataset import DIMENSIONS, PreferenceDataset
from flowportrait.preferences.synthetic_pairs import WINDOW_FRAMES, DamagedPairSampler
from flowportrait.rendering.motion_basis import EXPRESSION, MOTION_DIM
from flowportrait.rewards.sync import MotionSyncExpert
from flowportrait.training.optimize import ProgressReport, minimize, report_nothing

# --- Model ---

TOWER_WIDTH = 64
INITIAL_SYNC_WEIGHT = 8.0
"""Weight of the expert's cosine before training."""
WINDOW_STRIDE = WINDOW_FRAMES // 2
"""Frames between two windows."""
ModelSide = Literal["reward", "evaluation"]
"""What a model was trained for: rewards, or judging what rewards have trained. Their speakers differ."""


class MotionReward(nn.Module):
    """Scores motion ``[B, T, 30]`` and log-mel ``[B, 4T, 80]`` as ``[B, 3]`` in the order of ``DIMENSIONS``."""

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.listener = MotionSyncExpert()
        self.sync = nn.Linear(1, 1)
        self.expression = MotionTower(2 * EXPRESSION.stop)
        self.steadiness = MotionTower(2 * MOTION_DIM)
        self.register_buffer("mean", torch.zeros(len(DIMENSIONS)))
        self.register_buffer("std", torch.ones(len(DIMENSIONS)))

    @classmethod
    def fresh(cls, listener: MotionSyncExpert | None = None) -> MotionReward:
        """Create a model ready for training.

        Its sync score starts as the cosine of ``listener``, by default the rewards' sync expert.
        """
        model = cls()
        model.listener.load_state_dict((listener or MotionSyncExpert.load()).state_dict())
        nn.init.zeros_(model.sync.bias)
        nn.init.constant_(model.sync.weight, INITIAL_SYNC_WEIGHT)
        model.listener.requires_grad_(False)
        return model

    def raw_scores(self, motion: torch.Tensor, mel: torch.Tensor) -> torch.Tensor:
        """Return scores ``[B, 3]`` before standardisation, which the pair loss trains."""
        return self.window_scores(motion, mel).mean(1)

    def window_scores(self, motion: torch.Tensor, mel: torch.Tensor) -> torch.Tensor:
        """Return scores ``[B, W, 3]`` of every window before standardisation; windows start at ``window_starts``.

        Raises:
            ValueError: there are fewer than ``MIN_CLIP_FRAMES`` frames.
        """
        if motion.shape[1] < MIN_CLIP_FRAMES:
            raise ValueError(f"{motion.shape[1]} frames are too few: the reward model needs {MIN_CLIP_FRAMES}")
        motion, mel = motion.to(self.mean.device), mel.to(self.mean.device)
        starts, length = window_starts(motion.shape[1]), min(motion.shape[1], WINDOW_FRAMES)
        windows = torch.cat([motion[:, start : start + length] for start in starts])
        sound = torch.cat([mel[:, MELS_PER_FRAME * start : MELS_PER_FRAME * (start + length)] for start in starts])
        expression = windows[..., EXPRESSION]
        speed = windows.diff(dim=1)
        with torch.no_grad():
            self.listener.eval()
            cosine = self.listener.score(windows, sound)[1]
        scores = [
            self.sync(cosine[:, None])[:, 0],
            self.expression(
                torch.cat([expression[:, 1:] - expression.mean(1, keepdim=True), expression.diff(dim=1)], -1)
            ),
            self.steadiness(torch.cat([3 * speed[:, 1:], 3 * speed.diff(dim=1)], -1)),
        ]
        return torch.stack(scores, -1).unflatten(0, (len(starts), -1)).transpose(0, 1)

    def forward(self, motion: torch.Tensor, mel: torch.Tensor) -> torch.Tensor:
        """Return standardised scores ``[B, 3]``.

        Raises:
            ValueError: there are fewer than ``MIN_CLIP_FRAMES`` frames.
        """
        return (self.raw_scores(motion, mel) - self.mean) / self.std

    def frame_scores(self, motion: torch.Tensor, mel: torch.Tensor) -> torch.Tensor:
        """Return standardised scores ``[B, T, 3]`` of every frame: the mean over the windows that contain it."""
        starts, length = window_starts(motion.shape[1]), min(motion.shape[1], WINDOW_FRAMES)
        contains = self.mean.new_zeros(len(starts), motion.shape[1])
        for row, start in enumerate(starts):
            contains[row, start : start + length] = 1
        scores = (self.window_scores(motion, mel) - self.mean) / self.std
        return torch.einsum("wt,bwd->btd", contains / contains.sum(0), scores)

    def standardise(self, scores: torch.Tensor) -> None:
        """Set mean and spread of the standardisation from raw ``scores`` ``[N, 3]`` of real clips."""
        self.mean.copy_(scores.mean(0))
        self.std.copy_(scores.std(0).clamp_min(1e-3))

    def save(self, path: Path, side: ModelSide = "reward") -> None:
        """Write the weights as float16 safetensors, atomically, with what they were trained for."""
        write_weights(path, self.state_dict(), None if side == "reward" else {"side": side})

    @classmethod
    def read(
        cls,
        path: Path,
        device: Device | None = None,
        dtype: torch.dtype | None = None,
        side: ModelSide = "reward",
    ) -> MotionReward:
        """Load a model that ``save`` wrote, frozen, on a device and in a number format.

        Raises:
            BadInput: the file is missing, has another shape, or was trained for another side.
        """
        model = cls()
        try:
            model.load_state_dict(read_weights(path))
            trained_for = read_weights_metadata(path).get("side", "reward")
        except (OSError, RuntimeError, SafetensorError) as error:
            reason = str(error).splitlines()[0]
            raise BadInput(f"{path} cannot be read as a reward model ({reason}): train one first.") from error
        if trained_for != side:
            raise BadInput(
                f"{path} was trained for the {trained_for} side and cannot be used for the {side} side: what trains a "
                "generator must not judge it. Name a model of the other side."
            )
        return place_network(model.eval().requires_grad_(False), device, dtype)

    @classmethod
    @cached_per_device
    def load(cls) -> MotionReward:
        """Load the reward model that ships with the package."""
        return cls.read(shipped_weights("preference/model.safetensors"))


def window_starts(frames: int) -> list[int]:
    """Return the first frame of every window of a clip; the last window ends with the clip."""
    last = max(0, frames - WINDOW_FRAMES)
    return sorted({*range(0, last + 1, WINDOW_STRIDE), last})


class MotionTower(nn.Module):
    """Network from features over time ``[B, T, F]`` to one score per clip ``[B]``."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv1d(features, TOWER_WIDTH, 3, padding=1), nn.GELU(),
            nn.Conv1d(TOWER_WIDTH, TOWER_WIDTH, 3, padding=1), nn.GELU(),
            nn.Conv1d(TOWER_WIDTH, TOWER_WIDTH, 3, padding=1), nn.GELU(),
        )  # fmt: skip
        self.verdict = nn.Sequential(
            nn.LayerNorm(2 * TOWER_WIDTH + features), nn.Dropout(0.1), nn.Linear(2 * TOWER_WIDTH + features,
                TOWER_WIDTH), nn.GELU(),
            nn.Linear(TOWER_WIDTH, 1),
        )  # fmt: skip

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Score clips by mean and spread of hidden channels over time, and by the log amplitude of every feature."""
        hidden = self.layers(features.mT)
        amplitude = (features.var(1) + 1e-4).log() / 2
        return self.verdict(torch.cat([hidden.mean(-1), hidden.std(-1), amplitude], -1))[..., 0]


# --- Training ---


@dataclass(frozen=True)
class MotionRewardTrainingConfig:
    """Settings of the training of the motion reward."""

    objective: PairObjective = "ties"
    """The loss of a pair: Bradley–Terry with ties, plain Bradley–Terry, or regression."""
    steps: int = 300
    """Optimiser steps."""
    batch: int = 45
    """Pairs per step."""
    learning_rate: float = 2e-3
    """Learning rate."""
    weight_decay: float = 0.05
    """Weight decay of AdamW."""
    curriculum: float = 0.6
    """Share of the steps over which pairs become more subtle."""
    seed: int = 0
    """Random seed."""


def load_pair_batches(dataset: PreferenceDataset) -> tuple[list[PreferenceBatch], dict[str, str]]:
    """Read the clips of a dataset.

    Returns:
        One batch of one row per pair with usable clips, and the reason for each clip that cannot be used.
    """

    def read(path: Path) -> MotionMelClip:
        features = read_motion_mel(path)
        if len(features.motion) < MIN_CLIP_FRAMES:
            raise BadInput(f"{path} has {len(features.motion)} frames: {MIN_CLIP_FRAMES} are needed.")
        return features

    clips, unreadable = dataset.read_clips(read)
    usable = dataset.filter_by_clips(clips)
    return [PreferenceBatch.from_pair(pair.with_clips(clips)) for pair in usable], unreadable


def train_motion_reward(
    config: MotionRewardTrainingConfig,
    clips: Sequence[MotionClip],
    annotated: Sequence[PreferenceBatch] = (),
    report: ProgressReport = report_nothing,
    listener: MotionSyncExpert | None = None,
) -> MotionReward:
    """Train a motion reward and standardise it on ``clips``.

    Args:
        config: settings.
        clips: real clips of training speakers, from which damaged pairs are made.
        annotated: batches of annotated pairs, of which one is added per step.
        report: called with step, loss and seconds left.
        listener: the sync expert that the sync score starts from, by default that of the rewards.

    Raises:
        BadInput: no clip is long enough.
        KeyboardInterrupt: the user interrupted; raised after the current step.
    """
    torch.manual_seed(config.seed)
    model = MotionReward.fresh(listener).train()
    sampler = DamagedPairSampler(clips, MOTION_CORRUPTIONS, config.seed)

    def loss(step: int) -> torch.Tensor:
        progress = min(1.0, step / (config.curriculum * config.steps))
        damaged = _batch_loss(config.objective, model, sampler.draw(config.batch, progress))
        return (
            damaged + _batch_loss(config.objective, model, annotated[step % len(annotated)]) if annotated else damaged
        )

    minimize(model.parameters(), loss, config.steps, config.learning_rate, config.weight_decay, report)
    model.eval().requires_grad_(False)
    real = [
        (clip.motion[:WINDOW_FRAMES], clip.mel[: MELS_PER_FRAME * WINDOW_FRAMES].float())
        for clip in clips
        if len(clip.motion) >= WINDOW_FRAMES
    ]
    motion, mel = (torch.stack(part) for part in zip(*real, strict=True))
    model.standardise(model.raw_scores(motion, mel))
    return model


def _batch_loss(objective: PairObjective, model: MotionReward, batch: PreferenceBatch) -> torch.Tensor:
    motion = torch.cat([batch.first, batch.second])
    mel = torch.cat([batch.mel, batch.mel if batch.mel_second is None else batch.mel_second])
    first, second = model.raw_scores(motion, mel).chunk(2)
    return pair_loss(objective, first, second, batch.labels, batch.points)
