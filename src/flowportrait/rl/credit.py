"""This module turns scores into the advantage of every sample, chunk, denoising step and region.

    A[i, n]        = Σ_reward w · (score_i − mean of the group) / std of the group
    A[i, n, r, p]  = Σ_reward A_reward[i, n] · weight(reward, σ_r) · [reward counts in region p]

The parts, in order:

    normalisation     scores of one reward compared inside groups (``normalized_deviations``, ``win_rates``)
    credit            all rewards together, per sample and chunk (``assign_credit``, ``credit_batch``)
    allocation        credit distributed over denoising steps and latent regions (``allocate_advantage``)
    signal metrics    how much each reward contributes (``signal_metrics``)

An invalid score is used nowhere. A sample is ``valid`` if at least one reward scored it, and so did every reward that
distinguishes the samples of its group; otherwise its advantage of zero would count as an average score.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import combinations
from typing import Literal, NamedTuple

import torch

from flowportrait.rewards.interface import Score
from flowportrait.rl.collection import join_scores

Divisor = Literal["group", "batch", "largest", "none"]
Baseline = Literal["mean", "leave_one_out"]

ZERO_SPREAD = 1e-6
"""Standard deviations and advantages up to this count as zero."""
ALL_REWARDS = "all"
"""Entry of ``CreditConfig.win_rate`` that stands for every reward."""

# --- Normalisation inside groups ---
#
#     value     d_i = r_i − mean of the group                  win rate     d_i = mean_j [ r_i > r_j ] − ½
#     divisor   group: std of the group · batch: std of all groups' d · largest: the largest std of any group
#               none: 1
#
# A group whose spread is no larger than the reward's measurement noise gets no advantage: dividing by its std would
# turn noise into advantage.
#
# Sources: GRPO (2402.03300), Dr-GRPO (2503.20783: none), LongCat-Video (2510.22200: largest), REINFORCE++ (2501.03262:
# batch), Pref-GRPO (2508.20751: win rate).


class NormalizedScores(NamedTuple):
    """The scores of one reward, normalised inside groups.

    Attributes:
        value: ``[B]``, zero where a score is not used.
        spread: mean standard deviation inside groups.
        degenerate_fraction: share of groups that the reward does not distinguish, since their spread is at most its
            noise or they have fewer than two valid scores.
    """

    value: torch.Tensor
    spread: float
    degenerate_fraction: float


def iterate_groups(
    valid: torch.Tensor, group: torch.Tensor, reference: torch.Tensor | None = None
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield for every group the rows of its valid samples, and those of them that its statistics are computed from.

    Statistics use the samples in the mask ``reference`` ``[B]``, or all of them without one.
    """
    reference = torch.ones_like(valid) if reference is None else reference
    for group_id in group.unique():
        rows = ((group == group_id) & valid).nonzero()[:, 0]
        yield rows, rows[reference[rows]]


