"""A reward model of motion and sound.

Each score is made from what it may know:

    sync        lower face + mel ─► the reward side's sync expert, frozen ─► mean cosine ─► learned scale
    expression  lower face, brows, lids, gaze (no sound) ─► conv ─► mean and spread over time ─► score
    motion      speed and acceleration of everything (no sound) ─► likewise

Richer sync heads were tried, on the expert's channels and on the cosine's margin, worst moment and best other delay: on
unseen speakers neither beat the plain cosine. Longer clips are scored in windows of ``FRAMES`` frames, as in training.
The towers share nothing, so sound cannot reach ``motion``. Scores are standardised on real clips: 0 is ordinary
footage, 1 is one standard deviation better.

It is trained on pairs made from a prepared corpus, and on pairs of people or judges (``pairs.jsonl``) mixed in:

    batch = damaged pairs (curriculum coarse → subtle) + stated pairs ─► pair_loss ─► AdamW

Of a corpus only the split ``reward`` is read: who measures on the others measures on unseen speakers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import nn

from flowportrait.corruption import MOTION_CORRUPTIONS
from flowportrait.data.motion_dataset import MotionClip
from flowportrait.devices import Device, once_per_device, place, read_weights
from flowportrait.errors import BadInput
from flowportrait.files import write_weights
from flowportrait.media.mel import MELS_PER_FRAME
from flowportrait.preferences.clips import SHORTEST, ClipFeatures, Objective, PreferenceBatch, clip_features, pair_loss
from flowportrait.preferences.dataset import DIMENSIONS, PreferenceDataset
from flowportrait.preferences.synthetic_pairs import FRAMES, DamagedPairSampler
from flowportrait.rendering.motion_basis import EXPRESSION, MOTION_DIM
from flowportrait.rewards.sync import SyncExpert
from flowportrait.training.descend import Report, descend, silent

WIDTH = 64
START = 8.0
"""Weight of the expert's own cosine before any training."""
STRIDE = FRAMES // 2


class MotionReward(nn.Module):
    """``[B, T, 30]`` motion and ``[B, 4T, 80]`` log-mel to scores ``[B, 3]`` in the order of ``DIMENSIONS``."""

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.listener = SyncExpert()
        self.sync = nn.Linear(1, 1)
        self.expression = MotionTower(2 * EXPRESSION.stop)
        self.steadiness = MotionTower(2 * MOTION_DIM)
        self.register_buffer("mean", torch.zeros(len(DIMENSIONS)))
        self.register_buffer("std", torch.ones(len(DIMENSIONS)))

    @classmethod
    def fresh(cls) -> MotionReward:
        """Ready to train: the sync tower starts from the reward side's expert, at its own cosine."""
        model = cls()
        model.listener.load_state_dict(SyncExpert.load().state_dict())
        nn.init.zeros_(model.sync.bias)
        nn.init.constant_(model.sync.weight, START)
        model.listener.requires_grad_(False)
        return model

    def raw_scores(self, motion: torch.Tensor, mel: torch.Tensor) -> torch.Tensor:
        """Scores before standardising, ``[B, 3]``: what pairs train."""
        return self.window_scores(motion, mel).mean(1)

    def window_scores(self, motion: torch.Tensor, mel: torch.Tensor) -> torch.Tensor:
        """Scores before standardising of each window ``[B, W, 3]``; windows start at ``window_starts``.

        Raises:
            ValueError: fewer than ``SHORTEST`` frames.
        """
        if motion.shape[1] < SHORTEST:
            raise ValueError(f"{motion.shape[1]} frames are too few: the reward model needs {SHORTEST}")
        motion, mel = motion.to(self.mean.device), mel.to(self.mean.device)
        starts, length = window_starts(motion.shape[1]), min(motion.shape[1], FRAMES)
        own = torch.cat([motion[:, at : at + length] for at in starts])
        sound = torch.cat([mel[:, MELS_PER_FRAME * at : MELS_PER_FRAME * (at + length)] for at in starts])
        expression = own[..., EXPRESSION]
        speed = own.diff(dim=1)
        with torch.no_grad():
            self.listener.eval()
            cosine = self.listener.score(own, sound)[1]
        scores = [
            self.sync(cosine[:, None])[:, 0],
            self.expression(
                torch.cat([expression[:, 1:] - expression.mean(1, keepdim=True), expression.diff(dim=1)], -1)
            ),
            self.steadiness(torch.cat([3 * speed[:, 1:], 3 * speed.diff(dim=1)], -1)),
        ]
        return torch.stack(scores, -1).unflatten(0, (len(starts), -1)).transpose(0, 1)

    def forward(self, motion: torch.Tensor, mel: torch.Tensor) -> torch.Tensor:
        """Standardised scores ``[B, 3]``.

        Raises:
            ValueError: fewer than ``SHORTEST`` frames.
        """
        return (self.raw_scores(motion, mel) - self.mean) / self.std

    def frame_scores(self, motion: torch.Tensor, mel: torch.Tensor) -> torch.Tensor:
        """Standardised scores of every frame ``[B, T, 3]``: the mean over the windows that hold it."""
        starts, length = window_starts(motion.shape[1]), min(motion.shape[1], FRAMES)
        held = self.mean.new_zeros(len(starts), motion.shape[1])
        for row, at in enumerate(starts):
            held[row, at : at + length] = 1
        scores = (self.window_scores(motion, mel) - self.mean) / self.std
        return torch.einsum("wt,bwd->btd", held / held.sum(0), scores)

    def standardise(self, scores: torch.Tensor) -> None:
        """Make raw ``scores`` ``[N, 3]`` of real clips the yardstick."""
        self.mean.copy_(scores.mean(0))
        self.std.copy_(scores.std(0).clamp_min(1e-3))

    def save(self, path: Path) -> None:
        """Write float16 safetensors, whole or not at all."""
        write_weights(path, self.state_dict())

    @classmethod
    def read(cls, path: Path, device: Device | None = None, dtype: torch.dtype | None = None) -> MotionReward:
        """Load a model written by ``save``, ready to score.

        Raises:
            BadInput: there is no such file, or it is of another shape.
        """
        model = cls()
        try:
            model.load_state_dict(read_weights(path))
        except (OSError, RuntimeError, SafetensorError) as error:
            reason = str(error).splitlines()[0]
            raise BadInput(f"{path} cannot be read as a reward model ({reason}): train one first.") from error
        return place(model.eval().requires_grad_(False), device, dtype)

    @classmethod
    @once_per_device
    def load(cls) -> MotionReward:
        """The one that ships with the package."""
        return cls.read(Path(str(files("flowportrait") / "weights" / "preference" / "model.safetensors")))


