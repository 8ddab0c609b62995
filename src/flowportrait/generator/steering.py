"""Guidance by a reward of noisy latents while a chunk is drawn: bend its path, or choose among several.

    guide     v ← v − min(σ/(1−σ), most) · ∇_x Σ_d w_d r_d(x_σ, σ)      Flow-NRG (2501.13918), see ``flow.guidance``
    choose    n noises ─► n chunks ─► the one of largest Σ_d w_d r_d(x_0, 0)     pruning chunk by chunk
                                                                          (Stream-T1, 2605.04461; one survivor)

A chunk is scored as what follows the chunks before it, which the reward reads clean; it works on live sound too. The
backbone runs once however many candidates there are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from flowportrait.flow.guidance import guided
from flowportrait.flow.solver import Velocity, solve

LatentScore = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], Any]
"""``(x [B, N, D], sigma [B, N], audio [B, N, ·], start [B, 30])`` to something with ``mean [B, N, dimensions]``, the
score of every chunk given those before it (``preference.latent_reward.LatentReward``)."""


class GuidanceContext(NamedTuple):
    """What a chunk follows: clean latents ``[B, n, D]``, the encoded sound then and now ``[B, n + 1, ·]``, and the
    frame before all of it ``[B, 30]``."""

    latents: torch.Tensor
    audio: torch.Tensor
    start: torch.Tensor


@dataclass(frozen=True)
class Steering:
    """reward, and in the order of its dimensions the weights ``guide`` to bend by and ``choose`` to choose by."""

    reward: LatentScore
    guide: tuple[float, ...] = ()
    choose: tuple[float, ...] = ()
    candidates: int = 1
    most: float = 2.0
    """Largest σ/(1−σ): at six steps those at σ = 1 and 5/6 are clipped."""
    history_chunks: int = 7
    """Chunks before the next one that the reward is given."""

    def draw(self, velocity: Velocity, x: torch.Tensor, sigmas: torch.Tensor, past: GuidanceContext) -> torch.Tensor:
        """Latents ``[1, D]`` of the next chunk from ``candidates`` noises ``[n, D]``; with one candidate, of as many
        streams as the context and the noises are of."""
        if any(self.guide):
            velocity = guided(velocity, lambda x, sigma: self.score(x, sigma, past, self.guide), self.most)
        drawn = solve(velocity, x, sigmas)
        if self.candidates == 1:
            return drawn
        best = self.score(drawn, sigmas[-1], past, self.choose).argmax()
        return drawn[best][None]

    def score(
        self, x: torch.Tensor, sigma: torch.Tensor, past: GuidanceContext, weights: Sequence[float]
    ) -> torch.Tensor:
        """Weighted score ``[B]`` of chunks ``[B, D]`` at noise level sigma after this past."""
        batch, length = len(x), past.audio.shape[1]
        level = x.new_zeros(batch, length)
        level[:, -1] = float(sigma)
        track = torch.cat([past.latents.expand(batch, -1, -1), x[:, None]], 1)
        verdict = self.reward(track, level, past.audio.expand(batch, -1, -1), past.start.expand(batch, -1))
        return verdict.mean[:, -1].to(x) @ torch.tensor(weights, device=x.device)


def ordered_weights(weights: Mapping[str, float], dimensions: Sequence[str]) -> tuple[float, ...]:
    """Weights by name in the order of a reward's dimensions; those not named are zero."""
    return tuple(float(weights.get(name, 0.0)) for name in dimensions)
