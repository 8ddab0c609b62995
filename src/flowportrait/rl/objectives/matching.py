"""This module defines the objectives that use weighted or contrastive flow matching.

NFT        moves towards good samples and away from bad ones (DiffusionNFT)
CorrectiveReflow  NFT that also matches bad samples, corrected by what good ones of their group did (after CreFlow)
RWR        matches the policy's samples, weighted by exp(A / τ) (Flow-RWR)
Distil     regresses on a teacher's velocity, weighted by exp(A / τ)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from flowportrait.config import at_least
from flowportrait.flow.noise import NoiseKey
from flowportrait.flow.schedules import predict_data
from flowportrait.rl.objectives.interface import Advantage, Loss, LossInputs, noised_points
from flowportrait.rl.rollout import EvaluationPoints, Trajectory

_MIN_ERROR = 1e-3


@dataclass(frozen=True)
class NFT:
    """DiffusionNFT (2509.16117), which contrasts good and bad samples in the forward process.

        v⁺ = β·v + (1−β)·v_old        v⁻ = (1+β)·v_old − β·v        r = clip(½ + A / 2·span, 0, 1)
        L  = (r·‖x̂₀(v⁺) − x₀‖² / w⁺ + (1−r)·‖x̂₀(v⁻) − x₀‖² / w⁻) / β + kl_weight·‖v − v_ref‖²
        w = sg mean |x̂₀ − x₀|

    It needs only final samples, made by any solver. With r = 1 and β = 1 it is supervised matching of the policy's
    samples.
    """

    beta: float = 1.0
    """Weight β of the live velocity in the implicit better and worse velocities."""
    span: float = 1.0
    """Advantage at which a sample counts as completely good (r = 1)."""
    states: int = 6
    """Noised states per chunk."""
    kl_weight: float = 1e-4
    """Weight of ‖v − v_ref‖²."""
    whole_groups = False
    earlier_keys = (("reference", "kl_weight"),)

    def __post_init__(self) -> None:
        at_least(self, beta=1e-3, span=1e-3, states=1, kl_weight=0)

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"old", "ref"} if self.kl_weight > 0 else {"old"})

    def points(self, trajectory: Trajectory, key: NoiseKey) -> EvaluationPoints:
        return noised_points(trajectory, self.states, key)

    def __call__(self, inputs: LossInputs) -> Loss:
        points, advantage, old = inputs.points, inputs.advantage, inputs.others["old"]
        good = (0.5 + advantage.value / (2 * self.span)).clamp(0, 1)
        toward = self.beta * inputs.live + (1 - self.beta) * old
        away = (1 + self.beta) * old - self.beta * inputs.live
        sides = []
        for velocity in (toward, away):
            error = predict_data(points.x, velocity, points.sigma[..., None]) - inputs.trajectory.latents[:, :, None]
            scale = error.detach().abs().mean(-1, keepdim=True).clamp_min(_MIN_ERROR)
            sides.append(advantage.reduce(error.square() / scale, "mean"))
        contrast = advantage.average(good * sides[0] + (1 - good) * sides[1]) / self.beta
        metrics = {
            "loss/policy": float(contrast.detach()),
            "optimality": float(good.mean()),
            "delta_v": float((inputs.live - old).detach().square().mean().sqrt()),
        }
        total = contrast
        if self.kl_weight > 0:
            kl = advantage.average_elements((inputs.live - inputs.others["ref"]).square())
            total = total + self.kl_weight * kl
            metrics |= {"kl": float(kl.detach()), "kl/has_gradient": float(kl.requires_grad)}
        return Loss(total, metrics)


@dataclass(frozen=True)
class CorrectiveReflow(NFT):
    """NFT with a correction, by which bad samples are matched as they would be if they were good.

        L = L_NFT + correction · mean (1 − 2r)⁺ · ‖x̂₀(v) − y‖² / w        w = sg mean |x̂₀(v) − y|
        y = x₀ + x̄⁺ − x̄⁻                                                  with ``toward="mean"``:  y = x̄⁺

    x̄⁺ and x̄⁻ are the means of the group's samples with A > 0 and with A < 0, in the same chunk. NFT tells a bad sample
    where not to go. The correction says where to go instead: from what bad samples of the prompt did to what good ones
    did, at the bad sample's own noised states and in its own history. With regions, good and bad are those of each
    region. A group without a good sample has no correction.
    """

    correction: float = 0.1
    """Weight of the correction. With 0 this is NFT."""
    toward: Literal["shifted", "mean"] = "shifted"
    """What a bad sample is drawn to: itself, shifted by the difference of the means, or the mean of the good samples,
    which is smoother than any sample."""
    whole_groups = True

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, correction=0)

    def __call__(self, inputs: LossInputs) -> Loss:
        loss = super().__call__(inputs)
        if self.correction == 0:
            return loss
        points, advantage = inputs.points, inputs.advantage
        target, exists = mean_of_samples(advantage, inputs.trajectory, 1)
        if self.toward == "shifted":
            target = inputs.trajectory.latents + target - mean_of_samples(advantage, inputs.trajectory, -1)[0]
        error = predict_data(points.x, inputs.live, points.sigma[..., None]) - target[:, :, None]
        scale = error.detach().abs().mean(-1, keepdim=True).clamp_min(_MIN_ERROR)
        weight = (-advantage.value / self.span).clamp(0, 1) * exists
        correction = advantage.average(weight * advantage.reduce(error.square() / scale, "mean"))
        metrics = {"correction": float(correction.detach()), "corrected": float((weight > 0).float().mean())}
        return Loss(loss.total + self.correction * correction, loss.metrics | metrics)


def mean_of_samples(advantage: Advantage, trajectory: Trajectory, sign: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return for every sample the mean clean latents of the samples of its group with an advantage of this sign.

    Returns:
        Latents ``[B, N, D]``, of every element among the samples with that sign in its region, and ``[B, N, 1, P]``,
        one where the group of a sample has such a sample in the region and zero elsewhere.
    """
    latents = trajectory.latents
    mean_value = sign * advantage.mask_invalid(advantage.value).mean(2)
    chosen = (mean_value > 0).to(latents).expand(-1, latents.shape[1], -1)
    elements = chosen if advantage.regions is None else (chosen @ advantage.regions.to(latents)).clamp_max(1)
    same = (trajectory.group[:, None] == trajectory.group).to(latents)
    total = torch.einsum("ab,bnd->and", same, elements * latents)
    count = torch.einsum("ab,bnd->and", same, elements.expand_as(latents))
    exists = torch.einsum("ab,bnp->anp", same, chosen).clamp_max(1)
    return total / count.clamp_min(1), exists[:, :, None]


