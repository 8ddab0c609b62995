"""Advantage-weighted matching (2509.25050): the supervised loss of one's own samples as a log-probability.

ℓ = −w(σ)·mean ‖v − (ε − x₀)‖²,      L = −mean min( ρ·A, clip(ρ)·A ),   ρ = exp(ℓ − ℓ_old)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from flowportrait.config import at_least
from flowportrait.flow.noise import NoiseKey
from flowportrait.posttrain.objective.interface import Evidence, Loss, Points, noised
from flowportrait.posttrain.trajectory import Trajectory


@dataclass(frozen=True)
class AWM:
    states: int = 6
    """Noised states per chunk."""
    weight: Literal["one", "sigma", "sigma_squared"] = "one"
    clip: float = 0.2
    kl_weight: float = 0.02
    """Of ‖v − v_ref‖²."""
    whole_groups = False

    def __post_init__(self) -> None:
        at_least(self, states=1, clip=0, kl_weight=0)

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"old", "ref"} if self.kl_weight > 0 else {"old"})

    def points(self, trajectory: Trajectory, key: NoiseKey) -> Points:
        return noised(trajectory, self.states, key)

    def __call__(self, evidence: Evidence) -> Loss:
        points, advantage, old = evidence.points, evidence.advantage, evidence.others["old"]
        assert points.target is not None, "forward-process points have a target"
        gain = (old - points.target).square() - (evidence.live - points.target).square()
        ratio = (self._level(points.sigma)[..., None] * advantage.reduce(gain, "mean")).exp()
        signed = advantage.value.expand_as(ratio)
        clipped = ratio.clamp(1 - self.clip, 1 + self.clip)
        policy = -advantage.average(torch.minimum(ratio * signed, clipped * signed))
        known = ratio.detach()
        metrics = {
            "loss/policy": float(policy.detach()),
            "ratio/mean": float(known.mean()),
            "ratio/std": float(known.std(correction=0)),
            "delta_v": float((evidence.live - old).detach().square().mean().sqrt()),
        }
        total = policy
        if self.kl_weight > 0:
            kl = advantage.average_elements((evidence.live - evidence.others["ref"]).square())
            total = total + self.kl_weight * kl
            metrics |= {"kl": float(kl.detach()), "kl/trains": float(kl.requires_grad)}
        return Loss(total, metrics)

    def _level(self, sigma: torch.Tensor) -> torch.Tensor:
        return {"one": torch.ones_like(sigma), "sigma": sigma, "sigma_squared": sigma.square()}[self.weight]
