"""Rewards of motion: expressiveness, smoothness, blinks, glances, head, silent lips, likeness of a crowd.

Expressiveness and smoothness, measured on motion against the statistics of real footage.

For each action group (lips, brows, lids and gaze, head) a clip has a log amplitude and a log speed. Real clips of
the same length have a mean μ and deviation d of both. Expressiveness is the mean log-likelihood kernel

    expressiveness = − mean_j  huber( (y_j − μ_j) / d_j )

so a dead face and a grimacing one both lose; longer samples are judged by overlapping windows of that length,
statistics averaged first. Smoothness compares the share of motion energy above 6 Hz:

    smoothness = − softplus( (ln h − μ_h) / d_h ) − relu( (μ_a − d_a − ln lip amplitude) / d_a )

the last term being a guard: lips that move less than five in six real clips' lose more than stillness earns.

Blinks, glances and head motion: what a living face does besides speaking.

    eyes = − ½ mean_{lids, gaze} huber(z of log amplitude) − ½ [ ln P(mode) − ln P(k) ],   P = Poisson(λ T)
    head = − ½ mean_{amplitude, speed} huber(z)            − relu( mean distance from rest − what is usual )

k blinks in T seconds; the count is left out in clips under two seconds, which real people often pass without one. z
compares with real speakers (``liveliness.RealMotion``): a stare loses as much as a flutter, a stiff neck as much as a
lolling head.

Silent lips: while nobody speaks, the mouth is shut.

    dense[t] = − mean lip gap at t, in outer-eye-corner distances      silent lip = mean over the silent frames

Silence is found in the log-mel: runs of frames 30 dB under the clip's loud level. A clip without any has no score.

Is the crowd of performances like real people? Each is paid for what it adds to the likeness of all.

    crowd(y) = mean over statistics of [ E|y − Y| − E|y − X| ] / E|X − X'|        Y: this batch,  X: real windows

That is the witness of the energy distance between made and real (Székely & Rizzo 2013): following it moves all of Y's
distribution towards X's. A reward per clip, the likelihood of y say, is greatest for the usual clip, so it pulls every
clip there: since half of all seconds pass without a blink, nobody blinks. Here the second blinker of a batch is
welcome while the batch blinks too little, and not after.

Statistics, of windows of 28 frames: log amplitude and log pace (change over 160 ms) of every action group; for lips,
lids and gaze the share of motion above 6 Hz. Tracked brows and heads tremble more than real ones: theirs is no model.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import lru_cache
from importlib.resources import files
from typing import Self

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from scipy.signal import find_peaks

from flowportrait.media.mel import MELS_PER_FRAME
from flowportrait.media.video import FPS
from flowportrait.rendering.motion_basis import (
    BLINK,
    BROWS,
    EXPRESSION,
    GAZE,
    HEAD,
    LOWER,
    LOWER_INNER,
    UPPER_INNER,
    MotionBasis,
)
from flowportrait.rewards.batch import RewardBatch
from flowportrait.rewards.interface import FOLDER, Failure, Score, all_valid, measured, noises

CUTOFF_HZ = 6.0
GROUPS: dict[str, slice] = {
    "lips": LOWER, "brows": BROWS, "blink": BLINK, "gaze": GAZE, "head": HEAD,
}  # fmt: skip
_LIP_GROUP = 0


@dataclass(frozen=True)
class RealMotion:
    """Mean and deviation over real clips of the statistics below; one entry per action group."""

    frames: int
    amplitude_mean: list[float]
    amplitude_std: list[float]
    speed_mean: list[float]
    speed_std: list[float]
    flutter_mean: list[float]
    flutter_std: list[float]

    @classmethod
    @lru_cache(maxsize=1)
    def load(cls) -> RealMotion:
        """The statistics that ship with the package."""
        text = (files("flowportrait") / "weights" / "basis" / "real_motion.json").read_text(encoding="utf-8")
        return cls(**json.loads(text))

    @classmethod
    def measure(cls, windows: torch.Tensor) -> RealMotion:
        """From real motion ``[B, T, 30]``."""
        values: dict[str, list[float]] = {}
        for name, of in (("amplitude", log_amplitude), ("speed", log_speed), ("flutter", log_flutter)):
            stats = of(windows)
            values[f"{name}_mean"] = stats.mean(0).tolist()
            values[f"{name}_std"] = stats.std(0).tolist()
        return cls(frames=windows.shape[1], **values)

    def over_windows(self, statistic: Callable[[torch.Tensor], torch.Tensor], motion: torch.Tensor) -> torch.Tensor:
        """Mean of ``statistic`` over half-overlapping windows of ``frames`` frames, ``[B, 5]``; a clip shorter than
        that is one window."""
        frames = min(self.frames, motion.shape[1])
        windows = motion.unfold(1, frames, frames // 2).mT
        return statistic(windows.flatten(0, 1)).unflatten(0, windows.shape[:2]).mean(1)

    def to_json(self) -> str:
        """As stored beside the basis."""
        return json.dumps(asdict(self), indent=1)


def log_amplitude(motion: torch.Tensor) -> torch.Tensor:
    """ln of the mean standard deviation of each action group ``[B, 5]`` for motion ``[B, T, 30]``."""
    return _per_group(motion.std(1))


def log_speed(motion: torch.Tensor) -> torch.Tensor:
    """ln of the mean absolute change per frame ``[B, 5]``."""
    return _per_group(motion.diff(dim=1).abs().mean(1))


def log_flutter(motion: torch.Tensor) -> torch.Tensor:
    """ln of the share of velocity power above 6 Hz ``[B, 5]``; signed motion, so a clean 4 Hz nod counts as 4 Hz."""
    velocity = motion.diff(dim=1)
    window = torch.hann_window(velocity.shape[1], periodic=False)
    power = torch.fft.rfft((velocity - velocity.mean(1, keepdim=True)) * window[None, :, None], dim=1).abs().square()
    fast = torch.fft.rfftfreq(velocity.shape[1], 1 / FPS) > CUTOFF_HZ
    high = torch.stack([power[:, fast, part].sum((1, 2)) for part in GROUPS.values()], 1)
    total = torch.stack([power[..., part].sum((1, 2)) for part in GROUPS.values()], 1)
    return ((high + 1e-6) / (total + 1e-5)).log()


def _per_group(values: torch.Tensor) -> torch.Tensor:
    return torch.stack([values[:, part].mean(1) for part in GROUPS.values()], 1).clamp_min(1e-3).log()


@dataclass(frozen=True)
class Expressiveness:
    """How close the face's liveliness is to that of real speakers."""

    real: RealMotion
    noise: float = 0.0
    name: str = "expressiveness"
    needs: frozenset[str] = frozenset({"motion"})

    @classmethod
    def load(cls) -> Expressiveness:
        """Against the real speakers that ship."""
        return cls(RealMotion.load(), noises().get("expressiveness", 0.0))

    def __call__(self, batch: RewardBatch) -> Score:
        distance = torch.zeros(len(batch.motion))
        for statistic, mean, std in (
            (log_amplitude, self.real.amplitude_mean, self.real.amplitude_std),
            (log_speed, self.real.speed_mean, self.real.speed_std),
        ):
            z = (self.real.over_windows(statistic, batch.motion) - torch.tensor(mean)) / torch.tensor(std)
            distance = distance + F.huber_loss(z, torch.zeros_like(z), reduction="none").mean(1)
        return all_valid(-distance / 2)


