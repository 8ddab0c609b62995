"""Is the crowd of performances like real people? Each is paid for what it adds to the likeness of all.

    crowd(y) = mean over statistics of [ E|y − Y| − E|y − X| ] / E|X − X'|        Y: this batch,  X: real windows

That is the witness of the energy distance between made and real (Székely & Rizzo 2013): following it moves all of Y's
distribution towards X's. A reward per clip, the likelihood of y say, is greatest for the usual clip, so it pulls every
clip there: since half of all seconds pass without a blink, nobody blinks. Here the second blinker of a batch is
welcome while the batch blinks too little, and not after.

Statistics, of windows of 28 frames: log amplitude and log pace (change over 160 ms) of every action group; for lips,
lids and gaze the share of motion above 6 Hz. Tracked brows and heads tremble more than real ones: theirs is no model.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Self

import torch
from safetensors.torch import load_file, save_file

from flowportrait.codec.basis import EXPRESSION, MotionBasis
from flowportrait.codec.lips import LOWER_INNER, UPPER_INNER
from flowportrait.reward.batch import RewardBatch
from flowportrait.reward.interface import Score, all_valid
from flowportrait.reward.liveliness import GROUPS, log_flutter
from flowportrait.reward.real import FOLDER

FRAMES = 28
STRIDE = 4
QUANTILES = 64
"""A real distribution is kept as this many of its quantiles, at (k + ½)/64."""
TREMBLING = ("lips", "blink", "gaze")
COLUMNS = (*GROUPS, *GROUPS, *TREMBLING)
"""Whose statistic it is: amplitudes, paces, trembling."""
_STILL = 1e-4


@dataclass(frozen=True)
class Crowd:
    """real ``[64, 13]``: quantiles of every statistic; groups: those whose count here.

    It compares a clip with those it is scored together with: score whole batches (``rollout_chunks=1``). Several
    processes have a crowd each."""

    real: torch.Tensor
    name: str = "crowd"
    groups: tuple[str, ...] = tuple(GROUPS)
    noise: float = 0.0
    needs: frozenset[str] = frozenset({"motion"})

    @classmethod
    def of(cls, name: str, *groups: str) -> Self:
        """Some action groups, under a name of its own, against the real speakers that ship."""
        return cls(_shipped(), name, groups)

    def __call__(self, batch: RewardBatch) -> Score:
        own = [column for column, group in enumerate(COLUMNS) if group in self.groups]
        made, real = statistics(batch.motion)[..., own], self.real[:, own]
        # Against the others at the same moment: pooled, a start too stiff and an end too wild would pass for lively.
        moments = made.transpose(0, 1)
        crowd = _distance(moments, moments[:, None]).transpose(0, 1)
        witness = ((crowd - _distance(made, real)) / _distance(real, real).mean(0)).mean(-1)
        return all_valid(witness.mean(1), _per_frame(witness, batch.motion.shape[1]))


def statistics(motion: torch.Tensor) -> torch.Tensor:
    """``[B, W, 13]`` of motion ``[B, T, 30]`` in half-overlapping windows; a clip shorter than one is one window."""
    frames = min(FRAMES, motion.shape[1])
    windows = motion.unfold(1, frames, frames // 2).mT
    flat = windows.flatten(0, 1)
    signals = [_lips(flat), *(flat[..., part] for name, part in GROUPS.items() if name != "lips")]
    amplitude = [signal.var(1).mean(-1).sqrt() for signal in signals]
    pace = [(signal[:, STRIDE:] - signal[:, :-STRIDE]).abs().mean((1, 2)) for signal in signals]
    trembling = log_flutter(flat)[:, [list(GROUPS).index(name) for name in TREMBLING]]
    found = torch.cat([torch.stack(amplitude + pace, 1).clamp_min(_STILL).log(), trembling], 1)
    return found.unflatten(0, windows.shape[:2])


def _lips(motion: torch.Tensor) -> torch.Tensor:
    """Where the inner lips are ``[B, T, 36]``: coefficients do not say how wide a mouth looks."""
    directions = MotionBasis.load().directions[:, [*UPPER_INNER, *LOWER_INNER], :2].flatten(1)
    return motion[..., EXPRESSION] @ directions.to(motion)


def keep(windows: torch.Tensor) -> None:
    """Store what real windows ``[N, 28, 30]`` are like."""
    places = (torch.arange(QUANTILES) + 0.5) / QUANTILES
    save_file({"quantiles": statistics(windows)[:, 0].quantile(places, 0).contiguous()}, str(_FILE))


def _distance(y: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """E|y − other| of ``[..., S]`` over ``[N, S]``."""
    return (y[..., None, :] - others).abs().mean(-2)


def _per_frame(witness: torch.Tensor, frames: int) -> torch.Tensor:
    """Windows ``[B, W]`` to the frames ``[B, T]`` they cover, overlaps averaged, the remainder as the last window."""
    width = min(FRAMES, frames)
    total, count = torch.zeros(len(witness), frames), torch.zeros(frames)
    for index, value in enumerate(witness.T):
        start = index * (width // 2)
        total[:, start : start + width] += value[:, None]
        count[start : start + width] += 1
    filled = total / count.clamp_min(1)
    return torch.where(count > 0, filled, witness[:, -1:])


_FILE = FOLDER / "crowd.safetensors"


@lru_cache(maxsize=1)
def _shipped() -> torch.Tensor:
    return load_file(str(_FILE))["quantiles"]
