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
from functools import partial

import torch

from flowportrait.config import at_least
from flowportrait.errors import BadInput
from flowportrait.flow.noise import NoiseKey
from flowportrait.flow.schedules import solve_ode
from flowportrait.rewards.batch import RewardBatch
from flowportrait.rewards.interface import Reward, check_needs, read_traits
from flowportrait.rewards.random import RANDOM_REWARDS
from flowportrait.rl.objectives.interface import Loss, LossInputs, noised_points
from flowportrait.rl.plan import Plan, Policy
from flowportrait.rl.rollout import EvaluationPoints, Trajectory
from flowportrait.rl.stages import IterationRollouts, Stage

_LEAST_SIZE = 1e-12


@dataclass(frozen=True)
class RewardGradients(Stage):
    """A stage that adds to every sample the gradient of the rewards at its clean latents.

        ĝ = Σ_k w_k · g_k / rms(g_k),  then  ĝ / rms(ĝ),  elements bounded by ``limit``        g_k = ∂R_k/∂x₀

    The root mean squares are over the samples that are scored together, of all processes, so that weights compare
    rewards of any scale, and a sample whose reward is flat moves less. Filters after the generator count as the
    identity. A random reward, the control, has a random gradient of the same size in its latent region.
    """

    limit: float = 4.0
    """Largest element of the gradient, whose elements have a mean square of one."""
    through_history: bool = False
    """Whether the gradient of a chunk includes what it changes in later chunks, to which it is history."""

    values_before = (("through_history", False),)

    def __post_init__(self) -> None:
        at_least(self, limit=1e-3)

    def augment_rollout(
        self, trajectory: Trajectory, groups: torch.Tensor, plan: Plan, rollouts: IterationRollouts
    ) -> Trajectory:
        """Return the rollout with its ``reward_gradient``.

        Raises:
            BadInput: a reward has no gradient, or the rollout cannot be repeated for gradients through the history.
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
                total += rollouts.rewards.weights[reward.name] * _unit_size(gradient.nan_to_num(), rollouts)
            if self.through_history:
                total = gradient_through_history(rollouts.policy, trajectory, plan, total)
        return replace(trajectory, reward_gradient=_unit_size(total, rollouts).clamp(-self.limit, self.limit))


def gradient_through_history(
    policy: Policy, trajectory: Trajectory, plan: Plan, gradient: torch.Tensor
) -> torch.Tensor:
    """Return the gradients ``[B, N, D]`` of whole rollouts in the latents of every chunk.

    The rollout is repeated with its noise, and every chunk is a sum of what is sampled and of an offset. The result is
    the gradient in the offsets at zero, so that an offset changes all chunks after it:

        ĝ_i = g_i + Σ_{j>i} g_j · dx_j/dx_i

    The gradient of the reward in the weights, by backpropagation through the whole rollout, is Σ_i ĝ_i · ∂x_i/∂θ, with
    the history of chunk i fixed.

    Args:
        policy: the generator, with the weights of the rollout.
        trajectory: the rollout, with all states of its steps.
        plan: the plan of the rollout.
        gradient: g, gradients at the chunks ``[B, N, D]`` without the history.

    Raises:
        BadInput: the rollout has noise at its steps, or its first states are not recorded.
    """
    steps = len(plan.sigmas) - 1
    if trajectory.x.shape[2] != steps or plan.stochastic.any():
        raise BadInput(
            "Gradients through the history repeat a rollout, which needs steps without noise and their states: take "
            "the plan OdePlan with plan.keep_path=true."
        )
    sigmas = plan.sigmas.to(trajectory.latents)
    offsets = torch.zeros_like(trajectory.latents, requires_grad=True)
    session, chunks = policy.session(trajectory.condition), []
    for chunk in range(trajectory.latents.shape[1]):
        field = partial(policy.velocity, context=session.context())
        chunks.append(solve_ode(field, trajectory.x[:, chunk, 0], sigmas) + offsets[:, chunk])
        session.append(chunks[-1])
    return torch.autograd.grad(torch.stack(chunks, 1), offsets, gradient)[0]


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


def _unit_size(gradient: torch.Tensor, rollouts: IterationRollouts) -> torch.Tensor:
    """Return a gradient with a mean square of one over all processes; one that is zero everywhere stays so."""
    return gradient / rollouts.average(gradient.square().mean()).sqrt().clamp_min(_LEAST_SIZE)


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
