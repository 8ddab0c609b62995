"""The whole way through the command line, small: videos → corpus → pretrain → posttrain → animate, dub, evaluate."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import cv2
import numpy as np
import pytest
from scipy.io import wavfile
from skimage.data import astronaut

from flowportrait.cli import main
from flowportrait.data.corpus import FaceClip
from flowportrait.media.video import iter_frames

TINY = ["generator.hidden=32", "generator.layers=1", "generator.heads=2", "generator.head_width=32",
        "generator.head_depth=1", "generator.audio_width=16", "generator.steps=3", "batch=2", "windows=16",
        "lip_steps=3", "variants=1"]  # fmt: skip


BABBLE_IS_NO_SPEECH = ["--set", "sync=-2"]
"""No sync gate: an expert on speech has nothing to say about babble."""


def babble(path: Path, seed: int, seconds: float = 1.4) -> Path:
    """Something with the rhythm of speech."""
    rng = np.random.default_rng(seed)
    time = np.arange(round(seconds * 16_000)) / 16_000
    syllables = np.clip(np.sin(2 * np.pi * (3 + rng.uniform()) * time + rng.uniform(0, 6)), 0, None)
    voice = sum(np.sin(2 * np.pi * (110 + 20 * seed) * k * time) / k for k in range(1, 12))
    wavfile.write(path, 16_000, (0.2 * syllables * voice).astype(np.float32))
    return path


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("work")
    (folder / "prompts").mkdir()
    (folder / "videos").mkdir()
    cv2.imwrite(str(folder / "prompts" / "face.png"), cv2.resize(astronaut(), (320, 320))[..., ::-1])
    for seed in range(2):
        speech = babble(folder / "prompts" / f"s{seed}.wav", seed)
        done = main(
            ["animate", "--image", str(folder / "prompts" / "face.png"), "--audio", str(speech), "--size", "192",
             "--crop", "--output", str(folder / "videos" / f"v{seed}.mp4"), "--checkpoint", "sft"]
        )  # fmt: skip
        assert done == 0
    assert main(["prepare", str(folder / "videos"), "--output", str(folder / "corpus"), *BABBLE_IS_NO_SPEECH]) == 0
    return folder


def test_prepared_clips_hold_sound_and_motion_of_one_length(work: Path) -> None:
    records = [json.loads(line) for line in (work / "corpus" / "clips.jsonl").read_text().splitlines()]
    assert [record["name"] for record in records] == ["v0", "v1"]
    for record in records:
        clip = FaceClip.load(work / "corpus" / "clips" / f"{record['name']}.safetensors")
        assert len(clip) == record["frames"] == 35
        assert len(clip.audio) == 640 * len(clip)
        assert clip.mouth.shape == (35, 48, 64)


def test_preparing_again_changes_nothing(work: Path) -> None:
    before = (work / "corpus" / "clips.jsonl").read_text()
    assert main(["prepare", str(work / "videos"), "--output", str(work / "corpus"), *BABBLE_IS_NO_SPEECH]) == 0
    assert (work / "corpus" / "clips.jsonl").read_text() == before


def test_pretraining_stopped_and_resumed_gives_the_same_weights(work: Path) -> None:
    corpus = ["--corpus", str(work / "corpus")]

    def pretrain(run: str, *changes: str) -> int:
        return main(["pretrain", *corpus, "--output", str(work / run), "--resume", "--set", *TINY, *changes])

    # The learning rate depends on the step alone while warming up.
    assert pretrain("whole", "steps=4", "warmup=9", "check_every=2") == 0
    assert pretrain("parts", "steps=2", "warmup=9", "check_every=2") == 0
    assert pretrain("parts", "steps=4", "warmup=9", "check_every=2") == 0
    weights = [(work / run / "checkpoint" / "model.safetensors").read_bytes() for run in ("whole", "parts")]
    assert weights[0] == weights[1]


def test_a_run_folder_is_not_overwritten_and_resumes_to_the_same_weights(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = ["groups=1", "group_size=2", "frames=32", "updates=1", "plan.steps=3", "render_size=64"]

    def posttrain(run: str, iterations: int, *more: str) -> int:
        return main(
            ["posttrain", "--prompts", str(work / "prompts"), "--output", str(work / run), "--start", "sft",
             "--iterations", str(iterations), *more, "--set", *small]
        )  # fmt: skip

    assert posttrain("rl", 2) == 0
    assert posttrain("rl_parts", 1) == 0
    assert posttrain("rl_parts", 2) == 2
    assert "add --resume" in capsys.readouterr().err
    assert posttrain("rl_parts", 2, "--resume") == 0
    weights = [(work / run / "checkpoint" / "model.safetensors").read_bytes() for run in ("rl", "rl_parts")]
    assert weights[0] == weights[1]
    lines = [json.loads(line) for line in (work / "rl_parts" / "metrics.jsonl").read_text().splitlines()]
    assert [line["iteration"] for line in lines] == [1, 2]
    assert {f"reward/{name}" for name in ("sync", "expressiveness", "smoothness", "perceptual", "temporal")} <= set(
        lines[0]
    )


def test_a_run_looks_at_held_out_prompts_and_can_be_done_again(work: Path) -> None:
    small = ["groups=1", "group_size=2", "frames=32", "updates=1", "plan.steps=3", "render_size=64"]
    prompts, seen, again = str(work / "prompts"), work / "seen", work / "again"
    command = ["posttrain", "--prompts", prompts, "--iterations", "2", "--held-out", prompts, "--track", "tensorboard"]
    assert main([*command, "--output", str(seen), "--set", *small, "evaluate_every=2"]) == 0
    records = [json.loads(line) for line in (seen / "metrics.jsonl").read_text().splitlines()]
    assert [record["iteration"] for record in records] == [0, 1, 2]
    assert ["evaluation/amplitude" in record for record in records] == [True, False, True]
    assert sorted(path.name for path in (seen / "samples").iterdir()) == ["00000", "00002"]
    assert list(seen.rglob("events.out.tfevents*"))
    assert main(["posttrain", "--recipe", str(seen), "--prompts", prompts, "--output", str(again)]) == 0
    weights = [(folder / "model.safetensors").read_bytes() for folder in (seen / "latest", again / "checkpoint")]
    assert weights[0] == weights[1]


def test_dubbing_keeps_everything_but_the_mouth(work: Path) -> None:
    target = work / "dubbed.mp4"
    assert main(
        ["animate", "--video", str(work / "videos" / "v0.mp4"), "--audio", str(work / "prompts" / "s1.wav"),
         "--output", str(target), "--checkpoint", "sft"]
    ) == 0  # fmt: skip
    before, after = (np.array(list(iter_frames(p))).astype(int) for p in (work / "videos" / "v0.mp4", target))
    assert before.shape == after.shape
    changed = np.abs(before - after).mean((0, 3))
    height = changed.shape[0]
    # Encoding once more alone changes a pixel by about 1.5 of 255.
    assert changed[: height // 3].mean() < 2.5
    assert changed[height // 2 : height * 3 // 4, height // 3 : -height // 3].mean() > 2 * changed[: height // 3].mean()


def test_checkpoints_are_compared_on_prompts(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    prompts, output = str(work / "prompts"), str(work / "judged")
    assert main(["evaluate", "--checkpoint", "sft", "--prompts", prompts, "--output", output, "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert set(summary["metrics"]) == {"sft", "real footage (shipped)"}
    assert (work / "judged" / "report.html").stat().st_size > 10_000
    assert (work / "judged" / "metrics.csv").is_file()


def test_an_interrupted_run_is_saved_whole_and_resumes_to_the_same_weights(
    work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from flowportrait.rl.trainer import Trainer

    small = ["groups=1", "group_size=2", "frames=32", "updates=1", "plan.steps=3", "render_size=64"]
    command = ["posttrain", "--prompts", str(work / "prompts"), "--output", str(work / "stopped"), "--iterations", "2"]
    step = Trainer.step

    def interrupted(self: Trainer) -> dict[str, float]:
        os.kill(os.getpid(), signal.SIGINT)
        return step(self)

    monkeypatch.setattr(Trainer, "step", interrupted)
    assert main([*command, "--set", *small]) == 130
    assert "Finishing this step" in capsys.readouterr().err
    assert len((work / "stopped" / "metrics.jsonl").read_text().splitlines()) == 1
    monkeypatch.setattr(Trainer, "step", step)
    assert main([*command, "--resume", "--set", *small]) == 0
    weights = [(work / run / "checkpoint" / "model.safetensors").read_bytes() for run in ("rl", "stopped")]
    assert weights[0] == weights[1]
