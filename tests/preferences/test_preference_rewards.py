"""Claims about learned preferences in use: as rewards by name, and pairs that need no annotator."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from flowportrait.cli import main
from flowportrait.corruption import CORRUPTIONS
from flowportrait.errors import BadInput
from flowportrait.media.write_video import write_video
from flowportrait.preferences.build_pairs import build_pairs_from_damage, damage_strength, read_judge_scores
from flowportrait.preferences.dataset import DIMENSIONS, PAIRS_FILE, Label, PreferenceDataset
from flowportrait.preferences.inspection import inspect_pairs
from flowportrait.preferences.preference_rewards import SCORE_CAP
from flowportrait.preferences.reward_model import MotionReward, window_starts
from flowportrait.preferences.synthetic_pairs import WINDOW_FRAMES
from flowportrait.rewards.batch import RewardBatch
from flowportrait.rewards.interface import score_batch
from flowportrait.rewards.registry import PREFERENCE_REWARDS, REWARDS, RewardOptions, build_reward


def batch(frames: int, rows: int = 3) -> RewardBatch:
    drawn = torch.Generator().manual_seed(0)
    motion = torch.nn.functional.avg_pool1d(torch.randn(rows, 30, frames + 6, generator=drawn), 7, 1).mT
    return RewardBatch(2 * motion, torch.randn(rows, 4 * frames, 80, generator=drawn))


def test_the_shipped_model_is_small_and_its_dimensions_add_up_to_the_reward() -> None:
    assert set(PREFERENCE_REWARDS) <= set(REWARDS)
    own = batch(50)
    parts = [build_reward(f"preference_{dimension}")(own).value for dimension in DIMENSIONS]
    whole = score_batch(build_reward("preference"), own)
    assert torch.allclose(torch.stack(parts).sum(0), whole.value, atol=1e-4)
    assert whole.valid.all()
    assert whole.dense is not None
    assert whole.dense.shape == (3, 50)
    assert (whole.value <= 3 * SCORE_CAP).all()
    assert build_reward("preference").name == "preference"


def test_a_clip_too_short_to_judge_has_no_score_and_says_so() -> None:
    found = score_batch(build_reward("preference"), batch(6))
    assert not found.valid.any()
    assert found.reasons[0].kind == "too_short"


def test_a_long_clip_is_the_mean_of_its_windows() -> None:
    model, own = MotionReward.load(), batch(2 * WINDOW_FRAMES + 5)
    starts = window_starts(2 * WINDOW_FRAMES + 5)
    assert starts[-1] + WINDOW_FRAMES == 2 * WINDOW_FRAMES + 5
    alone = [model(own.motion[:, s : s + WINDOW_FRAMES], own.mel[:, 4 * s : 4 * (s + WINDOW_FRAMES)]) for s in starts]
    assert torch.allclose(model(own.motion, own.mel), torch.stack(alone).mean(0), atol=1e-4)
    moments = model.frame_scores(own.motion, own.mel)
    assert torch.allclose(moments[:, 0], alone[0], atol=1e-4)
    assert torch.allclose(moments[:, -1], alone[-1], atol=1e-4)


def test_another_model_is_a_folder_and_an_empty_one_is_refused(tmp_path: Path) -> None:
    MotionReward.load().save(tmp_path / "model.safetensors")
    own = batch(30)
    again = build_reward("preference", RewardOptions(preference=tmp_path))
    assert torch.allclose(again(own).value, build_reward("preference")(own).value, atol=0.05)
    with pytest.raises(BadInput, match="No reward model in"):
        build_reward("preference_sync", RewardOptions(preference=tmp_path / "none"))
    with pytest.raises(BadInput, match="No latent reward in"):
        build_reward("latent_preference", RewardOptions(latent_preference=tmp_path))


def test_videos_become_pairs_from_coarse_to_subtle(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)
    for name, sound in (("a.mp4", rng.normal(size=12 * 640).astype(np.float32) * 0.1), ("mute.mp4", None)):
        write_video(tmp_path / name, (np.roll(picture, 4 * t, 0) for t in range(12)), sound)
    output = tmp_path / "made"
    given = ["--damage", "blur", "offset", "--per-video", "2", "--split", "train", "--output", str(output)]
    assert main(["preferences", "make", str(tmp_path / "a.mp4"), str(tmp_path / "mute.mp4"), *given]) == 0
    assert "mute.mp4 has no sound" in capsys.readouterr().err
    pairs = PreferenceDataset.load(output)
    assert pairs.files == (output / PAIRS_FILE,)
    assert [pair.annotator for pair in pairs] == ["blur", "offset"]
    assert [set(pair.labels) for pair in pairs] == [{"overall"}, {"sync", "overall"}]
    assert inspect_pairs(pairs).usable == pairs
    for pair in pairs:
        better, worse = pair.clips if pair.labels["overall"] is Label.FIRST else reversed(pair.clips)
        assert "-" not in Path(better).stem
        assert "-" in Path(worse).stem
    mild, _, strong = CORRUPTIONS["blur"].strengths
    assert (damage_strength("blur", 0), damage_strength("blur", 1)) == (strong, mild)
    with pytest.raises(BadInput, match="Unknown corruption 'rust'"):
        build_pairs_from_damage([tmp_path / "a.mp4"], output, names=["rust"])


def test_the_judges_own_report_is_a_score_table(tmp_path: Path) -> None:
    finding = {"score": 4.0, "raw": 4.1, "rationale": ""}
    verdict = {"file": "runs/x/1.mp4", "generator": "x", "overall": 3.5,
               "aspects": {"lip_sync": finding, "expressiveness": {"score": None}, "motion": finding}}  # fmt: skip
    (tmp_path / "report.json").write_text(json.dumps({"judge": "panel", "verdicts": [verdict]}))
    assert read_judge_scores(tmp_path / "report.json") == {"1.mp4": {"sync": 4.0, "motion": 4.0, "overall": 3.5}}
    (tmp_path / "report.json").write_text("{}")
    with pytest.raises(BadInput, match="holds no list of verdicts"):
        read_judge_scores(tmp_path / "report.json")


def test_training_says_what_it_misses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = ["--output", str(tmp_path / "out")]
    assert main(["preferences", "train", *output]) == 2
    assert "Give --corpus" in capsys.readouterr().err
    assert main(["preferences", "train", "--model", "somewhere", *output]) == 2
    assert "give --pairs" in capsys.readouterr().err
    pair = {"prompt": "p", "a": "x.mp4", "b": "y.mp4", "aspects": {"sync": "A"}, "source": "study", "annotator": "a"}
    (tmp_path / "pairs.jsonl").write_text(json.dumps(pair) + "\n")
    assert main(["preferences", "train", "--model", "m", "--pairs", str(tmp_path / "pairs.jsonl"), *output]) == 2
    error = capsys.readouterr().err
    assert "One annotator only" in error
    assert "None of the pairs can be learned from (1 clip missing)" in error
