"""A reward for a batch: what each sample adds to the likeness between the batch's motion and that of real people."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Self

import torch
from safetensors.torch import load_file, save_file

from flowportrait.files import shipped_weights
from flowportrait.rendering.motion_basis import (
    EXPRESSION,
    LOWER_LIP_PAIRS,
    UPPER_LIP_PAIRS,
    MotionBasis,
)
from flowportrait.rewards.batch import RewardBatch
from flowportrait.rewards.interface import (
    Score,
    all_valid,
)
from flowportrait.rewards.motion import MOTION_GROUPS, log_flutter

# --- The distribution of motion over a batch ---

CROWD_WINDOW_FRAMES = 28
"""Length of a window."""
PACE_FRAMES = 4
"""Frames (160 ms) over which the pace is measured."""
QUANTILES = 64
"""Number of quantiles, at (k + ½)/64, by which a real distribution is stored."""
FLUTTER_GROUPS = ("lips", "blink", "gaze")
"""Action groups of which the flutter is used. Tracked brows and heads tremble more than real ones."""
STATISTIC_GROUPS = (*MOTION_GROUPS, *MOTION_GROUPS, *FLUTTER_GROUPS)
"""Action group of every statistic: amplitudes, paces, flutter."""
_MIN_STATISTIC = 1e-4


@dataclass(frozen=True)
class CrowdReward:
    """Rewards a distribution of motion over the whole batch like that of real speakers.

        crowd(y) = mean over statistics of [ E|y − Y| − E|y − X| ] / E|X − X'|        Y: this batch,  X: real windows

    It is the witness function of the energy distance between generated and real motion (Székely & Rizzo 2013): every
    clip is rewarded for what it adds to the likeness of the batch, which moves the distribution of Y towards that of X.
    A reward of single clips, such as the likelihood of y, is largest for the most common clip and pulls every clip
    there: since half of all seconds have no blink, nobody blinks. Here another clip with a blink is rewarded while the
    batch has too few of them, and not after.

    A clip is compared with those it is scored together with, so whole batches should be scored (``rollout_chunks=1``).
    Every process has a distribution of its own.

    Attributes:
        real: quantiles ``[64, 13]`` of every statistic.
        groups: action groups that count.
    """

    real: torch.Tensor
    name: str = "crowd"
    groups: tuple[str, ...] = tuple(MOTION_GROUPS)
    noise: float = 0.0
    needs: frozenset[str] = frozenset({"motion"})

    @classmethod
    def of(cls, name: str, *groups: str) -> Self:
        """Return the reward of some action groups under a name, with the shipped quantiles of real speakers."""
        return cls(_shipped_quantiles(), name, groups)

    def __call__(self, batch: RewardBatch) -> Score:
        columns = [column for column, group in enumerate(STATISTIC_GROUPS) if group in self.groups]
        generated, real = window_statistics(batch.motion)[..., columns], self.real[:, columns]
        # Each window is compared with the same window of the other clips. If all windows were pooled, a start that is
        # too stiff and an end that is too wild would together look lively.
        by_window = generated.transpose(0, 1)
        batch_distance = _mean_distance(by_window, by_window[:, None]).transpose(0, 1)
        real_spread = _mean_distance(real, real).mean(0)
        witness = ((batch_distance - _mean_distance(generated, real)) / real_spread).mean(-1)
        return all_valid(witness.mean(1), _per_frame(witness, batch.motion.shape[1]))


def window_statistics(motion: torch.Tensor) -> torch.Tensor:
    """Return the statistics ``[B, W, 13]`` of windows of motion ``[B, T, 30]``.

    They are the log amplitude and the log pace of every action group, and the share of motion above 6 Hz of lips, lids
    and gaze. Windows have 28 frames and overlap by half; a shorter clip is one window.
    """
    frames = min(CROWD_WINDOW_FRAMES, motion.shape[1])
    windows = motion.unfold(1, frames, frames // 2).mT
    flat = windows.flatten(0, 1)
    signals = [_inner_lip_positions(flat), *(flat[..., part] for name, part in MOTION_GROUPS.items() if name != "lips")]
    amplitude = [signal.var(1).mean(-1).sqrt() for signal in signals]
    pace = [(signal[:, PACE_FRAMES:] - signal[:, :-PACE_FRAMES]).abs().mean((1, 2)) for signal in signals]
    flutter = log_flutter(flat)[:, [list(MOTION_GROUPS).index(name) for name in FLUTTER_GROUPS]]
    columns = torch.cat([torch.stack(amplitude + pace, 1).clamp_min(_MIN_STATISTIC).log(), flutter], 1)
    return columns.unflatten(0, windows.shape[:2])


def _inner_lip_positions(motion: torch.Tensor) -> torch.Tensor:
    """Return the positions of the inner lips ``[B, T, 36]``, since coefficients do not show how wide a mouth looks."""
    directions = MotionBasis.load().directions[:, [*UPPER_LIP_PAIRS, *LOWER_LIP_PAIRS], :2].flatten(1)
    return motion[..., EXPRESSION] @ directions.to(motion)


def save_real_quantiles(windows: torch.Tensor) -> None:
    """Store the quantiles of the statistics of real windows ``[N, 28, 30]``."""
    levels = (torch.arange(QUANTILES) + 0.5) / QUANTILES
    quantiles = window_statistics(windows)[:, 0].quantile(levels, 0).contiguous()
    save_file({"quantiles": quantiles}, shipped_weights("reward/crowd.safetensors"))


@lru_cache(maxsize=1)
def _shipped_quantiles() -> torch.Tensor:
    return load_file(shipped_weights("reward/crowd.safetensors"))["quantiles"]


def _mean_distance(y: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """Return E|y − other| ``[..., S]`` of values ``[..., S]`` over others ``[N, S]``."""
    return (y[..., None, :] - others).abs().mean(-2)


def _per_frame(witness: torch.Tensor, frames: int) -> torch.Tensor:
    """Return values of windows ``[B, W]`` as values of frames ``[B, T]``.

    Overlapping windows are averaged, and frames after the last window have its value.
    """
    width = min(CROWD_WINDOW_FRAMES, frames)
    total, count = torch.zeros(len(witness), frames), torch.zeros(frames)
    for index, value in enumerate(witness.T):
        start = index * (width // 2)
        total[:, start : start + width] += value[:, None]
        count[start : start + width] += 1
    mean = total / count.clamp_min(1)
    return torch.where(count > 0, mean, witness[:, -1:])
