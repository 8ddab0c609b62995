"""A small audio-visual reward model: three scores of a clip, each from what it may know.

    sync        lower face + mel ─► the reward side's sync expert, frozen ─► mean cosine ─► learned scale
    expression  lower face, brows, lids, gaze (no sound) ─► conv ─► mean and spread over time ─► score
    motion      speed and acceleration of everything (no sound) ─► likewise

Richer sync heads were tried, on the expert's channels and on the cosine's margin, worst moment and best other delay: on
unseen speakers neither beat the plain cosine. Longer clips are scored in windows of ``FRAMES`` frames, as in training.
The towers share nothing, so sound cannot reach ``motion``. Scores are standardised on real clips: 0 is ordinary
footage, 1 is one standard deviation better.
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import nn

from flowportrait.codec.basis import EXPRESSION, MOTION_DIM
from flowportrait.devices import Device, once_per_device, place, read_weights
from flowportrait.errors import BadInput
from flowportrait.media.mel import MELS_PER_FRAME
from flowportrait.preference.made_pairs import DIMENSIONS, FRAMES
from flowportrait.reward.sync import SyncExpert
from flowportrait.written import write_weights

WIDTH = 64
START = 8.0
"""Weight of the expert's own cosine before any training."""
LEAST_FRAMES = SyncExpert.WINDOW
STRIDE = FRAMES // 2


class RewardModel(nn.Module):
    """``[B, T, 30]`` motion and ``[B, 4T, 80]`` log-mel to scores ``[B, 3]`` in the order of ``DIMENSIONS``."""

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.listener = SyncExpert()
        self.sync = nn.Linear(1, 1)
        self.expression = Tower(2 * EXPRESSION.stop)
        self.steadiness = Tower(2 * MOTION_DIM)
        self.register_buffer("mean", torch.zeros(len(DIMENSIONS)))
        self.register_buffer("std", torch.ones(len(DIMENSIONS)))

    @classmethod
    def fresh(cls) -> RewardModel:
        """Ready to train: the sync tower starts from the reward side's expert, at its own cosine."""
        model = cls()
        model.listener.load_state_dict(SyncExpert.load().state_dict())
        nn.init.zeros_(model.sync.bias)
        nn.init.constant_(model.sync.weight, START)
        model.listener.requires_grad_(False)
        return model

    def raw(self, motion: torch.Tensor, mel: torch.Tensor) -> torch.Tensor:
        """Scores before standardising, ``[B, 3]``: what pairs train."""
        return self.windows(motion, mel).mean(1)

    def windows(self, motion: torch.Tensor, mel: torch.Tensor) -> torch.Tensor:
        """Scores before standardising of each window ``[B, W, 3]``; windows start at ``window_starts``.

        Raises:
            ValueError: fewer than ``LEAST_FRAMES`` frames.
        """
        if motion.shape[1] < LEAST_FRAMES:
            raise ValueError(f"{motion.shape[1]} frames are too few: the reward model needs {LEAST_FRAMES}")
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
            ValueError: fewer than ``LEAST_FRAMES`` frames.
        """
        return (self.raw(motion, mel) - self.mean) / self.std

    def moments(self, motion: torch.Tensor, mel: torch.Tensor) -> torch.Tensor:
        """Standardised scores of every frame ``[B, T, 3]``: the mean over the windows that hold it."""
        starts, length = window_starts(motion.shape[1]), min(motion.shape[1], FRAMES)
        held = self.mean.new_zeros(len(starts), motion.shape[1])
        for row, at in enumerate(starts):
            held[row, at : at + length] = 1
        scores = (self.windows(motion, mel) - self.mean) / self.std
        return torch.einsum("wt,bwd->btd", held / held.sum(0), scores)

    def standardise(self, scores: torch.Tensor) -> None:
        """Make raw ``scores`` ``[N, 3]`` of real clips the yardstick."""
        self.mean.copy_(scores.mean(0))
        self.std.copy_(scores.std(0).clamp_min(1e-3))

    def save(self, path: Path) -> None:
        """Write float16 safetensors, whole or not at all."""
        write_weights(path, self.state_dict())

    @classmethod
    def read(cls, path: Path, device: Device | None = None, dtype: torch.dtype | None = None) -> RewardModel:
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
    def load(cls) -> RewardModel:
        """The one that ships with the package."""
        return cls.read(Path(str(files("flowportrait") / "weights" / "preference" / "model.safetensors")))


def window_starts(frames: int) -> list[int]:
    """First frames of the windows of a clip; the last window ends with the clip."""
    last = max(0, frames - FRAMES)
    return sorted({*range(0, last + 1, STRIDE), last})


class Tower(nn.Module):
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
