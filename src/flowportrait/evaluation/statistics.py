"""Confidence intervals, significance tests and the correction for multiple tests.

    bootstrap   x̄* = mean over items drawn with replacement; 95 % percentile interval of 4000 such means
    speakers    clips of one speaker are alike: each speaker's clips are averaged, and speakers are drawn
    jackknife   ± 1.96 √( (k − 1) · var of the statistic with one of k groups left out )
    p           Wilcoxon's signed-rank test of paired differences; McNemar's exact test of paired yes/no answers
    visible     (t₀.₉₇₅ + t₀.₈) · s / √n, the difference that a paired test of n speakers finds with 80 % power
    Holm        the r-th smallest of m p values times m − r + 1, never below the one before (Holm 1979)

Resampling depends only on the shape of the values and the seed, so the same values always give the same interval.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
from scipy.stats import binomtest, wilcoxon
from scipy.stats import t as student_t

RESAMPLES = 4000
MIN_PAIRS = 6
"""Fewest pairs with which Wilcoxon's test can reach p < 0.05."""
JACKKNIFE_GROUPS = 10
"""Number of groups that the jackknife leaves out one after the other."""

Item = TypeVar("Item")


@dataclass(frozen=True)
class Estimate:
    """A mean over clips with its 95 % interval; ``low`` and ``high`` are None for a single clip.

    ``speakers`` is the number of speakers where each of them counts the same, and the interval is over them.
    """

    mean: float
    low: float | None
    high: float | None
    clips: int
    speakers: int | None = None

    @property
    def excludes_zero(self) -> bool:
        """Whether the whole interval lies on one side of zero."""
        return self.low is not None and self.high is not None and not self.low <= 0 <= self.high


