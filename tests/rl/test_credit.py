"""Claims about credit: what siblings' scores become, and when a reward has nothing to say."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flowportrait.config import override
from flowportrait.errors import BadInput
from flowportrait.rewards.interface import Score, all_valid
from flowportrait.rl.allocation import Allocation, allocate_advantage, select_best_and_worst
from flowportrait.rl.credit import CreditConfig, assign_credit, normalized_deviations, win_rates
from flowportrait.rl.objectives.preference import best_worst_pairs
from flowportrait.rl.rollout import trajectory_of_final_samples

GROUP = torch.tensor([0, 0, 0, 0, 7, 7, 7, 7])
VALUE = torch.tensor([1.0, 2.0, 3.0, 4.0, 10.0, 10.0, 20.0, 20.0])
ALL = torch.ones(8, dtype=torch.bool)


def credit(
    *scores: Score, weights: tuple[float, ...] | None = None, chunks: int = 1, **settings: object
) -> torch.Tensor:
    named = {f"r{index}": score for index, score in enumerate(scores)}
    weighted = dict(zip(named, weights or (1.0,) * len(named), strict=True))
    return assign_credit(named, GROUP, chunks, weighted, CreditConfig(**settings)).advantage  # type: ignore[arg-type]


def test_group_statistics_are_those_of_siblings() -> None:
    own = normalized_deviations(VALUE, ALL, GROUP).value
    for rows in (slice(0, 4), slice(4, 8)):
        assert torch.allclose(own[rows], (VALUE[rows] - VALUE[rows].mean()) / VALUE[rows].std())


def test_the_largest_group_alone_has_unit_spread_and_the_batch_unit_power() -> None:
    largest = normalized_deviations(VALUE, ALL, GROUP, "largest").value
    assert largest[4:].std() == pytest.approx(1.0)
    assert largest[:4].std() == pytest.approx(float(VALUE[:4].std() / VALUE[4:].std()))
    assert normalized_deviations(VALUE, ALL, GROUP, "batch").value.square().mean() == pytest.approx(1.0)
    assert torch.equal(normalized_deviations(VALUE, ALL, GROUP, "none").value[:4], torch.tensor([-1.5, -0.5, 0.5, 1.5]))


def test_leaving_oneself_out_is_comparing_with_the_others() -> None:
    own = normalized_deviations(VALUE, ALL, GROUP, "none", "leave_one_out").value
    assert own[0] == pytest.approx(1.0 - (2 + 3 + 4) / 3)


def test_win_rates_count_who_is_beaten_and_ties_half() -> None:
    rates = win_rates(VALUE, ALL, GROUP, 0.0)
    assert torch.allclose(rates[:4], torch.tensor([0, 1 / 3, 2 / 3, 1]))
    assert torch.allclose(rates[4:], torch.tensor([1 / 6, 1 / 6, 5 / 6, 5 / 6]))
    assert torch.allclose(win_rates(VALUE, ALL, GROUP, 1.0)[:4], torch.tensor([1 / 6, 1 / 3, 2 / 3, 5 / 6]))


@given(st.lists(st.floats(-50, 50, width=32), min_size=8, max_size=8), st.sampled_from([0.001, 1.0, 900.0]))
@settings(max_examples=60, deadline=None)
def test_a_win_rate_does_not_see_by_how_much(values: list[float], scale: float) -> None:
    score = torch.tensor(values)
    before, after = (
        win_rates(v, ALL, GROUP, 0.0) for v in (score, (scale * score.double()).sign() * score.double().abs())
    )
    assert torch.allclose(before, after)
    assert before[:4].sum() == pytest.approx(2.0, abs=1e-4)


@given(
    st.lists(st.floats(-5, 5, width=32), min_size=8, max_size=8),
    st.lists(st.booleans(), min_size=8, max_size=8),
    st.sampled_from(["group", "batch", "largest", "none"]),
    st.sampled_from([(), ("all",)]),
    st.sampled_from(["normalize_then_sum", "sum_then_normalize"]),
)
@settings(max_examples=80, deadline=None)
def test_what_is_invalid_moves_nobody_and_siblings_sum_to_nothing(
    values: list[float], valid: list[bool], std: str, win_rate: tuple[str, ...], aggregation: str
) -> None:
    known = torch.tensor(valid)
    score = Score(torch.tensor(values).where(known, torch.tensor(torch.nan)), known)
    own = credit(score, std=std, win_rate=win_rate, aggregation=aggregation, limit=1e9)[:, 0]
    assert torch.isfinite(own).all()
    assert (own[~known] == 0).all()
    for rows in (slice(0, 4), slice(4, 8)):
        assert abs(float(own[rows].sum())) < 1e-3


def test_a_reward_that_cannot_tell_a_group_apart_says_nothing_there() -> None:
    score = all_valid(VALUE)._replace(noise=2.0)
    own = credit(score)[:, 0]
    assert (own[:4] == 0).all()
    assert (own[4:] != 0).all()
    assert (credit(score, gate=0.0)[:4] != 0).all()
    assert (credit(score, gate=9.0) == 0).all()
    assert (credit(score, win_rate=("r0",))[:4] == 0).all()
    assert (credit(score, aggregation="sum_then_normalize")[:4] == 0).all()


def test_noise_of_one_reward_leaves_the_others_alone() -> None:
    quiet, loud = all_valid(VALUE), all_valid(VALUE.flip(0))._replace(noise=1e3)
    assert torch.equal(credit(quiet, loud), credit(quiet))


def test_metrics_tell_every_reward_apart() -> None:
    scores = {"a": all_valid(VALUE), "b": all_valid(VALUE)._replace(noise=2.0)}
    logged = assign_credit(scores, GROUP, 2, {"a": 1.0, "b": 1.0}, CreditConfig()).metrics
    assert (logged["degenerate/a"], logged["degenerate/b"]) == (0.0, 0.5)
    assert logged["reward/a"] == pytest.approx(float(VALUE.mean()))


def test_beyond_the_cap_more_is_not_better_and_under_the_floor_not_worse() -> None:
    own = credit(all_valid(VALUE), caps={"r0": 3.0}, std="none")[:, 0]
    assert own[2] == own[3] > own[1]
    assert (own[4:] == 0).all()
    low = credit(all_valid(VALUE), floors={"r0": 2.0}, std="none")[:, 0]
    assert low[0] == low[1] < low[2]


def test_normalising_before_or_after_the_sum_differ_as_scales_do() -> None:
    small, large = all_valid(VALUE), all_valid(1000 * VALUE.flip(0))
    apart, summed = credit(small, large)[:4, 0], credit(small, large, aggregation="sum_then_normalize")[:4, 0]
    assert torch.allclose(apart[[0, 3]], torch.tensor([-1.16, 1.16]) + credit(large)[[0, 3], 0], atol=0.01)
    assert torch.allclose(summed, credit(large)[:4, 0], atol=0.01)


def test_summing_first_drops_samples_with_a_score_missing() -> None:
    holed = all_valid(VALUE)._replace(valid=torch.tensor([False, *[True] * 7]))
    own = credit(all_valid(VALUE), holed, aggregation="sum_then_normalize")[:, 0]
    assert own[0] == 0
    assert own[3] > 0


def test_a_dense_reward_pays_the_chunk_that_earned_it() -> None:
    dense = torch.zeros(8, 6)
    dense[1, 2:4] = 1.0
    own = credit(Score(dense.mean(1), ALL, dense), chunks=3, dense=1.0)
    assert own[1, 1] > 0
    assert (own[:, [0, 2]] == 0).all()
    assert torch.allclose(own.sum(0), torch.zeros(3), atol=1e-5)


def test_parts_sum_to_the_advantage_before_the_limit() -> None:
    found = assign_credit(
        {"a": all_valid(VALUE), "b": all_valid(VALUE.flip(0) ** 2)}, GROUP, 2, {"a": 0.3, "b": 0.7}, CreditConfig()
    )
    assert torch.allclose(sum(found.parts.values()), found.advantage)


def test_settings_are_typed() -> None:
    chosen = override(CreditConfig(), ["std=batch", "win_rate=judge,sync", "caps.sync=0.3"])
    assert (chosen.std, chosen.win_rate, chosen.caps) == ("batch", ("judge", "sync"), {"sync": 0.3})
    with pytest.raises(BadInput, match="choose one of group, batch, largest, none"):
        override(CreditConfig(), ["std=median"])


def partial(valid: list[bool], value: list[float]) -> Score:
    known = torch.tensor(valid)
    return Score(torch.tensor(value).where(known, torch.tensor(torch.nan)), known)


def advantages(scores: dict[str, Score], group: torch.Tensor, allocation: Allocation | None = None, **settings: Any):  # type: ignore[no-untyped-def]
    """Advantages as objectives get them."""
    credit = assign_credit(scores, group, 1, dict.fromkeys(scores, 1.0), CreditConfig(**settings))
    rollout = trajectory_of_final_samples(None, torch.zeros(len(group), 1, 4), group, torch.arange(len(group)))
    halves = {"upper": torch.tensor([1.0, 1, 0, 0]), "lower": torch.tensor([0.0, 0, 1, 1])}
    return allocate_advantage(credit, rollout, allocation or Allocation(), halves)


def test_a_clip_that_one_reward_could_not_judge_wins_no_pair_though_its_sum_is_the_largest() -> None:
    group = torch.zeros(4, dtype=torch.long)
    scores = {
        "a": partial([False, True, True, True], [0.0, 3.0, 2.0, 1.0]),
        "b": partial([True] * 4, [2.0, 0.0, 1.0, 1.0]),
    }
    advantage = advantages(scores, group)
    value = advantage.value[:, 0, 0]
    assert int(value[:, 0].argmax()) == 0
    assert advantage.is_judged.tolist() == [False, True, True, True]
    real = torch.zeros(4, dtype=torch.bool)
    winner, loser, _ = best_worst_pairs(value, group, real, advantage.valid[:, 0, 0])
    assert 0 not in (*winner.tolist(), *loser.tolist())
    assert best_worst_pairs(value, group, real)[0].tolist() == [0], "without the mask it would have won"


def test_a_clip_that_nothing_judged_is_left_out_and_one_that_is_average_is_not() -> None:
    group = torch.zeros(4, dtype=torch.long)
    advantage = advantages({"a": partial([False, True, True, True], [0.0, 1.0, 2.0, 3.0])}, group)
    assert advantage.value[:, 0, 0, 0].tolist() == [0.0, -1.0, 0.0, 1.0]
    assert advantage.is_judged.tolist() == [False, True, True, True]


@pytest.mark.parametrize("aggregation", ["normalize_then_sum", "sum_then_normalize"], ids=["apart", "summed"])
def test_a_reward_that_tells_a_group_nothing_leaves_nobody_out(aggregation: str) -> None:
    """A scorer that was away, one that scored a single sibling, and one whose spread is within its noise."""
    group = torch.zeros(4, dtype=torch.long)
    some = [False, True, True, True]
    scores = {
        "a": partial([True] * 4, [4.0, 3.0, 2.0, 1.0]), "away": partial([False] * 4, [0.0] * 4),
        "single": partial([True, False, False, False], [1.0] * 4),
        "noisy": partial(some, [1.0, 1.1, 1.0, 1.0])._replace(noise=1.0),
    }  # fmt: skip
    assert advantages(scores, group, aggregation=aggregation).is_judged.all()


def test_groups_of_one_learn_from_the_aspects_that_were_rated() -> None:
    """Rated clips are compared with the whole batch: no sibling has what one of them lacks."""
    scores = {
        "a": partial([True, True, True, False], [5.0, 3, 1, 1]),
        "b": partial([True, True, False, True], [1.0] * 4),
    }
    assert advantages(scores, torch.arange(4), baseline_scope="batch").is_judged.all()


def test_a_region_is_left_out_where_what_pays_it_could_not_judge() -> None:
    group = torch.zeros(4, dtype=torch.long)
    scores = {"a": partial([False, True, True, True], [0.0, 1, 2, 3]), "b": partial([True] * 4, [4.0, 3, 2, 1])}
    advantage = advantages(scores, group, Allocation(regions={"a": "upper", "b": "lower"}))
    assert advantage.valid[:, 0, 0].tolist() == [[False, True], [True, True], [True, True], [True, True]]
    assert advantage.is_judged.all()


def test_the_best_and_the_worst_of_a_group_were_judged_while_there_are_enough_of_them() -> None:
    score, group = torch.tensor([9.0, 5, 1, 3, 2, -9]), torch.zeros(6, dtype=torch.long)
    valid = torch.tensor([False, True, True, True, True, False])
    assert select_best_and_worst(score, group, 2, valid).tolist() == [1, 2]
    assert select_best_and_worst(score, group, 4, valid).tolist() == [1, 2, 3, 4]
    few = torch.tensor([False, True, True, False, False, False])
    assert {1, 2} <= set(select_best_and_worst(score, group, 4, few).tolist())
    assert len(select_best_and_worst(score, group, 4, few)) == 4


REFERENCE = torch.tensor([True, True, True, True, False])
"""Four samples of a group's own and a real clip."""


