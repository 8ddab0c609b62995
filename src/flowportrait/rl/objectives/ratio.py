"""This module defines the objectives that use a ratio of likelihoods.

L = − mean w · min( ρ·A, clip(ρ, 1−c₋, 1+c₊)·A ) + β · KL

ClippedRatio     ρ of a transition, which is a chunk at one denoising step (Flow-GRPO and its variants)
SequenceRatio    ρ of a whole clip (GSPO)
AWM              ρ from the matching loss of the policy's samples (advantage-weighted matching)
KVPO             ρ of a branch among the branches of its group
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from flowportrait.config import at_least
from flowportrait.flow.kernels import gaussian_kl, log_ratio
from flowportrait.flow.noise import NoiseKey
from flowportrait.rl.objectives.interface import Loss, LossInputs, Reduce, masked_mean, noised_points
from flowportrait.rl.rollout import EvaluationPoints, Trajectory


@dataclass(frozen=True)
class ClippedRatio:
    """The clipped-ratio objective of Flow-GRPO (2505.05470) with exact log-ratios, and its variants.

        ρ = exp( reduce log r ),   L = − mean w · min( ρ·A, clip(ρ, 1−c₋, 1+c₊)·A ) + β · KL

    ``reduce`` acts on the latent elements of one transition (a chunk at one denoising step, which is one action of the
    policy). The published clip ranges of 1e-5…1e-3 assume ``mean``; ``sum`` gives the true ratio of the action, for
    which PPO's range of 0.2 is suitable. Every region has its own ratio and clip, and the terms of regions are added.
    """

    clip_low: float = 0.2
    """Lower bound of the ratio: 1 − clip_low."""
    clip_high: float = 0.2
    """Upper bound of the ratio: 1 + clip_high."""
    reduce: Reduce = "sum"
    """Whether the log-ratio of a transition is the sum or the mean over its numbers."""
    form: Literal["exact", "guard"] = "exact"
    """``guard``: RatioNorm of GRPO-Guard (2510.22319), ρ = exp(reduce b·ε·Δv), which is centred and has the same scale
    at every step."""
    trust: Literal["clip", "divergence"] = "clip"
    """``divergence``: the mask of Flow-DPPO. A transition that moves in the direction of its advantage is left out once
    its divergence ½k²Δv² exceeds ``divergence``, at any ratio."""
    divergence: float = 0.02
    """The limit of ``trust=divergence``."""
    step_weight: Literal["even", "rectified", "level", "noise"] = "even"
    """``rectified``: w = s/|b|, which removes the gradient scale of the step (Flash-GRPO, LongCat-Video), or 1/|b| with
    ``form=guard``. ``level``: w = √(σ / (|dt|·(1 − σ))), at most ``weight_limit`` (LongCat-Video), which is 1.5·s/|b|
    of its kernel without a cap on s. ``noise``: w = s, a larger weight for steps that explore more (TempFlow-GRPO)."""
    weight_limit: float = 6.0
    """Largest weight of ``step_weight=level``, which has no bound at σ = 1."""
    kl_weight: float = 0.02
    """Weight of the KL divergence from the reference."""
    kl_space: Literal["v", "x", "exact"] = "exact"
    """``exact``: ½k²‖v − v_ref‖², the KL of the transition; ``x``: b²‖v − v_ref‖²; ``v``: ‖v − v_ref‖². It is reduced
    like the ratio."""
    truncation: float = 2.0
    """Largest importance weight of a rollout that older weights made."""
    whole_groups = False

    def __post_init__(self) -> None:
        at_least(self, clip_low=0, clip_high=0, divergence=0, weight_limit=0, kl_weight=0, truncation=1)

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"old", "ref"} if self.kl_weight > 0 else {"old"})

    def points(self, trajectory: Trajectory, key: NoiseKey) -> EvaluationPoints:
        return EvaluationPoints(trajectory.x, trajectory.sigma)

    def __call__(self, inputs: LossInputs) -> Loss:
        trajectory, advantage, old = inputs.trajectory, inputs.advantage, inputs.others["old"]
        gain, noise, mask = trajectory.noise_gain, trajectory.noise, trajectory.trainable
        delta = inputs.live - old
        importance = torch.ones(())
        if trajectory.v_behaviour is not None:
            shift = old - trajectory.v_behaviour
            # The likelihood ratio of the whole transition is a sum for any ``reduce``; a mean would correct nothing.
            log_weight = torch.where(mask[..., None], log_ratio(gain, noise, shift), 0).sum(-1, keepdim=True)
            importance = log_weight.exp().clamp_max(self.truncation)
            noise = noise - gain * shift
        guard = self.form == "guard"
        exponent = trajectory.coefficients.b * noise * delta if guard else log_ratio(gain, noise, delta)
        ratio = advantage.reduce(torch.where(mask[..., None], exponent, 0), self.reduce).exp()
        signed = advantage.value.expand_as(ratio)
        if self.trust == "clip":
            clipped = ratio.clamp(1 - self.clip_low, 1 + self.clip_high)
            surrogate = torch.minimum(ratio * signed, clipped * signed)
            outside = ratio != clipped
        else:
            divergence = advantage.reduce(gaussian_kl(gain, delta.detach()), self.reduce)
            outside = (divergence > self.divergence) & ((ratio - 1) * signed > 0)
            surrogate = torch.where(outside, 0, ratio * signed)
        weighted = advantage.mask_invalid(self._step_weights(trajectory) * importance * surrogate)
        policy = -masked_mean(advantage.combine_regions(weighted, self.reduce), mask)
        metrics = self._report(trajectory, ratio, outside, signed, delta)
        metrics["loss/policy"] = float(policy.detach())
        if trajectory.v_behaviour is not None:
            metrics["importance_weight"] = float(importance.mean())
        total = policy
        if self.kl_weight > 0:
            difference = inputs.live - inputs.others["ref"]
            divergence = getattr(torch, self.reduce)(self._kl(trajectory, difference), -1)
            kl = masked_mean((divergence * advantage.is_judged[:, None, None])[..., None], mask)
            total = total + self.kl_weight * kl
            metrics |= {"kl": float(kl.detach()), "kl/has_gradient": float(kl.requires_grad)}
        return Loss(total, metrics)

    def _step_weights(self, trajectory: Trajectory) -> torch.Tensor:
        if self.step_weight == "even":
            return torch.ones(())
        a, b, s = trajectory.coefficients
        if self.step_weight == "noise":
            return s
        if self.step_weight == "level":
            # dt from b = dt + (a − 1)(1 − σ), which holds for every SDE kernel.
            sigma = trajectory.sigma[..., None]
            squared = sigma / ((1 - sigma) * (b - (a - 1) * (1 - sigma)).abs())
            return squared.sqrt().clamp_max(self.weight_limit)
        return (1 if self.form == "guard" else s) / b.abs()

    def _kl(self, trajectory: Trajectory, difference: torch.Tensor) -> torch.Tensor:
        if self.kl_space == "exact":
            return gaussian_kl(trajectory.noise_gain, difference)
        return difference.square() if self.kl_space == "v" else (trajectory.coefficients.b * difference).square()

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
        ratios, sign, clipped = ratio[mask], signed[mask], outside[mask].float()
        if not len(ratios):
            return {}
        metrics = {
            "ratio/mean": float(ratios.mean()),
            "ratio/std": float(ratios.std(correction=0)),
            "clip/positive": float((clipped * (sign > 0)).mean()),
            "clip/negative": float((clipped * (sign < 0)).mean()),
            "delta_v": float(delta.square().mean().sqrt()),
        }
        steps = trajectory.step[:, None].expand_as(mask)
        for step in trajectory.step.unique().tolist():
            of_step = ratio[mask & (steps == step)]
            if len(of_step):
                metrics[f"ratio_mean/step{step}"] = float(of_step.mean())
                metrics[f"ratio_std/step{step}"] = float(of_step.std(correction=0))
        return metrics


@dataclass(frozen=True)
class SequenceRatio:
    """GSPO (2507.18071), which clips the ratio of a whole clip instead of that of each transition.

        s = exp( mean over transitions of log r ),   s_t = sg[s] · r_t / sg[r_t]
        L = − mean min( s_t·A_t, clip(s_t)·A_t )

    All transitions of a clip have the value s, and each has its own gradient, so that chunks may have different
    advantages. If they have the same, this is the gradient of min(s·A, clip(s)·A). log r is summed over latent
    elements.
    """

    clip_low: float = 0.015
    """Lower bound of the ratio of a clip: 1 − clip_low."""
    clip_high: float = 0.02
    """Upper bound of the ratio of a clip: 1 + clip_high."""
    needs: frozenset[str] = frozenset({"old"})
    """Further weights whose velocities the loss compares with."""
    whole_groups = False

    def __post_init__(self) -> None:
        at_least(self, clip_low=0, clip_high=0)

    def points(self, trajectory: Trajectory, key: NoiseKey) -> EvaluationPoints:
        return EvaluationPoints(trajectory.x, trajectory.sigma)

    def __call__(self, inputs: LossInputs) -> Loss:
        trajectory, advantage = inputs.trajectory, inputs.advantage
        behaviour = inputs.others["old"] if trajectory.v_behaviour is None else trajectory.v_behaviour
        logs = advantage.reduce(log_ratio(trajectory.noise_gain, trajectory.noise, inputs.live - behaviour), "sum")
        mask = trajectory.trainable
        clip = (logs.sum(-1) * mask).sum((1, 2)) / mask.sum((1, 2)).clamp_min(1)
        ratio = (clip[:, None, None, None] - logs).detach().add(logs).exp()
        clipped = ratio.clamp(1 - self.clip_low, 1 + self.clip_high)
        signed = advantage.value.expand_as(ratio)
        surrogate = advantage.mask_invalid((ratio * signed).minimum(clipped * signed))
        total = -masked_mean(advantage.combine_regions(surrogate, "sum"), mask)
        sequence = clip.detach().exp()
        metrics = {
            "loss/policy": float(total.detach()),
            "ratio/mean": float(sequence.mean()),
            "ratio/std": float(sequence.std(correction=0)),
            "clip/share": float(((sequence < 1 - self.clip_low) | (sequence > 1 + self.clip_high)).float().mean()),
            "delta_v": float((inputs.live - behaviour).detach().square().mean().sqrt()),
        }
        return Loss(total, metrics)


_HUBER_OFFSET = 1e-10
"""The authors' offset δ, at which the slope of the generalised Huber function is finite."""


