"""This module computes what a study can tell: the smallest preferred share that it would distinguish from one half.

    decided = pairs · participants · (1 − ties)
    design effect = 1 + (pairs − 1) · icc_participant + (participants − 1) · icc_pair
    effective = ⌊decided / design effect⌋          power: exact two-sided binomial test with that many answers

The intraclass correlations (ICC) say how alike the answers of one participant, and the answers about one pair, are.
They are assumptions before a study; afterwards its analysis reports the design effect itself. With a correlation among
the answers about one pair, more participants help less and less: only more pairs do. The design effect is
that of as many answers without ties, which is more than the decided ones have. This makes up for what Student's t costs
the analysis, except with fewer than ten participants.
"""

from __future__ import annotations

from dataclasses import dataclass

from scipy.optimize import brentq
from scipy.stats import binom

from flowportrait.errors import BadInput

SIGNIFICANCE = 0.05
"""Two-sided significance level."""
TARGET_POWER = 0.8


@dataclass(frozen=True)
class StudyPower:
    """What a study can tell.

    Args:
        pairs: pairs that every participant sees.
        participants: number of participants.
        decided: number of answers that are no ties.
        design_effect: variance relative to independent answers.
        effective: number of independent answers that tell as much.
        independent_share: smallest preferred share with 80 % power if answers were independent; None if there is none.
        clustered_share: the same with the design effect.
    """

    pairs: int
    participants: int
    decided: int
    design_effect: float
    effective: int
    independent_share: float | None
    clustered_share: float | None


def study_power(
    pairs: int, participants: int, ties: float = 0.2, icc_participant: float = 0.02, icc_pair: float = 0.1
) -> StudyPower:
    """Return what a study of this size can tell about one aspect.

    Args:
        pairs: pairs that every participant sees.
        participants: number of participants.
        ties: share of answers that prefer neither.
        icc_participant: correlation of two answers of one participant, beyond the common preference.
        icc_pair: correlation of two answers about one pair.

    Raises:
        BadInput: a value is not possible.
    """
    if pairs < 1 or participants < 1:
        raise BadInput(f"{pairs} pairs and {participants} participants make no study: give at least one of each.")
    for name, value in (("ties", ties), ("icc-participant", icc_participant), ("icc-pair", icc_pair)):
        if not 0 <= value < 1:
            raise BadInput(f"--{name} {value:g} is no share: give a number from 0 to less than 1.")
    decided = round(pairs * participants * (1 - ties))
    effect = 1 + (pairs - 1) * icc_participant + (participants - 1) * icc_pair
    effective = int(decided / effect)
    return StudyPower(
        pairs, participants, decided, effect, effective, detectable_share(decided), detectable_share(effective)
    )


def sign_test_power(answers: int, share: float, significance: float = SIGNIFICANCE) -> float:
    """Return the power of the exact two-sided binomial test of ½ with independent answers.

    Args:
        answers: number of answers that are no ties.
        share: the true preferred share.
        significance: two-sided significance level.
    """
    critical = _critical_count(answers, significance)
    if critical < 0:
        return 0.0
    return float(binom.cdf(critical, answers, share) + binom.sf(answers - critical - 1, answers, share))


def detectable_share(answers: int, power: float = TARGET_POWER, significance: float = SIGNIFICANCE) -> float | None:
    """Return the smallest preferred share above ½ that the test finds with a power; None if it can never be found."""
    if _critical_count(answers, significance) < 0:
        return None
    return float(brentq(lambda share: sign_test_power(answers, share, significance) - power, 0.5, 1.0))


def _critical_count(answers: int, significance: float) -> int:
    """Return the largest number of answers for one side that is significant; −1 if none is."""
    count = int(binom.ppf(significance / 2, answers, 0.5)) + 1
    while count >= 0 and 2 * binom.cdf(count, answers, 0.5) > significance:
        count -= 1
    return count
