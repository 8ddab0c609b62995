"""From scores to advantages: every reward normalised by itself inside its group, then weighted and summed.

    A[i, n] = Σ_r w_r · (r_i − mean_group r) / std_group r          (``normalise`` holds the other ways)

An invalid score takes part in nothing, and neither does a reward in a group that it cannot tell apart: where its spread
is no larger than its own measurement noise. A sample is ``valid`` where every reward that tells its siblings apart has
judged it, and some reward has: its zero would otherwise pass for an average score. A reward that knows when it was
earned (lip sync does) pays part of its weight to the chunk n that earned it, normalised among the siblings' same chunk.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch

from flowportrait.posttrain.normalise import ZERO_SPREAD, Baseline, Divisor, Normalised, deviations, win_rates
from flowportrait.reward.interface import Score

EVERY = "all"


@dataclass(frozen=True)
class CreditConfig:
    std: Divisor = "group"
    """What a deviation is divided by: its group's std, that of the whole batch, the largest group's (LongCat), or
    nothing (Dr-GRPO)."""
    baseline: Baseline = "mean"
    win_rate: tuple[str, ...] = ()
    """Rewards that count by the share of siblings they beat instead of by how much (Pref-GRPO); ``all``: every one."""
    when: Literal["apart", "summed"] = "apart"
    """``apart``: every reward is normalised, then weighted; ``summed``: raw scores are weighted, then normalised."""
    floors: dict[str, float] = field(default_factory=dict)
    """Reward → score under which it does not get worse."""
    caps: dict[str, float] = field(default_factory=dict)
    """Reward → score beyond which more earns nothing: against over-optimising what is good enough."""
    among: Literal["group", "batch"] = "group"
    """Whom a sample is compared with: its siblings, or the whole batch, whose mean is one threshold for all prompts."""
    gate: float = 1.0
    """A reward says nothing in a group where its spread is at most this many times its measurement noise."""
    dense: float = 0.7
    """Share of a dense reward's weight that goes to single chunks; the rest goes to the whole clip."""
    limit: float = 5.0
    """Advantages are clipped to ± this."""


@dataclass(frozen=True)
class Credit:
    """Advantage ``[B, N]`` of every chunk, what each reward brought to it (their sum before the limit), what to log,
    and by reward whether each sample ``[B]`` can be compared with its siblings (without a name, it can)."""

    advantage: torch.Tensor
    parts: dict[str, torch.Tensor]
    metrics: dict[str, float]
    valid: dict[str, torch.Tensor] = field(default_factory=dict)

    def select(self, rows: torch.Tensor | slice) -> Credit:
        """The samples at ``rows``; metrics stay those of all."""
        parts, valid = ({name: own[rows] for name, own in of.items()} for of in (self.parts, self.valid))
        return Credit(self.advantage[rows], parts, self.metrics, valid)


def assign(
    scores: Mapping[str, Score],
    group: torch.Tensor,
    chunks: int,
    weights: Mapping[str, float],
    config: CreditConfig,
    reference: torch.Tensor | None = None,
) -> Credit:
    """Advantages of B samples of N = ``chunks`` chunks in groups ``[B]`` (any integer ids).

    ``reference`` ``[B]``: the samples that all statistics are of (without it all); the others are credited by the same
    rules against them.
    """
    reference = torch.ones(len(group), dtype=torch.bool) if reference is None else reference
    metrics: dict[str, float] = {}
    prompts, group = group, torch.zeros_like(group) if config.among == "batch" else group
    heard: dict[str, Score] = {}
    for name, score in scores.items():
        heard[name] = _bounded(score, config.floors.get(name, -math.inf), config.caps.get(name, math.inf))
        own = normalise(heard[name], group, config, name in config.win_rate or EVERY in config.win_rate, reference)
        known = score.value[score.valid & reference]
        metrics[f"reward/{name}"] = float(known.mean()) if len(known) else float("nan")
        metrics[f"spread/{name}"] = own.spread
        metrics[f"silent/{name}"] = own.silent
        metrics[f"invalid/{name}"] = float((~score.valid[reference]).float().mean())
    any_valid = torch.stack([score.valid for score in heard.values()]).any(0) if heard else torch.zeros_like(reference)
    if config.when == "summed":
        heard = {"total": _summed(heard, group, weights, config, reference)}
        parts = {"total": _part(heard["total"], group, chunks, config, False, reference)}
    else:
        wins = {name: name in config.win_rate or EVERY in config.win_rate for name in heard}
        parts = {
            name: weights[name] * _part(score, group, chunks, config, wins[name], reference)
            for name, score in heard.items()
        }
    valid = {name: any_valid & (score.valid | _degenerate(parts[name], prompts)) for name, score in heard.items()}
    total = torch.stack(list(parts.values())).sum(0) if parts else torch.zeros(len(group), chunks)
    largest = [total[reference & (prompts == own)].abs().max() for own in prompts[reference].unique()]
    metrics["dead_groups"] = float((torch.stack(largest) <= ZERO_SPREAD).float().mean())
    return Credit(total.clamp(-config.limit, config.limit), parts, metrics, valid)


