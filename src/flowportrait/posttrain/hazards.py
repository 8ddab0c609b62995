"""What goes wrong in a long run, and what is kept out of the weights.

    a sample that is not numbers      its scores are invalid; nobody updates in this iteration
    no reward answered                nobody updates in this iteration
    a gradient that is not a number   nobody takes this optimiser step (see ``Trainer.learn``)

Each is counted as ``skipped``. Gradients, scores and these decisions are everybody's, so processes skip together.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch

from flowportrait.posttrain.trajectory import Trajectory
from flowportrait.reward.interface import Failure, Score, per_row


def numberless(trajectory: Trajectory) -> torch.Tensor:
    """Samples ``[B]`` with latents that are infinite or not numbers."""
    return ~torch.isfinite(trajectory.latents).flatten(1).all(1).cpu()


def blanked(trajectory: Trajectory, lost: torch.Tensor) -> Trajectory:
    """With zeros for the lost samples, so that rewards can look at the others."""
    if not lost.any():
        return trajectory
    where = lost.to(trajectory.latents.device)[:, None, None]
    return replace(trajectory, latents=torch.where(where, 0, trajectory.latents))


def forget(scores: Mapping[str, Score], lost: torch.Tensor) -> dict[str, Score]:
    """Scores without those of the lost samples."""
    if not lost.any():
        return dict(scores)
    reason = Failure("not_finite", "the generator gave something that is not a number")
    rows = dict.fromkeys(lost.nonzero()[:, 0].tolist(), reason)
    return {
        name: score._replace(
            value=score.value.masked_fill(lost, torch.nan), valid=score.valid & ~lost,
            failures=per_row(score.reasons | rows, len(lost)),
        )
        for name, score in scores.items()
    }  # fmt: skip


def unscored(metrics: Mapping[str, float]) -> bool:
    """Whether no reward could say anything about any sample of anybody."""
    shares = [value for key, value in metrics.items() if key.startswith("invalid/")]
    return bool(shares) and min(shares) == 1.0