def win_rates(
    value: torch.Tensor,
    valid: torch.Tensor,
    group: torch.Tensor,
    noise: float,
    reference: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return the share of the reference samples of its group that each score ``[B]`` beats.

    Differences of at most ``noise`` count as half a win.
    """
    result = torch.zeros(len(value))
    for rows, base in iterate_groups(valid, group, reference):
        if len(base) > 1:
            difference = value[rows, None].float() - value[None, base].float()
            wins = torch.where(difference.abs() <= noise, 0.5, (difference > 0).float()).sum(1)
            itself = torch.isin(rows, base).float()
            result[rows] = (wins - 0.5 * itself) / (len(base) - itself)
    return result


def normalized_deviations(
    value: torch.Tensor,
    valid: torch.Tensor,
    group: torch.Tensor,
    divisor: Divisor = "group",
    baseline: Baseline = "mean",
    noise: float = 0.0,
    reference: torch.Tensor | None = None,
) -> NormalizedScores:
    """Return scores ``[B]`` as deviations from the mean of their group, divided by a standard deviation.

    Args:
        value: scores ``[B]``.
        valid: mask ``[B]`` of the scores that are used.
        group: ids of the groups ``[B]``.
        divisor: what the deviations are divided by; see the heading above.
        baseline: whether the mean includes the sample itself.
        noise: groups with a standard deviation up to this get zeros.
        reference: mask ``[B]`` of the scores that means and spreads are computed from. The others are compared with
            them, as a real clip is with the samples of a group.
    """
    result, spreads, max_std, group_count = torch.zeros(len(group)), [], 0.0, 0
    valid_rows: list[torch.Tensor] = []
    for rows, base in iterate_groups(valid, group, reference):
        group_count += 1
        if len(base) < 2:
            continue
        base_values = value[base].float()
        spread = float(base_values.std())
        spreads.append(spread)
        if spread <= max(noise, ZERO_SPREAD):
            continue
        deviation = value[rows].float() - base_values.mean()
        if baseline == "leave_one_out":
            deviation = torch.where(torch.isin(rows, base), deviation * len(base) / (len(base) - 1), deviation)
        result[rows] = deviation / spread if divisor == "group" else deviation
        max_std = max(max_std, spread)
        valid_rows.append(base)
    if valid_rows and divisor == "largest":
        result /= max_std
    if valid_rows and divisor == "batch":
        result /= result[torch.cat(valid_rows)].square().mean().sqrt()
    mean = sum(spreads) / len(spreads) if spreads else 0.0
    return NormalizedScores(result, mean, 1 - len(valid_rows) / group_count if group_count else 1.0)


# --- Credit of all rewards ---
#
# A dense reward, which has a score per frame (such as lip sync), gives part of its weight to single chunks: the mean
# score of a chunk is normalised among the same chunks of the other samples of the group.


@dataclass(frozen=True)
class CreditConfig:
    """Settings of how the scores of a batch become advantages."""

    std: Divisor = "group"
    """What a deviation is divided by: the standard deviation of its group, of the whole batch, the largest one of any
    group (LongCat-Video), or nothing (Dr-GRPO)."""
    baseline: Baseline = "mean"
    """Whether the baseline of a sample is the mean of its group or that of the other samples of the group."""
    win_rate: tuple[str, ...] = ()
    """Rewards that count by the share of samples that a sample beats (Pref-GRPO). ``all`` stands for every reward."""
    aggregation: Literal["normalize_then_sum", "sum_then_normalize"] = "normalize_then_sum"
    """Whether every reward is normalised and then weighted, or raw scores are weighted and their sum is normalised."""
    floors: dict[str, float] = field(default_factory=dict)
    """Reward → lower limit to which its scores are clipped."""
    caps: dict[str, float] = field(default_factory=dict)
    """Reward → upper limit to which its scores are clipped, against over-optimisation of what is good enough."""
    baseline_scope: Literal["group", "batch"] = "group"
    """What a sample is compared with: its group, or the whole batch, the mean of which is a threshold for all
    prompts."""
    gate: float = 1.0
    """A reward is ignored in a group where its spread is at most this many times its measurement noise."""
    dense: float = 0.7
    """Share of a dense reward's weight that goes to single chunks. The rest goes to the whole clip."""
    limit: float = 5.0
    """Largest absolute value of an advantage; larger ones are clipped."""

    earlier_keys = (("when", "aggregation"), ("among", "baseline_scope"))
    earlier_values = (
        ("aggregation", "apart", "normalize_then_sum"), ("aggregation", "summed", "sum_then_normalize"),
    )  # fmt: skip


@dataclass(frozen=True)
class Credit:
    """The advantages of a batch and where they come from.

    Attributes:
        advantage: ``[B, N]`` of every chunk, clipped to the limit.
        parts: reward → its contribution ``[B, N]``; their sum is the advantage before clipping.
        metrics: values to log.
        valid: reward → mask ``[B]`` of the samples that can be compared with their group. A reward without an entry
            can compare all.
    """

    advantage: torch.Tensor
    parts: dict[str, torch.Tensor]
    metrics: dict[str, float]
    valid: dict[str, torch.Tensor] = field(default_factory=dict)

    def select(self, rows: torch.Tensor | slice) -> Credit:
        """Return the credit of the samples at ``rows``. The metrics stay those of all samples."""
        parts, valid = ({name: value[rows] for name, value in by_name.items()} for by_name in (self.parts, self.valid))
        return Credit(self.advantage[rows], parts, self.metrics, valid)


def assign_credit(
    scores: Mapping[str, Score],
    group: torch.Tensor,
    chunks: int,
    weights: Mapping[str, float],
    config: CreditConfig,
    reference: torch.Tensor | None = None,
) -> Credit:
    """Return the advantages of B samples.

    Args:
        scores: reward → scores of the B samples.
        group: ids of the groups ``[B]``, any integers.
        chunks: N, the number of chunks of a sample.
        weights: reward → weight.
        config: how scores become advantages.
        reference: mask ``[B]`` of the samples that all statistics are computed from, all without one. The others are
            compared with these by the same rules.
    """
    reference = torch.ones(len(group), dtype=torch.bool) if reference is None else reference
    metrics: dict[str, float] = {}
    prompts, group = group, torch.zeros_like(group) if config.baseline_scope == "batch" else group
    bounded: dict[str, Score] = {}
    for name, score in scores.items():
        bounded[name] = _bounded(score, config.floors.get(name, -math.inf), config.caps.get(name, math.inf))
        normalized = normalize_scores(
            bounded[name], group, config, name in config.win_rate or ALL_REWARDS in config.win_rate, reference
        )
        valid_values = score.value[score.valid & reference]
        metrics[f"reward/{name}"] = float(valid_values.mean()) if len(valid_values) else float("nan")
        metrics[f"spread/{name}"] = normalized.spread
        metrics[f"degenerate/{name}"] = normalized.degenerate_fraction
        metrics[f"invalid/{name}"] = float((~score.valid[reference]).float().mean())
    any_valid = (
        torch.stack([score.valid for score in bounded.values()]).any(0) if bounded else torch.zeros_like(reference)
    )
    if config.aggregation == "sum_then_normalize":
        bounded = {"total": _weighted_sum(bounded, group, weights, config, reference)}
        parts = {"total": _unweighted_advantage(bounded["total"], group, chunks, config, False, reference)}
    else:
        wins = {name: name in config.win_rate or ALL_REWARDS in config.win_rate for name in bounded}
        parts = {
            name: weights[name] * _unweighted_advantage(score, group, chunks, config, wins[name], reference)
            for name, score in bounded.items()
        }
    valid = {name: any_valid & (score.valid | _degenerate(parts[name], prompts)) for name, score in bounded.items()}
    total = torch.stack(list(parts.values())).sum(0) if parts else torch.zeros(len(group), chunks)
    largest = [total[reference & (prompts == prompt)].abs().max() for prompt in prompts[reference].unique()]
    metrics["dead_groups"] = float((torch.stack(largest) <= ZERO_SPREAD).float().mean())
    return Credit(total.clamp(-config.limit, config.limit), parts, metrics, valid)


def normalize_scores(
    score: Score, group: torch.Tensor, config: CreditConfig, wins: bool = False, reference: torch.Tensor | None = None
) -> NormalizedScores:
    """Return one reward's scores of whole clips, normalised inside groups; with ``wins`` by win rate."""
    floor = config.gate * score.noise
    if not wins:
        return normalized_deviations(score.value, score.valid, group, config.std, config.baseline, floor, reference)
    raw = normalized_deviations(score.value, score.valid, group, "none", "mean", floor, reference)
    rates = win_rates(score.value, score.valid, group, floor, reference)
    valid = score.valid & torch.isin(group, group[raw.value != 0])
    value = normalized_deviations(rates, valid, group, config.std, config.baseline, reference=reference).value
    return NormalizedScores(value, raw.spread, raw.degenerate_fraction)


@dataclass(frozen=True)
class BatchCredit:
    """The credit of the samples of all processes, followed by that of the samples that groups are compared with.

    Attributes:
        credit: of B samples and C comparison samples, in this order.
        group: ids of the groups ``[B]`` of the samples.
        local_rows: rows of the samples of this process.
        scores: of the B samples.
        comparison_scores: of the C comparison samples; empty if there are none.
    """

    credit: Credit
    group: torch.Tensor
    local_rows: torch.Tensor
    scores: Mapping[str, Score]
    comparison_scores: Mapping[str, Score]

    @property
    def sample_count(self) -> int:
        """Return B, the number of samples without the comparison samples."""
        return len(self.group)

    @property
    def local(self) -> Credit:
        """Return the credit of the samples of this process."""
        return self.credit.select(self.local_rows)


def credit_batch(
    scores: Mapping[str, Score],
    comparison_scores: Mapping[str, Score],
    group: torch.Tensor,
    local_rows: torch.Tensor,
    chunks: int,
    weights: Mapping[str, float],
    config: CreditConfig,
    reference: torch.Tensor | None = None,
) -> BatchCredit:
    """Return the credit of the samples of all processes together with the samples that they are compared with.

    Args:
        scores: reward → scores of B samples.
        comparison_scores: of further samples in the order of the groups, the same number for each group; or empty.
        group: ids of the groups ``[B]``.
        local_rows: rows of the samples of this process.
        chunks: N, the number of chunks of a sample.
        weights: reward → weight.
        config: how scores become advantages.
        reference: mask ``[B]`` of the samples that all statistics are computed from. Comparison samples are always
            among them.
    """
    all_scores, all_groups = scores, group
    if comparison_scores:
        group_ids = group.unique()
        added = len(next(iter(comparison_scores.values())).value)
        all_scores = join_scores([scores, comparison_scores])
        all_groups = torch.cat([group, group_ids.repeat_interleave(added // len(group_ids))])
        if reference is not None:
            reference = torch.cat([reference, torch.ones(added, dtype=torch.bool)])
    credit = assign_credit(all_scores, all_groups, chunks, weights, config, reference)
    return BatchCredit(credit, group, local_rows, scores, comparison_scores)


def _degenerate(part: torch.Tensor, prompts: torch.Tensor) -> torch.Tensor:
    """Return the mask ``[B]`` of samples of groups in which a reward's contribution ``[B, N]`` is zero everywhere."""
    return ~torch.isin(prompts, prompts[(part != 0).any(1)])


def _bounded(score: Score, low: float, high: float) -> Score:
    """Return a score clipped to [low, high]."""
    if low == -math.inf and high == math.inf:
        return score
    dense = None if score.dense is None else score.dense.clamp(low, high)
    return score._replace(value=score.value.clamp(low, high), dense=dense)


def _unweighted_advantage(
    score: Score, group: torch.Tensor, chunks: int, config: CreditConfig, wins: bool, reference: torch.Tensor
) -> torch.Tensor:
    """Return the advantage ``[B, N]`` of one reward at weight 1: its share for the clip and that for single chunks."""
    share = 0.0 if score.dense is None else config.dense
    part = (1 - share) * normalize_scores(score, group, config, wins, reference).value[:, None].expand(
        -1, chunks
    ).clone()
    if score.dense is None or share == 0:
        return part
    for chunk, frame_scores in enumerate(score.dense.chunk(chunks, 1)):
        # The noise of a mean over 1/N of the clip is √N times the noise of the mean over the clip.
        chunk_score = Score(frame_scores.mean(1), score.valid, noise=score.noise * math.sqrt(chunks))
        part[:, chunk] += share * normalize_scores(chunk_score, group, config, wins, reference).value
    return part


def _weighted_sum(
    scores: Mapping[str, Score],
    group: torch.Tensor,
    weights: Mapping[str, float],
    config: CreditConfig,
    reference: torch.Tensor,
) -> Score:
    """Return the weighted sum of raw scores.

    A reward that does not distinguish the samples of a group adds nothing there. A sample for which one of the other
    scores is missing has no sum.
    """
    frames = max((s.dense.shape[1] for s in scores.values() if s.dense is not None), default=0)
    value, valid = torch.zeros(len(group)), torch.ones(len(group), dtype=torch.bool)
    dense = torch.zeros(len(group), frames)
    for name, score in scores.items():
        for group_id in group.unique():
            rows = group == group_id
            base = rows & score.valid & reference
            if base.sum() < 2 or float(score.value[base].std()) <= max(config.gate * score.noise, ZERO_SPREAD):
                continue
            valid &= score.valid | ~rows
            value[rows] += weights[name] * score.value[rows].float()
            if frames:
                per_frame = score.value[rows, None] if score.dense is None else score.dense[rows]
                dense[rows] += weights[name] * per_frame
    return Score(value, valid, dense if frames else None)


# --- Signal metrics ---

_NEGLIGIBLE = 1e-9


def signal_metrics(parts: Mapping[str, torch.Tensor]) -> dict[str, float]:
    """Return how much each reward contributes to the advantage, and how the rewards correlate.

    Args:
        parts: reward → contribution ``[B, N]``.

    Returns:
        ``share/NAME``, the reward's share of the mean absolute contribution, and ``correlation/A/B`` for every pair of
        rewards that both vary.
    """
    size = {name: float(part.abs().mean()) for name, part in parts.items()}
    total = sum(size.values())
    result = {f"share/{name}": value / total if total > _NEGLIGIBLE else 0.0 for name, value in size.items()}
    for first, second in combinations(parts, 2):
        both = torch.stack([parts[first].flatten(), parts[second].flatten()]).double()
        if (both.std(1) > _NEGLIGIBLE).all():
            result[f"correlation/{first}/{second}"] = float(torch.corrcoef(both)[0, 1])
    return result
