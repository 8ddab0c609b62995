"""Evaluate a policy on recorded transitions: one teacher-forced backbone pass, then the flow head on all steps.

A rollout reaches its states through a KV cache, a replay in one pass; the two differ by rounding. v_old is
therefore taken from the replay as well, so that the first ratio is exactly 1, and the noise that the replay
implies is compared with the noise that was drawn. The ratio alone proves nothing: scrambled conditions leave it
at 1. The noise does not stay.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from flowportrait.generator.arflow import ARFlow
from flowportrait.posttrain.trajectory import Trajectory

NOISE_BOUND = 1e-2
"""Largest tolerated |recomputed − drawn| unit noise; rounding stays under 1e-3, any real mismatch is of order 1."""


class ReplayMismatch(RuntimeError):
    """The replay does not see what the rollout saw."""


def replay_velocity(policy: ARFlow, trajectory: Trajectory) -> torch.Tensor:
    """v ``[B, N, R, D]`` of ``policy`` at every recorded state."""
    context = policy.contexts(trajectory.condition, trajectory.latents)
    return policy.velocity(trajectory.x, trajectory.sigma, context[:, :, None])


@torch.no_grad()
def fix_old(policy: ARFlow, trajectory: Trajectory) -> tuple[Trajectory, float]:
    """Fill in v_old under the rollout's weights; also the largest gap between recomputed and drawn noise.

    Raises:
        ReplayMismatch: the gap exceeds ``NOISE_BOUND``.
    """
    v_old = replay_velocity(policy, trajectory)
    implied = trajectory.coefficients.noise(trajectory.x, trajectory.x_next, v_old)
    gap = float((implied - trajectory.noise).abs().max())
    if not gap <= NOISE_BOUND:
        raise ReplayMismatch(
            f"replayed noise differs from the drawn noise by {gap:.3g} (bound {NOISE_BOUND}): "
            "the replay sees another condition, chunk or network state than the rollout did"
        )
    return replace(trajectory, v_old=v_old), gap
