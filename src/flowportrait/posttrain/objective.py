"""The clipped-ratio objective (Flow-GRPO) on exact log-ratios, and its regulariser.

    ρ = exp( reduce log r ),   L = − min( ρ·A, clip(ρ, 1−c₋, 1+c₊)·A ) + β · KL

``reduce`` acts over the latent elements of one transition (a chunk at one denoising step: the unit that the
policy chooses at once). ``mean`` is what the published clip ranges of 1e-5…1e-3 assume; ``sum`` gives the true
ratio of that action, for which PPO's 0.2 is natural.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from flowportrait.flow.ratio import gaussian_kl, log_ratio
from flowportrait.posttrain.trajectory import Trajectory


@dataclass(frozen=True)
class ObjectiveConfig:
    clip_low: float = 0.2
    clip_high: float = 0.2
    reduce: Literal["sum", "mean"] = "sum"
    kl_weight: float = 0.02
    kl_space: Literal["v", "exact"] = "exact"
    """``exact``: ½k²‖v − v_ref‖², the KL of the transition; ``v``: ‖v − v_ref‖². Reduced like the ratio."""


@dataclass(frozen=True)
class Loss:
    """The scalar to minimise and what to log, by step where it matters."""

    total: torch.Tensor
    metrics: dict[str, float]


def clipped_ratio(
    trajectory: Trajectory,
    velocity: torch.Tensor,
    reference: torch.Tensor | None,
    advantage: torch.Tensor,
    config: ObjectiveConfig,
) -> Loss:
    """Loss of velocities ``[B, N, R, D]`` on recorded transitions; advantage ``[B]`` or ``[B, N]``."""
    assert trajectory.v_old is not None, "replay fills in v_old before an update"
    gain = trajectory.coefficients.gain
    reduce = torch.sum if config.reduce == "sum" else torch.mean
    ratio = reduce(log_ratio(gain, trajectory.noise, velocity - trajectory.v_old), -1).exp()
    signed = advantage.reshape(*advantage.shape, *(1,) * (ratio.ndim - advantage.ndim))
    clipped = ratio.clamp(1 - config.clip_low, 1 + config.clip_high)
    policy = -torch.minimum(ratio * signed, clipped * signed).mean()
    with torch.no_grad():
        outside = (ratio != clipped).float()
        metrics = {
            "ratio/mean": float(ratio.mean()),
            "ratio/std": float(ratio.std()),
            "clip/positive": float((outside * (signed > 0)).mean()),
            "clip/negative": float((outside * (signed < 0)).mean()),
            "delta_v": float((velocity - trajectory.v_old).square().mean().sqrt()),
            "loss/policy": float(policy),
        }
        for row, step in enumerate(trajectory.step.tolist()):
            metrics[f"ratio_std/step{step}"] = float(ratio[:, :, row].std())
    total = policy
    if reference is not None and config.kl_weight > 0:
        delta = velocity - reference
        kl = reduce(gaussian_kl(gain, delta) if config.kl_space == "exact" else delta.square(), -1).mean()
        total = total + config.kl_weight * kl
        metrics["kl"] = float(kl.detach())
    return Loss(total, metrics)
