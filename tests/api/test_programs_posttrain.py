"""Programs that somebody writes who wants to post-train: as short as they can be, and each is run."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from scipy.io import wavfile
from skimage.data import astronaut

import flowportrait as fp
from flowportrait.adapters.policy import Item
from flowportrait.cli import main
from flowportrait.errors import BadInput
from flowportrait.media.video import iter_frames
from tests.models.test_generator import TINY

LEAST: dict[str, Any] = {
    "groups": 1, "group_size": 2, "frames": 28, "updates": 1, "pieces": 1, "render_size": 64, "plan.steps": 2,
    "iterations": 1,
}  # fmt: skip
"""Settings of the smallest run."""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a photo and recordings to train on, and others that are kept apart."""
    rng = np.random.default_rng(0)
    for folder in ("mine", "kept"):
        (tmp_path / folder).mkdir()
        Image.fromarray(astronaut()).save(tmp_path / folder / "me.png")
        wavfile.write(tmp_path / folder / "me.wav", 16000, (3000 * rng.standard_normal(24000)).astype(np.int16))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def lifted_brow(batch: fp.RewardBatch) -> torch.Tensor:
    """A plain function is a reward."""
    return batch.motion[..., 0].mean(1)


class Watcher(fp.Callback):
    """Notes what it was told, and asks to stop after so many iterations."""

    def __init__(self, limit: int) -> None:
        self.limit, self.calls = limit, []  # type: ignore[var-annotated]

    def on_train_begin(self, trainer: Any) -> None:
        self.calls.append("begin")

    def on_step_end(self, metrics: Mapping[str, float]) -> None:
        self.calls.append("step")
        if metrics["iteration"] == self.limit:
            self.stop("seen enough")

    def on_evaluate(self, metrics: Mapping[str, float]) -> None:
        assert all(key.startswith("evaluation/") for key in metrics)
        self.calls.append("evaluate")

    def on_save(self, folder: Path) -> None:
        assert (folder / "checkpoint").is_dir()
        self.calls.append("save")

    def on_train_end(self, reason: str) -> None:
        self.calls.append(reason)


def test_program_2_post_train_evaluate_stop_resume_and_save(home: Path) -> None:
    watcher = Watcher(limit=1)
    trainer = fp.PostTrainer(
        policy="sft", rewards=["sync", lifted_brow], train_prompts="mine/", eval_prompts="kept/", callbacks=[watcher],
        config=fp.PostTrainConfig.from_recipe("flow-grpo", **LEAST | {"iterations": 2, "evaluate_every": 2}),
    )  # fmt: skip
    trainer.train(resume=True)
    assert watcher.calls == ["begin", "evaluate", "save", "step", "save", "seen enough"]
    assert [record["iteration"] for record in trainer.history] == [0, 1]
    watcher.limit = 9
    trainer.train(resume=True)
    trainer.save_pretrained("out/")
    card = Path("out/README.md").read_text(encoding="utf-8")
    assert "license_name: flowportrait-weights-research" in card.split("---")[1]
    assert "* Start: `sft`; recipe `flow-grpo`" in card
    assert "| on held-out prompts | start | iteration" in card
    assert [record["iteration"] for record in trainer.history] == [0, 1, 2]
    assert "evaluation/amplitude" in trainer.history[-1]
    assert watcher.calls[6:] == ["begin", "evaluate", "step", "save", "save", ""]
    assert fp.Animator.from_pretrained("out").generator.config == fp.Animator.from_pretrained("sft").generator.config
    assert json.loads((home / "runs" / "flow-grpo" / "run.json").read_text())["rewards"].keys() == {
        "sync", "lifted_brow"
    }  # fmt: skip


def test_program_3_a_plain_function_is_what_is_learned(home: Path) -> None:
    def low(batch: fp.RewardBatch) -> torch.Tensor:
        return -batch.motion[..., 0].mean(1)

    from flowportrait.models.arflow import ARFlow

    torch.manual_seed(0)
    policy = ARFlow(TINY)
    for parameter in policy.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    settings = LEAST | {"iterations": 12, "group_size": 8, "plan.steps": 3, "learning_rate": 3e-3, "eta": 0.7}
    config = fp.PostTrainConfig.from_recipe("flow-grpo", **settings)
    trainer = fp.PostTrainer(policy, [low], config, "mine", output_dir="run")
    trainer.train()
    earned = [record["reward/low"] for record in trainer.history]
    assert np.mean(earned[-3:]) > np.mean(earned[:3])
    with pytest.raises(BadInput, match="already holds a run"):
        trainer.train()


def brightness(batch: fp.RewardBatch) -> torch.Tensor:
    return batch.frames(tuple(range(batch.motion.shape[1]))).flatten(1).mean(1)


