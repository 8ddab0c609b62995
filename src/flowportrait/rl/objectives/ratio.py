"""Objectives by a ratio of likelihoods.

L = − mean w · min( ρ·A, clip(ρ, 1−c₋, 1+c₊)·A ) + β · KL

ClippedRatio     ρ of a transition: a chunk at one denoising step (Flow-GRPO and its variants)
SequenceRatio    ρ of a whole clip (GSPO)
AWM              ρ from the matching loss of one's own samples (advantage-weighted matching)
KVPO             ρ of a branch among its siblings
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from flowportrait.config import at_least
from flowportrait.flow.kernels import gaussian_kl, log_ratio
from flowportrait.flow.noise import NoiseKey
from flowportrait.rl.objectives.interface import Loss, LossInputs, Reduce, masked_mean, noised_points
from flowportrait.rl.rollout import Points, Trajectory


@dataclass(frozen=True)
class ClippedRatio:
    """The clipped-ratio objective (Flow-GRPO) on exact log-ratios, its variants, and its regulariser.

        ρ = exp( reduce log r ),   L = − mean w · min( ρ·A, clip(ρ, 1−c₋, 1+c₊)·A ) + β · KL

    ``reduce`` acts over the latent elements of one transition (a chunk at one denoising step: the unit that the
    policy chooses at once). ``mean`` is what the published clip ranges of 1e-5…1e-3 assume; ``sum`` gives the true
    ratio of that action, for which PPO's 0.2 is natural. Regions have a ratio and a clip each, and their terms add up.
    """

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

    def __call__(self, inputs: LossInputs) -> Loss:
        trajectory, advantage, old = inputs.trajectory, inputs.advantage, inputs.others["old"]
        gain, noise, mask = trajectory.noise_gain, trajectory.noise, trajectory.trainable
        delta = inputs.live - old
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
        policy = -masked_mean(advantage.combine_regions(weighted, self.reduce), mask)
        metrics = self._report(trajectory, ratio, outside, signed, delta)
        metrics["loss/policy"] = float(policy.detach())
        if trajectory.v_behaviour is not None:
            metrics["stale/weight"] = float(stale.mean())
        total = policy
        if self.kl_weight > 0:
            away = inputs.live - inputs.others["ref"]
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
            return gaussian_kl(trajectory.noise_gain, away)
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


@dataclass(frozen=True)
class SequenceRatio:
    """GSPO (2507.18071): a whole clip is clipped, not each of its transitions.

        s = exp( mean over transitions of log r ),   s_t = sg[s] · r_t / sg[r_t]
        L = − mean min( s_t·A_t, clip(s_t)·A_t )

    All transitions of a clip have the value s and each its own gradient, so that a chunk may still have an advantage of
    its own; where the clip has one, this is the gradient of min(s·A, clip(s)·A). log r is summed over latent numbers.
    """

    clip_low: float = 0.015
    clip_high: float = 0.02
    needs: frozenset[str] = frozenset({"old"})
    whole_groups = False

    def __post_init__(self) -> None:
        at_least(self, clip_low=0, clip_high=0)

    def points(self, trajectory: Trajectory, key: NoiseKey) -> Points:
        return Points(trajectory.x, trajectory.sigma)

    def __call__(self, inputs: LossInputs) -> Loss:
        trajectory, advantage = inputs.trajectory, inputs.advantage
        acted = inputs.others["old"] if trajectory.v_behaviour is None else trajectory.v_behaviour
        logs = advantage.reduce(log_ratio(trajectory.noise_gain, trajectory.noise, inputs.live - acted), "sum")
        known = trajectory.trainable
        clip = (logs.sum(-1) * known).sum((1, 2)) / known.sum((1, 2)).clamp_min(1)
        ratio = (clip[:, None, None, None] - logs).detach().add(logs).exp()
        clipped = ratio.clamp(1 - self.clip_low, 1 + self.clip_high)
        signed = advantage.value.expand_as(ratio)
        gained = advantage.mask_invalid((ratio * signed).minimum(clipped * signed))
        total = -masked_mean(advantage.combine_regions(gained, "sum"), known)
        sequence = clip.detach().exp()
        metrics = {
            "loss/policy": float(total.detach()),
            "ratio/mean": float(sequence.mean()),
            "ratio/std": float(sequence.std(correction=0)),
            "clip/share": float(((sequence < 1 - self.clip_low) | (sequence > 1 + self.clip_high)).float().mean()),
            "delta_v": float((inputs.live - acted).detach().square().mean().sqrt()),
        }
        return Loss(total, metrics)


@dataclass(frozen=True)
class AWM:
    """Advantage-weighted matching (2509.25050): the supervised loss of one's own samples as a log-probability.

    ℓ = −w(σ)·mean ‖v − (ε − x₀)‖²,      L = −mean min( ρ·A, clip(ρ)·A ),   ρ = exp(ℓ − ℓ_old)
    """

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
        return noised_points(trajectory, self.states, key)

    def __call__(self, inputs: LossInputs) -> Loss:
        points, advantage, old = inputs.points, inputs.advantage, inputs.others["old"]
        assert points.target is not None, "forward-process points have a target"
        gain = (old - points.target).square() - (inputs.live - points.target).square()
        ratio = (self._level(points.sigma)[..., None] * advantage.reduce(gain, "mean")).exp()
        signed = advantage.value.expand_as(ratio)
        clipped = ratio.clamp(1 - self.clip, 1 + self.clip)
        policy = -advantage.average(torch.minimum(ratio * signed, clipped * signed))
        known = ratio.detach()
        metrics = {
            "loss/policy": float(policy.detach()),
            "ratio/mean": float(known.mean()),
            "ratio/std": float(known.std(correction=0)),
            "delta_v": float((inputs.live - old).detach().square().mean().sqrt()),
        }
        total = policy
        if self.kl_weight > 0:
            kl = advantage.average_elements((inputs.live - inputs.others["ref"]).square())
            total = total + self.kl_weight * kl
            metrics |= {"kl": float(kl.detach()), "kl/trains": float(kl.requires_grad)}
        return Loss(total, metrics)

    def _level(self, sigma: torch.Tensor) -> torch.Tensor:
        return {"one": torch.ones_like(sigma), "sigma": sigma, "sigma_squared": sigma.square()}[self.weight]


_NEVER = 1e6
"""An energy at which a branch has no probability."""


@dataclass(frozen=True)
class KVPO:
    """KVPO (2605.14278): which of several ways to go on, made by another look at the past, should become likelier.

        u = (x' − x) / (σ' − σ)            the way that a branch went, from shared noise along the ODE
        E = mean over steps ‖v(x, σ | true past) − u‖²
        π(branch) = softmax over siblings of −E/τ,   L = −mean min( ρ·A, clip(ρ)·A ) + β·KL(π_ref ‖ π)

    The rollout explores through the history cache (``explore``); the replay sees the true past, so learning makes the
    velocity given it agree with the branches that scored well.
    """

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

    def __call__(self, inputs: LossInputs) -> Loss:
        live, old, reference = (
            self._log_policy(velocity, inputs) for velocity in (inputs.live, inputs.others["old"], inputs.others["ref"])
        )
        valid = inputs.advantage.is_judged[:, None]
        earned = inputs.advantage.combine_regions(inputs.advantage.mask_invalid(inputs.advantage.value), "mean")
        advantage = earned.flatten(2).mean(-1).expand_as(live)
        ratio = torch.where(valid, live - old, 0).exp()
        clipped = ratio.clamp(1 - self.clip_low, 1 + self.clip_high)
        policy = -torch.minimum(ratio * advantage, clipped * advantage).mean()
        kl = (reference.exp() * (reference - live)).sum() / live.shape[1] / len(inputs.trajectory.group.unique())
        metrics = {
            "loss/policy": float(policy.detach()),
            "ratio/mean": float(ratio.detach().mean()),
            "ratio/std": float(ratio.detach().std(correction=0)),
            "kl": float(kl.detach()),
            "kl/trains": float(kl.requires_grad),
        }
        return Loss(policy + self.kl_weight * kl, metrics)

    def _log_policy(self, velocity: torch.Tensor, inputs: LossInputs) -> torch.Tensor:
        """log π ``[B, N]`` of every branch among its siblings, chunk by chunk; one that was not judged is no choice."""
        assert inputs.points.target is not None, "points carry the way each branch went"
        energy = (velocity - inputs.points.target).square().mean((2, 3))
        energy = torch.where(inputs.advantage.is_judged[:, None], energy, _NEVER)
        group = inputs.trajectory.group
        families, index = group.unique(return_inverse=True)
        # Siblings of equal number side by side: [families, size, N].
        order = index.argsort(stable=True)
        by_family = (-energy[order] / self.temperature).unflatten(0, (len(families), -1))
        return torch.log_softmax(by_family, 1).flatten(0, 1)[order.argsort()]
