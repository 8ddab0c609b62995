"""Strengths of systems from wins, losses and ties: Bradley–Terry with Davidson's ties (JASA 1970).

    P(i beats j) ∝ π_i       P(tie) ∝ ν √(π_i π_j)       θ = log π, Σ θ = 0

Written as a choice among three with utilities θ_i, θ_j and log ν + (θ_i + θ_j) / 2 it is a multinomial logit, linear in
(θ, log ν): Newton's method has one maximum to find, and its information matrix gives the intervals. Half an answer of
each kind is added to every compared pair of systems (Jeffreys' prior), so that a system that always wins has a finite
strength.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from flowportrait.preference.pairs import LABELS, Label

PRIOR = 0.5
NORMAL_95 = 1.959964
CLUSTERS = 8
"""Participants from which on intervals allow for one person's answers being alike (sandwich estimate)."""


class Vote(NamedTuple):
    """One answer: whose, about which two systems, and what."""

    participant: int
    system_a: str
    system_b: str
    label: Label


class Strengths(NamedTuple):
    """theta and half-width of its 95 % interval per system; tie: ν; robust: whether the intervals allow for
    participants."""

    theta: dict[str, float]
    half: dict[str, float]
    tie: float
    robust: bool

    def chance(self, one: str, other: str) -> tuple[float, float, float]:
        """Probability that one wins, that the other does, and of a tie."""
        a, b = np.exp(self.theta[one]), np.exp(self.theta[other])
        weights = np.array([a, b, self.tie * np.sqrt(a * b)])
        win, loss, tie = weights / weights.sum()
        return float(win), float(loss), float(tie)


def davidson(votes: Sequence[Vote], systems: Sequence[str]) -> Strengths:
    """Maximum a posteriori strengths of ``systems``; one that nobody compared stays at 0 with an infinite interval."""
    place = {name: index for index, name in enumerate(systems)}
    size = len(systems) + 1
    rows, chosen, weight, who = [], [], [], []
    for one, other in sorted({(vote.system_a, vote.system_b) for vote in votes}):
        for choice in range(len(LABELS)):
            rows.append((place[one], place[other]))
            chosen.append(choice)
            weight.append(PRIOR)
            who.append(-1)
    for vote in votes:
        rows.append((place[vote.system_a], place[vote.system_b]))
        chosen.append(LABELS.index(vote.label))
        weight.append(1.0)
        who.append(vote.participant)
    if not votes:
        return Strengths(dict.fromkeys(systems, 0.0), dict.fromkeys(systems, float("inf")), 0.0, False)
    design = _design(np.array(rows), size)
    count, picked = np.array(weight), np.eye(3)[chosen]
    at, gradient, information = np.zeros(size), np.zeros((len(count), size)), np.eye(size)
    # θ is only known up to a constant: the mean is held at zero by a direction of its own.
    level = np.append(np.ones(size - 1), 0.0)
    for _ in range(50):
        utility = design @ at
        share = np.exp(utility - utility.max(1, keepdims=True))
        share /= share.sum(1, keepdims=True)
        gradient = count[:, None] * np.einsum("nc,ncp->np", picked - share, design)
        centred = design - np.einsum("nc,ncp->np", share, design)[:, None]
        information = np.einsum("n,nc,ncp,ncq->pq", count, share, centred, centred) + np.outer(level, level)
        step = np.linalg.lstsq(information, gradient.sum(0), rcond=None)[0]
        at = at + step.clip(-2, 2)
        if np.abs(step).max() < 1e-10:
            break
    # The level's direction is orthogonal to everything that answers tell: its share of the inverse comes off again.
    spread = np.linalg.pinv(information, 1e-10, hermitian=True) - np.outer(level, level) / (level @ level) ** 2
    by_person: dict[int, np.ndarray] = defaultdict(lambda: np.zeros(size))
    for person, own in zip(who, gradient, strict=True):
        if person >= 0:
            by_person[person] += own
    robust = len(by_person) >= CLUSTERS
    if robust:
        pull = np.stack(list(by_person.values()))
        spread = spread @ (pull.T @ pull * len(pull) / (len(pull) - 1)) @ spread
    compared = {name for vote in votes for name in (vote.system_a, vote.system_b)}
    half = NORMAL_95 * np.sqrt(np.diag(spread).clip(min=0))
    return Strengths(
        {name: float(at[index]) for name, index in place.items()},
        {name: float(half[index]) if name in compared else float("inf") for name, index in place.items()},
        float(np.exp(at[-1])),
        robust,
    )


def _design(rows: np.ndarray, size: int) -> np.ndarray:
    """``[N, 3, P]``: what θ and log ν add to the utilities of A, B and tie."""
    design = np.zeros((len(rows), 3, size))
    each = np.arange(len(rows))
    design[each, 0, rows[:, 0]] = design[each, 1, rows[:, 1]] = 1.0
    design[each, 2, rows[:, 0]] = design[each, 2, rows[:, 1]] = 0.5
    design[:, 2, -1] = 1.0
    return design