brightness.needs = frozenset({"frames"})  # type: ignore[attr-defined]


def test_program_5_a_pipeline_of_diffusers_has_the_same_evaluation_and_stop_rule(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reward that pays more each time while the evaluation falls: the run ends, and delivers what it began with."""
    pytest.importorskip("diffusers")
    from tests.small_pipelines import small

    paid, seen = itertools.count(), itertools.count()

    def flattery(batch: fp.RewardBatch) -> torch.Tensor:
        return brightness(batch) + 0.01 * next(paid)

    flattery.needs = frozenset({"frames"})  # type: ignore[attr-defined]

    def measure(path: Path) -> Any:
        assert next(iter_frames(path)).shape == (32, 32, 3)
        return SimpleNamespace(row={"sync_in_time": 1 - 0.1 * next(seen)})

    monkeypatch.setattr("flowportrait.training.held_out.measure_video", measure)
    pipeline, arguments = small("sd3.5")
    settings = {
        "groups": 2, "group_size": 6, "plan.steps": 3, "learning_rate": 0.02, "eta": 0.7, "updates": 1, "pieces": 1,
        "lora.rank": 4, "lora.alpha": 8, "lora.targets": ("to_q", "to_k", "to_v", "to_out.0"), "iterations": 30,
        "evaluate_every": 1,
    }  # fmt: skip
    trainer = fp.PostTrainer(
        policy=pipeline, rewards=[flattery], config=fp.PostTrainConfig.from_recipe("flow-grpo", **settings),
        train_prompts=[Item("a"), Item("b")], eval_prompts=[Item("c")], policy_arguments=arguments, output_dir="run",
    )  # fmt: skip
    trainer.train()
    trainer.save_pretrained("out")
    assert trainer.history[-1]["iteration"] == 6, "as soon as there is enough to tell by"
    assert "held-out evaluation fell" in (home / "run" / "events.jsonl").read_text().splitlines()[-1]
    assert main(["doctor", "run"]) == 0
    first, last = (load_file(home / name / "pytorch_lora_weights.safetensors") for name in ("out", "run/latest"))
    assert all(not weights.any() for name, weights in first.items() if "lora_B" in name), "an untrained adapter"
    assert any(weights.any() for name, weights in last.items() if "lora_B" in name)
    small("sd3.5")[0].load_lora_weights("out")


def test_a_held_out_evaluation_that_can_measure_nothing_is_refused_before_training(home: Path) -> None:
    pytest.importorskip("diffusers")
    from tests.small_pipelines import small

    pipeline, arguments = small("sd3.5")
    trainer = fp.PostTrainer(
        pipeline, [brightness], fp.PostTrainConfig.from_recipe("flow-grpo", **LEAST), [Item("a")], [Item("c")],
        policy_arguments=arguments, output_dir="run",
    )  # fmt: skip
    with pytest.raises(BadInput, match="no sample shows a face: choose other prompts"):
        trainer.train()


def test_a_policy_of_another_package_is_trained_by_its_name(plugin_package: Path, home: Path) -> None:
    (home / "prompts.jsonl").write_text('{"text": "a"}\n{"text": "four"}\n')
    command = ["posttrain", "--policy", "drift", "--policy-set", "scale=2", "--prompts", "prompts.jsonl", "--output",
               "run", "--set", "groups=1", "group_size=2", "iterations=1", "rewards.perceptual=0",
               "rewards.temporal=0"]  # fmt: skip
    assert main(command) == 0
    assert (home / "run" / "checkpoint" / "model.safetensors").is_file()
    assert json.loads((home / "run" / "run.json").read_text())["start"]["name"] == "drift"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"policy": "stf"}, "No policy named 'stf': choose from sft, rl, a folder"),
        ({"policy": object()}, "object has no method encode"),
        ({"config": "flow-gpro"}, "No recipe named 'flow-gpro'"),
        ({"config": "flow-grpo"}, "flow-grpo needs prompts"),
        ({"config": "flow-grpo", "pairs": ["pairs.jsonl"]}, "does not go with --pairs: choose one of"),
    ],
)
def test_what_cannot_be_trained_is_said_when_the_trainer_is_made(arguments: dict[str, Any], sentence: str) -> None:
    with pytest.raises(BadInput, match=sentence):
        fp.PostTrainer(**arguments)


def test_nothing_is_saved_before_anything_was_trained(tmp_path: Path) -> None:
    trainer = fp.PostTrainer(train_prompts="mine", output_dir=tmp_path / "run")
    with pytest.raises(BadInput, match=r"no checkpoint in .* yet: call train first"):
        trainer.save_pretrained(tmp_path / "out")
