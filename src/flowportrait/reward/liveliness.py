"""Expressiveness and smoothness, measured on motion against the statistics of real footage.

For each action group (lips, brows, lids and gaze, head) a clip has a log amplitude and a log speed. Real clips of
the same length have a mean μ and deviation d of both. Expressiveness is the mean log-likelihood kernel

    expressiveness = − mean_j  huber( (y_j − μ_j) / d_j )

so a dead face and a grimacing one both lose; longer samples are judged by overlapping windows of that length,
statistics averaged first. Smoothness compares the share of motion energy above 6 Hz:

    smoothness = − softplus( (ln h − μ_h) / d_h ) − relu( (μ_a − d_a − ln lip amplitude) / d_a )

the last term being a guard: lips that move less than five in six real clips' lose more than stillness earns.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import lru_cache
from importlib.resources import files

import torch
import torch.nn.functional as F

from flowportrait.codec.basis import BLINK, BROWS, GAZE, HEAD, LOWER
from flowportrait.media.video import FPS
from flowportrait.reward.batch import RewardBatch
from flowportrait.reward.interface import Score, all_valid
from flowportrait.reward.real import noises

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