@dataclass(frozen=True)
class Smoothness:
    """Absence of flutter, with a guard against stillness; within what real lips do, amplitude does not count."""

    real: RealMotion
    noise: float = 0.0
    name: str = "smoothness"
    needs: frozenset[str] = frozenset({"motion"})
    groups: tuple[str, ...] = tuple(GROUPS)
    """Action groups whose flutter counts."""

    @classmethod
    def load(cls) -> Smoothness:
        """Against the real speakers that ship."""
        return cls(RealMotion.load(), noises().get("smoothness", 0.0))

    @classmethod
    def only(cls, name: str, *groups: str) -> Smoothness:
        """Of some action groups, under a name of its own: to pay the part of the face that flutters."""
        return cls(RealMotion.load(), name=name, groups=groups)

    def __call__(self, batch: RewardBatch) -> Score:
        measured = self.real.over_windows(log_flutter, batch.motion)
        flutter = (measured - torch.tensor(self.real.flutter_mean)) / torch.tensor(self.real.flutter_std)
        amplitude = self.real.over_windows(log_amplitude, batch.motion)[:, _LIP_GROUP]
        stillness = (self.real.amplitude_mean[_LIP_GROUP] - amplitude) / self.real.amplitude_std[_LIP_GROUP]
        own = [list(GROUPS).index(name) for name in self.groups]
        return all_valid(-F.softplus(flutter[:, own]).mean(1) - F.relu(stillness - 1))


@dataclass(frozen=True)
class Tremor:
    """Power of motion above 6 Hz in some action groups, as it is and not as a share: wider slow swings do not hide it.

        tremor = − mean_j softplus( (ln h_j s_j² − μ_j) / d_j ),   h: share above 6 Hz, s: mean speed

    μ and d are those of real speakers, share and speed taken as independent.
    """

    real: RealMotion
    name: str
    groups: tuple[str, ...]
    noise: float = 0.0
    needs: frozenset[str] = frozenset({"motion"})

    @classmethod
    def of(cls, name: str, *groups: str) -> Tremor:
        """Against the real speakers that ship."""
        return cls(RealMotion.load(), name, groups)

    def __call__(self, batch: RewardBatch) -> Score:
        real, own = self.real, [list(GROUPS).index(name) for name in self.groups]
        power = real.over_windows(lambda motion: log_flutter(motion) + 2 * log_speed(motion), batch.motion)
        mean = torch.tensor(real.flutter_mean) + 2 * torch.tensor(real.speed_mean)
        std = (torch.tensor(real.flutter_std).square() + 4 * torch.tensor(real.speed_std).square()).sqrt()
        return all_valid(-F.softplus((power - mean) / std)[:, own].mean(1))


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
