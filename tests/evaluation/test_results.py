"""What the results page may claim: gaps, seeds, and a page that is what its figures say."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import contestants
import controls
import figures
import over_runs
import pytest
import results
import shipped
import tables
import torch
from hypothesis import given
from hypothesis import strategies as st

from flowportrait.config import override
from flowportrait.evaluation.metrics import MetricRow
from flowportrait.models.arflow import checkpoint_folder, load_generator
from flowportrait.models.sampler import sample_from_mel
from flowportrait.rewards.registry import RewardWeights
from flowportrait.rl.config import PostTrainConfig
from flowportrait.rl.recipes import find_recipe
from tests import ROOT

NUMBER = st.floats(-10, 10)


@given(NUMBER, NUMBER)
def test_reaching_real_motion_closes_the_gap_and_standing_still_closes_nothing(before: float, real: float) -> None:
    if abs(real - before) > 0.02 * abs(real):
        assert over_runs.gap_closed(before, real, real) == 1
        assert over_runs.gap_closed(before, before, real) == 0
    else:
        assert over_runs.gap_closed(before, real, real) is None


def test_going_past_real_motion_is_distance_again() -> None:
    assert over_runs.gap_closed(1.0, 4.0, 3.0) == pytest.approx(0.5)
    assert over_runs.gap_closed(1.0, 5.0, 3.0) == pytest.approx(0.0)
    assert over_runs.gap_closed(1.0, 6.0, 3.0) == pytest.approx(-0.5)


def put(runs: Path, name: str, seed: int, shift: float) -> None:
    """A run's figures of eight clips that differ by more than it shifts them."""
    rows = {f"c{i}": {"ecs": 0.1 * i + shift * (1 + 0.1 * i), "identity_kept": 0.9} for i in range(8)}
    path = runs / name.replace(" ", "_") / str(seed) / "rows.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(rows))


def test_three_seeds_of_the_same_clips_do_not_pass_for_three_times_the_clips(tmp_path: Path) -> None:
    put(tmp_path, "sft", 0, 0.0)
    for seed in range(3):
        put(tmp_path, "nft", seed, 0.1)
    put(tmp_path, "awm", 0, 0.1)
    found = figures.table(tmp_path, ("sft", "nft", "awm"))
    thrice, once = (found[name]["figures"]["ecs"] for name in ("nft", "awm"))
    assert (found["nft"]["seeds"], found["nft"]["clips"]) == (3, 8)
    assert thrice["gap"] == pytest.approx(once["gap"])
    assert thrice["p"] == once["p"], "eight clips, however many seeds"
    width, alone = (entry["gap_high"] - entry["gap_low"] for entry in (thrice, once))
    assert width == pytest.approx(alone, rel=0.1)
    assert found["nft"]["figures"]["identity_kept"]["p"] is None


def test_runs_that_disagree_widen_the_interval_until_nothing_is_claimed(tmp_path: Path) -> None:
    put(tmp_path, "sft", 0, 0.0)
    for seed, wobble in enumerate((-0.3, 0.0, 0.6)):
        put(tmp_path, "nft", seed, 0.1)
        put(tmp_path, "awm", seed, 0.1 + wobble)
    found = figures.table(tmp_path, ("sft", "nft", "awm"))
    entry = found["awm"]["figures"]["ecs"]
    assert entry["gap_low"] < 0 < entry["gap"] < entry["gap_high"]
    lines = tables.study_table(found).splitlines()
    assert "*" in next(line for line in lines if line.startswith("| nft"))
    assert "*" not in next(line for line in lines if line.startswith("| awm"))


def test_a_gap_that_every_clip_and_run_closes_is_closed_without_doubt() -> None:
    start: dict[str, MetricRow] = {f"c{i}": {"ecs": 0.1 * i} for i in range(8)}
    real: dict[str, MetricRow] = {f"c{i}": {"ecs": 0.1 * i + 1} for i in range(8)}
    pairs = over_runs.paired([real, real, real], [start], "ecs")
    assert pairs is not None
    found = over_runs.closed(pairs, real, "ecs")
    assert (found["closed"], found["closed_low"], found["closed_high"]) == pytest.approx((1, 1, 1))


