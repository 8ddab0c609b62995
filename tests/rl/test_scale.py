"""Several processes give what one gives, on gloo and CPU: noise to the bit, samples and weights but for rounding."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from scipy.io import wavfile
from skimage.data import astronaut

from flowportrait.errors import BadInput
from flowportrait.rl.learner import RankGroups
from flowportrait.training.state import latest_state, read_state
from tests import ROOT
from tests.golden_inputs import speech
from tests.processes import RECIPE, iterate, joined, together, trainer

ROUNDING = 1e-5
SCENARIOS = ("replicated", "sharded", "adapters in shards", "recomputed in shards", "stale")


def worked(folder: Path, *more: str) -> Path:
    done = subprocess.run(
        [sys.executable, "-m", "tests.processes", str(folder), *more], capture_output=True, text=True, check=False,
        cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What ``tests.processes`` found."""
    return worked(tmp_path_factory.mktemp("processes"))


def found(folder: Path, name: str) -> Any:
    return torch.load(folder / f"{name}.pt", weights_only=False)


def apart(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    """Largest relative difference of two sets of weights, each tensor by its norm."""
    assert a.keys() == b.keys()
    return max(float((a[name] - b[name]).norm() / b[name].norm().clamp_min(1e-12)) for name in a)


def moved(own: Any) -> float:
    return apart(own["weights"]["live"], own["weights"]["ref"])


def test_two_replicas_take_the_step_of_one(tmp_path: Path) -> None:
    """The quick one: forked from here."""
    recipe = replace(RECIPE, frames=16, updates=1)
    joined(together(lambda _: torch.save(iterate(trainer(recipe), 1), tmp_path / f"{os.environ['RANK']}.pt")))
    one, two = iterate(trainer(recipe), 1), [found(tmp_path, str(rank)) for rank in range(2)]
    assert not two[0]["samples"].keys() & two[1]["samples"].keys()
    both = two[0]["samples"] | two[1]["samples"]
    assert all(torch.equal(both[sample][0], noise) for sample, (noise, _) in one["samples"].items())
    assert moved(one) > 100 * ROUNDING
    for own in two:
        assert apart(own["weights"]["live"], one["weights"]["live"]) < ROUNDING


@pytest.mark.slow
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_two_processes_draw_the_noise_and_the_samples_of_one(folder: Path, scenario: str) -> None:
    one, two = found(folder, "one")[scenario], [found(folder, f"two{rank}")[scenario] for rank in range(2)]
    assert not two[0]["samples"].keys() & two[1]["samples"].keys()
    both = two[0]["samples"] | two[1]["samples"]
    assert both.keys() == one["samples"].keys()
    for sample, (noise, latents) in one["samples"].items():
        assert torch.equal(both[sample][0], noise)
        assert (both[sample][1] - latents).norm() < ROUNDING * latents.norm()


@pytest.mark.slow
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_two_processes_learn_the_weights_of_one(folder: Path, scenario: str) -> None:
    one, two = found(folder, "one")[scenario], [found(folder, f"two{rank}")[scenario] for rank in range(2)]
    assert one["updates"] == two[0]["updates"] > 0
    assert moved(one) > 100 * ROUNDING
    for role, weights in one["weights"].items():
        assert apart(two[0]["weights"][role], weights) < ROUNDING
        assert apart(two[0]["weights"][role], two[1]["weights"][role]) == 0.0


@pytest.mark.slow
def test_two_processes_report_what_one_reports(folder: Path) -> None:
    one, two = (found(folder, name)["replicated"]["records"][-1] for name in ("one", "two0"))
    for key in ("reward/lift", "spread/lift", "grad_norm", "kl", "loss/policy", "ratio/mean"):
        assert two[key] == pytest.approx(one[key], rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sharded", "adapters", "stale"])
def test_the_delivered_checkpoint_is_the_same_and_whole(folder: Path, name: str) -> None:
    one, two = (load_file(folder / count / name / "checkpoint" / "model.safetensors") for count in ("one", "two"))
    assert {key: value.shape for key, value in one.items()} == {key: value.shape for key, value in two.items()}
    assert all(torch.allclose(one[key].float(), two[key].float(), atol=1e-3) for key in one)


@pytest.mark.slow
def test_states_in_shards_come_from_every_process(folder: Path) -> None:
    assert len(list((folder / "two" / "sharded" / "000002" / "weights").iterdir())) == 2
    assert len(list((folder / "one" / "sharded" / "000002" / "weights").iterdir())) == 1
    assert len(list((folder / "two" / "stale" / "000003" / "processes").iterdir())) == 2


@pytest.mark.slow
def test_what_two_left_one_goes_on_with_and_the_other_way_round(folder: Path) -> None:
    """After resuming, each is where the other would be."""
    one, two = found(folder, "resumed-one"), found(folder, "resumed-two0")
    for scenario, own in one.items():
        other = two[scenario]
        assert own["iteration"] == other["iteration"]
        assert own["updates"] == other["updates"]
        for role, weights in own["weights"].items():
            assert apart(other["weights"][role], weights) < 2 * ROUNDING
    assert apart(one["sharded"]["weights"]["live"], one["sharded, then replicated"]["weights"]["live"]) < ROUNDING


@pytest.mark.slow
def test_what_is_not_numbers_on_one_process_is_skipped_by_both(folder: Path) -> None:
    for rank in range(2):
        own = found(folder, f"two{rank}")["poisoned"]
        assert own["record"]["skipped"] == 1.0
        assert own["untouched"]
        assert own["then"]["skipped"] == 0.0
        assert own["then"]["grad_norm"] > 0


@pytest.mark.slow
def test_a_reward_that_one_process_cannot_reach_costs_its_samples_and_no_more(folder: Path) -> None:
    two = [found(folder, f"two{rank}")["deaf"] for rank in range(2)]
    assert two[0]["records"] == two[1]["records"]
    assert two[0]["records"][0]["invalid/lift"] == 0.5
    assert two[0]["updates"] == 2


@pytest.mark.slow
def test_slow_full_or_told_to_stop_one_process_takes_the_other_along(folder: Path) -> None:
    two = [found(folder, f"two{rank}")["troubled"] for rank in range(2)]
    assert [own["iteration"] for own in two] == [3, 3]
    assert [own["ended"] for own in two] == ["", "exit 143"]
    lines = [json.loads(line) for line in (folder / "two" / "troubled" / "events.jsonl").read_text().splitlines()]
    said = [line["event"] for line in lines]
    assert said == ["started", "not saved", "saved again", "slow process", "ended"]
    assert "No space left on device" in lines[1]["detail"]
    assert lines[3]["detail"].startswith("process 1 takes")
    assert [path.name for path in (folder / "two" / "troubled" / "state").iterdir()] == ["000003"]


@pytest.mark.slow
def test_every_recipe_has_the_gradient_of_one_process_on_two(tmp_path: Path) -> None:
    worked(tmp_path, "--recipes")
    one, two = found(tmp_path, "recipes-one"), [found(tmp_path, f"recipes-two{rank}") for rank in range(2)]
    for name, alone in one.items():
        both = two[0][name]["samples"] | two[1][name]["samples"]
        assert both.keys() == alone["samples"].keys()
        for sample, (_, latents) in alone["samples"].items():
            assert (both[sample][1] - latents).norm() < ROUNDING * latents.norm(), name
        gap = (two[0][name]["gradient"] - alone["gradient"]).norm() / alone["gradient"].norm()
        # KVPO's terms all but cancel, so that what is left of them is rounded more coarsely.
        assert gap < (1e-3 if name == "kvpo" else ROUNDING), name


@pytest.mark.slow
def test_launched_by_accelerate_in_shards_and_terminated_it_is_saved_whole(tmp_path: Path) -> None:
    launcher = subprocess.Popen(
        [sys.executable, "-m", "accelerate.commands.launch", "--use_fsdp", "--fsdp_version", "2",
         "--num_processes", "2", "--num_machines", "1", "--mixed_precision", "bf16", "--dynamo_backend", "no",
         "--main_process_port", "0", "-m", "tests.processes", str(tmp_path), "--loop"],
        cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    metrics, until = tmp_path / "metrics.jsonl", time.monotonic() + 240
    while not metrics.exists() and launcher.poll() is None and time.monotonic() < until:
        time.sleep(0.1)
    launcher.terminate()
    assert launcher.wait(60) != 0
    iterations = len(metrics.read_text().splitlines())
    state = latest_state(tmp_path / "state")
    assert state == tmp_path / "state" / f"{iterations:06d}"
    assert len(list((state / "weights").iterdir())) == 2
    run = trainer()
    read_state(run, tmp_path / "state")
    assert run.iteration == iterations


class Two:
    num_processes, process_index = 2, 1


def test_groups_that_cannot_be_dealt_out_are_bad_input() -> None:
    assert RankGroups.of(Two(), 6).groups.tolist() == [3, 4, 5]
    with pytest.raises(BadInput, match="choose a multiple"):
        RankGroups.of(Two(), 5)
    with pytest.raises(BadInput, match="multiple of 4"):
        RankGroups.of(Two(), 6, parts=2)


@pytest.mark.slow
def test_two_processes_of_a_launcher_end_by_themselves(tmp_path: Path) -> None:
    """A process group that was destroyed before its networks were freed kept every second run from ending."""
    Image.fromarray(astronaut()).save(tmp_path / "face.png")
    wavfile.write(tmp_path / "speech.wav", 16_000, (9000 * speech(2.0)).astype(np.int16))
    for attempt in range(4):
        output, small = tmp_path / f"run{attempt}", ["groups=2", "group_size=2", "frames=24", "updates=1"]
        words = ["posttrain", "--prompts", str(tmp_path), "--recipe", "nft-regions", "--iterations", "1"]
        words += ["--output", str(output), "--set", *small]
        launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone"]
        program = subprocess.Popen(
            [*launcher, "-m", "flowportrait.cli", *words], cwd=ROOT, start_new_session=True,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        try:
            assert program.wait(timeout=180) == 0
        finally:
            with suppress(ProcessLookupError):
                os.killpg(program.pid, signal.SIGKILL)
        assert (output / "checkpoint" / "model.safetensors").is_file()
