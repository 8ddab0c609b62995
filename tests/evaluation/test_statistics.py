"""Intervals hold what they should, corrections are Holm's, and the same figures give the same interval every time."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowportrait.evaluation.statistics import (
    Estimate,
    bootstrap_mean,
    bootstrap_ratio,
    draw_resample_indices,
    holm_correction,
    jackknife,
    mcnemar_test,
    signed_rank_p,
)


def test_an_interval_is_the_same_as_in_version_0_1() -> None:
    values = np.random.default_rng(5).normal(size=10)
    found = bootstrap_mean(values)
    assert (found.low, found.high) == pytest.approx((-0.5105344512258282, 0.5921186912151837), rel=1e-12)


def test_one_run_draws_the_same_clips_as_no_runs_at_all() -> None:
    rows, columns = draw_resample_indices(7)
    assert not rows.any()
    np.testing.assert_array_equal(columns, np.random.default_rng(0).integers(7, size=(4000, 7)))
    values = np.random.default_rng(1).normal(size=7)
    assert bootstrap_mean(values) == bootstrap_mean(values[None])


def test_a_ratio_of_proportional_figures_is_certain() -> None:
    base = np.random.default_rng(0).uniform(1, 2, 20)
    found = bootstrap_ratio(3 * base, base)
    assert (found.mean, found.low, found.high) == pytest.approx((3, 3, 3))


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_corrected_p_values_keep_their_order_and_never_fall(p_values: list[float]) -> None:
    corrected = holm_correction(p_values)
    assert all(after is not None and before <= after <= 1 for before, after in zip(p_values, corrected, strict=True))
    order = np.argsort(p_values, kind="stable")
    assert np.all(np.diff(np.array(corrected, float)[order]) >= 0)
    assert min(corrected) == pytest.approx(min(1.0, len(p_values) * min(p_values)))


def test_tests_that_were_not_made_are_not_counted() -> None:
    assert holm_correction([None, 0.02, None, 0.03]) == [None, 0.04, None, 0.04]


def test_too_few_pairs_and_pairs_that_are_equal_have_no_p() -> None:
    assert signed_rank_p(np.arange(1.0, 6)) is None
    assert signed_rank_p(np.zeros(20)) is None
    assert signed_rank_p(np.arange(1.0, 7)) == pytest.approx(2 / 2**6)


def test_answers_that_differ_as_often_either_way_are_no_difference() -> None:
    p, difference = mcnemar_test([True, False, True, None], [False, True, True, True])
    assert (p, difference) == (1.0, 0.0)
    p, difference = mcnemar_test([True] * 8, [False] * 8)
    assert (p, difference) == (pytest.approx(2 / 2**8), 1.0)


def test_the_jackknife_stays_within_its_bounds_and_says_nothing_of_nothing() -> None:
    found = jackknife([0.0] * 9 + [1.0], lambda items: float(np.mean(items)), lowest=0.0)
    assert found is not None
    assert found.low == 0.0
    assert jackknife([1.0], lambda items: None) is None


def test_an_interval_that_holds_zero_excludes_nothing() -> None:
    assert Estimate(1.0, 0.5, 1.5, 9).excludes_zero
    assert not Estimate(1.0, -0.5, 1.5, 9).excludes_zero
    assert not Estimate(1.0, None, None, 1).excludes_zero
