"""This module gives intervals of preferences that account for the dependence of answers.

Answers of one participant are alike, and so are answers about one pair. Participants are drawn with replacement, then
pairs are, and both variances count, without what they have in common (Cameron, Gelbach and Miller 2011):

    V = max(V_participants + V_pairs − V_independent, each of the three)         V_independent = share (1 − share) / n
    interval = share ± t(min(participants, pairs) − 1) · √V                      design effect = V / V_independent

A bootstrap that draws both at once (Owen 2007) would triple the variance of answers that are independent. Student's t
takes the place of the normal quantile because few participants make intervals too short. The interval never lies inside
the exact one for independent answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import binomtest, t

from flowportrait.evaluation.statistics import draw_resample_indices
from flowportrait.human_study.strengths import StudyVote, fit_counts
from flowportrait.preferences.dataset import LABELS

STUDY_RESAMPLES = 1000
"""Number of bootstrap resamples over participants, and over pairs."""


@dataclass(frozen=True)
class ClusteredPreference:
    """The preference of one aspect for two systems, with intervals over participants and pairs.

    Args:
        system_a: the first system.
        system_b: the second system.
        participants: number of participants who compared them.
        pairs: number of pairs of clips.
        preferred: share of ``system_a`` without ties; None without wins and losses.
        low: lower end of the 95 % interval of ``preferred``; None where there is none.
        high: upper end of the interval.
        p: two-sided p value against ½; 1 if there are too few clusters.
        design_effect: variance of ``preferred`` relative to independent answers.
        strength: difference of the Bradley–Terry strengths θ of ``system_a`` and ``system_b``.
        strength_low: lower end of its 95 % interval.
        strength_high: upper end of the interval.
    """

    system_a: str
    system_b: str
    participants: int
    pairs: int
    preferred: float | None
    low: float | None
    high: float | None
    p: float
    design_effect: float
    strength: float
    strength_low: float
    strength_high: float


def clustered_preferences(
    votes: Sequence[StudyVote], systems: Sequence[str], resamples: int = STUDY_RESAMPLES, seed: int = 0
) -> list[ClusteredPreference]:
    """Return the preference between every two systems that were compared.

    Args:
        votes: the answers on one aspect.
        systems: the names of all systems.
        resamples: number of bootstrap resamples over participants, and over pairs.
        seed: random seed.
    """
    if not votes:
        return []
    place = {name: index for index, name in enumerate(systems)}
    compared = sorted({(vote.system_a, vote.system_b) for vote in votes})
    people = {number: index for index, number in enumerate(sorted({vote.participant for vote in votes}))}
    clips = {key: index for index, key in enumerate(sorted({vote.comparison for vote in votes}))}
    cell = np.array([
        compared.index((vote.system_a, vote.system_b)) * len(LABELS) + LABELS.index(vote.label) for vote in votes
    ])  # fmt: skip
    person = np.array([people[vote.participant] for vote in votes])
    clip = np.array([clips[vote.comparison] for vote in votes])
    counts = np.bincount(cell, minlength=len(compared) * len(LABELS)).reshape(-1, len(LABELS)).astype(float)
    indices = [(place[one], place[other]) for one, other in compared]
    theta, covariance = (found[0] for found in fit_counts(indices, counts[None], len(systems)))
    by_cluster = [
        _resampled_counts(cell, cluster, resamples, seed).reshape(resamples, -1, len(LABELS))
        for cluster in (person, clip)
    ]
    thetas = [fit_counts(indices, drawn, len(systems))[0] for drawn in by_cluster]
    rows = []
    for row, (one, other) in enumerate(compared):
        of_pair = [vote for vote in votes if (vote.system_a, vote.system_b) == (one, other)]
        involved, shown = len({vote.participant for vote in of_pair}), len({vote.comparison for vote in of_pair})
        freedom = min(involved, shown) - 1
        share, low, high, p, effect = _share(counts[row], [drawn[:, row] for drawn in by_cluster], freedom)
        contrast = np.zeros(len(systems))
        contrast[place[one]], contrast[place[other]] = 1.0, -1.0
        by_participant, by_pair = (float((drawn @ contrast).var()) for drawn in thetas)
        error = np.sqrt(_two_way_variance(by_participant, by_pair, float(contrast @ covariance @ contrast)))
        strength, half = float(theta @ contrast), float(_quantile(freedom) * error)
        rows.append(
            ClusteredPreference(
                one, other, involved, shown, share, low, high, p, effect, strength, strength - half, strength + half
            )
        )
    return rows


def _resampled_counts(cell: np.ndarray, cluster: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """Return counts of answers by cell ``[R, cells]`` in which the clusters are drawn with replacement.

    Args:
        cell: the index of what was answered ``[N]``.
        cluster: the index of the cluster of each answer ``[N]``.
        resamples: number of resamples R.
        seed: random seed.
    """
    clusters = int(cluster.max()) + 1
    table = np.zeros((clusters, len(LABELS) * (int(cell.max()) // len(LABELS) + 1)))
    np.add.at(table, (cluster, cell), 1.0)
    _, drawn = draw_resample_indices(clusters, resamples=resamples, seed=seed)
    return np.asarray(table[drawn].sum(1))


def _two_way_variance(by_participant: float, by_pair: float, independent: float) -> float:
    return max(by_participant + by_pair - independent, by_participant, by_pair, independent)


def _share(
    counts: np.ndarray, by_cluster: Sequence[np.ndarray], freedom: int
) -> tuple[float | None, float | None, float | None, float, float]:
    """Return the share of the first system, the ends of its interval, the p value and the design effect.

    Args:
        counts: wins, losses and ties.
        by_cluster: the same in each resample ``[R, 3]`` of participants, and of pairs.
        freedom: degrees of freedom of Student's t.
    """
    wins, decided = int(counts[0]), int(counts[0] + counts[1])
    if not decided:
        return None, None, None, 1.0, 1.0
    share, exact = wins / decided, binomtest(wins, decided)
    ends = exact.proportion_ci(method="exact")
    independent = share * (1 - share) / decided
    variances = []
    for drawn in by_cluster:
        valid = drawn[drawn[:, :2].sum(1) > 0]
        variances.append(float((valid[:, 0] / valid[:, :2].sum(1)).var()))
    variance = _two_way_variance(variances[0], variances[1], independent)
    effect = variance / independent if independent else 1.0
    if freedom < 1:
        return share, 0.0, 1.0, 1.0, effect
    half, p = _quantile(freedom) * np.sqrt(variance), float(exact.pvalue)
    if variance:
        p = max(p, 2 * float(t.sf(abs(share - 0.5) / np.sqrt(variance), freedom)))
    low, high = min(float(ends.low), share - half), max(float(ends.high), share + half)
    return share, float(max(0.0, low)), float(min(1.0, high)), p, effect


def _quantile(freedom: int) -> float:
    return float(t.ppf(0.975, freedom)) if freedom > 0 else 1e9
