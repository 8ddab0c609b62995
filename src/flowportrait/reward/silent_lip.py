"""Silent lips: while nobody speaks, the mouth is shut.

    dense[t] = − mean lip gap at t, in outer-eye-corner distances      silent lip = mean over the silent frames

Silence is found in the log-mel: runs of frames 30 dB under the clip's loud level. A clip without any has no score.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from flowportrait.codec.basis import EXPRESSION, MotionBasis
from flowportrait.codec.lips import LOWER_INNER, UPPER_INNER
from flowportrait.media.mel import MELS_PER_FRAME
from flowportrait.reward.batch import RewardBatch
from flowportrait.reward.interface import Failure, Score, measured
from flowportrait.reward.real import noises

QUIET = 30.0
"""dB under the level that a twentieth of the frames exceed."""
SHORTEST = 4
"""Frames of a run of silence; its first and last are left to lips that close and open."""
_ABSOLUTE = -0.45
"""Mean log-mel under which a frame is silent whatever the rest is: digital silence has −1.08."""


@dataclass(frozen=True)
class SilentLip:
    """Mean opening in silence, negative."""

    noise: float = 0.0
    name: str = "silent_lip"
    needs: frozenset[str] = frozenset({"motion", "mel"})
    range: tuple[float, float] = (-2.0, 0.0)

    @classmethod
    def load(cls) -> SilentLip:
        """With its measured noise."""
        return cls(noises().get("silent_lip", 0.0))

    def __call__(self, batch: RewardBatch) -> Score:
        silent = silence(batch.mel).float()
        dense = -lip_gap(batch.motion) * silent
        spoken = (silent.sum(1) == 0).nonzero()[:, 0].tolist()
        why = {row: Failure("no_sound", "speech throughout: no silence to be silent in") for row in spoken}
        return measured(dense.sum(1) / silent.sum(1).clamp_min(1), why, dense)


def lip_gap(motion: torch.Tensor) -> torch.Tensor:
    """Mean gap ``[B, T]`` between the inner lips of motion ``[B, T, 30]``; the resting face has closed lips."""
    directions = MotionBasis.load().directions
    opening = (directions[:, LOWER_INNER, 1] - directions[:, UPPER_INNER, 1]).to(motion)
    return F.relu(motion[..., EXPRESSION] @ opening).mean(-1)


def silence(mel: torch.Tensor) -> torch.Tensor:
    """Which frames ``[B, T]`` of log-mel ``[B, 4T, 80]`` are silent, away from the edges of a pause."""
    power = (4 * mel - 9.5).exp().mean(-1).unflatten(1, (-1, MELS_PER_FRAME)).mean(-1)
    loud = power.quantile(0.95, dim=1, keepdim=True)
    flat = mel.mean(-1).unflatten(1, (-1, MELS_PER_FRAME)).mean(-1) < _ABSOLUTE
    quiet = ((power < loud * 10 ** (-QUIET / 10)) | flat).float()[:, None]
    # Opening by SHORTEST drops short runs, one more frame of erosion the edges.
    core = -F.max_pool1d(F.pad(-quiet, (0, SHORTEST - 1), value=0.0), SHORTEST, 1)
    runs = F.max_pool1d(F.pad(core, (SHORTEST - 1, 0)), SHORTEST, 1)
    inside = -F.max_pool1d(F.pad(-runs, (1, 1), value=-1.0), 3, 1)
    return inside[:, 0] > 0.5
