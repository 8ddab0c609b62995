"""Flow-RWR (2501.13918): matching of one's own samples, each weighted by exp(A / τ).

L = mean  w·‖v − (ε − x₀)‖²,      w = exp(A/τ), no more than ``most``
"""

from __future__ import annotations

from dataclasses import dataclass

from flowportrait.config import at_least
from flowportrait.flow.noise import NoiseKey
from flowportrait.posttrain.objective.interface import Evidence, Loss, Points, noised
from flowportrait.posttrain.trajectory import Trajectory


@dataclass(frozen=True)
class RWR:
    temperature: float = 0.5
    most: float = 10.0
    states: int = 6
    """Noised states per chunk."""
    needs: frozenset[str] = frozenset()
    whole_groups = False

    def __post_init__(self) -> None:
        at_least(self, temperature=1e-3, most=1, states=1)

    def points(self, trajectory: Trajectory, key: NoiseKey) -> Points:
        return noised(trajectory, self.states, key)

    def __call__(self, evidence: Evidence) -> Loss:
        assert evidence.points.target is not None, "forward-process points have a target"
        weight = (evidence.advantage.value / self.temperature).exp().clamp_max(self.most)
        error = evidence.advantage.reduce((evidence.live - evidence.points.target).square(), "mean")
        total = evidence.advantage.average(weight * error)
        return Loss(total, {"loss/policy": float(total.detach()), "weight": float(weight.mean())})
