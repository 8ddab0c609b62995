"""Pairwise preference as a reward: the share of siblings that a sample is preferred to (Pref-GRPO, 2508.20751).

    w_i = mean over siblings j of  P(i is better than j)

A judge that compares is often surer than one that grades. G siblings cost G (G − 1) / 2 questions; a pair that the
judge could not settle is left out, and a sample without any settled pair has no score.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations

import torch

from flowportrait.reward.batch import RewardBatch
from flowportrait.reward.interface import Failure, Score, measured

Prefer = Callable[[RewardBatch, int, int], float]
"""``(batch, row a, row b)`` → probability that a is better, NaN if it cannot be said."""


@dataclass(frozen=True)
class PairwiseWins:
    """Win rates inside each group."""

    prefer: Prefer
    name: str = "wins"
    needs: frozenset[str] = frozenset({"frames", "group"})
    scope: str = "group"
    range: tuple[float, float] = (0.0, 1.0)
    noise: float = 0.0

    def __call__(self, batch: RewardBatch) -> Score:
        assert batch.group is not None
        won, asked = torch.zeros(len(batch)), torch.zeros(len(batch))
        for own in batch.group.unique():
            for a, b in combinations((batch.group == own).nonzero()[:, 0].tolist(), 2):
                chance = self.prefer(batch, a, b)
                if not math.isnan(chance):
                    won[a], won[b] = won[a] + chance, won[b] + 1 - chance
                    asked[[a, b]] += 1
        alone = (asked == 0).nonzero()[:, 0].tolist()
        why = {row: Failure("refused", "no pair with this sample was settled") for row in alone}
        return measured(won / asked.clamp_min(1), why)
