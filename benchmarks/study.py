"""Studies with simulated participants: how often each test finds a preference that is there, or one that is not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import binomtest, norm

from benchmarks.record import Record
from flowportrait.errors import BadInput
from flowportrait.evaluation.statistics import Estimate
from flowportrait.human_study.clusters import clustered_preferences
from flowportrait.human_study.power import study_power
from flowportrait.human_study.strengths import StudyVote
from flowportrait.judges.learning import wilson_interval
from flowportrait.preferences.dataset import Label


@dataclass(frozen=True)
class StudyPowerMeasurementOptions:
    """Simulate studies and analyse them, without a preference and with the one that ``study power`` computes.

    Answers of one participant and about one pair are alike (Gaussian copula with the intraclass correlations of binary
    answers). The control is the exact test that takes all answers as independent: without a preference it must be
    wrong too often.
    """

    pairs: int = 40
    """Pairs that every participant sees."""
    participants: tuple[int, ...] = (5, 10, 20)
    """Numbers of participants."""
    ties: float = 0.2
    """Share of answers that prefer neither."""
    icc_participant: float = 0.02
    """Correlation of two answers of one participant."""
    icc_pair: float = 0.1
    """Correlation of two answers about one pair."""
    studies: int = 400
    """Simulated studies of each kind."""
    resamples: int = 200
    """Bootstrap resamples in the analysis."""


def study_power_simulation(options: StudyPowerMeasurementOptions, record: Record) -> None:
    """Add the share of significant studies by each test, and the share of intervals that hold the truth."""
    rng = np.random.default_rng(0)
    for number in options.participants:
        size = study_power(options.pairs, number, options.ties, options.icc_participant, options.icc_pair)
        if size.clustered_share is None:
            raise BadInput(f"{number} participants can tell nothing: give more.")
        record.add(f"{number} participants", "share to find", size.clustered_share, group="plan")
        record.add(f"{number} participants", "design effect", size.design_effect, group="plan")
        for share in (0.5, size.clustered_share):
            found = [_analyse(_simulate(rng, options, number, share), share, options) for _ in range(options.studies)]
            group = "no preference" if share == 0.5 else "the preference to find"
            names = ("exact, answers independent", "sign test by participant", "over participants and pairs",
                     "interval holds the truth")  # fmt: skip
            for name, hits in zip(names, np.array(found, float).mean(0)[:4], strict=True):
                ends = wilson_interval(float(hits), options.studies)
                record.add(f"{number} participants", name, Estimate(float(hits), *ends, options.studies), group=group)
            record.add(
                f"{number} participants", "design effect", float(np.mean([one[4] for one in found])), group=group
            )
    record.note(f"{options.studies} studies of {options.pairs} pairs each; tests at the 5 % level.")


def _simulate(
    rng: np.random.Generator, options: StudyPowerMeasurementOptions, participants: int, share: float
) -> list[StudyVote]:
    """Return the answers of one study in which ``share`` of the decided answers prefer the first system."""
    person, pair = (np.sin(np.pi / 2 * icc) for icc in (options.icc_participant, options.icc_pair))
    latent = (
        np.sqrt(person) * rng.normal(size=(participants, 1))
        + np.sqrt(pair) * rng.normal(size=(1, options.pairs))
        + np.sqrt(1 - person - pair) * rng.normal(size=(participants, options.pairs))
    )
    first, tied = latent < norm.ppf(share), rng.random(latent.shape) < options.ties
    return [
        StudyVote(
            number, "a", "b", Label.TIE if tied[number, clip] else Label.FIRST if first[number, clip] else Label.SECOND,
            f"p{clip}",
        )
        for number in range(participants) for clip in range(options.pairs)
    ]  # fmt: skip


def _analyse(
    votes: Sequence[StudyVote], share: float, options: StudyPowerMeasurementOptions
) -> tuple[bool, bool, bool, bool, float]:
    """Return which tests are significant, whether the interval holds the true share, and the design effect."""
    [row] = clustered_preferences(votes, ("a", "b"), options.resamples)
    assert row.low is not None
    assert row.high is not None
    signs = np.zeros(row.participants)
    for vote in votes:
        signs[vote.participant] += (vote.label is Label.FIRST) - (vote.label is Label.SECOND)
    wins, losses = (sum(vote.label is label for vote in votes) for label in (Label.FIRST, Label.SECOND))
    for_a, for_b = int((signs > 0).sum()), int((signs < 0).sum())
    by_person = binomtest(for_a, for_a + for_b).pvalue < 0.05 if for_a + for_b else False
    independent = binomtest(wins, wins + losses).pvalue < 0.05
    return independent, by_person, row.p < 0.05, row.low <= share <= row.high, row.design_effect
