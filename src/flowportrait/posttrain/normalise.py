"""Scores of one reward made comparable among siblings, in as many ways as the literature has.

    value     d_i = r_i − mean of the group                  win rate     d_i = mean_j [ r_i > r_j ] − ½
    divided   group: std of the group · batch: std of all groups' d · largest: of the group where it is largest
              none: 1

A group whose spread is no larger than the reward's own measurement noise gets nothing: dividing it by its std would
turn noise into advantage. Sources: GRPO (2402.03300), Dr-GRPO (2503.20783: none), LongCat-Video (2510.22200: largest),
REINFORCE++ (2501.03262: batch), Pref-GRPO (2508.20751: win rate).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, NamedTuple

import torch

Divisor = Literal["group", "batch", "largest", "none"]
Baseline = Literal["mean", "leave_one_out"]

ZERO_SPREAD = 1e-6


class Normalised(NamedTuple):
    """value ``[B]``, zero where a score takes no part; spread: mean std inside groups; silent: share of groups in which
    the reward says nothing (spread under its noise, or fewer than two valid scores)."""

    value: torch.Tensor
    spread: float
    silent: float


def siblings(valid: torch.Tensor, group: torch.Tensor) -> Iterator[torch.Tensor]:
    """Rows of the valid members of every group."""
    for own in group.unique():
        yield ((group == own) & valid).nonzero()[:, 0]


def win_rates(value: torch.Tensor, valid: torch.Tensor, group: torch.Tensor, noise: float) -> torch.Tensor:
    """Share of siblings that each score ``[B]`` beats, differences within the ``noise`` counting half."""
    result = torch.zeros(len(value))
    for rows in siblings(valid, group):
        if len(rows) > 1:
            apart = value[rows, None].float() - value[None, rows].float()
            beats = torch.where(apart.abs() <= noise, 0.5, (apart > 0).float())
            result[rows] = (beats.sum(1) - 0.5) / (len(rows) - 1)
    return result


def deviations(
    value: torch.Tensor,
    valid: torch.Tensor,
    group: torch.Tensor,
    divisor: Divisor = "group",
    baseline: Baseline = "mean",
    noise: float = 0.0,
) -> Normalised:
    """Scores ``[B]`` as deviations from their group's mean, divided as asked; see the module."""
    result, spreads, loudest, families = torch.zeros(len(group)), [], 0.0, 0
    heard: list[torch.Tensor] = []
    for rows in siblings(valid, group):
        families += 1
        if len(rows) < 2:
            continue
        values = value[rows].float()
        spread = float(values.std())
        spreads.append(spread)
        if spread <= max(noise, ZERO_SPREAD):
            continue
        deviation = values - values.mean()
        if baseline == "leave_one_out":
            deviation = deviation * len(rows) / (len(rows) - 1)
        result[rows] = deviation / spread if divisor == "group" else deviation
        loudest = max(loudest, spread)
        heard.append(rows)
    if heard and divisor == "largest":
        result /= loudest
    if heard and divisor == "batch":
        result /= result[torch.cat(heard)].square().mean().sqrt()
    mean = sum(spreads) / len(spreads) if spreads else 0.0
    return Normalised(result, mean, 1 - len(heard) / families if families else 1.0)
