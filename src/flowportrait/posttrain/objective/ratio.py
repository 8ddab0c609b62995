"""The clipped-ratio objective (Flow-GRPO) on exact log-ratios, its variants, and its regulariser.

    ρ = exp( reduce log r ),   L = − mean w · min( ρ·A, clip(ρ, 1−c₋, 1+c₊)·A ) + β · KL

``reduce`` acts over the latent elements of one transition (a chunk at one denoising step: the unit that the
policy chooses at once). ``mean`` is what the published clip ranges of 1e-5…1e-3 assume; ``sum`` gives the true
ratio of that action, for which PPO's 0.2 is natural. Regions have a ratio and a clip each, and their terms add up.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from flowportrait.config import at_least
from flowportrait.flow.noise import NoiseKey
from flowportrait.flow.ratio import gaussian_kl, log_ratio
from flowportrait.posttrain.objective.interface import Evidence, Loss, Points, Reduce, masked_mean
from flowportrait.posttrain.trajectory import Trajectory


@dataclass(frozen=True)
class ClippedRatio:
    clip_low: float = 0.2
    clip_high: float = 0.2
    reduce: Reduce = "sum"
    form: Literal["exact", "guard"] = "exact"
    """``guard``: GRPO-Guard's RatioNorm (2510.22319), ρ = exp(reduce b·ε·Δv): centred, and alike at every step."""
    trust: Literal["clip", "divergence"] = "clip"
    """``divergence``: Flow-DPPO's mask. A transition that moves on in the direction its advantage asks for is left
    out once its divergence ½k²Δv² exceeds ``divergence``, whatever its ratio."""
    divergence: float = 0.02
    step_weight: Literal["even", "rectified", "noise"] = "even"
    """``rectified``: w = s/|b|, which takes the step's own gradient scale out (Flash-GRPO, LongCat-Video), and 1/|b|
    of ``guard``'s ratio; ``noise``: w = s, more to steps that explore more (TempFlow-GRPO)."""
    kl_weight: float = 0.02
    kl_space: Literal["v", "x", "exact"] = "exact"
    """``exact``: ½k²‖v − v_ref‖², the KL of the transition; ``x``: b²‖v − v_ref‖²; ``v``: ‖v − v_ref‖². Reduced like
    the ratio."""
    truncation: float = 2.0
    """Largest importance weight of a rollout made by older weights."""
    whole_groups = False

    def __post_init__(self) -> None:
        at_least(self, clip_low=0, clip_high=0, divergence=0, kl_weight=0, truncation=1)

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"old", "ref"} if self.kl_weight > 0 else {"old"})

    def points(self, trajectory: Trajectory, key: NoiseKey) -> Points:
        return Points(trajectory.x, trajectory.sigma)

    def __call__(self, evidence: Evidence) -> Loss:
        trajectory, advantage, old = evidence.trajectory, evidence.advantage, evidence.others["old"]
        gain, noise, mask = trajectory.gain, trajectory.noise, trajectory.trainable
        delta = evidence.live - old
        stale = torch.ones(())
        if trajectory.v_behaviour is not None:
            moved = old - trajectory.v_behaviour
            # The likelihood of the whole transition, summed whatever ``reduce`` is: a mean would correct nothing.
            likelier = torch.where(mask[..., None], log_ratio(gain, noise, moved), 0).sum(-1, keepdim=True)
            stale = likelier.exp().clamp_max(self.truncation)
            noise = noise - gain * moved
        guard = self.form == "guard"
        exponent = trajectory.coefficients.b * noise * delta if guard else log_ratio(gain, noise, delta)
        ratio = advantage.reduce(torch.where(mask[..., None], exponent, 0), self.reduce).exp()
        signed = advantage.value.expand_as(ratio)
        if self.trust == "clip":
            clipped = ratio.clamp(1 - self.clip_low, 1 + self.clip_high)
            gained = torch.minimum(ratio * signed, clipped * signed)
            outside = ratio != clipped
        else:
            apart = advantage.reduce(gaussian_kl(gain, delta.detach()), self.reduce)
            outside = (apart > self.divergence) & ((ratio - 1) * signed > 0)
            gained = torch.where(outside, 0, ratio * signed)
        weighted = advantage.mask_invalid(self._weight(trajectory) * stale * gained)
        policy = -masked_mean(advantage.whole(weighted, self.reduce), mask)
        metrics = self._report(trajectory, ratio, outside, signed, delta)
        metrics["loss/policy"] = float(policy.detach())
        if trajectory.v_behaviour is not None:
            metrics["stale/weight"] = float(stale.mean())
        total = policy
        if self.kl_weight > 0:
            away = evidence.live - evidence.others["ref"]
            apart = getattr(torch, self.reduce)(self._kl(trajectory, away), -1) * advantage.is_judged[:, None, None]
            kl = masked_mean(apart[..., None], mask)
            total = total + self.kl_weight * kl
            metrics |= {"kl": float(kl.detach()), "kl/trains": float(kl.requires_grad)}
        return Loss(total, metrics)

    def _weight(self, trajectory: Trajectory) -> torch.Tensor:
        if self.step_weight == "even":
            return torch.ones(())
        _, b, s = trajectory.coefficients
        if self.step_weight == "noise":
            return s
        return (1 if self.form == "guard" else s) / b.abs()

    def _kl(self, trajectory: Trajectory, away: torch.Tensor) -> torch.Tensor:
        if self.kl_space == "exact":
            return gaussian_kl(trajectory.gain, away)
        return away.square() if self.kl_space == "v" else (trajectory.coefficients.b * away).square()

    @torch.no_grad()
    def _report(
        self,
        trajectory: Trajectory,
        ratio: torch.Tensor,
        outside: torch.Tensor,
        signed: torch.Tensor,
        delta: torch.Tensor,
    ) -> dict[str, float]:
        mask = trajectory.trainable
        known, sign, out = ratio[mask], signed[mask], outside[mask].float()
        if not len(known):
            return {}
        metrics = {
            "ratio/mean": float(known.mean()),
            "ratio/std": float(known.std(correction=0)),
            "clip/positive": float((out * (sign > 0)).mean()),
            "clip/negative": float((out * (sign < 0)).mean()),
            "delta_v": float(delta.square().mean().sqrt()),
        }
        steps = trajectory.step[:, None].expand_as(mask)
        for step in trajectory.step.unique().tolist():
            own = ratio[mask & (steps == step)]
            if len(own):
                metrics[f"ratio_mean/step{step}"] = float(own.mean())
                metrics[f"ratio_std/step{step}"] = float(own.std(correction=0))
        return metrics
