"""From scores to the advantage of every sample, chunk, step and region.

    A[i, n]        = Σ_reward w · (score_i − mean of the group) / std of the group         (``assign_credit``)
    A[i, n, r, p]  = Σ_reward A_reward[i, n] · weight(reward, σ_r) · [reward pays region p]  (``allocate_advantage``)

    value     d_i = r_i − mean of the group                  win rate     d_i = mean_j [ r_i > r_j ] − ½
    divided   group: std of the group · batch: std of all groups' d · largest: of the group where it is largest
              none: 1

A group whose spread is no larger than the reward's own measurement noise gets nothing: dividing it by its std would
turn noise into advantage. An invalid score takes part in nothing. A sample is ``valid`` where every reward that
distinguishes its siblings has judged it, and some reward has: its zero would otherwise pass for an average score. A
reward that knows when it was earned (lip sync does) gives part of its weight to the chunk n that earned it, normalised
among the siblings' same chunk.

Sources: GRPO (2402.03300), Dr-GRPO (2503.20783: none), LongCat-Video (2510.22200: largest), REINFORCE++ (2501.03262:
batch), Pref-GRPO (2508.20751: win rate). A reward may count more at high or at low noise (after OTCA, 2604.19234: the
composition of a clip is decided early, its texture late) and only in the region that it looks at (after ViPO,
2511.18719). Where siblings share a past, what they share earns the mean of its leaves, normalised per place
(BranchGRPO, 2509.06040).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Literal, NamedTuple

import torch

from flowportrait.errors import BadInput
from flowportrait.rewards.interface import Score
from flowportrait.rewards.registry import REWARDS
from flowportrait.rl.objectives.interface import Advantage
from flowportrait.rl.plan import Fork, node_means
from flowportrait.rl.rollout import Trajectory, join_scores

Divisor = Literal["group", "batch", "largest", "none"]
Baseline = Literal["mean", "leave_one_out"]

ZERO_SPREAD = 1e-6


class NormalizedScores(NamedTuple):
    """value ``[B]``, zero where a score takes no part; spread: mean std inside groups; degenerate_fraction: share of
    groups in which the reward says nothing (spread under its noise, or fewer than two valid scores)."""

    value: torch.Tensor
    spread: float
    degenerate_fraction: float


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
) -> NormalizedScores:
    """Scores ``[B]`` as deviations from their group's mean, divided as asked; see the module.

    ``reference`` ``[B]`` marks the scores that means and spreads are of; the others are measured against them, as a
    real clip is against a group's own samples.
    """
    result, spreads, max_std, families = torch.zeros(len(group)), [], 0.0, 0
    valid_rows: list[torch.Tensor] = []
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
        max_std = max(max_std, spread)
        valid_rows.append(base)
    if valid_rows and divisor == "largest":
        result /= max_std
    if valid_rows and divisor == "batch":
        result /= result[torch.cat(valid_rows)].square().mean().sqrt()
    mean = sum(spreads) / len(spreads) if spreads else 0.0
    return NormalizedScores(result, mean, 1 - len(valid_rows) / families if families else 1.0)


EVERY = "all"


@dataclass(frozen=True)
class CreditConfig:
    """How the scores of a batch become advantages."""

    std: Divisor = "group"
    """What a deviation is divided by: its group's std, that of the whole batch, the largest group's (LongCat), or
    nothing (Dr-GRPO)."""
    baseline: Baseline = "mean"
    win_rate: tuple[str, ...] = ()
    """Rewards that count by the share of siblings they beat instead of by how much (Pref-GRPO); ``all``: every one."""
    aggregation: Literal["normalize_then_sum", "sum_then_normalize"] = "normalize_then_sum"
    """Whether every reward is normalised and then weighted, or raw scores are weighted and their sum normalised."""
    floors: dict[str, float] = field(default_factory=dict)
    """Reward → score under which it does not get worse."""
    caps: dict[str, float] = field(default_factory=dict)
    """Reward → score beyond which more earns nothing: against over-optimising what is good enough."""
    baseline_scope: Literal["group", "batch"] = "group"
    """Whom a sample is compared with: its siblings, or the whole batch, whose mean is one threshold for all prompts."""
    gate: float = 1.0
    """A reward is ignored in a group where its spread is at most this many times its measurement noise."""
    dense: float = 0.7
    """Share of a dense reward's weight that goes to single chunks; the rest goes to the whole clip."""
    limit: float = 5.0
    """Advantages are clipped to ± this."""

    earlier_keys = (("when", "aggregation"), ("among", "baseline_scope"))
    earlier_values = (
        ("aggregation", "apart", "normalize_then_sum"), ("aggregation", "summed", "sum_then_normalize"),
    )  # fmt: skip


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


