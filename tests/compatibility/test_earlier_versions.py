"""Runs, states, recipes and manifests that FlowPortrait 0.1 wrote go on as they began.

``tests/data/v0.1`` was written by version 0.1: two runs of four iterations that were killed in the third one, and what
the same runs gave when nothing stopped them. ``trainer`` below repeats how they were set up; its numbers come from
arithmetic and not from a library's generator.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from flowportrait.adapters.policy import Item as Request
from flowportrait.config import save, to_dict, upgrade_keys
from flowportrait.data.prompts import Prompt
from flowportrait.errors import BadInput
from flowportrait.files import shipped_weights
from flowportrait.models.arflow import ARFlow
from flowportrait.rewards.registry import CompositeReward
from flowportrait.rl.allocation import Allocation
from flowportrait.rl.config import PostTrainConfig, Recipe
from flowportrait.rl.doctor import current_metrics
from flowportrait.rl.loop import TrainingLoop
from flowportrait.rl.manifest import describe_checkpoint, describe_run, flatten_settings, write_or_compare_manifest
from flowportrait.rl.plan import OdePlan
from flowportrait.rl.recipes import find_recipe
from flowportrait.rl.task import SpeechItem, TalkingTask
from flowportrait.rl.trainer import Trainer
from flowportrait.training.state import latest_state, read_state
from tests import TESTS
from tests.models.test_generator import TINY
from tests.rl.test_posttrain import Lift

WRITTEN = TESTS / "data" / "v0.1"
SMALLEST = replace(TINY, hidden=16, heads=1, audio_width=4, head_width=8, layers=1)
RUNS = ("flow-grpo", "nft")


def numbers(*shape: int, seed: int) -> torch.Tensor:
    """Numbers between −1 and 1, evenly spread."""
    place = torch.arange(torch.Size(shape).numel(), dtype=torch.float64) + 1
    return (2 * ((place * 0.6180339887498949 + 0.37 * seed) % 1) - 1).float().reshape(shape)


def trainer(recipe: Recipe) -> Trainer:
    policy = ARFlow(SMALLEST)
    for number, parameter in enumerate(policy.parameters()):
        parameter.data = (0.2 if parameter.requires_grad else 0.05) * numbers(*parameter.shape, seed=number)
    items = [SpeechItem(numbers(80, 80, seed=i), 0) for i in range(3)]
    task = TalkingTask(items, recipe.frames, None, SMALLEST.chunk)
    return Trainer(policy, task, recipe, CompositeReward((Lift(),), {"lift": 1.0}))


def resumed(name: str, folder: Path, recipe: Recipe) -> Trainer:
    """The killed run, gone on with to its end in ``folder``."""
    shutil.copytree(WRITTEN / name, folder)
    run = trainer(recipe)
    read_state(run, folder / "state")
    save(run.recipe, folder / "recipe.json")
    TrainingLoop(run, folder).run()
    return run


def records(path: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("by", ["its folder", "the recipe's name"])
@pytest.mark.parametrize("name", RUNS)
def test_a_run_of_version_0_1_ends_where_it_would_have_ended_uninterrupted(name: str, by: str, tmp_path: Path) -> None:
    old = PostTrainConfig.from_json(WRITTEN / name / "recipe.json")
    run = resumed(
        name, tmp_path / "run", old if by == "its folder" else replace(old, version=find_recipe(name).version)
    )
    expected = load_file(WRITTEN / name / "uninterrupted.safetensors")
    live, start = run.roles.state_dict()["live"], run.roles.state_dict()["ref"]
    assert live.keys() == expected.keys()
    for key, value in expected.items():
        assert (live[key] - value).norm() <= 1e-3 * (value - start[key]).norm() + 1e-7, key
    for found, known in zip(
        records(tmp_path / "run" / "metrics.jsonl"), records(WRITTEN / name / "uninterrupted.jsonl"), strict=True
    ):
        found, known = current_metrics(found), current_metrics(known)
        assert {key: found[key] for key in known} == pytest.approx(known, rel=1e-3, abs=1e-4)
    assert json.loads((tmp_path / "run" / "recipe.json").read_text())["version"] == 1
    state = latest_state(tmp_path / "run" / "state")
    assert state is not None
    assert json.loads((state / "progress.json").read_text())["recipe"]["version"] == 1


@pytest.mark.parametrize("name", RUNS)
def test_a_new_run_of_that_recipe_has_other_noise_and_another_first_step(name: str) -> None:
    """Otherwise the test above would hold whatever version a run resumes with."""
    old = PostTrainConfig.from_json(WRITTEN / name / "recipe.json")
    points, steps = [], []
    for version in (1, 2):
        run = trainer(replace(old, version=version, staleness=0))
        trajectory = run.collect().trajectory
        points.append(old.objective.points(trajectory, run.noise_key).x)
        steps.append(run.kernel(torch.tensor(1.0), torch.tensor(2 / 3)).s)
    assert not torch.allclose(*points, atol=1e-2)
    assert steps[0] / steps[1] == pytest.approx((2 / 3) ** 0.5)


def test_a_recipe_without_a_version_is_of_version_1_and_new_ones_are_not() -> None:
    old = PostTrainConfig.from_json(WRITTEN / "nft" / "recipe.json")
    assert (old.version, find_recipe("nft").version) == (1, 2)
    assert isinstance(old.plan, OdePlan)
    written = json.loads((WRITTEN / "nft" / "recipe.json").read_text())
    today = to_dict(old)
    before, after = flatten_settings({**upgrade_keys(old, written), "name": "nft"}), flatten_settings(today)
    assert before.items() <= after.items()
    # Settings inside a part that came later have no effect: a text, and folders, that only later rewards read.
    added = {name: value for name, value in after.items() if name not in before and name.startswith("rewards.")}
    assert added == {"rewards.options.text": "None"}
    assert (today["rollout_chunks"], today["staleness"]) == (written["pieces"], written["stale"])
    assert (today["exploration"], today["offline_data"]) == (written["explore"], written["given"])
    assert today["objective"]["kl_weight"] == written["objective"]["reference"]
    assert today["old"]["max_decay"] == written["old"]["most"]
    assert (written["credit"]["when"], today["credit"]["aggregation"]) == ("apart", "normalize_then_sum")
    assert today["credit"]["baseline_scope"] == written["credit"]["among"]


def test_the_recipe_of_the_shipped_weights_repeats_what_they_were_trained_with() -> None:
    shipped = PostTrainConfig.from_json(shipped_weights("rl/recipe.json"))
    assert (shipped.name, shipped.version) == ("nft-regions", 1)
    weights = {}
    for recipe in (shipped, find_recipe("nft-regions")):
        allocation = Allocation(regions={"lift": "mouth"})
        small = replace(recipe, plan=OdePlan(steps=3), frames=16, groups=2, group_size=3, allocation=allocation)
        run = trainer(small)
        batch = run.collect()
        advantage = run.credit(batch)[0]
        share = [float(advantage.average(torch.eye(3)[region].reshape(1, 1, 1, 3))) for region in range(3)]
        weights[recipe.version] = share
    assert weights[1] == pytest.approx([1 / 3] * 3)
    assert weights[2] == pytest.approx([16 / 30, 8 / 30, 6 / 30])


def write_prompts(folder: Path) -> list[Prompt]:
    """The prompts of the manifest: two people's recordings of one name, and one portrait."""
    for person in ("a", "b"):
        (folder / person).mkdir(parents=True, exist_ok=True)
        (folder / person / "0.wav").write_bytes(f"speech of {person}".encode())
    (folder / "me.png").write_bytes(b"a portrait")
    return [Prompt(f"{person}-0", folder / "me.png", folder / person / "0.wav") for person in ("a", "b")]