@dataclass(frozen=True)
class RWR:
    """Flow-RWR (2501.13918), which matches the policy's samples, each weighted by exp(A / τ).

    L = mean  w·‖v − (ε − x₀)‖²,      w = exp(A/τ), at most ``max_weight``
    """

    temperature: float = 0.5
    """Temperature τ of the weights exp(A/τ)."""
    max_weight: float = 10.0
    """Largest weight of a sample."""
    states: int = 6
    """Noised states per chunk."""
    needs: frozenset[str] = frozenset()
    """Further weights whose velocities the loss compares with."""
    whole_groups = False
    earlier_keys = (("most", "max_weight"),)

    def __post_init__(self) -> None:
        at_least(self, temperature=1e-3, max_weight=1, states=1)

    def points(self, trajectory: Trajectory, key: NoiseKey) -> EvaluationPoints:
        return noised_points(trajectory, self.states, key)

    def __call__(self, inputs: LossInputs) -> Loss:
        assert inputs.points.target is not None, "forward-process points have a target"
        weight = (inputs.advantage.value / self.temperature).exp().clamp_max(self.max_weight)
        error = inputs.advantage.reduce((inputs.live - inputs.points.target).square(), "mean")
        total = inputs.advantage.average(weight * error)
        return Loss(total, {"loss/policy": float(total.detach()), "weight": float(weight.mean())})


@dataclass(frozen=True)
class Distil:
    """Reward-weighted distillation, which trains one step of the student to end where many steps of the teacher end.

        u = (x_σ' − x_σ) / (σ' − σ),  x_σ' from x_σ by the teacher        L = mean  w·‖v(x_σ, σ) − u‖²,  w = exp(A/τ)

    The weight, by which good samples count more, is that of Reward Forcing (2512.04678) and Stream-R1 (2605.03849).
    They weight the gradient of a critic on noised samples. Here the target is the teacher's mean velocity from the same
    state, which needs no critic. The weight does not change the target.
    """

    temperature: float = 1.0
    """Temperature τ of the weights exp(A/τ)."""
    max_weight: float = 5.0
    """Largest weight of a sample."""
    needs: frozenset[str] = frozenset({"teacher"})
    """Further weights whose velocities the loss compares with."""
    whole_groups = False
    earlier_keys = (("most", "max_weight"),)

    def __post_init__(self) -> None:
        at_least(self, temperature=1e-3, max_weight=1)

    def points(self, trajectory: Trajectory, key: NoiseKey) -> EvaluationPoints:
        # b of an Euler step is σ' − σ.
        return EvaluationPoints(
            trajectory.x, trajectory.sigma, until=trajectory.sigma + trajectory.coefficients.b[..., 0]
        )

    def __call__(self, inputs: LossInputs) -> Loss:
        weight = (inputs.advantage.value / self.temperature).exp().clamp_max(self.max_weight)
        error = inputs.advantage.reduce((inputs.live - inputs.others["teacher"]).square(), "mean")
        total = inputs.advantage.average(weight * error)
        distance = float(error.detach().mean())
        metrics = {"loss/policy": float(total.detach()), "weight": float(weight.mean()), "distance": distance}
        return Loss(total, metrics)
