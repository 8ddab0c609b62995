"""This module moves samples along the gradient of differentiable rewards, without comparing samples.

    rollout ─► clean latents x₀ ─► rewards ─► ĝ = ∂R/∂x₀, of unit size ─► v is drawn to v_old − step · ĝ

A policy-gradient method tries directions at random and keeps those that score better. Rewards of motion coefficients
are networks and formulas of the generator's own output, so the best direction can be computed. It is also the shortest
way to exploit a reward: what the reward does not see is changed without limit, and what it sees wrongly is learned
first. Look at other measures than the reward before a result is believed.

``RewardGradients`` is the stage that computes the gradients, ``Direct`` the objective that follows them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from flowportrait.config import at_least
from flowportrait.errors import BadInput
from flowportrait.flow.noise import NoiseKey
from flowportrait.rewards.batch import RewardBatch
from flowportrait.rewards.interface import Reward, check_needs, read_traits
from flowportrait.rewards.random import RANDOM_REWARDS
from flowportrait.rl.objectives.interface import Loss, LossInputs, noised_points
from flowportrait.rl.plan import Plan
from flowportrait.rl.rollout import EvaluationPoints, Trajectory
from flowportrait.rl.stages import IterationRollouts, Stage

_LEAST_SIZE = 1e-12


@dataclass(frozen=True)
class RewardGradients(Stage):
    """A stage that adds to every sample the gradient of the rewards at its clean latents.

        ĝ = Σ_k w_k · g_k / rms(g_k),  then  ĝ / rms(ĝ),  elements bounded by ``limit``        g_k = ∂R_k/∂x₀

    The root mean squares are over the samples that are scored together, so that weights compare rewards of any scale,
    and a sample whose reward is flat moves less. Filters after the generator count as the identity. A random reward,
    the control, has a random gradient of the same size in its latent region.
    """

    limit: float = 4.0
    """Largest element of the gradient, whose elements have a mean square of one."""

    def __post_init__(self) -> None:
        at_least(self, limit=1e-3)

    def augment_rollout(
        self, trajectory: Trajectory, groups: torch.Tensor, plan: Plan, rollouts: IterationRollouts
    ) -> Trajectory:
        """Return the rollout with its ``reward_gradient``.

        Raises:
            BadInput: a reward has no gradient.
        """
        with torch.enable_grad():
            latents = trajectory.latents.detach().requires_grad_()
            prompts = rollouts.prompts.select(trajectory.group)
            batch = rollouts.task.batch(rollouts.policy, replace(trajectory, latents=latents), prompts)
            total = torch.zeros_like(trajectory.latents)
            for reward in rollouts.rewards.rewards:
                if reward.name in RANDOM_REWARDS:
                    gradient = _random_gradient(reward.name, trajectory, rollouts)
                else:
                    value = _differentiable_values(reward, batch)
                    gradient = torch.autograd.grad(value.nansum(), latents, retain_graph=True)[0]
                total += rollouts.rewards.weights[reward.name] * _unit_size(gradient.nan_to_num())
        return replace(trajectory, reward_gradient=_unit_size(total).clamp(-self.limit, self.limit))


def _differentiable_values(reward: Reward, batch: RewardBatch) -> torch.Tensor:
    """Return the values ``[B]`` of a reward, with their graph."""
    check_needs(reward, read_traits(reward), batch)
    value = reward(batch).value
    if value.requires_grad:
        return value
    raise BadInput(
        f"The reward {reward.name!r} has no gradient in the generator's output: give rewards that are computed from "
        f"motion by differentiable operations, such as --rewards sync=1, or take a recipe that compares samples."
    )


def _random_gradient(name: str, trajectory: Trajectory, rollouts: IterationRollouts) -> torch.Tensor:
    """Return unit noise ``[B, N, D]`` that depends on the samples and the name of the reward, in its region."""
    use = RANDOM_REWARDS.index(name)
    shape = trajectory.latents.shape[1:]
    noise = torch.stack([rollouts.noise_key.normal(shape, "forward", i, use) for i in trajectory.sample.tolist()])
    region = rollouts.task.regions.get(name.rpartition("_")[2])
    return (noise if region is None else noise * region).to(trajectory.latents)


def _unit_size(gradient: torch.Tensor) -> torch.Tensor:
    """Return a gradient with a mean square of one; one that is zero everywhere stays so."""
    return gradient / gradient.square().mean().sqrt().clamp_min(_LEAST_SIZE)


@dataclass(frozen=True)
class Direct:
    """Draws the velocity to that of samples moved along the gradient of the rewards.

        L = mean ‖v − (v_old − step·ĝ)‖² / step + kl_weight·‖v − v_ref‖²        at noised samples x_σ, σ in (0, 1)

    A constant change −step·ĝ of the velocity moves the end of the path by step·ĝ, since x₀ = x₁ − ∫ v dσ. The first
    gradient of L is that of −2 E⟨ĝ, x₀⟩: DRaFT's and SRPO's direction (2309.17400, 2509.06942) with the gradient taken
    at the finished sample. The target is bounded, which theirs is not.
    """

    step: float = 0.1
    """How far samples move along the gradient in one iteration at most, in standard deviations of latents."""
    states: int = 6
    """Noised states per chunk."""
    kl_weight: float = 1e-4
    """Weight of ‖v − v_ref‖²."""
    whole_groups = False

    def __post_init__(self) -> None:
        at_least(self, step=1e-6, states=1, kl_weight=0)

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"old", "ref"} if self.kl_weight > 0 else {"old"})

    def points(self, trajectory: Trajectory, key: NoiseKey) -> EvaluationPoints:
        return noised_points(trajectory, self.states, key)

    def __call__(self, inputs: LossInputs) -> Loss:
        gradient = inputs.trajectory.reward_gradient
        if gradient is None:
            raise BadInput("The objective Direct needs gradients of rewards: add RewardGradients() to the stages.")
        old, advantage = inputs.others["old"], inputs.advantage
        target = old - self.step * gradient[:, :, None]
        total = policy = advantage.average_elements((inputs.live - target).square()) / self.step
        moved = ((old - inputs.live).detach() * gradient[:, :, None]).mean() / self.step
        metrics = {"loss/policy": float(policy.detach()), "moved": float(moved)}
        if self.kl_weight > 0:
            kl = advantage.average_elements((inputs.live - inputs.others["ref"]).square())
            total = total + self.kl_weight * kl
            metrics |= {"kl": float(kl.detach()), "kl/has_gradient": float(kl.requires_grad)}
        return Loss(total, metrics)
