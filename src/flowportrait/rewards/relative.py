"""Rewards that compare a sample with its siblings, or with what the policy expects of it.

Pairwise preference as a reward: the share of siblings that a sample is preferred to (Pref-GRPO, 2508.20751).

    w_i = mean over siblings j of  P(i is better than j)

A judge that compares is often surer than one that grades. G siblings cost G (G − 1) / 2 questions; a pair that the
judge could not settle is left out, and a sample without any settled pair has no score.

SOLACE's intrinsic reward: how surely the policy recognises the noise that is put back on its own sample.

    x_σ = (1 − σ) x₀ + σ ε        ε̂ = x_σ + (1 − σ) v(x_σ, σ)
    r = − Σ_σ w(σ) ln( mean (ε̂ − ε)² + 1e-6 ) / Σ_σ w(σ),        w(σ) = σ (1 − σ)

No network but the policy itself, at the cost of a replay. Noises come in antithetic pairs and are the same for all
siblings, so that what differs between them is the sample. Each chunk has its own r (dense). Alone it rewards what is
easy: simple, average motion; use it beside a reward that asks for something. Source: SOLACE (CVPR 2026); unlike there,
guidance stays as it is delivered, and z-scores are left to credit.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations

import torch

from flowportrait.flow.noise import unit_noise
from flowportrait.flow.paths import interpolate, predict_noise
from flowportrait.rewards.batch import RewardBatch
from flowportrait.rewards.interface import Failure, Score, all_valid, measured, noises

Prefer = Callable[[RewardBatch, int, int], float]
"""``(batch, row a, row b)`` → probability that a is better, NaN if it cannot be said."""


@dataclass(frozen=True)
class PairwiseWins:
    """Win rates inside each group."""

    prefer: Prefer
    name: str = "wins"
    needs: frozenset[str] = frozenset({"frames", "group"})
    scope: str = "group"
    range: tuple[float, float] = (0.0, 1.0)
    noise: float = 0.0

    def __call__(self, batch: RewardBatch) -> Score:
        assert batch.group is not None
        won, asked = torch.zeros(len(batch)), torch.zeros(len(batch))
        for own in batch.group.unique():
            for a, b in combinations((batch.group == own).nonzero()[:, 0].tolist(), 2):
                chance = self.prefer(batch, a, b)
                if not math.isnan(chance):
                    won[a], won[b] = won[a] + chance, won[b] + 1 - chance
                    asked[[a, b]] += 1
        alone = (asked == 0).nonzero()[:, 0].tolist()
        why = {row: Failure("refused", "no pair with this sample was settled") for row in alone}
        return measured(won / asked.clamp_min(1), why)


_FLOOR = 1e-6


@dataclass(frozen=True)
class SelfConfidence:
    """``levels``: the later (lower) noise levels of a schedule; ``pairs`` of noises at each."""

    levels: tuple[float, ...] = (0.2, 0.35, 0.5)
    pairs: int = 4
    seed: int = 0
    noise: float = 0.0
    name: str = "self_confidence"
    needs: frozenset[str] = frozenset({"policy"})

    @classmethod
    def load(cls) -> SelfConfidence:
        """With its measured noise."""
        return cls(noise=noises().get("self_confidence", 0.0))

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
                drawn = unit_noise(tuple(latents.shape[1:]), self.seed, number, pair).to(latents)
                for noise in (drawn, -drawn):
                    x = interpolate(latents, noise, sigma)
                    guess = predict_noise(x, policy.velocity(x, sigma, context), sigma)
                    error += (guess - noise).square().mean(-1).cpu() / (2 * self.pairs)
            total -= level * (1 - level) * (error + _FLOOR).log()
            weights += level * (1 - level)
        chunks = total / weights
        frames = batch.motion.shape[1]
        # Chunks that do not divide the clip evenly keep their scores to themselves.
        dense = chunks.repeat_interleave(frames // chunks.shape[1], 1) if frames % chunks.shape[1] == 0 else None
        return all_valid(chunks.mean(1), dense)
