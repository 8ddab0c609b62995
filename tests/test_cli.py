"""Claims about the command line: what it says when the input is bad, and what it leaves behind."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from scipy.io import wavfile
from skimage.data import astronaut

from flowportrait.cli import main


def tone(path: Path, seconds: float = 1.0, rate: int = 16_000, channels: int = 1, loudness: float = 0.3) -> Path:
    time_axis = np.arange(round(seconds * rate)) / rate
    wave = loudness * np.sin(2 * np.pi * 180 * time_axis) * (0.6 + 0.4 * np.sin(2 * np.pi * 4 * time_axis))
    samples = np.round(32767 * wave).astype(np.int16)
    wavfile.write(path, rate, np.stack([samples] * channels, 1) if channels > 1 else samples)
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    cv2.imwrite(str(folder / "face.png"), cv2.resize(astronaut(), (256, 256))[..., ::-1])
    cv2.imwrite(str(folder / "noface.png"), np.full((200, 200, 3), 90, np.uint8))
    (folder / "text.png").write_text("no picture")
    (folder / "empty.wav").write_bytes(b"")
    (folder / "broken.mp4").write_bytes(b"\x00\x00\x00\x18ftypmp42" + b"\x01" * 400)
    (folder / "prompts").mkdir()
    tone(folder / "speech.wav")
    tone(folder / "blink.wav", seconds=0.05)
    return folder


def run(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str, str]:
    code = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.mark.parametrize(
    ("image", "audio", "output", "sentence"),
    [
        ("gone.png", "speech.wav", "out.mp4", "gone.png"),
        ("text.png", "speech.wav", "out.mp4", "text.png"),
        ("noface.png", "speech.wav", "out.mp4", "No face found in"),
        ("face.png", "gone.wav", "out.mp4", "No audio file at"),
        ("face.png", "empty.wav", "out.mp4", "is empty"),
        ("face.png", "text.png", "out.mp4", "text.png"),
        ("face.png", "blink.wav", "out.mp4", "give a longer recording"),
        ("face.png", "speech.wav", "missing/out.mp4", "does not exist"),
        ("face.png", "speech.wav", "out.avi", "must end in .mp4"),
    ],
)
def test_bad_input_is_one_sentence_and_leaves_nothing(
    files: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, image: str, audio: str, output: str, sentence: str
) -> None:
    target = tmp_path / output
    code, out, err = run(
        capsys, "animate", "--image", files / image, "--audio", files / audio, "--output", target,
        "--checkpoint", "sft", "--json",
    )  # fmt: skip
    assert code == 2
    assert out == ""
    assert sentence in err
    assert len(err.strip().splitlines()) == 1
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["animate"], "required"),
        (["animate", "--image", "a.png", "--audio", "b.wav", "--output", "c.mp4", "--sped", "2"], "--sped"),
        (["dance"], "dance"),
        (["evaluate", "--output", "x"], "needs either videos or --checkpoint"),
        (["evaluate", "--checkpoint", "rl", "--output", "x"], "needs --prompts"),
        (["evaluate", "/nowhere.mp4", "--output", "x"], "/nowhere.mp4"),
        (["posttrain", "--recipe", "magic", "--prompts", ".", "--output", "x"], "choose one of flow-grpo"),
        (["posttrain", "--prompts", "/nowhere", "--output", "x"], "/nowhere"),
        (["posttrain", "--prompts", ".", "--output", "x", "--set", "objective.clip=1"], "objective.clip"),
        (["pretrain", "--corpus", "/nowhere", "--output", "x"], "not a prepared corpus"),
        (["pretrain", "--corpus", ".", "--output", "x", "--set", "stps=1"], "did you mean 'steps'"),
        (["prepare", "/nowhere", "--output", "x"], "/nowhere"),
    ],
)
def test_bad_commands_are_one_sentence(
    arguments: list[str],
    sentence: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = run(capsys, *arguments)
    assert code == 2
    assert out == ""
    assert sentence in err
    assert len(err.strip().splitlines()) == 1


def test_a_damaged_video_cannot_be_dubbed(files: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, _, err = run(
        capsys, "animate", "--video", files / "broken.mp4", "--audio", files / "speech.wav",
        "--output", tmp_path / "out.mp4", "--checkpoint", "sft",
    )  # fmt: skip
    assert code == 2
    assert "broken.mp4" in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("rate", "channels", "loudness"), [(16_000, 1, 0.3), (8_000, 1, 0.3), (44_100, 2, 0.3), (16_000, 1, 0.0)]
)
def test_any_rate_and_silence_give_a_video_as_long_as_the_sound(
    files: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, rate: int, channels: int, loudness: float
) -> None:
    import av

    audio = tone(tmp_path / "in.wav", 1.0, rate, channels, loudness)
    target = tmp_path / "out.mp4"
    code, out, err = run(
        capsys, "animate", "--image", files / "face.png", "--audio", audio, "--output", target,
        "--checkpoint", "sft", "--size", "128", "--crop", "--json",
    )  # fmt: skip
    assert code == 0, err
    assert json.loads(out)["frames"] == 25
    assert ("silent" in err) == (loudness == 0.0)
    with av.open(str(target)) as container:
        video, sound = container.streams.video[0], container.streams.audio[0]
        assert (video.width, video.height, video.average_rate) == (128, 128, 25)
        assert video.codec_context.name == "h264"
        assert sound.codec_context.name == "aac"
        assert float(video.duration * video.time_base) == pytest.approx(1.0)
        assert float(sound.duration * sound.time_base) == pytest.approx(1.0, abs=1024 / 16_000)


def test_the_same_seed_gives_the_same_file_and_another_does_not(
    files: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    made = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        target = tmp_path / f"{name}.mp4"
        code, _, _ = run(
            capsys, "animate", "--image", files / "face.png", "--audio", files / "speech.wav", "--output", target,
            "--checkpoint", "sft", "--size", "128", "--crop", "--seed", seed,
        )  # fmt: skip
        assert code == 0
        made.append(target.read_bytes())
    assert made[0] == made[1] != made[2]


def test_help_answers_without_loading_torch() -> None:
    script = "import sys; from flowportrait.cli import parser; parser(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
