"""This module estimates the strengths of systems from the answers of a study: Bradley–Terry with Davidson's ties.

``fit_strengths`` takes single answers and gives intervals, ``fit_counts`` takes counts of them, for bootstraps.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from flowportrait.preferences.dataset import LABELS, Label

PRIOR_ANSWERS = 0.5
"""Answers of each kind that are added to every compared pair of systems."""
NORMAL_95 = 1.959964
MIN_CLUSTERS = 8
"""Fewest participants for which intervals account for the dependence of one person's answers (sandwich
estimate)."""


class StudyVote(NamedTuple):
    """One answer: the participant's number, the two systems, the label, and the key of the comparison."""

    participant: int
    system_a: str
    system_b: str
    label: Label
    comparison: str = ""


class SystemStrengths(NamedTuple):
    """The strengths of systems.

    Args:
        theta: θ by system.
        half: half-width of the 95 % interval of θ by system.
        tie: ν.
        robust: whether the intervals account for the dependence of one participant's answers.
    """

    theta: dict[str, float]
    half: dict[str, float]
    tie: float
    robust: bool

    def chance(self, one: str, other: str) -> tuple[float, float, float]:
        """Return the probabilities that ``one`` wins, that ``other`` wins, and of a tie."""
        a, b = np.exp(self.theta[one]), np.exp(self.theta[other])
        weights = np.array([a, b, self.tie * np.sqrt(a * b)])
        win, loss, tie = weights / weights.sum()
        return float(win), float(loss), float(tie)


def fit_strengths(votes: Sequence[StudyVote], systems: Sequence[str]) -> SystemStrengths:
    """Return the maximum a posteriori strengths of systems in the Bradley–Terry model with Davidson's ties (JASA 1970).

        P(i beats j) ∝ π_i       P(tie) ∝ ν √(π_i π_j)       θ = log π, Σ θ = 0

    As a choice among three with utilities θ_i, θ_j and log ν + (θ_i + θ_j) / 2 the model is a multinomial logit, linear
    in (θ, log ν): Newton's method finds its only maximum, and the information matrix gives the intervals. Half an
    answer of each kind is added to every compared pair of systems (Jeffreys' prior), so that a system that always wins
    has a finite strength.

    Args:
        votes: the answers.
        systems: the systems; one that nobody compared has the strength 0 and an infinite interval.
    """
    place = {name: index for index, name in enumerate(systems)}
    size = len(systems) + 1
    rows, chosen, weight, who = [], [], [], []
    for one, other in sorted({(vote.system_a, vote.system_b) for vote in votes}):
        for choice in range(len(LABELS)):
            rows.append((place[one], place[other]))
            chosen.append(choice)
            weight.append(PRIOR_ANSWERS)
            who.append(-1)
    for vote in votes:
        rows.append((place[vote.system_a], place[vote.system_b]))
        chosen.append(LABELS.index(vote.label))
        weight.append(1.0)
        who.append(vote.participant)
    if not votes:
        return SystemStrengths(dict.fromkeys(systems, 0.0), dict.fromkeys(systems, float("inf")), 0.0, False)
    design = _design_matrix(np.array(rows), size)
    [at], [gradient], [spread] = _maximise(design, np.array(chosen), np.array(weight)[None])
    by_person: dict[int, np.ndarray] = defaultdict(lambda: np.zeros(size))
    for person, score in zip(who, gradient, strict=True):
        if person >= 0:
            by_person[person] += score
    robust = len(by_person) >= MIN_CLUSTERS
    if robust:
        pull = np.stack(list(by_person.values()))
        spread = spread @ (pull.T @ pull * len(pull) / (len(pull) - 1)) @ spread
    compared = {name for vote in votes for name in (vote.system_a, vote.system_b)}
    half = NORMAL_95 * np.sqrt(np.diag(spread).clip(min=0))
    return SystemStrengths(
        {name: float(at[index]) for name, index in place.items()},
        {name: float(half[index]) if name in compared else float("inf") for name, index in place.items()},
        float(np.exp(at[-1])),
        robust,
    )


def fit_counts(compared: Sequence[tuple[int, int]], counts: np.ndarray, systems: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the strengths that ``fit_strengths`` finds, from tables of counts, all at once.

    Args:
        compared: the indices of the systems of each compared pair, ``[S]``.
        counts: ``[B, S, 3]`` answers that prefer the first, the second, and neither, in B tables.
        systems: number of systems.

    Returns:
        θ ``[B, systems]``, and its covariance ``[B, systems, systems]`` for independent answers.
    """
    rows = np.repeat(np.array(compared), len(LABELS), 0)
    chosen = np.tile(np.arange(len(LABELS)), len(compared))
    design = _design_matrix(rows, systems + 1)
    at, _, spread = _maximise(design, chosen, counts.reshape(len(counts), -1) + PRIOR_ANSWERS)
    return at[:, :-1], spread[:, :-1, :-1]


def _maximise(design: np.ndarray, chosen: np.ndarray, count: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the maximum of the likelihood of B tables by Newton's method.

    Args:
        design: ``[N, 3, P]``, see ``_design_matrix``.
        chosen: the index of the chosen label ``[N]``.
        count: the number of such answers ``[B, N]``.

    Returns:
        The parameters ``[B, P]``, the gradients of the answers ``[B, N, P]`` and the inverse information ``[B, P, P]``.
    """
    size, picked = design.shape[2], np.eye(3)[chosen]
    at, gradient = np.zeros((len(count), size)), np.zeros((*count.shape, size))
    inverse = np.zeros((len(count), size, size))
    # θ is determined up to a constant: a separate direction holds its mean at zero.
    level = np.append(np.ones(size - 1), 0.0)
    for _ in range(50):
        utility = np.einsum("ncp,bp->bnc", design, at)
        share = np.exp(utility - utility.max(2, keepdims=True))
        share /= share.sum(2, keepdims=True)
        gradient = count[:, :, None] * np.einsum("bnc,ncp->bnp", picked - share, design)
        centred = design - np.einsum("ncp,bnc->bnp", design, share)[:, :, None]
        weighted = centred * (count[:, :, None] * share)[..., None]
        information = np.einsum("bncp,bncq->bpq", weighted, centred, optimize=True) + np.outer(level, level)
        inverse = np.linalg.pinv(information, 1e-10, hermitian=True)
        step = np.einsum("bpq,bq->bp", inverse, gradient.sum(1))
        at = at + step.clip(-2, 2)
        if np.abs(step).max() < 1e-10:
            break
    # That direction is orthogonal to all information in the answers: its part of the inverse is removed again.
    return at, gradient, inverse - np.outer(level, level) / (level @ level) ** 2


def _design_matrix(rows: np.ndarray, size: int) -> np.ndarray:
    """Return the design ``[N, 3, P]``: the weights of θ and log ν in the utilities of first, second and tie."""
    design = np.zeros((len(rows), 3, size))
    each = np.arange(len(rows))
    design[each, 0, rows[:, 0]] = design[each, 1, rows[:, 1]] = 1.0
    design[each, 2, rows[:, 0]] = design[each, 2, rows[:, 1]] = 0.5
    design[:, 2, -1] = 1.0
    return design
