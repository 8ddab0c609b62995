"""This module distils a generator into few steps by matching distributions, with a critic.

    student, few steps ─► outputs x̂₀ ─► noised at level t ─┬─► critic: mean x̂₀ of the student's outputs there     μ_fake
                                                           └─► teacher: mean x̂₀ of its own samples there          μ_real
                          x̂₀ is drawn to  x̂₀ − (μ_fake − μ_real) / mean |x̂₀ − μ_real|

The mean of the clean sample given a noised one is its score up to a factor, so that μ_fake − μ_real is the gradient of
the Kullback–Leibler divergence between the student's noised outputs and the teacher's. A teacher's score is its own
velocity. The student's changes with the student, and is learned by a critic, a copy of the generator that is trained on
the student's outputs by flow matching, several times for every update of the student.

``Critic`` is the stage that trains the critic and compares it with the teacher, ``OutputMatching`` the
critic's objective, and ``DistributionMatching`` the student's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from flowportrait.config import at_least
from flowportrait.errors import BadInput
from flowportrait.flow.noise import NoiseKey
from flowportrait.flow.schedules import interpolate, predict_data, target_velocity
from flowportrait.rl.method_stages import TEACHER, build_student, teacher_view
from flowportrait.rl.objectives.interface import Loss, LossInputs
from flowportrait.rl.plan import initial_state
from flowportrait.rl.rollout import EvaluationPoints, Trajectory
from flowportrait.rl.stages import Metrics, RoleLearner, RoleView, Stage

CRITIC = "critic"
"""Name of the critic's role."""
LEVELS = 0.02, 0.98
"""Lowest and highest noise level at which scores are compared, as in DMD2's code."""
_MIN_ERROR = 1e-3


@dataclass(frozen=True)
class TransitionTrust:
    """A trust region on transitions (Delta Forcing, 2605.14382), which follows a teacher less where it leads far away.

        w = sigmoid(sharpness · (center − ρ / mean ρ))        ρ = mean |x̂₀ − μ_real| of an output
        g ← w·g + (1 − w)·x̂₀

    The latents of the generator are the change of motion since the last frame, in units of what it is in real motion.
    ρ is then how far the teacher's transition is from the student's, and x̂₀ the gradient of ½‖x̂₀‖², which asks for
    continuity.
    """

    sharpness: float = 4.0
    """How fast the weight of the teacher falls beyond the center."""
    center: float = 1.5
    """Distance, in mean distances of the batch, at which teacher and continuity weigh the same."""

    def __post_init__(self) -> None:
        at_least(self, sharpness=0, center=0)

    def weights(self, distance: torch.Tensor, mean: torch.Tensor) -> torch.Tensor:
        """Return the weight of the teacher for distances ρ, given their mean over all processes."""
        return torch.sigmoid(self.sharpness * (self.center - distance / mean.clamp_min(_MIN_ERROR)))