@pytest.mark.parametrize("std", ["group", "batch", "largest", "none"])
@pytest.mark.parametrize("win_rate", [(), ("r",)])
def test_what_is_measured_against_a_group_leaves_it_as_it_was(std: str, win_rate: tuple[str, ...]) -> None:
    group = torch.zeros(5, dtype=torch.long)
    config = CreditConfig(std=std, win_rate=win_rate, baseline="leave_one_out")  # type: ignore[arg-type]
    value = torch.tensor([1.0, 2, 3, 5, 40])
    whole = assign_credit({"r": all_valid(value)}, group, 1, {"r": 1.0}, config, REFERENCE)
    alone = assign_credit({"r": all_valid(value[:4])}, group[:4], 1, {"r": 1.0}, config)
    assert torch.equal(whole.advantage[:4], alone.advantage)
    assert whole.advantage[4] > (0 if win_rate else whole.advantage[:4].max())
    assert whole.metrics == alone.metrics


def exemplar(value: float, noise: float = 0.0, own: tuple[float, ...] = (1.0, 2.0, 3.0, 4.0), **settings: Any) -> float:
    """The advantage of a real clip with this score beside four samples."""
    score = all_valid(torch.tensor([*own, value]))._replace(noise=noise)
    config = CreditConfig(limit=1e9, **settings)
    group = torch.zeros(5, dtype=torch.long)
    return float(assign_credit({"r": score}, group, 1, {"r": 1.0}, config, REFERENCE).advantage[4, 0])