def draw_resample_indices(
    items: int, runs: int = 1, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Draw the indices of bootstrap resamples of crossed runs and items.

    Args:
        items: number of items.
        runs: number of runs on the same items.
        resamples: number of resamples.
        seed: random seed.

    Returns:
        Runs ``[resamples, runs]`` and items ``[resamples, items]``, both drawn with replacement and independently of
        each other (Owen 2007, The pigeonhole bootstrap). One run draws the same items as a bootstrap over items.
    """
    rng = np.random.default_rng(seed)
    return rng.integers(runs, size=(resamples, runs)), rng.integers(items, size=(resamples, items))


def percentile_interval(values: np.ndarray) -> tuple[float, float]:
    """Return the 2.5 % and 97.5 % quantiles of resampled values."""
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)


def resampled_means(values: np.ndarray, seed: int = 0) -> np.ndarray:
    """Return bootstrap means ``[R]`` of items ``[n]``, or of crossed runs and items ``[runs, n]``."""
    table = np.atleast_2d(values)
    rows, columns = draw_resample_indices(table.shape[1], table.shape[0], seed=seed)
    return np.asarray(table[rows[:, :, None], columns[:, None, :]].mean((1, 2)))


def bootstrap_mean(values: np.ndarray, seed: int = 0) -> Estimate:
    """Return the mean over clips ``[n]`` with a bootstrap interval.

    With several runs on the same clips ``[runs, n]``, runs and clips are resampled independently.
    """
    mean, clips = float(values.mean()), np.atleast_2d(values).shape[1]
    if clips < 2:
        return Estimate(mean, None, None, clips)
    return Estimate(mean, *percentile_interval(resampled_means(values, seed)), clips)


def speaker_means(values: np.ndarray, speakers: Sequence[str]) -> np.ndarray:
    """Return the mean ``[n]`` of the clips ``[N]`` of each speaker, in the order in which speakers first appear."""
    names = np.array(speakers)
    return np.array([values[names == name].mean() for name in dict.fromkeys(speakers)])


def bootstrap_speakers(values: np.ndarray, speakers: Sequence[str], seed: int = 0) -> Estimate:
    """Return the mean over speakers of their clips' means, with a bootstrap interval over speakers.

    Clips of one speaker are alike, so an interval over clips would be too narrow. There is no interval for one speaker.

    Args:
        values: metric of the clips ``[N]``.
        speakers: who speaks in each clip.
        seed: random seed.
    """
    found = bootstrap_mean(speaker_means(values, speakers), seed)
    return replace(found, clips=len(values), speakers=found.clips)


def smallest_visible_difference(
    differences: np.ndarray, speakers: Sequence[str] | None = None, power: float = 0.8, level: float = 0.05
) -> float | None:
    """Return the smallest true difference that a paired test would find with a given power.

    It is that of the two-sided t-test of the mean of n paired differences, with the standard deviation of these:
    (t_{1 − level/2} + t_{power}) · s / √n with n − 1 degrees of freedom (Bloom 1995).

    Args:
        differences: paired differences of clips ``[N]``.
        speakers: who speaks in each clip; the n differences are the means of the speakers. By default those of clips.
        power: probability of finding it.
        level: probability of finding one where there is none.

    Returns:
        The difference, in the metric's unit; None for fewer than three speakers.
    """
    values = differences if speakers is None else speaker_means(differences, speakers)
    count = len(values)
    if count < 3:
        return None
    quantiles = student_t.ppf(1 - level / 2, count - 1) + student_t.ppf(power, count - 1)
    return float(quantiles * values.std(ddof=1) / np.sqrt(count))


def bootstrap_ratio(values: np.ndarray, base: np.ndarray, resamples: int = RESAMPLES, seed: int = 0) -> Estimate:
    """Return the mean of ``values`` ``[n]`` over that of ``base`` ``[n]``, with a bootstrap interval over items."""
    _, items = draw_resample_indices(len(base), resamples=resamples, seed=seed)
    low, high = percentile_interval(values[items].mean(1) / base[items].mean(1))
    return Estimate(float(values.mean() / base.mean()), low, high, len(base))


def jackknife(
    items: Sequence[Item],
    statistic: Callable[[Sequence[Item]], float | None],
    lowest: float = -np.inf,
    highest: float = np.inf,
    speakers: Sequence[str] | None = None,
) -> Estimate | None:
    """Return a statistic of all items ± 1.96 standard errors from leaving out a tenth of the items at a time.

    It suits statistics that are biased by resampling with replacement, such as Fréchet distances.

    Args:
        items: the items of the statistic.
        statistic: function that returns a number, or None if there are too few items.
        lowest: lower bound of the interval.
        highest: upper bound of the interval.
        speakers: who speaks in each item; then one speaker at a time is left out.

    Returns:
        The estimate; None if there are too few items.
    """
    mean = statistic(items)
    if mean is None:
        return None
    folds = min(JACKKNIFE_GROUPS, len(items))
    fold_of: Sequence[object] = [i % folds for i in range(len(items))] if speakers is None else speakers
    names = list(dict.fromkeys(fold_of))
    left_out = [statistic([item for item, own in zip(items, fold_of, strict=True) if own != name]) for name in names]
    values = np.array([value for value in left_out if value is not None])
    count = None if speakers is None else len(names)
    if len(values) < 2:
        return Estimate(mean, None, None, len(items), count)
    half_width = 1.96 * float(np.sqrt((len(values) - 1) * values.var()))
    return Estimate(mean, max(lowest, mean - half_width), min(highest, mean + half_width), len(items), count)


def signed_rank_p(differences: np.ndarray) -> float | None:
    """Return Wilcoxon's signed-rank p of differences ``[n]``; None if there are fewer than six or all are zero."""
    if len(differences) < MIN_PAIRS or not np.any(differences):
        return None
    return float(wilcoxon(differences).pvalue)


def mcnemar_test(first: Sequence[bool | None], second: Sequence[bool | None]) -> tuple[float, float]:
    """Compare paired yes/no answers with McNemar's exact test, over the pairs in which both are known.

    Returns:
        The p value of the hypothesis that both are true equally often, and the difference of the two rates.
    """
    pairs = [(a, b) for a, b in zip(first, second, strict=True) if a is not None and b is not None]
    only_first, only_second = sum(a and not b for a, b in pairs), sum(b and not a for a, b in pairs)
    discordant = only_first + only_second
    p = float(binomtest(only_first, discordant).pvalue) if discordant else 1.0
    return p, (only_first - only_second) / max(len(pairs), 1)


def holm_correction(p_values: Sequence[float | None]) -> list[float | None]:
    """Return p values with Holm's step-down correction, in the same order; None marks a test that was not made."""
    tested = [(p, index) for index, p in enumerate(p_values) if p is not None]
    corrected: list[float | None] = [None] * len(p_values)
    running = 0.0
    for rank, (p, index) in enumerate(sorted(tested)):
        running = min(1.0, max(running, p * (len(tested) - rank)))
        corrected[index] = running
    return corrected