@dataclass(frozen=True)
class Critic(Stage):
    """A stage that trains a critic on the student's outputs and adds to every output its gradient.

        g = (μ_fake − μ_real) / mean |x̂₀ − μ_real|        at x_t = (1−t)·x̂₀ + t·ε, averaged over ``states`` levels t

    Sources: DMD (2311.18828, equations 7 and 8) and DMD2 (2405.14867). The critic begins as the generator and takes
    ``steps`` steps before every update of the student. The teacher has the starting weights of the run with
    their own guidance; student and critic have none.

    The student's own chunks are the history of student, critic and teacher (Self Forcing, 2506.08009), so that the
    divergence is that of a chunk from what the teacher would do in the student's place.

    The noise ε is what the generator starts from (``initial_state``), which may be wider than unit noise, so that what
    it draws is wider. With unit noise a student would be matched to what the generator draws from unit noise.
    """

    steps: int = 5
    """Optimiser steps of the critic in every iteration, each on all outputs with new noise (DMD2: 5)."""
    learning_rate: float = 2e-4
    """Learning rate of the critic."""
    states: int = 4
    """Noise levels per output, stratified over (0.02, 0.98)."""
    trust: TransitionTrust | None = None
    """Follow the teacher less where its transition is far from the student's."""

    distils = True

    def __post_init__(self) -> None:
        at_least(self, steps=0, learning_rate=1e-12, states=1)

    def prepare_policy(self, policy: Any, steps: int) -> tuple[Any, Mapping[str, RoleView]]:
        """Return the student, which shares its weights with the policy, and the roles of teacher and critic.

        Raises:
            BadInput: the policy's ``config`` has no number of steps.
        """
        student = build_student(policy, steps)
        views = {TEACHER: teacher_view(student, policy), CRITIC: RoleView(CRITIC, learning_rate=self.learning_rate)}
        return student, views

    def before_update(self, trajectory: Trajectory, learner: RoleLearner) -> tuple[Trajectory, Metrics]:
        """Return the samples with their ``score_gradient``, after the critic was trained on them.

        The metrics are ``critic/loss``, the critic's mean loss before each of its steps; ``critic/gap``, the root mean
        square of μ_fake − μ_real, which is zero where critic and teacher agree; and ``trust``, the mean weight of the
        teacher in a trust region.

        Raises:
            BadInput: the recipe does not record the student's steps.
        """
        if not trajectory.x.shape[2]:
            raise BadInput("Distribution matching needs the steps of the student: set plan.keep_path=true.")
        start: Callable[[torch.Tensor], torch.Tensor] = partial(initial_state, learner.policy)
        losses = [
            learner.learn_role(CRITIC, OutputMatching(self.states, step, start), trajectory)["loss/policy"]
            for step in range(self.steps)
        ]
        points = partial(noised_outputs, count=self.states, key=learner.noise_key, step=self.steps, start=start)

        fake, real = (learner.role_velocity(role, trajectory, points) for role in (CRITIC, TEACHER))
        noised = points(trajectory)
        outputs = trajectory.outputs
        gradient, distance = output_gradient(noised, fake, real, outputs)
        gap = noised.sigma[..., None] * (fake - real)
        metrics = {f"{CRITIC}/gap": float(gap.square().mean().sqrt())}
        if losses:
            metrics[f"{CRITIC}/loss"] = sum(losses) / len(losses)
        if self.trust:
            weight = self.trust.weights(distance, learner.average(distance.mean()))
            gradient = weight * gradient + (1 - weight) * outputs
            metrics["trust"] = float(weight.mean())
        return replace(trajectory, score_gradient=gradient), metrics


def noised_outputs(
    trajectory: Trajectory, count: int, key: NoiseKey, step: int, start: Callable[[torch.Tensor], torch.Tensor]
) -> EvaluationPoints:
    """Return ``count`` noised states of every output of the student, ``[B, N, R · count, D]``.

    Args:
        trajectory: the samples, with the recorded steps of the student.
        count: noise levels per output, stratified over ``LEVELS``.
        key: key of levels and noise.
        step: distinguishes several draws of an iteration.
        start: returns the state at level 1 for unit noise ``[…, D]``.
    """
    outputs = trajectory.outputs
    chunks, recorded, size = outputs.shape[1:]
    low, high = LEVELS
    levels, noise = [], []
    for i in trajectory.sample.tolist():
        drawn = key.uniform(recorded * count, "critic", i, step=2 * step).unflatten(0, (recorded, count))
        levels.append((low + (high - low) * (torch.arange(count) + drawn) / count).flatten())
        noise.append(key.normal((chunks, recorded * count, size), "critic", i, step=2 * step + 1))
    sigma = torch.stack(levels)[:, None].to(outputs.device)
    eps = start(torch.stack(noise).to(outputs.device))
    clean = outputs.repeat_interleave(count, 2)
    return EvaluationPoints(interpolate(clean, eps, sigma[..., None]), sigma, target_velocity(clean, eps))