def test_a_real_clip_is_credited_through_gate_caps_floors_and_win_rates() -> None:
    spread_ = torch.tensor([1.0, 2, 3, 4]).std()
    assert exemplar(22.1) == pytest.approx(float((22.1 - 2.5) / spread_))
    assert exemplar(22.1) > 15
    assert exemplar(22.1, caps={"r": 4.0}) == pytest.approx(float((4.0 - 2.5) / spread_))
    assert exemplar(-20.0, floors={"r": 1.0}) == pytest.approx(float((1.0 - 2.5) / spread_))
    assert exemplar(22.1, noise=2.0) == 0.0
    # It beats everybody, as the best of the samples does among the others.
    assert exemplar(22.1, win_rate=("r",), std="none") == pytest.approx(0.5)
    assert exemplar(4.1, win_rate=("r",), std="none") == pytest.approx(0.5)
    assert exemplar(2.5, win_rate=("r",), std="none") == pytest.approx(0.0)


def test_a_real_clip_is_credited_chunk_by_chunk_too() -> None:
    dense = torch.zeros(5, 6)
    dense[:4] = torch.tensor([1.0, 2, 3, 4])[:, None]
    dense[4, :3], dense[4, 3:] = 2.5, 10.0
    score = Score(dense.mean(1), torch.ones(5, dtype=torch.bool), dense)
    config = CreditConfig(dense=1.0, limit=1e9)
    own = assign_credit({"r": score}, torch.zeros(5, dtype=torch.long), 2, {"r": 1.0}, config, REFERENCE).advantage[4]
    assert own.tolist() == pytest.approx([0.0, float(7.5 / torch.tensor([1.0, 2, 3, 4]).std())])
