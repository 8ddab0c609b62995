"""Scores that are read from landmark tracks alone."""

from __future__ import annotations

from collections.abc import Callable

import torch

from flowportrait.reward.batch import Failure
from flowportrait.reward.interface import RewardBatch, Score, measured

SHORTEST = 4


def from_tracks(batch: RewardBatch, figures: Callable[[torch.Tensor], torch.Tensor], what: str) -> Score:
    """``figures`` ``[B]`` of the tracks ``[B, T, 478, 2]`` px; clips too short to have ``what`` have no score."""
    length = batch.motion.shape[1]
    if length < SHORTEST:
        why = Failure("too_short", f"{length} frames have no {what}")
        return measured(torch.full((len(batch),), torch.nan), dict.fromkeys(range(len(batch)), why))
    return measured(figures(batch.places(tuple(range(length)))), {})
