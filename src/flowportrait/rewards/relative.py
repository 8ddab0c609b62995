"""This module defines rewards that need no measurement: pairwise preference and the policy's own confidence."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations

import torch

from flowportrait.flow.noise import keyed_noise
from flowportrait.flow.schedules import interpolate, predict_noise
from flowportrait.rewards.batch import RewardBatch
from flowportrait.rewards.interface import Failure, Score, all_valid, measurement_noises, score_with_failures

PreferenceFunction = Callable[[RewardBatch, int, int], float]
"""A function ``(batch, row a, row b) -> probability that a is better``, NaN if it cannot decide."""


@dataclass(frozen=True)
class PairwiseWinReward:
    """Rewards a sample for the samples of its group that it is preferred to (Pref-GRPO, 2508.20751).

        w_i = mean over the other samples j of the group of  P(i is better than j)

    A judge is often more certain in comparisons than in grades. A group of G samples needs G (G − 1) / 2 comparisons.
    Undecided pairs are left out, and a sample without a decided pair has no score.
    """

    prefer: PreferenceFunction
    name: str = "wins"
    needs: frozenset[str] = frozenset({"frames", "group"})
    scope: str = "group"
    range: tuple[float, float] = (0.0, 1.0)
    noise: float = 0.0

    def __call__(self, batch: RewardBatch) -> Score:
        assert batch.group is not None
        wins, pairs = torch.zeros(len(batch)), torch.zeros(len(batch))
        for group_id in batch.group.unique():
            for a, b in combinations((batch.group == group_id).nonzero()[:, 0].tolist(), 2):
                probability = self.prefer(batch, a, b)
                if not math.isnan(probability):
                    wins[a], wins[b] = wins[a] + probability, wins[b] + 1 - probability
                    pairs[[a, b]] += 1
        undecided = (pairs == 0).nonzero()[:, 0].tolist()
        failures = {row: Failure("refused", "no pair with this sample was settled") for row in undecided}
        return score_with_failures(wins / pairs.clamp_min(1), failures)


_FLOOR = 1e-6


@dataclass(frozen=True)
class SelfConfidenceReward:
    """Rewards samples on which the policy predicts added noise well (SOLACE, CVPR 2026).

        x_σ = (1 − σ) x₀ + σ ε        ε̂ = x_σ + (1 − σ) v(x_σ, σ)
        r = − Σ_σ w(σ) ln( mean (ε̂ − ε)² + 1e-6 ) / Σ_σ w(σ),        w(σ) = σ (1 − σ)

    It needs no network but the policy, at the cost of a replay. Noises come in antithetic pairs and are the same for
    all samples, so that scores differ only by the samples. Each chunk has its own r (dense). Alone it rewards simple,
    average motion; combine it with a reward of the task. Unlike in the paper, guidance is that of the policy's config,
    and z-scores are left to credit.

    Attributes:
        levels: low noise levels of a schedule.
        pairs: antithetic pairs of noises at each level.
        seed: of the noises.
    """

    levels: tuple[float, ...] = (0.2, 0.35, 0.5)
    pairs: int = 4
    seed: int = 0
    noise: float = 0.0
    name: str = "self_confidence"
    needs: frozenset[str] = frozenset({"policy"})

    @classmethod
    def load(cls) -> SelfConfidenceReward:
        """Return the reward with its measurement noise."""
        return cls(noise=measurement_noises().get("self_confidence", 0.0))

    @torch.no_grad()
    def __call__(self, batch: RewardBatch) -> Score:
        policy, latents = batch.policy, batch.latents
        assert latents is not None
        condition = batch.condition() if callable(batch.condition) else batch.condition
        context = policy.contexts(condition, latents)
        total, weights = torch.zeros(latents.shape[:2]), 0.0
        for number, level in enumerate(self.levels):
            sigma, error = torch.tensor(level), torch.zeros(latents.shape[:2])
            for pair in range(self.pairs):
                pair_noise = keyed_noise(tuple(latents.shape[1:]), self.seed, number, pair).to(latents)
                for noise in (pair_noise, -pair_noise):
                    x = interpolate(latents, noise, sigma)
                    prediction = predict_noise(x, policy.velocity(x, sigma, context), sigma)
                    error += (prediction - noise).square().mean(-1).cpu() / (2 * self.pairs)
            total -= level * (1 - level) * (error + _FLOOR).log()
            weights += level * (1 - level)
        chunks = total / weights
        frames = batch.motion.shape[1]
        # There are no scores per frame if the chunks do not divide the clip evenly.
        dense = chunks.repeat_interleave(frames // chunks.shape[1], 1) if frames % chunks.shape[1] == 0 else None
        return all_valid(chunks.mean(1), dense)
