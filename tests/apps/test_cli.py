"""Claims about the command line: what it says when the input is bad, and what it leaves behind."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from safetensors.torch import load_file, save_file
from scipy.io import wavfile
from skimage.data import astronaut

from flowportrait.cli import main
from flowportrait.errors import BadInput
from flowportrait.media.video import iter_frames
from flowportrait.models.checkpoints import checkpoint_folder
from flowportrait.pipelines.prompt_videos import distinct_system_names, render_prompts


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
        (["animate", "--video", "a.mp4", "--audio", "b.wav", "--output", "c.mp4", "--crop"], "keeps its own picture"),
        (["dance"], "dance"),
        (["evaluate", "--output", "x"], "needs either videos or --checkpoint"),
        (["evaluate", "--checkpoint", "rl", "--output", "x"], "needs --prompts"),
        (["evaluate", "/nowhere.mp4", "--output", "x"], "/nowhere.mp4"),
        (["posttrain", "--recipe", "magic", "--prompts", ".", "--output", "x"], "choose from flow-grpo"),
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


def test_what_is_read_is_not_written_over(files: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    mine = shutil.copy(files / "broken.mp4", tmp_path / "mine.mp4")
    before = mine.read_bytes()
    for sound in (files / "speech.wav", mine):
        source = ["--image", files / "face.png"] if sound == mine else ["--video", mine]
        code, _, err = run(capsys, "animate", *source, "--audio", sound, "--output", mine, "--checkpoint", "sft")
        assert code == 2
        assert "give another name" in err
    assert mine.read_bytes() == before


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


def test_the_same_seed_gives_the_same_pictures_and_another_does_not(
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
        # The files differ in their signature.
        made.append(np.stack(list(iter_frames(target))).tobytes())
    assert made[0] == made[1] != made[2]


def start(files: Path, target: Path) -> subprocess.Popen[str]:
    """The program itself on twenty seconds of sound, stopped at its first written byte."""
    speech = tone(target.parent.parent / "long.wav", seconds=20.0)
    arguments = ["--image", files / "face.png", "--audio", speech, "--output", target, "--checkpoint", "sft"]
    program = subprocess.Popen(
        [sys.executable, "-m", "flowportrait.cli", "animate", *map(str, arguments), "--json"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    until = time.monotonic() + 60
    while not any(target.parent.iterdir()) and program.poll() is None and time.monotonic() < until:
        time.sleep(0.05)
    assert any(target.parent.iterdir()), "nothing was being written"
    return program


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code", "lines"), [(signal.SIGINT, 130, 1), (signal.SIGTERM, 143, 0)])
def test_stopped_in_the_middle_nothing_half_written_stays(
    files: Path, tmp_path: Path, number: signal.Signals, code: int, lines: int
) -> None:
    (tmp_path / "out").mkdir()
    program = start(files, tmp_path / "out" / "o.mp4")
    program.send_signal(number)
    out, err = program.communicate(timeout=30)
    assert program.returncode == code
    assert out == ""
    assert len([line for line in err.splitlines() if not line.startswith("Warning: The face in")]) == lines
    assert list((tmp_path / "out").iterdir()) == []


def test_ctrl_c_while_a_string_is_executed_still_ends_with_130(tmp_path: Path) -> None:
    (tmp_path / "interrupted.py").write_text(
        "import sys, flowportrait.cli as cli\n"
        "cli._run = lambda arguments: exec('raise KeyboardInterrupt')\n"
        "sys.exit(cli.main(['animate']))\n"
    )
    ended = subprocess.run([sys.executable, "-m", "interrupted"], cwd=tmp_path, capture_output=True, text=True)
    assert ended.returncode == 130
    assert ended.stderr == "Interrupted; nothing half-written was left behind.\n"


@pytest.mark.slow
def test_the_program_writes_one_json_object_and_keeps_standard_error_clean(files: Path, tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "me.png"), astronaut()[:300, 60:360, ::-1])
    arguments = ["--image", tmp_path / "me.png", "--audio", files / "speech.wav", "--output", tmp_path / "o.mp4",
                 "--checkpoint", "sft", "--size", "128", "--crop", "--json"]  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "flowportrait.cli", "animate", *map(str, arguments)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0
    assert done.stderr == ""
    assert len(done.stdout.splitlines()) == 1
    assert json.loads(done.stdout)["output"] == str(tmp_path / "o.mp4")


def test_several_faces_are_a_warning(capsys: pytest.CaptureFixture[str], files: Path, tmp_path: Path) -> None:
    face = cv2.imread(str(files / "face.png"))
    smaller = np.full((256, 192, 3), 128, np.uint8)
    smaller[64:] = cv2.resize(face, (192, 192), interpolation=cv2.INTER_AREA)
    cv2.imwrite(str(tmp_path / "two.png"), np.hstack([face, smaller]))
    code, _, err = run(
        capsys, "animate", "--image", tmp_path / "two.png", "--audio", files / "speech.wav", "--output",
        tmp_path / "o.mp4", "--checkpoint", "sft", "--size", "128", "--crop",
    )  # fmt: skip
    assert code == 0
    assert err.count("faces found in") == 1
    assert (tmp_path / "o.mp4").is_file()


def checkpoint(folder: Path, change: float) -> Path:
    """A copy of the supervised checkpoint with slightly other weights."""
    folder.mkdir(parents=True, exist_ok=True)
    source = checkpoint_folder("sft")
    shutil.copy(source / "config.json", folder)
    weights = load_file(source / "model.safetensors")
    save_file({name: value * (1 + change) for name, value in weights.items()}, folder / "model.safetensors")
    return folder


def test_two_checkpoints_are_never_taken_for_one(tmp_path: Path) -> None:
    a, b, rl = (checkpoint(tmp_path / name, 0.0) for name in ("a/checkpoint", "b/checkpoint", "runs/rl"))
    assert distinct_system_names(["sft", str(rl)]) == ["sft", "rl"]
    for pair in ([str(a), str(b)], ["rl", str(rl)]):
        names = distinct_system_names(pair)
        assert len(set(names)) == 2
        assert not any("/" in name for name in names)
    with pytest.raises(BadInput, match="one checkpoint"):
        distinct_system_names([str(a), str(a.parent)])


def test_videos_are_drawn_again_when_the_checkpoint_was_trained_further(files: Path, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts"
    prompts.mkdir()
    for name in ("face.png", "speech.wav"):
        shutil.copy(files / name, prompts)
    drawn = []
    for change in (0.0, 0.0, 0.05):
        model = checkpoint(tmp_path / "model", change)
        (video,) = render_prompts(str(model), prompts, tmp_path / "videos", size=128)
        drawn.append((video.stat().st_mtime_ns, video.read_bytes()))
    assert drawn[0] == drawn[1]
    assert drawn[2][1] != drawn[1][1]


def test_help_answers_without_loading_torch() -> None:
    script = (
        "import sys; from flowportrait.cli import read_command; read_command(['animate', '--image', 'a', '--output', "
        "'b']); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
