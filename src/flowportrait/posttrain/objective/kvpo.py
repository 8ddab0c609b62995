"""KVPO (2605.14278): which of several ways to go on, made by another look at the past, should become likelier.

    u = (x' − x) / (σ' − σ)            the way that a branch went, from shared noise along the ODE
    E = mean over steps ‖v(x, σ | true past) − u‖²
    π(branch) = softmax over siblings of −E/τ,   L = −mean min( ρ·A, clip(ρ)·A ) + β·KL(π_ref ‖ π)

The rollout explores through the history cache (``explore``); the replay sees the true past, so learning makes the
velocity given it agree with the branches that scored well.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from flowportrait.config import at_least
from flowportrait.flow.noise import NoiseKey
from flowportrait.posttrain.objective.interface import Evidence, Loss, Points
from flowportrait.posttrain.trajectory import Trajectory

_NEVER = 1e6
"""An energy at which a branch has no probability."""


@dataclass(frozen=True)
class KVPO:
    temperature: float = 0.05
    clip_low: float = 0.1
    clip_high: float = 0.2
    kl_weight: float = 0.1
    whole_groups = True

    def __post_init__(self) -> None:
        at_least(self, temperature=1e-6, clip_low=0, clip_high=0, kl_weight=0)

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"old", "ref"})

    def points(self, trajectory: Trajectory, key: NoiseKey) -> Points:
        went = (trajectory.x_next - trajectory.x) / trajectory.coefficients.b
        return Points(trajectory.x, trajectory.sigma, went)

    def __call__(self, evidence: Evidence) -> Loss:
        live, old, reference = (
            self._log_policy(velocity, evidence)
            for velocity in (evidence.live, evidence.others["old"], evidence.others["ref"])
        )
        valid = evidence.advantage.is_judged[:, None]
        earned = evidence.advantage.whole(evidence.advantage.mask_invalid(evidence.advantage.value), "mean")
        advantage = earned.flatten(2).mean(-1).expand_as(live)
        ratio = torch.where(valid, live - old, 0).exp()
        clipped = ratio.clamp(1 - self.clip_low, 1 + self.clip_high)
        policy = -torch.minimum(ratio * advantage, clipped * advantage).mean()
        kl = (reference.exp() * (reference - live)).sum() / live.shape[1] / len(evidence.trajectory.group.unique())
        metrics = {
            "loss/policy": float(policy.detach()),
            "ratio/mean": float(ratio.detach().mean()),
            "ratio/std": float(ratio.detach().std(correction=0)),
            "kl": float(kl.detach()),
            "kl/trains": float(kl.requires_grad),
        }
        return Loss(policy + self.kl_weight * kl, metrics)

    def _log_policy(self, velocity: torch.Tensor, evidence: Evidence) -> torch.Tensor:
        """log π ``[B, N]`` of every branch among its siblings, chunk by chunk; one that was not judged is no choice."""
        assert evidence.points.target is not None, "points carry the way each branch went"
        energy = (velocity - evidence.points.target).square().mean((2, 3))
        energy = torch.where(evidence.advantage.is_judged[:, None], energy, _NEVER)
        group = evidence.trajectory.group
        families, index = group.unique(return_inverse=True)
        # Siblings of equal number side by side: [families, size, N].
        order = index.argsort(stable=True)
        by_family = (-energy[order] / self.temperature).unflatten(0, (len(families), -1))
        return torch.log_softmax(by_family, 1).flatten(0, 1)[order.argsort()]
