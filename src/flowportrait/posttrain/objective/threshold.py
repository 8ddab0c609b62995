"""Threshold-guided optimisation (TGO, 2605.04653): single rated clips, no pairs.

    E = mean ‖v − (ε − x₀)‖²        z = sign(r − τ)        w = |r − τ|
    L = mean  w · −log σ( z · β/2 · (E_ref − E) )

With regions of shares s_p, w = Σ s_p·w_p and z·(E_ref − E) becomes Σ s_p·w_p·z_p·(E_ref − E)_p / w: one sigmoid of what
all regions gained, so that regions paid alike are none.

The best policy near a reference has log p/p_ref = (r − V)/β, V being what its prompt is worth; one threshold τ for all
prompts stands for V, so that a clip above it should gain likelihood and one below it lose. The advantage that comes in
is r − τ (``credit.among = batch``). The abstract says this much; the loss, Kahneman–Tversky's without its reference
point (KTO, 2402.01306), is our reading.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch.nn.functional import logsigmoid

from flowportrait.config import at_least
from flowportrait.flow.noise import NoiseKey
from flowportrait.posttrain.objective.interface import Evidence, Loss, Points, noised
from flowportrait.posttrain.trajectory import Trajectory

_SMALLEST = 1e-12


@dataclass(frozen=True)
class Threshold:
    beta: float = 100.0
    states: int = 6
    """Noised states per chunk."""
    needs: frozenset[str] = frozenset({"ref"})
    whole_groups = False

    def __post_init__(self) -> None:
        at_least(self, beta=0, states=1)

    def points(self, trajectory: Trajectory, key: NoiseKey) -> Points:
        return noised(trajectory, self.states, key)

    def __call__(self, evidence: Evidence) -> Loss:
        points, advantage = evidence.points, evidence.advantage
        assert points.target is not None, "forward-process points have a target"
        live = advantage.reduce((evidence.live - points.target).square(), "mean")
        gain = advantage.reduce((evidence.others["ref"] - points.target).square(), "mean") - live
        above = advantage.mask_invalid(advantage.value)
        weight = advantage.whole(above.abs(), "mean")
        signed = advantage.whole(above * gain, "mean") / weight.clamp_min(_SMALLEST)
        total = (weight * -logsigmoid(self.beta / 2 * signed)).mean()
        moved = gain.detach().mean((1, 2))
        liked = above.expand(-1, -1, -1, gain.shape[-1]).mean((1, 2)) > 0
        metrics = {"loss/policy": float(total.detach())}
        for name, rows in (("winner_gain", liked), ("loser_gain", ~liked)):
            if rows.any():
                metrics[name] = float(moved[rows].mean())
        return Loss(total, metrics)
