"""The random-reward control of a run is found beside it, and a command that makes it is given where it is missing."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace
from pathlib import Path

import pytest

from flowportrait.cli import main, read_command
from flowportrait.commands.evaluate import controlled_systems
from flowportrait.config import save
from flowportrait.errors import BadInput
from flowportrait.models.checkpoints import checkpoint_folder
from flowportrait.rewards.random import CHANCE
from flowportrait.rewards.registry import RewardWeights
from flowportrait.rl.config import PostTrainConfig
from flowportrait.rl.control import control_command, find_control, has_random_rewards, require_control

CONFIG = PostTrainConfig.from_recipe("nft-regions", iterations=40)
START = {"name": "sft", "sha256": "0"}


def write_run(folder: Path, config: PostTrainConfig, start: dict[str, str] = START, **inputs: object) -> Path:
    folder.mkdir(parents=True)
    save(config, folder / "recipe.json")
    manifest = {"start": start, "prompts": {"a": ["a.png", "a.wav"]}, "files": {"a.wav": "1"}, "inputs": inputs}
    (folder / "run.json").write_text(json.dumps(manifest))
    (folder / "metrics.jsonl").write_text(json.dumps({"iteration": 1, "grad_norm": 1.0}) + "\n")
    return folder


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "runs" / "mine", CONFIG, prompts="my photos", held_out="kept")


def test_the_control_beside_a_run_is_found_under_any_name(run: Path) -> None:
    assert find_control(run) is None
    control = write_run(run.parent / "other name", CONFIG.with_random_rewards())
    assert find_control(run) == control
    assert has_random_rewards(control)
    assert not has_random_rewards(run)


@pytest.mark.parametrize("change", ["iterations", "seed", "start", "real rewards"])
def test_a_run_that_differs_in_more_than_its_rewards_is_no_control(run: Path, change: str) -> None:
    control, start = CONFIG.with_random_rewards(), START
    if change == "iterations":
        control = replace(control, iterations=41)
    elif change == "seed":
        control = replace(control, seed=1)
    elif change == "start":
        start = {"name": "rl", "sha256": "1"}
    else:
        control = replace(control, rewards=RewardWeights.only({CHANCE: 1.0, "sync": 0.1}))
    write_run(run.parent / "other", control, start)
    assert find_control(run) is None


def test_a_control_of_version_0_3_is_found(run: Path) -> None:
    earlier = replace(CONFIG.with_random_rewards(), rewards=RewardWeights.only({"random_mouth": 1.0, "random": 0.5}))
    assert write_run(run.parent / "earlier", earlier) == find_control(run)


def test_the_command_that_makes_the_control_is_one_that_the_program_takes(run: Path) -> None:
    with pytest.raises(BadInput, match="There is no random-reward control beside") as refused:
        require_control(run)
    line = control_command(run)
    assert str(refused.value).endswith(line)
    _, options = read_command(shlex.split(line)[1:])
    assert (options.recipe, options.random_rewards) == (str(run), True)
    assert (options.prompts, options.held_out, options.start) == (Path("my photos"), Path("kept"), "sft")
    assert options.output == run.parent / "mine-chance"


def test_the_command_repeats_start_pairs_and_policy(tmp_path: Path) -> None:
    pairs = write_run(tmp_path / "a", CONFIG, {"name": "runs/old", "sha256": "1"}, pairs=["p.jsonl"])
    _, options = read_command(shlex.split(control_command(pairs))[1:])
    assert (options.start, options.pairs, options.prompts) == ("runs/old", (Path("p.jsonl"),), None)
    policy = write_run(tmp_path / "b", CONFIG, {"name": "my:Gen", "fingerprint": "1"}, policy_set=["height=64"])
    _, options = read_command(shlex.split(control_command(policy))[1:])
    assert (options.policy, tuple(options.policy_set), options.prompts) == ("my:Gen", ("height=64",), Path("PROMPTS"))


def test_evaluate_against_chance_takes_start_and_control_and_says_what_is_missing(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "kept").mkdir()
    words = ["evaluate", "--checkpoint", str(run), "--prompts", str(tmp_path / "kept"), "--output", str(tmp_path / "o")]
    assert main([*words, "--against", "chance"]) == 2
    assert control_command(run) in capsys.readouterr().err
    control = write_run(run.parent / "mine-chance", CONFIG.with_random_rewards())
    for folder in (run, control):
        (folder / "model.safetensors").write_bytes((checkpoint_folder("sft") / "model.safetensors").read_bytes()[:9])
    expected = {"sft": "sft", "chance": str(control), "mine": str(run)}
    assert controlled_systems(str(run), "chance") == expected
    assert controlled_systems(str(run), str(control)) == expected
    assert list(controlled_systems(str(run), "chance")) == ["sft", "chance", "mine"]
    with pytest.raises(BadInput, match="itself trained with random rewards"):
        controlled_systems(str(control), "chance")
    with pytest.raises(BadInput, match="not trained with random rewards"):
        controlled_systems(str(run), str(run))
    with pytest.raises(BadInput, match="neither 'chance' nor the folder of a run"):
        controlled_systems(str(run), "nobody")
