"""Claims about supervised training, on a tiny generator and made-up clips."""

from __future__ import annotations

import copy
import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Container, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file

from flowportrait.config import load
from flowportrait.data.motion_dataset import MotionClip, WindowSampler
from flowportrait.data.prompts import Prompt
from flowportrait.errors import BadInput
from flowportrait.models.arflow import ARFlow, load_generator
from flowportrait.models.backbone import GeneratorConfig
from flowportrait.models.flow_matching import DrawBatch, FlowMatchingLearner, learning_rate_factor
from flowportrait.models.pretrain import PretrainConfig, pretrain
from flowportrait.models.training_clips import save_clips
from flowportrait.training.optimize import MAX_SKIPPED_STEPS, minimize
from flowportrait.training.state import latest_state, read_full_weights
from tests import ROOT, TESTS

TINY = GeneratorConfig(
    hidden=32, layers=1, heads=2, window=4, horizon=6, audio_width=16, head_width=32, head_depth=1, front_end="mel"
)
CONFIG = PretrainConfig(
    generator=TINY, steps=4, batch=4, accumulate=2, windows=(12, 16), lip_steps=2, check_every=2, warmup=2
)


def clips() -> list[MotionClip]:
    generator = torch.Generator().manual_seed(0)
    return [
        MotionClip(f"c{i}", f"s{i % 2}", 0.2 * torch.randn(40, 30, generator=generator).cumsum(0),
                   torch.randn(40, 320, generator=generator).half(), 0.1 * torch.randn(19, generator=generator))
        for i in range(4)
    ]  # fmt: skip


def read_state(output: Path) -> dict[str, Any]:
    """Everything in the last state of a training."""
    state = latest_state(output / "state")
    assert state is not None
    progress = json.loads((state / "progress.json").read_text())
    model, average = (read_full_weights(state, (role, "fixed")) for role in ("live", "ema"))
    moments = [read_full_weights(state, (f"optimizer.{kind}",)) for kind in ("exp_avg", "exp_avg_sq", "step")]
    draws = [load_file(file)["generator"] for file in sorted((state / "processes").iterdir())]
    return {"model": model, "average": average, "optimizer": moments, "draws": draws, "step": progress["iteration"],
            "running": progress["running"]}  # fmt: skip


def train(config: PretrainConfig, output: Path, **more: object) -> dict[str, Any]:
    output.mkdir(exist_ok=True)
    save_clips(output / "heard.pt", clips())
    with pytest.warns(UserWarning, match="overfitting"):
        pretrain(config, output / "no corpus", output, resume=True, **more)  # type: ignore[arg-type]
    return read_state(output)


def same(a: object, b: object) -> bool:
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return isinstance(b, list) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return a == b


