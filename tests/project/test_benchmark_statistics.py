"""Claims about comparisons of training runs: gaps to real motion, intervals over runs and clips, and controls."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from benchmarks import drawing, heldout, paired, recipe_controls, recipes
from benchmarks.paired import Rows
from benchmarks.record import Record, Row
from hypothesis import given
from hypothesis import strategies as st

from flowportrait.config import override
from flowportrait.errors import BadInput
from flowportrait.evaluation.metrics import REAL
from flowportrait.models.arflow import checkpoint_folder, load_generator
from flowportrait.models.sampler import sample_from_mel
from flowportrait.rewards.random import RANDOM_REWARDS
from flowportrait.rewards.registry import RewardWeights
from flowportrait.rl.config import PostTrainConfig
from flowportrait.rl.recipes import find_recipe

NUMBER = st.floats(-10, 10)
CHANGE = "change from sft"
P_VALUE = "p of the change (Wilcoxon, Holm)"
CLOSED = "share of the gap to real motion that is closed"


@given(NUMBER, NUMBER)
def test_reaching_real_motion_closes_the_gap_and_standing_still_closes_nothing(before: float, real: float) -> None:
    if abs(real - before) > 0.02 * abs(real):
        assert paired.gap_closed(before, real, real) == 1
        assert paired.gap_closed(before, before, real) == 0
    else:
        assert paired.gap_closed(before, real, real) is None


def test_going_past_real_motion_is_distance_again() -> None:
    assert paired.gap_closed(1.0, 4.0, 3.0) == pytest.approx(0.5)
    assert paired.gap_closed(1.0, 5.0, 3.0) == pytest.approx(0.0)
    assert paired.gap_closed(1.0, 6.0, 3.0) == pytest.approx(-0.5)


def metrics(shift: float) -> Rows:
    """Return the metrics of eight clips that differ by more than a run shifts them."""
    return {f"c{i}": {"ecs": 0.1 * i + shift * (1 + 0.1 * i), "identity_kept": 0.9} for i in range(8)}


def compare(
    rows: Mapping[str, Rows], keys: tuple[str, ...] = ("ecs",), pairs: tuple[tuple[str, str], ...] = ()
) -> dict[tuple[str, str, str], Row]:
    """Return the figures of a comparison with ``sft`` by group, system and metric."""
    record = Record("test", "test")
    paired.compare_runs(record, rows, keys, baseline="sft", pairs=pairs, untested=("identity_kept",))
    return {(row.group, row.system, row.metric): row for row in record.rows}


def width(row: Row) -> float:
    """Return the width of an interval."""
    assert row.low is not None
    assert row.high is not None
    return row.high - row.low


def test_three_seeds_of_the_same_clips_do_not_pass_for_three_times_the_clips() -> None:
    rows = {"sft": metrics(0.0), **{f"nft@{seed}": metrics(0.1) for seed in range(3)}, "awm@0": metrics(0.1)}
    found = compare(rows, ("ecs", "identity_kept"))
    three, one = (found[CHANGE, name, "ECS per clip"] for name in ("nft", "awm"))
    assert (three.n, one.n) == (8, 8)
    assert three.value == pytest.approx(one.value)
    three_p, one_p = (found[P_VALUE, name, "ECS per clip"].value for name in ("nft", "awm"))
    assert three_p == one_p, "eight clips, however many seeds"
    assert width(three) == pytest.approx(width(one), rel=0.1)
    untested = {metric for group, _, metric in found if group == CHANGE} - {
        metric for group, _, metric in found if group == P_VALUE
    }
    assert untested == {paired.metric_title("identity_kept")}


def test_runs_that_disagree_widen_the_interval_until_nothing_is_claimed() -> None:
    rows = {"sft": metrics(0.0)}
    for seed, wobble in enumerate((-0.3, 0.0, 0.6)):
        rows |= {f"nft@{seed}": metrics(0.1), f"awm@{seed}": metrics(0.1 + wobble)}
    found = compare(rows)
    agreeing, disagreeing = (found[CHANGE, name, "ECS per clip"] for name in ("nft", "awm"))
    assert agreeing.low is not None
    assert agreeing.low > 0
    assert disagreeing.low is not None
    assert disagreeing.high is not None
    assert disagreeing.low < 0 < disagreeing.high


def test_a_gap_that_every_clip_and_run_closes_is_closed_without_doubt() -> None:
    start: Rows = {f"c{i}": {"ecs": 0.1 * i} for i in range(8)}
    real: Rows = {f"c{i}": {"ecs": 0.1 * i + 1} for i in range(8)}
    found = compare({"sft": start, REAL: real, **{f"nft@{seed}": real for seed in range(3)}})
    row = found[CLOSED, "nft", "ECS per clip"]
    assert (row.value, row.low, row.high) == pytest.approx((1, 1, 1))
    assert (CHANGE, REAL, "ECS per clip") not in found, "real motion is the target and no contestant"


def test_a_mean_of_runs_is_compared_with_them_and_runs_with_those_of_the_same_seed() -> None:
    gains = {"sft": 0.0, "rl": 0.2, "runs@0": 0.0, "runs@1": 0.1, "runs@2": 0.5}
    gains |= {f"random@{seed}": gain for seed, gain in enumerate((-0.1, 0.0, 0.4))}
    rows: dict[str, Rows] = {name: {f"c{i}": {"ecs": 0.1 * i + gain} for i in range(8)} for name, gain in gains.items()}
    found = compare(rows, pairs=(("rl", "runs"), ("runs", "random"), ("rl", "missing")))
    runs, mean = (found[CHANGE, name, "ECS per clip"] for name in ("runs", "rl"))
    assert runs.value == pytest.approx(0.2)
    assert runs.low is not None
    assert mean.low is not None
    assert runs.low < 0.05 < mean.low, "the mean is a single run"
    own = found[CHANGE, "rl against runs", "ECS per clip"]
    assert own.value == pytest.approx(0)
    assert width(own) > 0.1, "the spread of the runs counts on either side"
    beyond = found[CHANGE, "runs against random", "ECS per clip"]
    assert (beyond.low, beyond.high) == pytest.approx((0.1, 0.1)), "seed by seed"
    assert not any("missing" in system for _, system, _ in found), "not measured"


def test_rewards_on_held_out_prompts_are_compared_sample_by_sample(tmp_path: Path) -> None:
    options = recipes.RecipesOptions(*[tmp_path] * 5)
    for name, gain in (("sft", 0.0), ("nft", 0.02), ("awm", -0.02)):
        folder = tmp_path / name / "0"
        folder.mkdir(parents=True)
        watched = {key: [0.1 * i + gain for i in range(16)] for key in RewardWeights().by_name()}
        (folder / "held.json").write_text(json.dumps(watched))
        (folder / "curve.jsonl").write_text(json.dumps({"iteration": 7}) + "\n")
    record = Record("test", "test")
    recipes.add_held_out_rewards(recipes.Setup(options), ["nft", "awm"], record)
    found = {(row.group.rpartition(": ")[2], row.system, row.metric): row for row in record.rows}
    assert found["runs", "nft", "iterations"].value == 7
    assert found[CHANGE, "nft", "sync"].value == pytest.approx(0.02)
    spread = sum((0.1 * i - 0.75) ** 2 for i in range(16)) / 16
    assert found[CHANGE, "nft", "composite"].value == pytest.approx(0.02 / spread**0.5), "weights add to one"
    loss = found[CHANGE, "awm", "sync"]
    assert (loss.low, loss.high) == pytest.approx((-0.02, -0.02)), "the same loss sixteen times is one"


def test_every_contestant_is_a_recipe_that_exists() -> None:
    for name, contestant in recipes.CONTESTANTS.items():
        recipe = override(find_recipe(contestant.recipe), [*recipes.SMALL, *contestant.settings])
        assert recipe.group_size == 8, name
    known = {*recipes.CONTESTANTS, recipes.LONGER, recipes.TUNED}
    assert {name for names in recipes.STUDIES.values() for name in names} <= known


def test_other_sampling_settings_leave_the_model_as_it_was() -> None:
    model = load_generator("sft")
    mel = torch.randn(2, 32, 80)
    as_delivered = sample_from_mel(model, mel, [0, 1])
    own = recipe_controls.Sampling(model.config.guidance, model.config.steps)
    assert torch.equal(sample_from_mel(recipe_controls.with_sampling(model, own), mel, [0, 1]), as_delivered)
    cold = recipe_controls.with_sampling(model, replace(own, temperature=0.5))
    assert not torch.equal(sample_from_mel(cold, mel, [0, 1]), as_delivered)
    assert torch.equal(sample_from_mel(model, mel, [0, 1]), as_delivered)


def test_an_ablation_drops_one_reward_and_random_rewards_have_as_much_weight_as_the_real_ones() -> None:
    recipe = PostTrainConfig.from_json(checkpoint_folder("rl") / "recipe.json")
    whole = recipe.rewards.by_name()
    names = heldout.variants(recipe)
    assert len(names) == 2 + len(whole)
    for name in names:
        found = heldout.variant(recipe, name)
        weights = found.rewards.by_name()
        assert set(found.allocation.regions) == set(weights), name
        if name == heldout.RANDOM:
            assert sum(weights.values()) == pytest.approx(sum(whole.values()))
            assert set(weights) <= set(RANDOM_REWARDS)
            assert set(found.allocation.regions.values()) == set(recipe.allocation.regions.values())
        elif name.startswith("without "):
            assert weights == {reward: w for reward, w in whole.items() if reward != name.removeprefix("without ")}


def test_a_tie_is_half_a_win_and_clips_without_a_grade_do_not_count() -> None:
    baseline = {"a": {"panel": 3.0}, "b": {"panel": 3.0}, "c": {"panel": 3.0}, "d": {}}
    ours = {"a": {"panel": 4.0}, "b": {"panel": 3.0}, "c": {"panel": 1.0}, "d": {"panel": 5.0}}
    share = heldout.preference_share([ours], baseline, "panel")
    assert share is not None
    assert (share.mean, share.clips) == (0.5, 3)
    assert heldout.preference_share([ours], baseline, "model") is None


def test_two_checkpoints_of_one_name_and_half_a_pair_are_refused_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="Two checkpoints are called rl: give them names"):
        drawing.named_checkpoints(["rl", "old=runs/old", "runs/rl"])
    options = heldout.HeldoutOptions(tmp_path, tmp_path, tmp_path, against=("rl",))
    with pytest.raises(BadInput, match="names no two systems: write A:B"):
        heldout.heldout(options, Record("heldout", ""))
