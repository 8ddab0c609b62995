"""SOLACE's intrinsic reward: how surely the policy recognises the noise that is put back on its own sample.

    x_σ = (1 − σ) x₀ + σ ε        ε̂ = x_σ + (1 − σ) v(x_σ, σ)
    r = − Σ_σ w(σ) ln( mean (ε̂ − ε)² + 1e-6 ) / Σ_σ w(σ),        w(σ) = σ (1 − σ)

No network but the policy itself, at the cost of a replay. Noises come in antithetic pairs and are the same for all
siblings, so that what differs between them is the sample. Each chunk has its own r (dense). Alone it rewards what is
easy: simple, average motion; use it beside a reward that asks for something. Source: SOLACE (CVPR 2026); unlike there,
guidance stays as it is delivered, and z-scores are left to credit.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from flowportrait.flow.noise import unit_noise
from flowportrait.flow.path import interpolate, predict_noise
from flowportrait.reward.batch import RewardBatch
from flowportrait.reward.interface import Score, all_valid
from flowportrait.reward.real import noises

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
