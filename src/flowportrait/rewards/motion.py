"""This module defines rewards of motion coefficients, without pictures.

    expressiveness    amplitude and speed of every part of the face like those of real speakers
    smoothness        little motion above 6 Hz (also ``TremorReward``, for parts of the face)
    eyes, head        blinks, gaze and head motion like those of real speakers
    silent lips       a closed mouth while nobody speaks
    crowd             a distribution of motion over the whole batch like that of real speakers

All but the silent lips compare with statistics of real speakers, which are described first.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Self

import numpy as np
import torch
import torch.nn.functional as F
from scipy.signal import find_peaks

from flowportrait.files import shipped_weights
from flowportrait.media.mel import MELS_PER_FRAME
from flowportrait.media.video import FPS
from flowportrait.rendering.motion_basis import (
    BLINK,
    BROWS,
    EXPRESSION,
    GAZE,
    HEAD,
    LOWER_FACE,
    LOWER_LIP_PAIRS,
    UPPER_LIP_PAIRS,
    MotionBasis,
)
from flowportrait.rewards.batch import RewardBatch
from flowportrait.rewards.interface import (
    Failure,
    Score,
    all_valid,
    measurement_noises,
    score_with_failures,
)

# --- Statistics of real motion ---

CUTOFF_HZ = 6.0
"""Frequency above which motion counts as flutter."""
MOTION_GROUPS: dict[str, slice] = {
    "lips": LOWER_FACE, "brows": BROWS, "blink": BLINK, "gaze": GAZE, "head": HEAD,
}  # fmt: skip
"""Action groups: parts of the face and their motion coefficients."""
_LIP_GROUP = 0

MotionStatistic = Callable[[torch.Tensor], torch.Tensor]
"""A statistic ``[B, 5]`` of motion ``[B, T, 30]``, one value per action group."""


@dataclass(frozen=True)
class RealMotionStatistics:
    """Mean and standard deviation over real clips of three statistics, one entry per action group.

    Attributes:
        frames: length of the clips.
        amplitude_mean: mean of ``log_amplitude``.
        amplitude_std: standard deviation of ``log_amplitude``.
        speed_mean: mean of ``log_speed``.
        speed_std: standard deviation of ``log_speed``.
        flutter_mean: mean of ``log_flutter``.
        flutter_std: standard deviation of ``log_flutter``.
    """

    frames: int
    amplitude_mean: list[float]
    amplitude_std: list[float]
    speed_mean: list[float]
    speed_std: list[float]
    flutter_mean: list[float]
    flutter_std: list[float]

    @classmethod
    @lru_cache(maxsize=1)
    def load(cls) -> RealMotionStatistics:
        """Return the statistics that ship with the package."""
        text = shipped_weights("basis/real_motion.json").read_text(encoding="utf-8")
        return cls(**json.loads(text))

    @classmethod
    def measure(cls, windows: torch.Tensor) -> RealMotionStatistics:
        """Compute the statistics of real motion ``[B, T, 30]``."""
        values: dict[str, list[float]] = {}
        for name, statistic in (("amplitude", log_amplitude), ("speed", log_speed), ("flutter", log_flutter)):
            stats = statistic(windows)
            values[f"{name}_mean"] = stats.mean(0).tolist()
            values[f"{name}_std"] = stats.std(0).tolist()
        return cls(frames=windows.shape[1], **values)

    def mean_over_windows(self, statistic: MotionStatistic, motion: torch.Tensor) -> torch.Tensor:
        """Return the mean ``[B, 5]`` of a statistic over windows of motion ``[B, T, 30]``.

        Windows have ``frames`` frames and overlap by half. A shorter clip is one window.
        """
        frames = min(self.frames, motion.shape[1])
        windows = motion.unfold(1, frames, frames // 2).mT
        return statistic(windows.flatten(0, 1)).unflatten(0, windows.shape[:2]).mean(1)

    def to_json(self) -> str:
        """Return the statistics as JSON, as they are stored beside the motion basis."""
        return json.dumps(asdict(self), indent=1)


def log_amplitude(motion: torch.Tensor) -> torch.Tensor:
    """Return the log of the mean standard deviation of each action group ``[B, 5]`` of motion ``[B, T, 30]``."""
    return _per_group(motion.std(1))


def log_speed(motion: torch.Tensor) -> torch.Tensor:
    """Return the log of the mean absolute change per frame of each action group ``[B, 5]``."""
    return _per_group(motion.diff(dim=1).abs().mean(1))


def log_flutter(motion: torch.Tensor) -> torch.Tensor:
    """Return the log of the share of velocity power above 6 Hz of each action group ``[B, 5]``.

    It is computed from signed motion, so that a clean nod at 4 Hz counts as 4 Hz.
    """
    velocity = motion.diff(dim=1)
    window = torch.hann_window(velocity.shape[1], periodic=False)
    power = torch.fft.rfft((velocity - velocity.mean(1, keepdim=True)) * window[None, :, None], dim=1).abs().square()
    fast = torch.fft.rfftfreq(velocity.shape[1], 1 / FPS) > CUTOFF_HZ
    high = torch.stack([power[:, fast, part].sum((1, 2)) for part in MOTION_GROUPS.values()], 1)
    total = torch.stack([power[..., part].sum((1, 2)) for part in MOTION_GROUPS.values()], 1)
    return ((high + 1e-6) / (total + 1e-5)).log()


def _per_group(values: torch.Tensor) -> torch.Tensor:
    """Return the log of the mean of values ``[B, 30]`` of each action group ``[B, 5]``."""
    return torch.stack([values[:, part].mean(1) for part in MOTION_GROUPS.values()], 1).clamp_min(1e-3).log()


def _standardize(
    real: RealMotionStatistics, statistic: MotionStatistic, mean: list[float], std: list[float], motion: torch.Tensor
) -> torch.Tensor:
    """Return a statistic ``[B, 5]`` of motion in standard deviations from the mean of real speakers."""
    return (real.mean_over_windows(statistic, motion) - torch.tensor(mean)) / torch.tensor(std)


def _huber(z: torch.Tensor) -> torch.Tensor:
    return F.huber_loss(z, torch.zeros_like(z), reduction="none")


# --- Expressiveness and smoothness ---


@dataclass(frozen=True)
class RealMotionReward:
    """The fields of rewards that compare motion with statistics of real speakers."""

    real: RealMotionStatistics
    noise: float = 0.0
    name: str = ""
    needs: frozenset[str] = frozenset({"motion"})

    @classmethod
    def load(cls) -> Self:
        """Return the reward with the shipped statistics of real speakers."""
        return cls(RealMotionStatistics.load(), measurement_noises().get(cls.name, 0.0))


@dataclass(frozen=True)
class ExpressivenessReward(RealMotionReward):
    """Rewards amplitude and speed of every action group like those of real speakers.

        expressiveness = − mean_j  huber( (y_j − μ_j) / d_j )

    y are the log amplitude and the log speed of every action group, μ and d their mean and standard deviation in real
    clips of the same length. A still face and a grimacing one both lose. Longer clips are divided into overlapping
    windows of that length, and y is averaged over windows.
    """

    name: str = "expressiveness"

    def __call__(self, batch: RewardBatch) -> Score:
        distance = torch.zeros(len(batch.motion))
        for statistic, mean, std in (
            (log_amplitude, self.real.amplitude_mean, self.real.amplitude_std),
            (log_speed, self.real.speed_mean, self.real.speed_std),
        ):
            distance = distance + _huber(_standardize(self.real, statistic, mean, std, batch.motion)).mean(1)
        return all_valid(-distance / 2)


@dataclass(frozen=True)
class SmoothnessReward(RealMotionReward):
    """Rewards motion without flutter, with a guard against stillness.

        smoothness = − softplus( (ln h − μ_h) / d_h ) − relu( (μ_a − d_a − ln lip amplitude) / d_a )

    h is the share of motion power above 6 Hz. The last term is the guard: lips that move less than those of five in six
    real clips lose more than stillness gains. Within the range of real lips the amplitude does not count.
    """

    name: str = "smoothness"
    groups: tuple[str, ...] = tuple(MOTION_GROUPS)
    """Action groups whose flutter counts."""

    @classmethod
    def only(cls, name: str, *groups: str) -> SmoothnessReward:
        """Return the reward of some action groups, under another name."""
        return cls(RealMotionStatistics.load(), name=name, groups=groups)

    def __call__(self, batch: RewardBatch) -> Score:
        flutter = _standardize(
            self.real, log_flutter, self.real.flutter_mean, self.real.flutter_std, batch.motion
        )  # fmt: skip
        amplitude = self.real.mean_over_windows(log_amplitude, batch.motion)[:, _LIP_GROUP]
        stillness = (self.real.amplitude_mean[_LIP_GROUP] - amplitude) / self.real.amplitude_std[_LIP_GROUP]
        columns = [list(MOTION_GROUPS).index(name) for name in self.groups]
        return all_valid(-F.softplus(flutter[:, columns]).mean(1) - F.relu(stillness - 1))


@dataclass(frozen=True)
class TremorReward:
    """Penalises the power of motion above 6 Hz in some action groups.

        tremor = − mean_j softplus( (ln h_j s_j² − μ_j) / d_j ),   h: share above 6 Hz, s: mean speed

    Unlike a share of the power, it does not decrease with wider slow motion. μ and d are those of real speakers, with
    share and speed taken as independent.
    """

    real: RealMotionStatistics
    name: str
    groups: tuple[str, ...]
    noise: float = 0.0
    needs: frozenset[str] = frozenset({"motion"})

    @classmethod
    def of(cls, name: str, *groups: str) -> TremorReward:
        """Return the reward of some action groups under a name, with the shipped statistics of real speakers."""
        return cls(RealMotionStatistics.load(), name, groups)

    def __call__(self, batch: RewardBatch) -> Score:
        real, columns = self.real, [list(MOTION_GROUPS).index(name) for name in self.groups]
        power = real.mean_over_windows(lambda motion: log_flutter(motion) + 2 * log_speed(motion), batch.motion)
        mean = torch.tensor(real.flutter_mean) + 2 * torch.tensor(real.speed_mean)
        std = (torch.tensor(real.flutter_std).square() + 4 * torch.tensor(real.speed_std).square()).sqrt()
        return all_valid(-F.softplus((power - mean) / std)[:, columns].mean(1))


# --- Blinks, gaze and head motion ---

BLINKS_PER_SECOND = 0.55
"""Mean of training speakers, counted by ``count_lid_closures``."""
BLINK_PROMINENCE = 1.5
"""Standard deviations by which lids must close in a blink. The count agrees with the tracker's blink signal in 96 % of
clips."""
MIN_BLINK_SECONDS = 2.0
"""Length from which blinks are counted; real speakers often do not blink in shorter clips."""
MAX_HEAD_DISTANCE = 1.5
"""Mean absolute head coordinates, in standard deviations, that real speakers do not exceed."""

_LIDS, _GAZE, _HEAD = (list(MOTION_GROUPS).index(name) for name in ("blink", "gaze", "head"))


@dataclass(frozen=True)
class EyesReward(RealMotionReward):
    """Rewards motion of lids and gaze, and a number of blinks, like those of real speakers.

        eyes = − ½ mean_{lids, gaze} huber(z of log amplitude) − ½ [ ln P(mode) − ln P(k) ],   P = Poisson(λ T)

    k is the number of blinks in T seconds, λ the blink rate of real speakers. A stare loses as much as a flutter.
    """

    name: str = "eyes"

    def __call__(self, batch: RewardBatch) -> Score:
        real = self.real
        amplitude = _standardize(real, log_amplitude, real.amplitude_mean, real.amplitude_std, batch.motion)
        liveliness = -_huber(amplitude[:, [_LIDS, _GAZE]]).mean(1)
        seconds = batch.motion.shape[1] / FPS
        if seconds < MIN_BLINK_SECONDS:
            return all_valid(liveliness)
        counts = torch.tensor([count_lid_closures(row) for row in batch.motion[..., BLINK].mean(-1).numpy()])
        return all_valid(0.5 * liveliness - 0.5 * poisson_surprise(counts, BLINKS_PER_SECOND * seconds))


@dataclass(frozen=True)
class HeadReward(RealMotionReward):
    """Rewards head motion like that of real speakers, near the neutral pose.

        head = − ½ Σ_{amplitude, speed} huber(z) − relu( mean distance from the neutral pose − ``MAX_HEAD_DISTANCE`` )

    A stiff neck loses as much as a swaying head.
    """

    name: str = "head"

    def __call__(self, batch: RewardBatch) -> Score:
        real = self.real
        amplitude = _standardize(real, log_amplitude, real.amplitude_mean, real.amplitude_std, batch.motion)[:, _HEAD]
        speed = _standardize(real, log_speed, real.speed_mean, real.speed_std, batch.motion)[:, _HEAD]
        excess = F.relu(batch.motion[..., HEAD].abs().mean((1, 2)) - MAX_HEAD_DISTANCE)
        return all_valid(-0.5 * (_huber(amplitude) + _huber(speed)) - excess)


def count_lid_closures(lids: np.ndarray) -> int:
    """Return the number of blinks, which are closures of up to a second, in lid coordinates ``[T]``.

    The coordinates are in standard deviations; closed is positive.
    """
    padded = np.concatenate([[lids.min()], lids, [lids.min()]])
    return len(find_peaks(padded, prominence=BLINK_PROMINENCE, width=(None, FPS))[0])


def poisson_surprise(count: torch.Tensor, expected: float) -> torch.Tensor:
    """Return ln P(mode) − ln P(count) ``[B]`` of a Poisson distribution, which is at least zero."""
    distribution = torch.distributions.Poisson(torch.tensor(expected))
    mode = torch.tensor(float(int(expected)))
    return distribution.log_prob(mode) - distribution.log_prob(count.float())


# --- Silent lips ---

SILENCE_DECIBELS = 30.0
"""Decibels by which silence is below the level that a twentieth of the frames exceed."""
MIN_SILENCE_FRAMES = 4
"""Smallest number of frames of a pause. Its first and last frames do not count, since lips close and open there."""
_DIGITAL_SILENCE = -0.45
"""Mean log-mel below which a frame is silent at any level of the clip. Digital silence has −1.08."""


@dataclass(frozen=True)
class SilentLipReward:
    """Rewards closed lips while nobody speaks.

        dense[t] = − mean lip gap at t, in outer-eye-corner distances      silent lip = mean over the silent frames

    Silent frames are found in the log-mel. A clip without any has no score.
    """

    noise: float = 0.0
    name: str = "silent_lip"
    needs: frozenset[str] = frozenset({"motion", "mel"})
    range: tuple[float, float] = (-2.0, 0.0)

    @classmethod
    def load(cls) -> SilentLipReward:
        """Return the reward with its measurement noise."""
        return cls(measurement_noises().get("silent_lip", 0.0))

    def __call__(self, batch: RewardBatch) -> Score:
        silent = find_silent_frames(batch.mel).float()
        dense = -inner_lip_gap(batch.motion) * silent
        without_pause = (silent.sum(1) == 0).nonzero()[:, 0].tolist()
        failures = {row: Failure("no_sound", "speech throughout: no silence to be silent in") for row in without_pause}
        return score_with_failures(dense.sum(1) / silent.sum(1).clamp_min(1), failures, dense)


def inner_lip_gap(motion: torch.Tensor) -> torch.Tensor:
    """Return the mean gap ``[B, T]`` between the inner lips of motion ``[B, T, 30]``.

    Lips are closed in the neutral pose.
    """
    directions = MotionBasis.load().directions
    opening = (directions[:, LOWER_LIP_PAIRS, 1] - directions[:, UPPER_LIP_PAIRS, 1]).to(motion)
    return F.relu(motion[..., EXPRESSION] @ opening).mean(-1)


def find_silent_frames(mel: torch.Tensor) -> torch.Tensor:
    """Return the mask ``[B, T]`` of silent frames of a log-mel ``[B, 4T, 80]``, without the edges of pauses."""
    power = (4 * mel - 9.5).exp().mean(-1).unflatten(1, (-1, MELS_PER_FRAME)).mean(-1)
    loud = power.quantile(0.95, dim=1, keepdim=True)
    digital = mel.mean(-1).unflatten(1, (-1, MELS_PER_FRAME)).mean(-1) < _DIGITAL_SILENCE
    quiet = ((power < loud * 10 ** (-SILENCE_DECIBELS / 10)) | digital).float()[:, None]
    # A morphological opening by SHORTEST removes short runs, and an erosion by one frame removes the edges.
    core = -F.max_pool1d(F.pad(-quiet, (0, MIN_SILENCE_FRAMES - 1), value=0.0), MIN_SILENCE_FRAMES, 1)
    runs = F.max_pool1d(F.pad(core, (MIN_SILENCE_FRAMES - 1, 0)), MIN_SILENCE_FRAMES, 1)
    inside = -F.max_pool1d(F.pad(-runs, (1, 1), value=-1.0), 3, 1)
    return inside[:, 0] > 0.5