@dataclass(frozen=True)
class AWM:
    """Advantage-weighted matching (2509.25050), which uses the matching loss of samples as their log-probability.

        e = mean ‖v − (ε − x₀)‖²,   ℓ = −w(σ)·e   (``ghuber``: −σ·((e + δ)ᵖ − δᵖ) / p, δ = 1e-10),   ρ = exp(ℓ − ℓ_old)
        L = −mean min( ρ·A', clip(ρ)·A' ) + kl_weight·‖v − v_ref‖² + average_weight·‖v − v_old‖²,   A' = A / span

    ``old`` are the weights that sample the rollouts. With the setting ``old`` of the recipe they are a slow average of
    the live weights, and ``average_weight`` is the pull to it, the authors' main regulariser.
    """

    states: int = 6
    """Noised states per chunk."""
    weight: Literal["one", "sigma", "sigma_squared", "ghuber"] = "one"
    """Weight of a noise level in the matching loss: 1, σ or σ²; or the generalised Huber function of it, times σ."""
    huber_power: float = 0.25
    """Power p of ``weight=ghuber``."""
    clip: float = 0.2
    """Bounds of the ratio: 1 ± clip."""
    span: float = 1.0
    """Number that advantages are divided by; the authors' is 5, at which they are clipped (``credit.limit``)."""
    kl_weight: float = 0.02
    """Weight of ‖v − v_ref‖²."""
    average_weight: float = 0.0
    """Weight of ‖v − v_old‖²."""
    whole_groups = False
    values_before = (("span", 1.0), ("average_weight", 0.0))

    def __post_init__(self) -> None:
        at_least(self, states=1, huber_power=1e-3, clip=0, span=1e-3, kl_weight=0, average_weight=0)

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"old", "ref"} if self.kl_weight > 0 else {"old"})

    def points(self, trajectory: Trajectory, key: NoiseKey) -> EvaluationPoints:
        return noised_points(trajectory, self.states, key)

    def __call__(self, inputs: LossInputs) -> Loss:
        points, advantage, old = inputs.points, inputs.advantage, inputs.others["old"]
        assert points.target is not None, "forward-process points have a target"
        if self.weight == "ghuber":
            before, now = (
                self._generalised_huber(advantage.reduce((velocity - points.target).square(), "mean"))
                for velocity in (old, inputs.live)
            )
            ratio = (points.sigma[..., None] * (before - now)).exp()
        else:
            gain = (old - points.target).square() - (inputs.live - points.target).square()
            ratio = (self._level_weights(points.sigma)[..., None] * advantage.reduce(gain, "mean")).exp()
        signed = (advantage.value / self.span).expand_as(ratio)
        clipped = ratio.clamp(1 - self.clip, 1 + self.clip)
        policy = -advantage.average(torch.minimum(ratio * signed, clipped * signed))
        ratios = ratio.detach()
        metrics = {
            "loss/policy": float(policy.detach()),
            "ratio/mean": float(ratios.mean()),
            "ratio/std": float(ratios.std(correction=0)),
            "delta_v": float((inputs.live - old).detach().square().mean().sqrt()),
        }
        total = policy
        if self.kl_weight > 0:
            kl = advantage.average_elements((inputs.live - inputs.others["ref"]).square())
            total = total + self.kl_weight * kl
            metrics |= {"kl": float(kl.detach()), "kl/has_gradient": float(kl.requires_grad)}
        if self.average_weight > 0:
            pull = advantage.average_elements((inputs.live - old).square())
            total = total + self.average_weight * pull
            metrics["average"] = float(pull.detach())
        return Loss(total, metrics)

    def _generalised_huber(self, error: torch.Tensor) -> torch.Tensor:
        power = self.huber_power
        return ((error + _HUBER_OFFSET).pow(power) - _HUBER_OFFSET**power) / power

    def _level_weights(self, sigma: torch.Tensor) -> torch.Tensor:
        return {"one": torch.ones_like(sigma), "sigma": sigma, "sigma_squared": sigma.square()}[self.weight]


