"""Reward-weighted distillation: one step of the student is to end where many of the teacher end.

    u = (x_σ' − x_σ) / (σ' − σ),  x_σ' from x_σ by the teacher        L = mean  w·‖v(x_σ, σ) − u‖²,  w = exp(A/τ)

The weight is Reward Forcing's (2512.04678) and Stream-R1's (2605.03849): what a good sample is taught counts more. They
weigh a critic's gradient of noised samples; here the teacher's way from the same noise is the target, which needs no
critic. A weight says where precision matters, and never moves the target.
"""

from __future__ import annotations

from dataclasses import dataclass

from flowportrait.config import at_least
from flowportrait.flow.noise import NoiseKey
from flowportrait.posttrain.objective.interface import Evidence, Loss, Points
from flowportrait.posttrain.trajectory import Trajectory


@dataclass(frozen=True)
class Distil:
    temperature: float = 1.0
    most: float = 5.0
    needs: frozenset[str] = frozenset({"teacher"})
    whole_groups = False

    def __post_init__(self) -> None:
        at_least(self, temperature=1e-3, most=1)

    def points(self, trajectory: Trajectory, key: NoiseKey) -> Points:
        # Of an Euler step b is σ' − σ.
        return Points(trajectory.x, trajectory.sigma, until=trajectory.sigma + trajectory.coefficients.b[..., 0])

    def __call__(self, evidence: Evidence) -> Loss:
        weight = (evidence.advantage.value / self.temperature).exp().clamp_max(self.most)
        error = evidence.advantage.reduce((evidence.live - evidence.others["teacher"]).square(), "mean")
        total = evidence.advantage.average(weight * error)
        apart = float(error.detach().mean())
        metrics = {"loss/policy": float(total.detach()), "weight": float(weight.mean()), "apart": apart}
        return Loss(total, metrics)
