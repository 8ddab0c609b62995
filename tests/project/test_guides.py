"""The guides, run as written: post-training on one's own voice and portraits, and a reward of one's own."""

from __future__ import annotations

import json
import re
import runpy
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import wavfile
from skimage.data import astronaut

from flowportrait.cli import main
from flowportrait.config import override
from flowportrait.rewards.registry import REWARDS
from flowportrait.rl.post_trainer import PostTrainer
from tests import ROOT

DOCS = ROOT / "docs"
SMALL = [
    "--set",
    "groups=1",
    "group_size=2",
    "frames=28",
    "updates=1",
    "rollout_chunks=1",
    "render_size=64",
    "iterations=1",
]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A photo and a few seconds of sound, laid out as the guide lays them out."""
    rng = np.random.default_rng(0)
    for folder, count in (("mine", 2), ("kept", 1)):
        (tmp_path / folder).mkdir()
        Image.fromarray(astronaut()).save(tmp_path / folder / "me.png")
        for number in range(count):
            wave = (3000 * rng.standard_normal(20000)).astype(np.int16)
            wavfile.write(tmp_path / folder / f"{number}.wav", 16000, wave)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def shrink(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let ``PostTrainer`` do the least that is a run."""
    train = PostTrainer.train

    def small(self: PostTrainer) -> Path:
        self.config = override(self.config, SMALL[1:])
        return train(self)

    monkeypatch.setattr(PostTrainer, "train", small)


def guide(name: str, heading: str, language: str) -> list[str]:
    """Code blocks under a heading of a page."""
    section = (DOCS / name).read_text().split(f"## {heading}\n")[1].split("\n## ")[0]
    return re.findall(rf"```{language}\n(.*?)```", section, re.S)


@pytest.mark.slow
def test_post_training_on_ones_own_voice_and_portrait_runs_as_written(home: Path) -> None:
    (block,) = guide("posttraining.md", "On your own voice and portraits", "sh")
    for line in block.splitlines():
        program, *arguments = shlex.split(line, comments=True)
        assert program == "flowportrait"
        more = SMALL if arguments[0] == "posttrain" else ["--size", "128"] if arguments[0] == "animate" else []
        assert main([*arguments, *more]) == 0
    assert (home / "me.mp4").stat().st_size > 0


@pytest.mark.slow
def test_a_reward_of_ones_own_is_trained_on_as_written(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (block,) = guide("rewards.md", "Write a reward", "python")
    shrink(monkeypatch)
    try:
        exec(block, {})
    finally:
        REWARDS.pop("open_eyes", None)
    metrics = (home / "run" / "metrics.jsonl").read_text()
    assert "reward/open_eyes" in metrics


@pytest.mark.slow
def test_a_recipe_of_ones_own_is_trained_by_as_written_in_under_sixty_lines(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (block,) = guide("posttraining.md", "Write a recipe", "python")
    assert len(block.splitlines()) < 60
    (home / "better_half.py").write_text(block)
    shrink(monkeypatch)
    runpy.run_path(str(home / "better_half.py"), run_name="__main__")
    assert json.loads((home / "half" / "recipe.json").read_text())["name"] == "better_half:CARD"
    first = json.loads((home / "half" / "metrics.jsonl").read_text().splitlines()[0])
    assert first["loss/policy"] > 0
    assert first["skipped"] == 0
    assert (home / "half" / "checkpoint" / "model.safetensors").is_file()