def window_starts(frames: int) -> list[int]:
    """First frames of the windows of a clip; the last window ends with the clip."""
    last = max(0, frames - FRAMES)
    return sorted({*range(0, last + 1, STRIDE), last})


class MotionTower(nn.Module):
    """Features over time ``[B, T, F]`` to one number per clip ``[B]``."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv1d(features, WIDTH, 3, padding=1), nn.GELU(),
            nn.Conv1d(WIDTH, WIDTH, 3, padding=1), nn.GELU(),
            nn.Conv1d(WIDTH, WIDTH, 3, padding=1), nn.GELU(),
        )  # fmt: skip
        self.verdict = nn.Sequential(
            nn.LayerNorm(2 * WIDTH + features), nn.Dropout(0.1), nn.Linear(2 * WIDTH + features, WIDTH), nn.GELU(),
            nn.Linear(WIDTH, 1),
        )  # fmt: skip

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Mean and spread over time, and the log amplitude of every feature, decide."""
        hidden = self.layers(features.mT)
        amplitude = (features.var(1) + 1e-4).log() / 2
        return self.verdict(torch.cat([hidden.mean(-1), hidden.std(-1), amplitude], -1))[..., 0]


@dataclass(frozen=True)
class RewardTrainingConfig:
    """How the motion reward is trained."""

    objective: Objective = "ties"
    steps: int = 300
    batch: int = 45
    learning_rate: float = 2e-3
    weight_decay: float = 0.05
    curriculum: float = 0.6
    """Share of the steps after which pairs are as subtle as they get."""
    seed: int = 0


def load_batches(dataset: PreferenceDataset) -> tuple[list[PreferenceBatch], dict[str, str]]:
    """One batch of one row per pair with usable clips, and the clips that cannot be used, with the reason."""

    def read(path: Path) -> ClipFeatures:
        features = clip_features(path)
        if len(features.motion) < SHORTEST:
            raise BadInput(f"{path} has {len(features.motion)} frames: {SHORTEST} are needed.")
        return features

    clips, unreadable = dataset.read_clips(read)
    usable = dataset.with_clips_in(clips)
    return [PreferenceBatch.from_pair(pair.with_clips(clips)) for pair in usable], unreadable


def train_reward(
    config: RewardTrainingConfig,
    clips: Sequence[MotionClip],
    stated: Sequence[PreferenceBatch] = (),
    report: Report = silent,
) -> MotionReward:
    """A trained model, standardised on ``clips``.

    Args:
        config: how to train.
        clips: real clips of training speakers, from which damaged pairs are made.
        stated: batches from annotators, mixed in one a step.
        report: called with step, loss and seconds left.

    Raises:
        BadInput: no clip is long enough.
        KeyboardInterrupt: asked to stop, after the step under way.
    """
    torch.manual_seed(config.seed)
    model = MotionReward.fresh().train()
    sampler = DamagedPairSampler(clips, MOTION_CORRUPTIONS, config.seed)

    def loss(step: int) -> torch.Tensor:
        progress = min(1.0, step / (config.curriculum * config.steps))
        own = _batch_loss(config.objective, model, sampler.draw(config.batch, progress))
        return own + _batch_loss(config.objective, model, stated[step % len(stated)]) if stated else own

    descend(model.parameters(), loss, config.steps, config.learning_rate, config.weight_decay, report)
    model.eval().requires_grad_(False)
    real = [
        (clip.motion[:FRAMES], clip.mel[: MELS_PER_FRAME * FRAMES].float())
        for clip in clips
        if len(clip.motion) >= FRAMES
    ]
    motion, mel = (torch.stack(part) for part in zip(*real, strict=True))
    model.standardise(model.raw_scores(motion, mel))
    return model


def _batch_loss(objective: Objective, model: MotionReward, batch: PreferenceBatch) -> torch.Tensor:
    motion = torch.cat([batch.first, batch.second])
    mel = torch.cat([batch.mel, batch.mel if batch.mel_second is None else batch.mel_second])
    first, second = model.raw_scores(motion, mel).chunk(2)
    return pair_loss(objective, first, second, batch.labels, batch.points)