def assign_credit(
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
    prompts, group = group, torch.zeros_like(group) if config.baseline_scope == "batch" else group
    bounded: dict[str, Score] = {}
    for name, score in scores.items():
        bounded[name] = _bounded(score, config.floors.get(name, -math.inf), config.caps.get(name, math.inf))
        own = normalize_scores(
            bounded[name], group, config, name in config.win_rate or EVERY in config.win_rate, reference
        )
        known = score.value[score.valid & reference]
        metrics[f"reward/{name}"] = float(known.mean()) if len(known) else float("nan")
        metrics[f"spread/{name}"] = own.spread
        metrics[f"silent/{name}"] = own.degenerate_fraction
        metrics[f"invalid/{name}"] = float((~score.valid[reference]).float().mean())
    any_valid = (
        torch.stack([score.valid for score in bounded.values()]).any(0) if bounded else torch.zeros_like(reference)
    )
    if config.aggregation == "sum_then_normalize":
        bounded = {"total": _summed(bounded, group, weights, config, reference)}
        parts = {"total": _part(bounded["total"], group, chunks, config, False, reference)}
    else:
        wins = {name: name in config.win_rate or EVERY in config.win_rate for name in bounded}
        parts = {
            name: weights[name] * _part(score, group, chunks, config, wins[name], reference)
            for name, score in bounded.items()
        }
    valid = {name: any_valid & (score.valid | _degenerate(parts[name], prompts)) for name, score in bounded.items()}
    total = torch.stack(list(parts.values())).sum(0) if parts else torch.zeros(len(group), chunks)
    largest = [total[reference & (prompts == own)].abs().max() for own in prompts[reference].unique()]
    metrics["dead_groups"] = float((torch.stack(largest) <= ZERO_SPREAD).float().mean())
    return Credit(total.clamp(-config.limit, config.limit), parts, metrics, valid)


def normalize_scores(
    score: Score, group: torch.Tensor, config: CreditConfig, wins: bool = False, reference: torch.Tensor | None = None
) -> NormalizedScores:
    """One reward's clip scores among siblings."""
    floor = config.gate * score.noise
    if not wins:
        return deviations(score.value, score.valid, group, config.std, config.baseline, floor, reference)
    raw = deviations(score.value, score.valid, group, "none", "mean", floor, reference)
    rates = win_rates(score.value, score.valid, group, floor, reference)
    valid = score.valid & torch.isin(group, group[raw.value != 0])
    value = deviations(rates, valid, group, config.std, config.baseline, reference=reference).value
    return NormalizedScores(value, raw.spread, raw.degenerate_fraction)


@dataclass(frozen=True)
class BatchCredit:
    """Credit of the samples of all processes, and after them of the samples that groups are compared with.

    Args:
        credit: of B samples and C comparison samples, in this order.
        group: groups ``[B]`` of the samples.
        own_rows: rows of this process's samples.
        scores: of the samples.
        comparison_scores: of the comparison samples; empty where there are none.
    """

    credit: Credit
    group: torch.Tensor
    own_rows: torch.Tensor
    scores: Mapping[str, Score]
    comparison_scores: Mapping[str, Score]

    @property
    def sample_count(self) -> int:
        """B, without the comparison samples."""
        return len(self.group)

    @property
    def own(self) -> Credit:
        """Credit of this process's samples."""
        return self.credit.select(self.own_rows)


def credit_batch(
    scores: Mapping[str, Score],
    comparison_scores: Mapping[str, Score],
    group: torch.Tensor,
    own_rows: torch.Tensor,
    chunks: int,
    weights: Mapping[str, float],
    config: CreditConfig,
    reference: torch.Tensor | None = None,
) -> BatchCredit:
    """``assign_credit`` on the samples of all processes together with what they are compared with.

    Args:
        scores: of B samples in groups ``[B]``.
        comparison_scores: of further samples in the order of the groups, equally many in each; or empty.
        reference: ``[B]``, the samples that all statistics are of; comparison samples are among them.
    """
    everything, everyone = scores, group
    if comparison_scores:
        families = group.unique()
        added = len(next(iter(comparison_scores.values())).value)
        everything = join_scores([scores, comparison_scores])
        everyone = torch.cat([group, families.repeat_interleave(added // len(families))])
        if reference is not None:
            reference = torch.cat([reference, torch.ones(added, dtype=torch.bool)])
    credit = assign_credit(everything, everyone, chunks, weights, config, reference)
    return BatchCredit(credit, group, own_rows, scores, comparison_scores)


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
    part = (1 - share) * normalize_scores(score, group, config, wins, reference).value[:, None].expand(
        -1, chunks
    ).clone()
    if score.dense is None or share == 0:
        return part
    for chunk, earned in enumerate(score.dense.chunk(chunks, 1)):
        # The noise of a mean over 1/N of the clip is √N times that of the clip's.
        own = Score(earned.mean(1), score.valid, noise=score.noise * math.sqrt(chunks))
        part[:, chunk] += share * normalize_scores(own, group, config, wins, reference).value
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


@dataclass(frozen=True)
class Allocation:
    """At which noise levels and in which latent regions rewards count."""

    steps: dict[str, float] = field(default_factory=dict)
    """Reward → slope t in [−1, 1]: its weight at noise level σ is 1 + t·(2σ − 1). With 1 it counts only at high noise,
    with −1 only at low noise, with 0 (as rewards that are not named) equally."""
    regions: dict[str, str] = field(default_factory=dict)
    """Reward → the latent region that it counts in; a reward that is not named counts in all."""

    def __post_init__(self) -> None:
        for name, slope in self.steps.items():
            if not -1 <= slope <= 1:
                raise BadInput(f"allocation.steps: the slope of {name} is {slope}; it must be between -1 and 1.")


def allocate_advantage(
    credit: Credit,
    trajectory: Trajectory,
    allocation: Allocation,
    regions: Mapping[str, torch.Tensor],
    forks: Sequence[Fork] = (),
    limit: float = 5.0,
    equal_regions: bool = False,
) -> Advantage:
    """Advantages of a batch; ``regions``: latent numbers ``[D]`` (0 or 1) of every region the generator knows;
    ``equal_regions``: see ``Advantage``.

    Raises:
        BadInput: a reward or a region that does not exist is named.
    """
    _check(allocation, credit, regions)
    if not (allocation.steps or allocation.regions or forks):
        return Advantage(credit.advantage[:, :, None, None], valid=_valid(credit, allocation, [""]))
    names = list(regions) if allocation.regions else [""]
    sigma = trajectory.sigma.cpu()
    if not sigma.shape[-1]:  # only the end is known: every noise level counts alike
        sigma = torch.full((len(trajectory), 1, 1), 0.5)
    value = torch.zeros(*credit.advantage.shape, sigma.shape[-1], len(names))
    for reward, part in credit.parts.items():
        slope = allocation.steps.get(reward, 0.0)
        weight = 1 + slope * (2 * sigma - 1)
        own = torch.tensor([allocation.regions.get(reward, name) == name for name in names])
        value += (part[:, :, None] * weight)[..., None] * own
    if forks:
        value = _per_node(value, trajectory)
    masks = torch.stack([regions[name] for name in names]) if allocation.regions else None
    return Advantage(value.clamp(-limit, limit), masks, _valid(credit, allocation, names), equal_regions)


def _valid(credit: Credit, allocation: Allocation, names: Sequence[str]) -> torch.Tensor | None:
    """Whether each sample can be compared with its siblings in every region ``[B, 1, 1, P]``: by all rewards that pay
    it, and at all."""
    if not credit.valid:
        return None
    any_valid = torch.stack(list(credit.valid.values())).any(0)
    columns = []
    for region in names:
        paying = (own for reward, own in credit.valid.items() if allocation.regions.get(reward, region) == region)
        columns.append(torch.stack([any_valid, *paying]).all(0))
    return torch.stack(columns, -1)[:, None, None]


def select_best_and_worst(
    score: torch.Tensor, group: torch.Tensor, count: int | None, valid: torch.Tensor | None = None
) -> torch.Tensor:
    """Rows to train on: all, or of every group the best and the worst ``count // 2`` (DanceGRPO, 2505.07818). Those
    that are not ``valid`` ``[B]`` are taken only where there are too few others."""
    if count is None:
        return torch.arange(len(score))
    valid = torch.ones_like(group, dtype=torch.bool) if valid is None else valid
    chosen = []
    for family in group.unique():
        rows = (group == family).nonzero()[:, 0]
        ranked = rows[score[rows].argsort(stable=True)]
        known, unknown = ranked[valid[ranked]], ranked[~valid[ranked]]
        middle = (len(known) + 1) // 2
        ranked = torch.cat([known[:middle], unknown, known[middle:]])
        chosen.append(torch.cat([ranked[: count // 2], ranked[-(count // 2) :]]) if count < len(rows) else rows)
    return torch.cat(chosen).sort().values


def _per_node(value: torch.Tensor, trajectory: Trajectory) -> torch.Tensor:
    """Leaf advantages ``[B, N, R, P]`` to those of the nodes passed, normalised among siblings at every place."""
    result = torch.zeros_like(value)
    for region in range(value.shape[-1]):
        node = node_means(value[..., region], trajectory.noise_source_id, trajectory.group)
        for family in trajectory.group.unique():
            rows = trajectory.group == family
            own = node[rows] - node[rows].mean(0)
            std = own.std(0)
            result[rows, ..., region] = torch.where(std > ZERO_SPREAD, own / std.clamp_min(ZERO_SPREAD), 0)
    return result


def _check(allocation: Allocation, credit: Credit, regions: Mapping[str, torch.Tensor]) -> None:
    for name in (*allocation.steps, *allocation.regions):
        # One that this run gives no weight to is a recipe's reward left out, and not a mistake.
        if name not in credit.parts and name not in REWARDS:
            raise BadInput(f"allocation names the reward {name!r}; this run has {', '.join(credit.parts)}.")
    for region in allocation.regions.values():
        if region not in regions:
            known = ", ".join(regions) or "no regions of its own"
            raise BadInput(f"allocation.regions names {region!r}; the generator has {known}.")


_NOTHING = 1e-9


def signal_metrics(parts: Mapping[str, torch.Tensor]) -> dict[str, float]:
    """Of every reward's contribution ``[B, N]``: ``share/name`` of the mean magnitude; of every pair:
    ``correlation/a/b``, where both vary."""
    size = {name: float(part.abs().mean()) for name, part in parts.items()}
    total = sum(size.values())
    result = {f"share/{name}": value / total if total > _NOTHING else 0.0 for name, value in size.items()}
    for first, second in combinations(parts, 2):
        both = torch.stack([parts[first].flatten(), parts[second].flatten()]).double()
        if (both.std(1) > _NOTHING).all():
            result[f"correlation/{first}/{second}"] = float(torch.corrcoef(both)[0, 1])
    return result