_EXCLUDED_ENERGY = 1e6
"""An energy at which a branch has a probability of zero."""


@dataclass(frozen=True)
class KVPO:
    """KVPO (2605.14278), which makes branches with a high score likelier among the branches of their group.

        u = (x' − x) / (σ' − σ)            velocity of a branch, from shared noise along the ODE
        E = ½ Σ over steps of mean |x̂₀(v) − x̂₀(u)|² = ½ Σ σ²·mean |v(x, σ | true history) − u|²,    x̂₀(v) = x − σ·v
        π(branch) = softmax over the group of −E/τ,   L = −mean min( ρ·A, clip(ρ)·A ) + β·KL(π ‖ π_ref)

    Branches differ by the history that their rollouts use (``exploration``). The replay uses the true history, so that
    learning moves the velocity given the true history towards the branches with high scores.
    """

    energy: Literal["data", "velocity"] = "data"
    """What E compares: predicted clean samples, summed over steps, or velocities (mean over steps of |v − u|²)."""
    scope: Literal["clip", "chunk"] = "chunk"
    """Whether π chooses whole branches (E summed over chunks), or one for every chunk, so that dense credit counts."""
    kl: Literal["to_reference", "from_reference"] = "to_reference"
    """``to_reference``: KL(π ‖ π_ref); ``from_reference``: KL(π_ref ‖ π)."""
    temperature: float = 0.05
    """Temperature τ of the softmax over the samples of a group."""
    clip_low: float = 0.1
    """Lower bound of the ratio: 1 − clip_low."""
    clip_high: float = 0.2
    """Upper bound of the ratio: 1 + clip_high."""
    kl_weight: float = 0.1
    """Weight of the KL divergence from the reference."""
    whole_groups = True
    values_before = (("energy", "velocity"), ("scope", "chunk"), ("kl", "from_reference"))

    def __post_init__(self) -> None:
        at_least(self, temperature=1e-6, clip_low=0, clip_high=0, kl_weight=0)

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"old", "ref"})

    def points(self, trajectory: Trajectory, key: NoiseKey) -> EvaluationPoints:
        branch_velocity = (trajectory.x_next - trajectory.x) / trajectory.coefficients.b
        return EvaluationPoints(trajectory.x, trajectory.sigma, branch_velocity)

    def __call__(self, inputs: LossInputs) -> Loss:
        live, old, reference = (
            self._log_policy(velocity, inputs) for velocity in (inputs.live, inputs.others["old"], inputs.others["ref"])
        )
        valid = inputs.advantage.is_judged[:, None]
        combined = inputs.advantage.combine_regions(inputs.advantage.mask_invalid(inputs.advantage.value), "mean")
        advantage = combined.flatten(2).mean(-1)
        advantage = (advantage.mean(1, keepdim=True) if self.scope == "clip" else advantage).expand_as(live)
        ratio = torch.where(valid, live - old, 0).exp()
        clipped = ratio.clamp(1 - self.clip_low, 1 + self.clip_high)
        policy = -torch.minimum(ratio * advantage, clipped * advantage).mean()
        first, second = (live, reference) if self.kl == "to_reference" else (reference, live)
        kl = (first.exp() * (first - second)).sum() / live.shape[1] / len(inputs.trajectory.group.unique())
        metrics = {
            "loss/policy": float(policy.detach()),
            "ratio/mean": float(ratio.detach().mean()),
            "ratio/std": float(ratio.detach().std(correction=0)),
            "kl": float(kl.detach()),
            "kl/has_gradient": float(kl.requires_grad),
        }
        return Loss(policy + self.kl_weight * kl, metrics)

    def _log_policy(self, velocity: torch.Tensor, inputs: LossInputs) -> torch.Tensor:
        """Return log π ``[B, N]`` of every branch in its group, per chunk, or ``[B, 1]`` of whole branches.

        Branches without a score are excluded.
        """
        assert inputs.points.target is not None, "points have the velocity of each branch as target"
        error = (velocity - inputs.points.target).square().mean(3)
        energy = 0.5 * (inputs.points.sigma.square() * error).sum(2) if self.energy == "data" else error.mean(2)
        energy = energy.sum(1, keepdim=True) if self.scope == "clip" else energy
        energy = torch.where(inputs.advantage.is_judged[:, None], energy, _EXCLUDED_ENERGY)
        group = inputs.trajectory.group
        group_ids, index = group.unique(return_inverse=True)
        # [groups, samples of a group, N]; all groups have the same size.
        order = index.argsort(stable=True)
        by_group = (-energy[order] / self.temperature).unflatten(0, (len(group_ids), -1))
        return torch.log_softmax(by_group, 1).flatten(0, 1)[order.argsort()]