def normalise(
    score: Score, group: torch.Tensor, config: CreditConfig, wins: bool = False, reference: torch.Tensor | None = None
) -> Normalised:
    """One reward's clip scores among siblings."""
    floor = config.gate * score.noise
    if not wins:
        return deviations(score.value, score.valid, group, config.std, config.baseline, floor, reference)
    raw = deviations(score.value, score.valid, group, "none", "mean", floor, reference)
    rates = win_rates(score.value, score.valid, group, floor, reference)
    heard = score.valid & torch.isin(group, group[raw.value != 0])
    value = deviations(rates, heard, group, config.std, config.baseline, reference=reference).value
    return Normalised(value, raw.spread, raw.silent)


def _degenerate(part: torch.Tensor, prompts: torch.Tensor) -> torch.Tensor:
    """Samples ``[B]`` in whose group a reward's part ``[B, N]`` is zero throughout: it does not tell them apart."""
    return ~torch.isin(prompts, prompts[(part != 0).any(1)])


def _bounded(score: Score, low: float, high: float) -> Score:
    if low == -math.inf and high == math.inf:
        return score
    dense = None if score.dense is None else score.dense.clamp(low, high)
    return score._replace(value=score.value.clamp(low, high), dense=dense)


def _part(
    score: Score, group: torch.Tensor, chunks: int, config: CreditConfig, wins: bool, reference: torch.Tensor
) -> torch.Tensor:
    """Advantage ``[B, N]`` of one reward at weight 1: its share for the clip and that for single chunks."""
    share = 0.0 if score.dense is None else config.dense
    part = (1 - share) * normalise(score, group, config, wins, reference).value[:, None].expand(-1, chunks).clone()
    if score.dense is None or share == 0:
        return part
    for chunk, earned in enumerate(score.dense.chunk(chunks, 1)):
        # The noise of a mean over 1/N of the clip is √N times that of the clip's.
        own = Score(earned.mean(1), score.valid, noise=score.noise * math.sqrt(chunks))
        part[:, chunk] += share * normalise(own, group, config, wins, reference).value
    return part


def _summed(
    scores: Mapping[str, Score],
    group: torch.Tensor,
    weights: Mapping[str, float],
    config: CreditConfig,
    reference: torch.Tensor,
) -> Score:
    """Raw scores weighted and added; a reward that is silent in a group adds nothing there, and a sample without one of
    the others' scores has no sum."""
    frames = max((s.dense.shape[1] for s in scores.values() if s.dense is not None), default=0)
    value, valid = torch.zeros(len(group)), torch.ones(len(group), dtype=torch.bool)
    dense = torch.zeros(len(group), frames)
    for name, score in scores.items():
        for own in group.unique():
            rows = group == own
            known = rows & score.valid & reference
            if known.sum() < 2 or float(score.value[known].std()) <= max(config.gate * score.noise, ZERO_SPREAD):
                continue
            valid &= score.valid | ~rows
            value[rows] += weights[name] * score.value[rows].float()
            if frames:
                moment = score.value[rows, None] if score.dense is None else score.dense[rows]
                dense[rows] += weights[name] * moment
    return Score(value, valid, dense if frames else None)
