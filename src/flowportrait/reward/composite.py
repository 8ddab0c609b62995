"""The default composite: three groups of rewards and their weights.

    judge .5 (.7 of it lip sync, the rest expressiveness and smoothness alike) · perceptual .3 · temporal .2

The groups and weights are FlowPortrait's (2603.00159). Nothing is summed here: rewards are normalised one by
one inside their group of samples and combined by ``posttrain.credit``.
"""

from __future__ import annotations

from dataclasses import dataclass

from flowportrait.reward.interface import Reward, RewardBatch, Score
from flowportrait.reward.lip_sync import LipSync
from flowportrait.reward.liveliness import Expressiveness, RealMotion, Smoothness
from flowportrait.reward.pixels import Perceptual, Temporal
from flowportrait.reward.scoring import score


@dataclass(frozen=True)
class RewardWeights:
    judge: float = 0.5
    perceptual: float = 0.3
    temporal: float = 0.2
    sync_share: float = 0.7
    """Of the judge's weight: lip sync. The rest is halved between expressiveness and smoothness."""


@dataclass(frozen=True)
class Composite:
    """Rewards and the weight of each; a weight of zero leaves the reward out."""

    rewards: tuple[Reward, ...]
    weights: dict[str, float]

    @classmethod
    def default(cls, weights: RewardWeights | None = None) -> Composite:
        """The composite described above, with the experts that ship."""
        weights = weights or RewardWeights()
        real = RealMotion.load()
        rest = weights.judge * (1 - weights.sync_share) / 2
        parts: tuple[tuple[Reward, float], ...] = (
            (LipSync.load(), weights.judge * weights.sync_share),
            (Expressiveness(real), rest),
            (Smoothness(real), rest),
            (Perceptual(real.perceptual_mean, real.perceptual_std), weights.perceptual),
            (Temporal(real.temporal_mean, real.temporal_std), weights.temporal),
        )
        kept = [part for part in parts if part[1] > 0]
        return cls(tuple(reward for reward, _ in kept), {reward.name: weight for reward, weight in kept})

    def __call__(self, batch: RewardBatch) -> dict[str, Score]:
        """Every reward's scores, apart."""
        return {reward.name: score(reward, batch) for reward in self.rewards}
