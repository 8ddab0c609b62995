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


def siblings(
    valid: torch.Tensor, group: torch.Tensor, reference: torch.Tensor | None = None
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Rows of the valid members of every group, and those of them that its statistics are of: the ``reference`` ones
    (all, if none is given)."""
    reference = torch.ones_like(valid) if reference is None else reference
    for own in group.unique():
        rows = ((group == own) & valid).nonzero()[:, 0]
        yield rows, rows[reference[rows]]


def win_rates(
    value: torch.Tensor,
    valid: torch.Tensor,
    group: torch.Tensor,
    noise: float,
    reference: torch.Tensor | None = None,
) -> torch.Tensor:
    """Share of the reference siblings that each score ``[B]`` beats, differences within the ``noise`` counting half."""
    result = torch.zeros(len(value))
    for rows, base in siblings(valid, group, reference):
        if len(base) > 1:
            apart = value[rows, None].float() - value[None, base].float()
            wins = torch.where(apart.abs() <= noise, 0.5, (apart > 0).float()).sum(1)
            itself = torch.isin(rows, base).float()
            result[rows] = (wins - 0.5 * itself) / (len(base) - itself)
    return result


def deviations(
    value: torch.Tensor,
    valid: torch.Tensor,
    group: torch.Tensor,
    divisor: Divisor = "group",
    baseline: Baseline = "mean",
    noise: float = 0.0,
    reference: torch.Tensor | None = None,
) -> Normalised:
    """Scores ``[B]`` as deviations from their group's mean, divided as asked; see the module.

    ``reference`` ``[B]`` marks the scores that means and spreads are of; the others are measured against them, as a
    real clip is against a group's own samples.
    """
    result, spreads, loudest, families = torch.zeros(len(group)), [], 0.0, 0
    heard: list[torch.Tensor] = []
    for rows, base in siblings(valid, group, reference):
        families += 1
        if len(base) < 2:
            continue
        known = value[base].float()
        spread = float(known.std())
        spreads.append(spread)
        if spread <= max(noise, ZERO_SPREAD):
            continue
        deviation = value[rows].float() - known.mean()
        if baseline == "leave_one_out":
            deviation = torch.where(torch.isin(rows, base), deviation * len(base) / (len(base) - 1), deviation)
        result[rows] = deviation / spread if divisor == "group" else deviation
        loudest = max(loudest, spread)
        heard.append(base)
    if heard and divisor == "largest":
        result /= loudest
    if heard and divisor == "batch":
        result /= result[torch.cat(heard)].square().mean().sqrt()
    mean = sum(spreads) / len(spreads) if spreads else 0.0
    return Normalised(result, mean, 1 - len(heard) / families if families else 1.0)