def test_a_mean_of_runs_is_held_against_them_and_runs_against_those_of_the_same_seed(tmp_path: Path) -> None:
    gains = {"sft": 0.0, "rl": 0.2, "rl_0": 0.0, "rl_1": 0.1, "rl_2": 0.5} | {
        f"paid_at_random_{seed}": gain for seed, gain in enumerate((-0.1, 0.0, 0.4))
    }
    clips = {name: {f"c{i}": {"ecs": 0.1 * i + gain} for i in range(8)} for name, gain in gains.items()}
    whole = {name: {key: {"mean": 0.5 + gain} for key in over_runs.POOLED} for name, gain in gains.items()}
    (tmp_path / "voices").mkdir()
    (tmp_path / "voices" / "metrics.json").write_text(json.dumps({"clips": clips, "metrics": whole}))
    found = over_runs.headline_runs(tmp_path)["voices"]
    assert found[over_runs.RUNS]["ecs"]["gap"] == pytest.approx(0.2)
    assert found[over_runs.RUNS]["ecs"]["gap_low"] < 0.05 < found["rl"]["ecs"]["gap_low"], "the mean is one"
    assert found[over_runs.OWN_RUNS]["ecs"]["gap"] == pytest.approx(0)
    beyond = found["runs against paid at random"]["ecs"]
    assert (beyond["gap_low"], beyond["gap_high"]) == pytest.approx((0.1, 0.1)), "seed by seed"
    assert over_runs.CHANCE_MEAN not in found, "not measured"
    assert "| ECS ↑ |" in tables.runs_table(found)
    assert "paid at random" in tables.controls_table(found).splitlines()[0]


def test_what_is_watched_is_compared_performance_by_performance(tmp_path: Path) -> None:
    for name, gain in (("sft", 0.0), ("nft", 0.02), ("awm", -0.02)):
        folder = tmp_path / name / "0"
        folder.mkdir(parents=True)
        watched = {key: [0.1 * i + gain for i in range(16)] for key in RewardWeights().by_name()}
        (folder / "held.json").write_text(json.dumps(watched))
        (folder / "curve.jsonl").write_text(json.dumps({"iteration": 7}) + "\n")
    found = figures.held(tmp_path, ("sft", "nft", "awm"))
    assert found["nft"]["iterations"] == 7
    assert found["nft"]["rewards"]["sync"]["gap"] == pytest.approx(0.02)
    spread = sum((0.1 * i - 0.75) ** 2 for i in range(16)) / 16
    assert found["nft"]["rewards"]["composite"]["gap"] == pytest.approx(0.02 / spread**0.5), "weights add to one"
    assert "-0.020*" in tables.held_table(found), "the same loss sixteen times is one"


def test_every_contestant_is_a_recipe_that_exists() -> None:
    for name, contestant in contestants.CONTESTANTS.items():
        recipe = override(find_recipe(contestant.recipe), [*contestants.SMALL, *contestant.settings])
        assert recipe.group_size == 8, name
    known = {*contestants.CONTESTANTS, *contestants.CONTROLS, *contestants.PARTS, *contestants.PAID}
    assert {name for names in contestants.STUDIES.values() for name in names} <= known


def test_sampling_otherwise_leaves_the_model_as_it_was() -> None:
    model = load_generator("sft")
    mel = torch.randn(2, 32, 80)
    as_delivered = sample_from_mel(model, mel, [0, 1])
    own = controls.Sampling(model.config.guidance, model.config.steps)
    assert torch.equal(sample_from_mel(controls.sampled(model, own), mel, [0, 1]), as_delivered)
    cold = controls.sampled(model, replace(own, temperature=0.5))
    assert not torch.equal(sample_from_mel(cold, mel, [0, 1]), as_delivered)
    assert torch.equal(sample_from_mel(model, mel, [0, 1]), as_delivered)


def test_the_page_in_the_repository_is_what_its_figures_say() -> None:
    found = json.loads((ROOT / "docs" / "results" / "figures.json").read_text())
    template = (ROOT / "docs" / "results" / "template.md").read_text()
    assert results.page(found, template) == (ROOT / "docs" / "results.md").read_text()


def test_a_table_that_was_not_measured_cannot_be_shown() -> None:
    with pytest.raises(KeyError):
        results.page({"studies": {}}, "{{study recipes}}")


def test_what_is_left_out_of_the_shipped_recipe_is_not_paid_and_chance_is_paid_as_much() -> None:
    recipe = PostTrainConfig.from_json(checkpoint_folder("rl") / "recipe.json")
    whole = recipe.rewards.by_name()
    for name in contestants.PAID:
        found = shipped.paid(recipe, name)
        weights = found.rewards.by_name()
        assert set(found.allocation.regions) == set(weights), name
        if name == "paid at random":
            assert sum(weights.values()) == pytest.approx(sum(whole.values()))
            assert set(found.allocation.regions.values()) == set(recipe.allocation.regions.values())
        elif name.startswith("without "):
            assert weights == {reward: w for reward, w in whole.items() if reward != name.removeprefix("without ")}
