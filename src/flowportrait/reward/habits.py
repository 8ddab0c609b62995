"""Blinks, glances and head motion: what a living face does besides speaking.

    eyes = − ½ mean_{lids, gaze} huber(z of log amplitude) − ½ [ ln P(mode) − ln P(k) ],   P = Poisson(λ T)
    head = − ½ mean_{amplitude, speed} huber(z)            − relu( mean distance from rest − what is usual )

k blinks in T seconds; the count is left out in clips under two seconds, which real people often pass without one. z
compares with real speakers (``liveliness.RealMotion``): a stare loses as much as a flutter, a stiff neck as much as a
lolling head.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from scipy.signal import find_peaks

from flowportrait.codec.basis import BLINK, HEAD
from flowportrait.media.video import FPS
from flowportrait.reward.batch import RewardBatch
from flowportrait.reward.interface import Score, all_valid
from flowportrait.reward.liveliness import GROUPS, RealMotion, log_amplitude, log_speed
from flowportrait.reward.real import noises

BLINKS_PER_SECOND = 0.55
"""Of training speakers, by the same count (``measure_real`` prints it)."""
PROMINENCE = 1.5
"""Standard deviations that lids must close by; agrees with the tracker's own blink signal in 96 % of clips."""
SHORTEST_SECONDS = 2.0
USUAL_DISTANCE = 1.5
"""Mean absolute head coordinates, in standard deviations, that real speakers stay within."""

Statistic = Callable[[torch.Tensor], torch.Tensor]

_LIDS, _GAZE, _HEAD = (list(GROUPS).index(name) for name in ("blink", "gaze", "head"))


@dataclass(frozen=True)
class Eyes:
    """How alive lids and gaze are."""

    real: RealMotion
    noise: float = 0.0
    name: str = "eyes"
    needs: frozenset[str] = frozenset({"motion"})

    @classmethod
    def load(cls) -> Eyes:
        """Against the real speakers that ship."""
        return cls(RealMotion.load(), noises().get("eyes", 0.0))

    def __call__(self, batch: RewardBatch) -> Score:
        amplitude = _z(self.real, log_amplitude, self.real.amplitude_mean, self.real.amplitude_std, batch.motion)
        moving = -_huber(amplitude[:, [_LIDS, _GAZE]]).mean(1)
        seconds = batch.motion.shape[1] / FPS
        if seconds < SHORTEST_SECONDS:
            return all_valid(moving)
        counted = torch.tensor([blinks(row) for row in batch.motion[..., BLINK].mean(-1).numpy()])
        return all_valid(0.5 * moving - 0.5 * surprise(counted, BLINKS_PER_SECOND * seconds))


@dataclass(frozen=True)
class Head:
    """How alive the head is, and whether it stays where a head stays."""

    real: RealMotion
    noise: float = 0.0
    name: str = "head"
    needs: frozenset[str] = frozenset({"motion"})

    @classmethod
    def load(cls) -> Head:
        """Against the real speakers that ship."""
        return cls(RealMotion.load(), noises().get("head", 0.0))

    def __call__(self, batch: RewardBatch) -> Score:
        real = self.real
        amplitude = _z(real, log_amplitude, real.amplitude_mean, real.amplitude_std, batch.motion)[:, _HEAD]
        speed = _z(real, log_speed, real.speed_mean, real.speed_std, batch.motion)[:, _HEAD]
        far = F.relu(batch.motion[..., HEAD].abs().mean((1, 2)) - USUAL_DISTANCE)
        return all_valid(-0.5 * (_huber(amplitude) + _huber(speed)) - far)


def blinks(lids: np.ndarray) -> int:
    """Closures of the lids ``[T]`` (standard deviations, closed is positive), up to a second long."""
    padded = np.concatenate([[lids.min()], lids, [lids.min()]])
    return len(find_peaks(padded, prominence=PROMINENCE, width=(None, FPS))[0])


def surprise(count: torch.Tensor, expected: float) -> torch.Tensor:
    """ln P(mode) − ln P(count) under a Poisson law, at least zero."""
    law = torch.distributions.Poisson(torch.tensor(expected))
    mode = torch.tensor(float(int(expected)))
    return law.log_prob(mode) - law.log_prob(count.float())


def _z(
    real: RealMotion, statistic: Statistic, mean: list[float], std: list[float], motion: torch.Tensor
) -> torch.Tensor:
    return (real.over_windows(statistic, motion) - torch.tensor(mean)) / torch.tensor(std)


def _huber(z: torch.Tensor) -> torch.Tensor:
    return F.huber_loss(z, torch.zeros_like(z), reduction="none")