def test_stopped_and_resumed_is_the_uninterrupted_run_bit_for_bit(tmp_path: Path) -> None:
    whole = train(CONFIG, tmp_path / "whole", track="tensorboard")
    # The same schedule, ended by hand in the middle: a state is written at every check.
    halfway = tmp_path / "halfway"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("flowportrait.models.pretrain.StopRequest", stopping_after(2))
        train(CONFIG, halfway)
    assert read_state(halfway)["step"] == 2
    # Lines that a run logged before it was killed, without the state that belongs to them.
    with (halfway / "history.jsonl").open("a") as log:
        log.write('{"step": 3, "loss": 9.0}\n{"step": 4, "los')
    resumed = train(CONFIG, halfway)
    assert same(whole, resumed)
    assert not same(whole, train(replace(CONFIG, seed=1), tmp_path / "other"))
    records = [json.loads(line) for line in (halfway / "history.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == [2, 4]
    assert list((tmp_path / "whole").rglob("events.out.tfevents*"))
    model = load_generator(halfway)
    assert model.config == TINY
    card = (halfway / "checkpoint" / "README.md").read_text()
    assert "4 clips of 2 speakers" in card


VERSION_0_1 = TESTS / "data" / "v0.1" / "pretrain"


@pytest.mark.parametrize("earlier", [True, False], ids=["resumed", "anew"])
def test_a_training_of_version_0_1_ends_where_it_would_have_ended_uninterrupted(earlier: bool, tmp_path: Path) -> None:
    shutil.copytree(VERSION_0_1, tmp_path / "run")
    if not earlier:
        (tmp_path / "run" / "state.pt").unlink()
    config = load(PretrainConfig, VERSION_0_1 / "config.json")
    with pytest.warns(UserWarning, match="overfitting"):
        pretrain(config, tmp_path / "no corpus", tmp_path / "run", resume=True)
    state, expected = read_state(tmp_path / "run"), load_file(VERSION_0_1 / "uninterrupted.safetensors")
    old = torch.load(VERSION_0_1 / "state.pt", weights_only=True)
    for key, value in expected.items():
        kind, _, name = key.partition("/")
        moved = (value - old[kind][name]).norm()
        assert (state[kind][name] - value).norm() <= 1e-3 * moved + 1e-7, key
    records, known = (
        [json.loads(line) for line in path.read_text().splitlines()]
        for path in (tmp_path / "run" / "history.jsonl", VERSION_0_1 / "uninterrupted.jsonl")
    )
    assert [record["step"] for record in records] == [2, 4]
    assert records[-1]["loss"] == pytest.approx(known[-1]["loss"], rel=1e-3)
    assert len(state["draws"]) == 1


def stopping_after(steps: int) -> type:
    """A ``StopRequest`` that is requested after so many steps."""

    class Asked:
        left = steps

        def __enter__(self) -> Asked:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        @property
        def requested(self) -> bool:
            self.left -= 1
            return self.left <= 0

        def raise_pending_signal(self) -> None:
            pass

    return Asked


def learner(config: PretrainConfig = CONFIG) -> FlowMatchingLearner:
    torch.manual_seed(0)
    return FlowMatchingLearner(ARFlow(config.generator), config, Accelerator(cpu=True))


def poisoned(own: FlowMatchingLearner, steps: Container[int]) -> DrawBatch:
    """Batches of the made-up clips; in these steps one of their numbers is infinite."""
    sampler = WindowSampler(clips(), 12, own.generator)

    def draw(batch: int) -> tuple[torch.Tensor, ...]:
        first, *rest = sampler.draw(batch)
        if own.iteration in steps:
            first = first.clone()
            first.flatten()[0] = torch.inf
        return first, *rest

    return draw


def test_a_gradient_that_is_not_finite_changes_nothing_and_training_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    own = learner()
    draw = poisoned(own, {1})
    own.learn(draw)

    def learned() -> list[object]:
        return [own.model.state_dict(), own.roles.copies["ema"], own.optimizer.state_dict()["state"]]

    before = copy.deepcopy(learned())
    running = own.running
    own.learn(draw)
    assert same(before, learned())
    assert (own.iteration, own.running) == (2, running)
    assert "step 2 was left out: its gradient is not finite" in capsys.readouterr().err
    assert math.isfinite(own.learn(draw))
    assert all(torch.isfinite(parameter).all() for parameter in own.model.parameters())
    assert not same(before[0], own.model.state_dict())


def test_small_models_leave_out_a_step_whose_gradient_is_not_finite() -> None:
    weight = torch.nn.Parameter(torch.ones(3))
    minimize([weight], lambda step: (weight * (math.inf if step == 2 else 1.0)).sum(), 6, 0.1, 0.0)
    assert weight.isfinite().all()
    assert (weight < 0.9).all()
    with pytest.raises(BadInput, match="not finite in 20 steps in a row, up to step 20"):
        minimize([weight], lambda step: (weight * math.nan).sum(), 40, 0.1, 0.0)
    assert weight.isfinite().all()


def test_a_training_whose_gradients_stay_infinite_ends_with_a_sentence() -> None:
    own = learner(replace(CONFIG, batch=2, accumulate=1))
    draw = poisoned(own, range(1000))
    for _ in range(MAX_SKIPPED_STEPS - 1):
        own.learn(draw)
    with pytest.raises(
        BadInput, match=f"not finite in {MAX_SKIPPED_STEPS} steps in a row, up to step {MAX_SKIPPED_STEPS}: lower"
    ):
        own.learn(draw)


def test_held_out_prompts_are_drawn_with_the_average(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[tuple[str, ARFlow]] = []

    def look(generator: ARFlow, prompts: Sequence[Prompt], folder: Path) -> dict[str, float]:
        assert [prompt.id for prompt in prompts] == ["someone"]
        assert not generator.training
        looks.append((folder.name, generator))
        return {"evaluation/sync": 0.25 * len(looks)}

    monkeypatch.setattr("flowportrait.models.pretrain.measure_portrait_samples", look)
    prompts = [Prompt("someone", tmp_path / "a.png", tmp_path / "a.wav")]
    state = train(replace(CONFIG, steps=6, look_every=4), tmp_path / "run", prompts=prompts)
    assert [name for name, _ in looks] == ["00004", "00006"]
    shown = looks[-1][1].state_dict()
    assert all(torch.equal(value, state["average"][name]) for name, value in shown.items())
    records = [json.loads(line) for line in (tmp_path / "run" / "history.jsonl").read_text().splitlines()]
    assert [record.get("evaluation/sync") for record in records] == [None, 0.25, 0.5]
    assert "* sync: 0.5" in (tmp_path / "run" / "checkpoint" / "README.md").read_text()


def test_bf16_learns_other_bits_and_finite_ones(tmp_path: Path) -> None:
    plain, rough = (train(replace(CONFIG, precision=p), tmp_path / p) for p in ("fp32", "bf16"))
    assert not same(plain["model"], rough["model"])
    assert all(value.dtype == torch.float32 and value.isfinite().all() for value in rough["average"].values())
    assert abs(plain["running"] - rough["running"]) < 0.1 * plain["running"]


def test_schedules_warm_up_and_end_at_a_twentieth() -> None:
    for schedule in ("cosine", "wsd"):
        config = PretrainConfig(steps=1000, warmup=100, schedule=schedule, decay_share=0.2)  # type: ignore[arg-type]
        rates = np.array([learning_rate_factor(step, config) for step in range(1001)])
        assert rates[49] == pytest.approx(0.5)
        assert rates[100] == 1.0
        assert rates[1000] == pytest.approx(0.05)
        assert (np.diff(rates[100:]) <= 1e-12).all()
        assert (rates[100:800] == 1.0).all() == (schedule == "wsd")


def test_what_cannot_be_trained_is_said() -> None:
    with pytest.raises(BadInput, match="equal parts"):
        PretrainConfig(batch=5, accumulate=2)


LEVEL: dict[str, Any] = {"schedule": "wsd", "decay_share": 0.01}
"""A learning rate that does not ask how many steps there will be."""

WORKER = """
import sys
from dataclasses import replace
from pathlib import Path
from tests.models.test_pretrain import CONFIG, LEVEL, clips
from flowportrait.models.pretrain import pretrain
config = replace(CONFIG, steps=int(sys.argv[2]), long_window=int(sys.argv[3]), **LEVEL)
pretrain(config, Path(sys.argv[1]) / "no corpus", Path(sys.argv[1]), resume=True)
"""


def launch(output: Path, *more: str, shards: bool = False) -> dict[str, Any]:
    """The state that two processes leave."""
    output.mkdir(exist_ok=True)
    save_clips(output / "heard.pt", clips())
    script, root = output / "worker.py", ROOT
    script.write_text(WORKER)
    subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "29611",
         str(script), str(output), *more], check=True, cwd=root,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")]),
                          "ACCELERATE_USE_FSDP": str(shards).lower()},
    )  # fmt: skip
    return read_state(output)


