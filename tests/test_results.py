"""What the results page may claim: gaps, seeds, and a page that is what its figures say."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import contestants
import controls
import figures
import pytest
import results
import shipped
import torch
from hypothesis import given
from hypothesis import strategies as st

from flowportrait.checkpoints import checkpoint_folder, load_generator
from flowportrait.config import override
from flowportrait.generator.sample import generate_motion
from flowportrait.posttrain.recipes import named, read_recipe

ROOT = Path(__file__).parents[1]
NUMBER = st.floats(-10, 10)


@given(NUMBER, NUMBER)
def test_reaching_real_motion_closes_the_gap_and_standing_still_closes_nothing(before: float, real: float) -> None:
    if abs(real - before) > 0.02 * abs(real):
        assert figures.gap_closed(before, real, real) == 1
        assert figures.gap_closed(before, before, real) == 0
    else:
        assert figures.gap_closed(before, real, real) is None


def test_going_past_real_motion_is_distance_again() -> None:
    assert figures.gap_closed(1.0, 4.0, 3.0) == pytest.approx(0.5)
    assert figures.gap_closed(1.0, 5.0, 3.0) == pytest.approx(0.0)
    assert figures.gap_closed(1.0, 6.0, 3.0) == pytest.approx(-0.5)


def test_three_seeds_of_the_same_clips_do_not_pass_for_three_times_the_clips(tmp_path: Path) -> None:
    def put(name: str, seed: int, shift: float) -> None:
        rows = {f"c{i}": {"ecs": 0.1 * i + shift, "identity_kept": 0.9} for i in range(5)}
        path = tmp_path / name.replace(" ", "_") / str(seed) / "rows.json"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(rows))

    for seed, wobble in enumerate((-0.01, 0.0, 0.01)):
        put("sft", seed, wobble)
        put("nft", seed, 0.1 + wobble)
    found = figures.table(tmp_path, ("sft", "nft"))
    own = found["nft"]["figures"]["ecs"]
    assert (found["nft"]["seeds"], found["nft"]["clips"]) == (3, 5)
    assert own["change"] == pytest.approx(0.5)
    assert own["p"] is None, "five clips are too few to test, however many seeds"
    assert own["over_seeds"] == pytest.approx(4.303 * 0.01 / 3**0.5, rel=1e-3)
    assert "p" not in found["nft"]["figures"]["identity_kept"]


def test_every_contestant_is_a_recipe_that_exists() -> None:
    for name, contestant in contestants.CONTESTANTS.items():
        recipe = override(named(contestant.recipe), [*contestants.SMALL, *contestant.settings])
        assert recipe.group_size == 8, name
    known = {*contestants.CONTESTANTS, *contestants.CONTROLS, *contestants.PARTS, *contestants.PAID}
    assert {name for names in contestants.STUDIES.values() for name in names} <= known


def test_sampling_otherwise_leaves_the_model_as_it_was() -> None:
    model = load_generator("sft")
    mel = torch.randn(2, 32, 80)
    as_delivered = generate_motion(model, mel, [0, 1])
    own = controls.Sampling(model.config.guidance, model.config.steps)
    assert torch.equal(generate_motion(controls.sampled(model, own), mel, [0, 1]), as_delivered)
    cold = controls.sampled(model, replace(own, temperature=0.5))
    assert not torch.equal(generate_motion(cold, mel, [0, 1]), as_delivered)
    assert torch.equal(generate_motion(model, mel, [0, 1]), as_delivered)


def test_the_page_in_the_repository_is_what_its_figures_say() -> None:
    found = json.loads((ROOT / "docs" / "results" / "figures.json").read_text())
    template = (ROOT / "docs" / "results" / "template.md").read_text()
    assert results.page(found, template) == (ROOT / "docs" / "results.md").read_text()


def test_a_table_that_was_not_measured_cannot_be_shown() -> None:
    with pytest.raises(KeyError):
        results.page({"studies": {}}, "{{study recipes}}")


def test_what_is_left_out_of_the_shipped_recipe_is_not_paid_and_chance_is_paid_as_much() -> None:
    recipe = read_recipe(checkpoint_folder("rl") / "recipe.json")
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
