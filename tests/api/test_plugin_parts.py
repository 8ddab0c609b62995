"""Claims about parts of other packages: rewards, judges and voices are used by name wherever ours could be."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from skimage.data import astronaut

from flowportrait.cli import main
from flowportrait.config import merge, override, to_dict
from flowportrait.errors import BadInput
from flowportrait.judges.build import JudgeReward, JudgeSettings, build_judge
from flowportrait.judges.clips import JudgedClip
from flowportrait.media.video import iter_frames
from flowportrait.media.write_video import write_video
from flowportrait.portraitgen.judging import build_still_judge
from flowportrait.rewards.batch import RewardBatch
from flowportrait.rewards.interface import score_batch
from flowportrait.rewards.registry import CompositeReward, build_reward
from flowportrait.rl.recipes import find_recipe
from flowportrait.speech.voices import load_voice


def batch(rows: int = 3) -> RewardBatch:
    """Rows that move more and more, and are louder and louder."""
    generator = torch.Generator().manual_seed(0)
    size = torch.arange(1.0, rows + 1)[:, None, None]
    motion = size * 0.1 * torch.randn(rows, 20, 30, generator=generator)
    return RewardBatch(motion, size.expand(-1, 80, 80).clone())


def test_a_reward_of_another_package_has_a_weight_in_a_recipe(plugin_package: Path) -> None:
    recipe = override(find_recipe("flow-grpo"), ["rewards.other.quiet_motion=0.5", "rewards.other.loud_speech=0.25"])
    again = merge(find_recipe("flow-grpo"), json.loads(json.dumps(to_dict(recipe))))
    assert again.rewards.by_name()["quiet_motion"] == 0.5
    composite = CompositeReward.of({"quiet_motion": 0.5, "loud_speech": 0.25}, again.rewards.options)
    scores = composite(batch())
    assert scores["quiet_motion"].value[0] > scores["quiet_motion"].value[1] > scores["quiet_motion"].value[2]
    assert scores["loud_speech"].value.tolist() == [1.0, 2.0, 3.0]
    assert build_reward("quiet_motion").needs == {"motion"}


def test_what_a_reward_of_another_package_declares_is_kept(plugin_package: Path) -> None:
    fast = batch()
    fast.motion[1] = float("nan")
    found = score_batch(build_reward("quiet_motion"), fast)
    assert found.valid.tolist() == [True, False, True]
    assert build_reward("quiet_motion").range == (-10.0, 0.0)  # type: ignore[attr-defined]


def test_a_reward_of_a_script_is_named_by_module_and_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_package").mkdir()
    (tmp_path / "own_package" / "own_rewards.py").write_text("def loud(batch):\n    return batch.mel.mean((1, 2))\n")
    monkeypatch.chdir(tmp_path)
    name = "own_package.own_rewards:loud"
    recipe = override(find_recipe("flow-grpo"), [f"rewards.other.{name}=1", "rewards.judge=0"])
    assert recipe.rewards.by_name()[name] == 1
    assert CompositeReward.of({name: 1.0})(batch())[name].value.tolist() == [1.0, 2.0, 3.0]
    with pytest.raises(BadInput, match="cannot be imported"):
        build_reward("own_package.no_such_module:loud")


def test_without_the_package_a_recipe_with_its_reward_is_refused_with_what_there_is() -> None:
    with pytest.raises(BadInput, match=r"No reward named 'quiet_motion': choose from sync, .* or give MODULE:NAME"):
        override(find_recipe("flow-grpo"), ["rewards.other.quiet_motion=0.5"])


def videos(folder: Path) -> list[Path]:
    paths = []
    for name, light in (("dark", 40), ("bright", 200)):
        frames = np.full((12, 64, 64, 3), light, np.uint8)
        write_video(folder / f"{name}.mp4", iter(frames), np.zeros(12 * 640, np.float32), fps=25)
        paths.append(folder / f"{name}.mp4")
    return paths


@pytest.mark.parametrize("name", ["brightness", "flowportrait_plugin_example:BrightnessJudge"])
def test_a_judge_of_another_package_grades_videos(
    name: str, plugin_package: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = tmp_path / "report.json"
    words = ["judge", "score", *map(str, videos(tmp_path)), "--set", f"by={name}", "--output", str(report)]
    assert main(words) == 0
    found = {verdict["file"]: verdict["overall"] for verdict in json.loads(report.read_text())["verdicts"]}
    assert found["dark.mp4"] == pytest.approx(1 + 4 * 40 / 255, abs=0.1)
    assert found["bright.mp4"] == pytest.approx(1 + 4 * 200 / 255, abs=0.1)


def test_a_judge_of_another_package_is_trained_on_only_with_a_certificate(plugin_package: Path, tmp_path: Path) -> None:
    settings = override(JudgeSettings(), ["by=brightness", f"folder={tmp_path}"])
    white = JudgedClip(np.full((12, 8, 8, 3), 255, np.uint8), np.zeros(0, np.float32))
    assert build_judge(settings).judge([white])[0].overall == pytest.approx(5)
    with pytest.raises(BadInput, match="has not passed the sanity set"):
        JudgeReward.for_training(settings)


def test_a_judge_of_clips_does_not_grade_stills_and_an_unknown_one_is_told(plugin_package: Path) -> None:
    with pytest.raises(BadInput, match="grades clips, not stills"):
        build_still_judge(override(JudgeSettings(), ["by=brightness"]))
    with pytest.raises(BadInput, match="by=nobody is not possible: choose one of measured, server, omni, brightness"):
        build_judge(override(JudgeSettings(), ["by=nobody"]))


def test_a_voice_of_another_package_speaks_in_a_video(plugin_package: Path, tmp_path: Path) -> None:
    face = tmp_path / "face.png"
    cv2.imwrite(str(face), cv2.resize(astronaut(), (320, 320))[..., ::-1])
    words = ["--text", "Hello there.", "--voice", "hum:150", "--size", "192", "--crop", "--checkpoint", "sft"]
    assert main(["animate", "--image", str(face), *words, "--output", str(tmp_path / "out.mp4")]) == 0
    assert len(list(iter_frames(tmp_path / "out.mp4"))) >= 12


def test_a_voice_is_an_object_or_is_made_with_what_follows_the_colon(plugin_package: Path) -> None:
    assert load_voice("hum").name == "hum:120"
    assert load_voice("hum:150").name == "hum:150"
    assert load_voice("flowportrait_plugin_example:Hum").name == "hum:120"
    assert load_voice("espeak:de").name == "espeak:de"
    with pytest.raises(BadInput, match="hum or MODULE:NAME"):
        load_voice("nobody")
