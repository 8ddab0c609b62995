"""From scores to advantages: every reward normalised by itself inside its group, then weighted and summed.

    A[i, n] = Σ_r w_r · (r_i − mean_group r) / std_group r

A group in which a reward does not vary gets nothing from that reward, and an invalid score takes part in nothing.
A reward that knows when it was earned (lip sync does) pays part of its weight to the chunk n that earned it,
normalised among the siblings' same chunk.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch

from flowportrait.reward.interface import Score

_ZERO_SPREAD = 1e-6


@dataclass(frozen=True)
class CreditConfig:
    std: Literal["group", "largest", "none"] = "group"
    """What a deviation is divided by: its group's std, the largest group's std (LongCat), or nothing (Dr-GRPO)."""
    baseline: Literal["mean", "leave_one_out"] = "mean"
    dense: float = 0.7
    """Share of a dense reward's weight that goes to single chunks; the rest goes to the whole clip."""
    limit: float = 5.0
    """Advantages are clipped to ± this."""


@dataclass(frozen=True)
class Credit:
    """Advantage ``[B, N]`` of every chunk, what each reward brought to it (their sum before the limit), and what to
    log."""

    advantage: torch.Tensor
    parts: dict[str, torch.Tensor]
    metrics: dict[str, float]


def assign(
    scores: Mapping[str, Score], group: torch.Tensor, chunks: int, weights: Mapping[str, float], config: CreditConfig
) -> Credit:
    """Advantages of B samples of N = ``chunks`` chunks in groups ``[B]`` (any integer ids)."""
    total = torch.zeros(len(group), chunks)
    parts: dict[str, torch.Tensor] = {}
    metrics: dict[str, float] = {}
    for name, score in scores.items():
        normalised, spread = normalise(score.value, score.valid, group, config)
        share = 0.0 if score.dense is None else config.dense
        part = weights[name] * (1 - share) * normalised[:, None].expand(-1, chunks).clone()
        if score.dense is not None and share > 0:
            for chunk, earned in enumerate(score.dense.chunk(chunks, 1)):
                part[:, chunk] += weights[name] * share * normalise(earned.mean(1), score.valid, group, config)[0]
        parts[name] = part
        total += part
        known = score.value[score.valid]
        metrics[f"reward/{name}"] = float(known.mean()) if len(known) else float("nan")
        metrics[f"spread/{name}"] = spread
        metrics[f"invalid/{name}"] = float((~score.valid).float().mean())
    metrics["dead_groups"] = float(
        torch.stack([(total[group == g].abs().max() <= _ZERO_SPREAD).float() for g in group.unique()]).mean()
    )
    return Credit(total.clamp(-config.limit, config.limit), parts, metrics)


def normalise(
    value: torch.Tensor, valid: torch.Tensor, group: torch.Tensor, config: CreditConfig
) -> tuple[torch.Tensor, float]:
    """Scores ``[B]`` normalised inside their groups, and the mean spread there."""
    result, spreads = torch.zeros(len(group)), []
    members = [(group == g).nonzero()[:, 0] for g in group.unique()]
    members = [rows[valid[rows]] for rows in members]
    for rows in members:
        if len(rows) < 2:
            continue
        values = value[rows].float()
        deviation = values - values.mean()
        if config.baseline == "leave_one_out":
            deviation = deviation * len(rows) / (len(rows) - 1)
        spread = float(values.std())
        spreads.append(spread)
        if spread <= _ZERO_SPREAD:
            continue
        result[rows] = deviation / spread if config.std == "group" else deviation
    if config.std == "largest" and spreads and max(spreads) > _ZERO_SPREAD:
        result = result / max(spreads)
    return result, sum(spreads) / len(spreads) if spreads else 0.0