def output_gradient(
    points: EvaluationPoints, fake: torch.Tensor, real: torch.Tensor, outputs: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return gradients of the divergence at outputs, and how far outputs are from the teacher's means.

    Args:
        points: noised states of the outputs, ``[B, N, R · count, D]``.
        fake: velocities of the critic there.
        real: velocities of the teacher there.
        outputs: the student's outputs ``[B, N, R, D]``.

    Returns:
        Normalised gradients ``[B, N, R, D]`` and distances mean |x̂₀ − μ_real| ``[B, N, R, 1]``.
    """
    sigma = points.sigma[..., None]
    count = points.x.shape[2] // outputs.shape[2]
    mean_fake, mean_real = predict_data(points.x, fake, sigma), predict_data(points.x, real, sigma)
    error = (outputs.repeat_interleave(count, 2) - mean_real).abs().mean(-1, keepdim=True).clamp_min(_MIN_ERROR)
    gradient = ((mean_fake - mean_real) / error).nan_to_num()
    gradient, distance = (part.unflatten(2, (outputs.shape[2], count)).mean(3) for part in (gradient, error))
    return gradient, distance


@dataclass(frozen=True)
class OutputMatching:
    """The critic's objective: flow matching of the student's outputs, L = mean ‖v − (ε − x̂₀)‖²."""

    states: int = 4
    """Noised states per output."""
    step: int = 0
    """Number of the critic's step in the iteration, which has noise of its own."""
    start: Callable[[torch.Tensor], torch.Tensor] = torch.clone
    """Returns the state at level 1 for unit noise."""
    needs: frozenset[str] = frozenset()
    """Further weights whose velocities the loss compares with."""
    whole_groups = False

    def points(self, trajectory: Trajectory, key: NoiseKey) -> EvaluationPoints:
        return noised_outputs(trajectory, self.states, key, self.step, self.start)

    def __call__(self, inputs: LossInputs) -> Loss:
        assert inputs.points.target is not None, "noised outputs have a target"
        total = (inputs.live - inputs.points.target).square().mean()
        return Loss(total, {"loss/policy": float(total.detach())})


@dataclass(frozen=True)
class DistributionMatching:
    """The student's objective: outputs move against the gradient of the divergence (DMD), weighted by their rewards.

        L = mean  w · ½ ‖x̂₀(v) − (x̂₀ − g + tilt·ĝ)‖²,      x̂₀(v) = x_σ − σ·v,      w = exp(A/β), at most ``max_weight``

    x̂₀ and g are those of the rollout, so that the first gradient is w·g, and the target stays where it is however
    many updates follow. The weight is that of Reward Forcing (2512.04678) and of HP-DMD (Hallo-Live, 2604.23632), whose
    reward is an advantage here; without it this is DMD. It does not move the target: a student that matches the teacher
    everywhere has no gradient, whatever the weights. It decides which samples come closer where the student cannot
    match, and how soon.

    ``tilt`` does move it: ĝ is the gradient of the rewards (``direct.RewardGradients``), and the student goes where the
    pull to the teacher and the push of the rewards balance, as if the teacher were weighted by its rewards (RTDMD,
    2605.26108).
    """

    temperature: float | None = None
    """Temperature β of the weights exp(A/β). None: all weights are 1."""
    max_weight: float = 10.0
    """Largest weight of a sample."""
    tilt: float = 0.0
    """Weight of the gradient of the rewards, which has unit size. Above 0 the stage RewardGradients is needed."""
    needs: frozenset[str] = frozenset()
    """Further weights whose velocities the loss compares with."""
    whole_groups = False

    def __post_init__(self) -> None:
        at_least(self, temperature=1e-3, max_weight=1, tilt=0)

    def points(self, trajectory: Trajectory, key: NoiseKey) -> EvaluationPoints:
        return EvaluationPoints(trajectory.x, trajectory.sigma)

    def __call__(self, inputs: LossInputs) -> Loss:
        trajectory, points, advantage = inputs.trajectory, inputs.points, inputs.advantage
        if trajectory.score_gradient is None:
            raise BadInput("The objective DistributionMatching needs gradients of scores: set critic to a Critic().")
        target = trajectory.outputs - trajectory.score_gradient
        if self.tilt:
            if trajectory.reward_gradient is None:
                raise BadInput("objective.tilt needs gradients of rewards: add RewardGradients() to the stages.")
            target = target + self.tilt * trajectory.reward_gradient[:, :, None]
        output = predict_data(points.x, inputs.live, points.sigma[..., None])
        error = advantage.reduce((output - target).square(), "mean") / 2
        weight = torch.ones_like(advantage.value)
        if self.temperature is not None:
            weight = (advantage.value / self.temperature).exp().clamp_max(self.max_weight)
        total = advantage.average(weight * error)
        return Loss(total, {"loss/policy": float(total.detach()), "weight": float(weight.mean())})