def apart(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    """Largest relative difference of two sets of weights, each tensor by its norm."""
    assert a.keys() == b.keys()
    return max(float((a[name] - b[name]).norm() / b[name].norm().clamp_min(1e-6)) for name in a)


@pytest.fixture(scope="module")
def replicated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two processes, each with whole weights."""
    folder = tmp_path_factory.mktemp("replicated")
    launch(folder, "4", "0")
    return folder


@pytest.mark.slow
def test_two_processes_average_their_gradients(replicated: Path, tmp_path: Path) -> None:
    state = read_state(replicated)
    alone = train(replace(CONFIG, **LEVEL), tmp_path)
    assert state["step"] == 4
    assert len(state["draws"]) == 2
    assert not torch.equal(state["draws"][0], state["draws"][1])
    assert not same(state["model"], alone["model"])


@pytest.mark.slow
def test_on_their_own_past_two_learn_in_shards_what_they_learn_with_whole_weights(tmp_path: Path) -> None:
    whole, sharded = (launch(tmp_path / str(shards), "4", "24", shards=shards) for shards in (False, True))
    for part in ("model", "average"):
        assert apart(sharded[part], whole[part]) < 1e-4
    assert apart(whole["model"], whole["average"]) > 1e-3


@pytest.mark.slow
def test_a_state_of_shards_is_whole_and_any_number_goes_on(replicated: Path, tmp_path: Path) -> None:
    launch(tmp_path / "run", "2", "0", shards=True)
    shutil.copytree(tmp_path / "run", tmp_path / "alone")
    state, straight = launch(tmp_path / "run", "4", "0", shards=True), read_state(replicated)
    assert state["step"] == straight["step"] == 4
    for part in ("model", "average"):
        assert apart(state[part], straight[part]) < 1e-4
    assert train(replace(CONFIG, **LEVEL), tmp_path / "alone")["step"] == 4
    model, other = (load_generator(folder).state_dict() for folder in (tmp_path / "run", replicated))
    assert apart(model, other) < 1e-2