def new_manifest(folder: Path, **more: Any) -> dict[str, Any]:
    """What a run on these prompts is made of, from the weights that the old manifest names."""
    old = json.loads((WRITTEN / "run.json").read_text())
    return (
        describe_run(describe_checkpoint("sft"), write_prompts(folder), 3)
        | {"start": old["start"], "packages": old["packages"]}
        | more
    )


def test_a_manifest_of_version_0_1_is_compared_by_what_it_holds_and_then_replaced(tmp_path: Path) -> None:
    shutil.copy(WRITTEN / "run.json", tmp_path / "run.json")
    assert write_or_compare_manifest(tmp_path / "run.json", new_manifest(tmp_path / "prompts")) == []
    now = json.loads((tmp_path / "run.json").read_text())
    assert set(now["files"]) == {"a/0.wav", "b/0.wav", "me.png"}
    assert now["prompts"]["b-0"] == ["me.png", "b/0.wav"]
    shutil.copy(WRITTEN / "run.json", tmp_path / "run.json")
    current = new_manifest(tmp_path / "prompts")
    current["files"]["b/0.wav"] = "0" * 64
    with pytest.raises(BadInput, match=r"another set of prompts or clips \(0\.wav is not as it was\)"):
        write_or_compare_manifest(tmp_path / "run.json", current)


@pytest.mark.parametrize("person", ["a", "b"])
def test_a_changed_recording_is_noticed_although_another_has_its_name(person: str, tmp_path: Path) -> None:
    prompts = write_prompts(tmp_path / "prompts")
    write_or_compare_manifest(tmp_path / "run.json", describe_run(describe_checkpoint("sft"), prompts, 3))
    shutil.copytree(tmp_path / "prompts", tmp_path / "moved")
    assert (
        write_or_compare_manifest(
            tmp_path / "run.json", describe_run(describe_checkpoint("sft"), write_prompts(tmp_path / "moved"), 3)
        )
        == []
    )
    (tmp_path / "prompts" / person / "0.wav").write_bytes(b"other speech")
    with pytest.raises(BadInput, match=rf"set of prompts or clips \({person}/0\.wav is not as it was\)"):
        write_or_compare_manifest(tmp_path / "run.json", describe_run(describe_checkpoint("sft"), prompts, 3))


def test_the_manifest_of_another_generators_run_tells_files_of_one_name_apart(tmp_path: Path) -> None:
    items = [Request(prompt.id, "hello", prompt.image, prompt.audio) for prompt in write_prompts(tmp_path)]
    write_or_compare_manifest(tmp_path / "run.json", describe_run({}, items, 0))
    assert write_or_compare_manifest(tmp_path / "run.json", describe_run({}, items, 0)) == []
    (tmp_path / "a" / "0.wav").write_bytes(b"other speech")
    with pytest.raises(BadInput, match=r"a/0\.wav is not as it was"):
        write_or_compare_manifest(tmp_path / "run.json", describe_run({}, items, 0))
    before = {"prompts": {item.id: item.text for item in items}, "seed": 0, "start": {}, "packages": {},
              "files": json.loads((WRITTEN / "run.json").read_text())["files"]}  # fmt: skip
    (tmp_path / "run.json").write_text(json.dumps(before))
    write_prompts(tmp_path)
    write_or_compare_manifest(tmp_path / "run.json", describe_run({}, items, 0))
