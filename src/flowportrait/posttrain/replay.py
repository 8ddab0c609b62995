"""Evaluate a policy on recorded transitions: one teacher-forced backbone pass, then the flow head on all steps.

A rollout reaches its states through a KV cache, a replay in one pass; the two differ by rounding. v_old is
therefore taken from the replay as well, so that the first ratio is exactly 1, and the noise that the replay
implies is compared with the noise that was drawn. The ratio alone proves nothing: scrambled conditions leave it
at 1. The noise does not stay.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import nn

from flowportrait.posttrain.objective.interface import Points
from flowportrait.posttrain.policy import Policy, module
from flowportrait.posttrain.rows import over_steps
from flowportrait.posttrain.trajectory import Trajectory

NOISE_BOUND = 1e-2
"""Largest tolerated |recomputed − drawn| unit noise in float32; rounding stays under 1e-3, any real mismatch is of
order 1."""
NOISE_BOUND_HALF = 0.05
"""The same under bfloat16 autocast, root mean square: rounding of the shipped generator is 0.01 there, a scrambled
condition 0.23, a chunk too late 0.5."""


class ReplayMismatch(RuntimeError):
    """The replay does not see what the rollout saw."""


def velocity_at(policy: Policy, trajectory: Trajectory, points: Points, strides: int = 0) -> torch.Tensor:
    """v ``[B, N, R, D]`` of ``policy`` in float32 at ``points`` of every chunk, given the trajectory's history; with
    ``strides`` its mean over so many Euler steps from there down to ``points.until``."""
    context = over_steps(policy.contexts(trajectory.condition, trajectory.latents))
    if not strides:
        return policy.velocity(points.x, points.sigma, context).float()
    assert points.until is not None, "a mean velocity is one over a way"
    x, sigma, stride = points.x, points.sigma, (points.until - points.sigma) / strides
    for _ in range(strides):
        x = x + stride[..., None] * policy.velocity(x, sigma, context).float()
        sigma = sigma + stride
    return (x - points.x) / (points.until - points.sigma)[..., None]


def replay_velocity(policy: Policy, trajectory: Trajectory) -> torch.Tensor:
    """v ``[B, N, R, D]`` of ``policy`` at every recorded state."""
    return velocity_at(policy, trajectory, Points(trajectory.x, trajectory.sigma))


@torch.no_grad()
def check_noise(trajectory: Trajectory, velocity: torch.Tensor, half: bool = False) -> float:
    """The largest gap between drawn noise and the noise that replayed velocities ``[B, N, R, D]`` under the
    rollout's weights imply (with ``half`` its root mean square).

    Raises:
        ReplayMismatch: the gap exceeds its bound.
    """
    if not trajectory.trainable.any():
        return 0.0
    implied = trajectory.coefficients.noise(trajectory.x, trajectory.x_next, velocity)
    error = (implied - trajectory.noise)[trajectory.trainable]
    gap, bound = float(error.abs().max()), NOISE_BOUND
    if half:
        gap, bound = float(error.square().mean().sqrt()), NOISE_BOUND_HALF
    if not gap <= bound:
        raise ReplayMismatch(
            f"replayed noise differs from the drawn noise by {gap:.3g} (bound {bound}): "
            "the replay sees another condition, chunk or network state than the rollout did"
        )
    return gap


class Replay(nn.Module):
    """``velocity_at`` as a network, so that libraries which wrap networks (DDP, FSDP) see one forward pass."""

    def __init__(self, policy: Policy) -> None:
        super().__init__()
        self.policy = module(policy)

    def forward(self, trajectory: Trajectory, points: Points, strides: int = 0) -> torch.Tensor:
        """v ``[B, N, R, D]``."""
        return velocity_at(cast(Policy, self.policy), trajectory, points, strides)

    def wake(self) -> None:
        """Nothing; a forward pass by name, with which FSDP learns who is outermost before any part is called."""
