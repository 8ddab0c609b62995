"""DiffusionNFT (2509.16117): the forward process, contrasted.

    v⁺ = β·v + (1−β)·v_old        v⁻ = (1+β)·v_old − β·v        r = clip(½ + A / 2·span, 0, 1)
    L  = (r·‖x̂₀(v⁺) − x₀‖² / w⁺ + (1−r)·‖x̂₀(v⁻) − x₀‖² / w⁻) / β + reference·‖v − v_ref‖²,   w = sg mean |x̂₀ − x₀|

Needs only finished samples and any solver. With r = 1 and β = 1 it is supervised matching of one's own samples.
"""

from __future__ import annotations

from dataclasses import dataclass

from flowportrait.config import at_least
from flowportrait.flow.noise import NoiseKey
from flowportrait.flow.path import predict_data
from flowportrait.posttrain.objective.interface import Evidence, Loss, Points, noised
from flowportrait.posttrain.trajectory import Trajectory

_SMALLEST = 1e-3


@dataclass(frozen=True)
class NFT:
    beta: float = 1.0
    span: float = 1.0
    """Advantage at which a sample counts as all good."""
    states: int = 6
    """Noised states per chunk."""
    reference: float = 1e-4
    """Weight of ‖v − v_ref‖²."""
    whole_groups = False

    def __post_init__(self) -> None:
        at_least(self, beta=1e-3, span=1e-3, states=1, reference=0)

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"old", "ref"} if self.reference > 0 else {"old"})

    def points(self, trajectory: Trajectory, key: NoiseKey) -> Points:
        return noised(trajectory, self.states, key)

    def __call__(self, evidence: Evidence) -> Loss:
        points, advantage, old = evidence.points, evidence.advantage, evidence.others["old"]
        good = (0.5 + advantage.value / (2 * self.span)).clamp(0, 1)
        toward = self.beta * evidence.live + (1 - self.beta) * old
        away = (1 + self.beta) * old - self.beta * evidence.live
        sides = []
        for velocity in (toward, away):
            error = predict_data(points.x, velocity, points.sigma[..., None]) - evidence.trajectory.latents[:, :, None]
            scale = error.detach().abs().mean(-1, keepdim=True).clamp_min(_SMALLEST)
            sides.append(advantage.reduce(error.square() / scale, "mean"))
        contrast = advantage.average(good * sides[0] + (1 - good) * sides[1]) / self.beta
        metrics = {
            "loss/policy": float(contrast.detach()),
            "good": float(good.mean()),
            "delta_v": float((evidence.live - old).detach().square().mean().sqrt()),
        }
        total = contrast
        if self.reference > 0:
            kl = advantage.average_elements((evidence.live - evidence.others["ref"]).square())
            total = total + self.reference * kl
            metrics |= {"kl": float(kl.detach()), "kl/trains": float(kl.requires_grad)}
        return Loss(total, metrics)
