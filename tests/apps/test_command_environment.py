"""Claims about where the program runs: users without a home, closed streams, long names, signals; and about outputs."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import MISSING, fields
from pathlib import Path
from typing import get_type_hints

import cv2
import numpy as np
import pytest
from scipy.io import wavfile
from skimage.data import astronaut
from tyro.conf import Positional

from flowportrait.cli import COMMANDS, main, read_command
from flowportrait.commands.animate import request_of
from flowportrait.errors import BadInput
from flowportrait.files import MAX_NAME_BYTES, atomic_write, cache_folder, check_outputs_are_not_inputs, config_folder

PROGRAM = [sys.executable, "-m", "flowportrait"]
posix = pytest.mark.skipif(os.name == "nt", reason="POSIX users, descriptors and signals")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    cv2.imwrite(str(folder / "face.png"), cv2.resize(astronaut(), (256, 256))[..., ::-1])
    time_axis = np.arange(8_000) / 16_000
    wavfile.write(folder / "speech.wav", 16_000, (9000 * np.sin(2 * np.pi * 180 * time_axis)).astype(np.int16))
    return folder


def arguments(files: Path, output: Path | str) -> list[str]:
    return ["animate", "--image", str(files / "face.png"), "--audio", str(files / "speech.wav"), "--size", "64",
            "--crop", "--output", str(output)]  # fmt: skip


def shell(line: str, **more: str) -> subprocess.CompletedProcess[str]:
    """A bash line in which $FP is the program."""
    environment = {**os.environ, "FP": " ".join(PROGRAM), **more}
    return subprocess.run(
        ["bash", "-c", f"set -o pipefail; {line}"], capture_output=True, text=True, env=environment, timeout=120
    )


@pytest.mark.parametrize("gaze", [["--gaze", "-10,0"], ["--gaze=-10,0"], ["--gaze", "-.5,-3"], ["--gaze", "-1e1,-0"]])
def test_negative_values_need_no_equals_sign(gaze: list[str], tmp_path: Path) -> None:
    options = read_command([*arguments(tmp_path, tmp_path / "a.mp4"), *gaze])[1]
    assert request_of(options).controls().gaze[0] < 0


def test_every_number_of_every_command_may_be_negative() -> None:
    found = 0
    for name, command in COMMANDS.items():
        if not command.function:
            continue
        module, _, function = command.function.partition(":")
        kind = get_type_hints(getattr(importlib.import_module(f"flowportrait.commands.{module}"), function))["options"]
        hints, marked = get_type_hints(kind), get_type_hints(kind, include_extras=True)
        required = ["--image", "x"] if name == "animate" else []
        for one in fields(kind):
            if one.default is MISSING:
                positional = Positional in getattr(marked[one.name], "__metadata__", ())
                required = ["x", *required] if positional else [*required, f"--{one.name.replace('_', '-')}", "x"]
        for one in fields(kind):
            if hints[one.name] in (int, float, int | None, float | None):
                options = read_command([*name.split(), *required, f"--{one.name.replace('_', '-')}", "-2"])[1]
                assert getattr(options, one.name) == -2, (name, one.name)
                found += 1
    assert found > 15


LINKS = ["same", "symbolic", "hard", "dotted"]


def linked(kind: str, path: Path) -> Path:
    """Another name of a file or folder."""
    other = path.with_name(f"other{path.suffix}")
    if kind == "symbolic":
        other.symlink_to(path)
    elif kind == "hard":
        os.link(path, other)
    elif kind == "dotted":
        return path.parent / "." / ".." / path.parent.name / path.name
    return other if kind in ("symbolic", "hard") else path


@pytest.mark.parametrize("kind", LINKS)
@pytest.mark.parametrize(
    "wish",
    [
        "animate --image IN.mp4 --audio s.wav --output OUT",
        "animate --video IN.mp4 --audio s.wav --output OUT",
        "animate --video v.mp4 --audio IN.mp4 --output OUT",
        "animate --speaker 1=a.jpg,s.wav --speaker 2=IN.mp4,s.wav --output OUT",
        "animate --speaker 1=a.jpg,s.wav --speaker 2=b.jpg,IN.mp4 --output OUT",
        "animate --image a.jpg --audio s.wav --certificate IN.mp4 --private-key k.pem --output OUT",
        "animate --image a.jpg --audio s.wav --certificate c.pem --private-key IN.mp4 --output OUT",
        "animate --image a.jpg --audio s.wav --checkpoint IN.mp4 --output OUT",
        "animate --image a.jpg --audio s.wav --motion-in IN.csv --motion-out OUT --output v.mp4",
        "animate --image IN.csv --audio s.wav --motion-out OUT --output v.mp4",
        "judge score v.mp4 --judge IN.json --output OUT",
        "judge score v.mp4 --set library=IN.json --output OUT",
        "judge calibrate --human h.csv --scores IN.json --output OUT",
        "judge learn p.jsonl --set library=IN.json --output OUT",
        "preferences inspect IN.jsonl --output OUT",
        "preferences from-judge IN.json b.json --output OUT",
        "export --checkpoint IN.onnx --output OUT",
    ],
)
def test_no_output_takes_the_place_of_an_input_file(wish: str, kind: str, tmp_path: Path) -> None:
    suffix = wish.partition("IN.")[2].split()[0]
    mine = tmp_path / f"mine.{suffix}"
    mine.write_text("mine")
    words = [word.replace(f"IN.{suffix}", str(mine)) for word in wish.split()]
    options = read_command([str(linked(kind, mine)) if word == "OUT" else word for word in words])[1]
    with pytest.raises(BadInput, match="give another name"):
        check_outputs_are_not_inputs(options)
    check_outputs_are_not_inputs(read_command([str(tmp_path / f"new.{suffix}") if w == "OUT" else w for w in words])[1])


@pytest.mark.parametrize(
    "wish",
    [
        "evaluate IN --output OUT",
        "evaluate --system a=IN --system b=rl --prompts p --output OUT",
        "evaluate --checkpoint rl --prompts IN --output OUT",
        "preferences study make IN other --output OUT",
        "prepare IN --output OUT",
        "pretrain --corpus IN --output OUT",
        "pretrain --corpus c --held-out IN --output OUT",
        "posttrain --prompts IN --output OUT",
        "posttrain --prompts p --exemplars IN --output OUT",
        "posttrain --prompts p --start IN --output OUT",
        "posttrain --prompts p --start IN/checkpoint --output OUT",
        "preferences train --corpus IN --output OUT",
        "preferences train-latent --corpus c --checkpoint IN --output OUT",
        "preferences make IN --output OUT",
        "evaluate bench --real IN --output OUT",
        "evaluate portraits --images IN --output OUT",
    ],
)
def test_no_output_folder_is_an_input_folder(wish: str, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    (folder / "checkpoint").mkdir(parents=True)
    for other in (folder, tmp_path / "." / "mine", linked("symbolic", folder)):
        words = wish.replace("IN", str(folder)).replace("OUT", str(other)).split()
        with pytest.raises(BadInput, match="give another name"):
            check_outputs_are_not_inputs(read_command(words)[1])


def test_a_run_goes_on_and_a_study_is_analysed_in_place(tmp_path: Path) -> None:
    (tmp_path / "checkpoint").mkdir()
    for wish in (
        "posttrain --prompts p --recipe IN --start IN --output IN --resume",
        "preferences study analyse IN --output IN",
    ):
        check_outputs_are_not_inputs(read_command(wish.replace("IN", str(tmp_path)).split())[1])


def test_the_refusal_comes_first_and_in_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mine = tmp_path / "mine.mp4"
    mine.write_text("mine")
    assert main(["animate", "--speaker", f"1={mine},a.wav", "--output", str(mine)]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert mine.read_text() == "mine"


@pytest.mark.skipif(shutil.which("setpriv") is None, reason="becoming another user needs setpriv")
@pytest.mark.slow
@pytest.mark.parametrize("home", [None, "/", "read-only"])
def test_a_user_without_home_and_name_can_work(files: Path, tmp_path: Path, home: str | None) -> None:
    place = Path(tempfile.mkdtemp())  # pytest's own folders are closed to other users
    try:
        place.chmod(0o777)
        for name in ("face.png", "speech.wav"):
            shutil.copyfile(files / name, place / name)
        (place / "barred").mkdir(mode=0o555)
        environment = {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1", "TMPDIR": str(place)}
        if home:
            environment["HOME"] = str(place / "barred") if home == "read-only" else home
        become = ["setpriv", "--reuid", "12345", "--regid", "12345", "--clear-groups"]
        if subprocess.run([*become, sys.executable, "-c", "import torch"], env=environment, check=False).returncode:
            pytest.skip("this interpreter cannot be run as another user")
        done = subprocess.run(
            [*become, *PROGRAM, *arguments(place, place / "o.mp4"), "--json"],
            env=environment, capture_output=True, text=True, cwd="/", timeout=300,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["frames"] == 13
        assert all(line.startswith("Warning: The face in") for line in done.stderr.splitlines())
    finally:
        shutil.rmtree(place)


@posix
def test_nobody_needs_a_name_or_a_home(tmp_path: Path) -> None:
    """The user database knows nobody, as in containers that run as an arbitrary number."""
    script = (
        "import pwd, sys\ndef unknown(number): raise KeyError(number)\npwd.getpwuid = unknown\n"
        "from flowportrait.cli import main\nassert main(['posttrain', 'recipes', '--json']) == 0\n"
        "import getpass, os\nfrom flowportrait.files import cache_folder\n"
        "print(getpass.getuser(), os.environ['HOME'], cache_folder())"
    )
    environment = {"PYTHONPATH": os.pathsep.join(sys.path), "TMPDIR": str(tmp_path), "PATH": os.environ["PATH"]}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    user, home, cache = done.stdout.splitlines()[-1].split()
    assert user == f"user{os.getuid()}"
    assert Path(home).is_dir()
    assert Path(cache).is_relative_to(tmp_path)


@posix
def test_folders_fall_back_to_a_private_temporary_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def nowhere() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    monkeypatch.setattr(Path, "home", nowhere)
    for found in (cache_folder(), config_folder()):
        assert found.parent.stat().st_uid == os.getuid()
        assert found.parent.stat().st_mode & 0o077 == 0
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "flowportrait"


@posix
def test_somebody_elses_temporary_folder_is_not_trusted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from flowportrait.files import _temporary_folder

    planted = tmp_path / f"flowportrait-{os.getuid()}"
    planted.mkdir()
    planted.chmod(0o777)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    _temporary_folder.cache_clear()
    assert _temporary_folder(".config").parent != planted
    _temporary_folder.cache_clear()


@posix
@pytest.mark.parametrize("line", ["posttrain recipes", "--help", "posttrain policies"])
def test_a_reader_that_leaves_early_is_no_error(line: str) -> None:
    done = shell(f"$FP {line} | true")
    assert (done.returncode, done.stderr) == (0, "")


@posix
def test_closed_streams_are_no_error(tmp_path: Path, files: Path) -> None:
    done = shell("$FP posttrain recipes >&-")
    assert (done.returncode, done.stderr) == (0, "")
    assert shell("$FP posttrain recipes --json <&- 2>&-").stdout.startswith("{")
    done = shell(f"$FP animate --image {files}/face.png --stream --output {tmp_path}/o.mp4 <&-")
    assert done.returncode == 2
    assert "No sound came in" in done.stderr
    assert len([line for line in done.stderr.splitlines() if not line.startswith("Warning")]) == 1
    assert not list(tmp_path.iterdir())


@posix
def test_a_closed_standard_error_never_becomes_a_file_that_is_written(tmp_path: Path) -> None:
    script = (
        "import os, sys; from flowportrait.terminal import repair_standard_streams\n"
        f"with repair_standard_streams():\n file = open({str(tmp_path / 'video')!r}, 'w'); assert file.fileno() > 2\n"
        " os.write(2, b'chatter')"
    )
    done = shell(f'"{sys.executable}" -c "$SCRIPT" 2>&- <&-', SCRIPT=script)
    assert done.returncode == 0
    assert (tmp_path / "video").read_text() == ""


@pytest.mark.parametrize("length", [MAX_NAME_BYTES - 4, MAX_NAME_BYTES])
def test_names_as_long_as_the_file_system_allows(length: int, tmp_path: Path) -> None:
    path = tmp_path / ("ü" * ((length - 4) // 2) + "n" * ((length - 4) % 2) + ".mp4")
    assert len(os.fsencode(path.name)) == length
    with atomic_write(path) as partial:
        partial.write_text("whole")
        assert len(os.fsencode(partial.name)) <= MAX_NAME_BYTES
    assert [one.read_text() for one in tmp_path.iterdir()] == ["whole"]


def test_two_long_names_do_not_share_a_partial_file(tmp_path: Path) -> None:
    first, second = (tmp_path / ("n" * 240 + end) for end in ("a.mp4", "b.mp4"))
    with atomic_write(first) as one, atomic_write(second) as other:
        one.write_text("one")
        other.write_text("other")
    assert (first.read_text(), second.read_text()) == ("one", "other")


def test_a_name_that_is_too_long_is_refused_before_the_work(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments(files, tmp_path / ("n" * 260 + ".mp4"))) == 2
    error = capsys.readouterr().err
    assert "choose another --output" in error
    assert error.count("\n") == 1


def test_version_and_module_say_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    from flowportrait import __version__

    done = subprocess.run([*PROGRAM, "--version"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, f"flowportrait {__version__}\n")


@posix
@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGHUP, 129), (signal.SIGTERM, 143)])
def test_a_terminal_that_closes_ends_the_work_without_litter(
    files: Path, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    """On a pseudo-terminal, whose other end is closed as the signal comes."""
    import pty

    speech = tmp_path / "long.wav"
    wavfile.write(speech, 16_000, np.tile(wavfile.read(files / "speech.wav")[1], 40))
    out = tmp_path / "out"
    out.mkdir()
    wish = arguments(files, out / "o.mp4")
    wish[wish.index("--audio") + 1] = str(speech)
    ours, theirs = pty.openpty()
    program = subprocess.Popen([*PROGRAM, *wish], stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True)
    os.close(theirs)
    until = time.monotonic() + 120
    while not any(out.iterdir()) and program.poll() is None and time.monotonic() < until:
        time.sleep(0.05)
    assert any(out.iterdir())
    os.close(ours)
    program.send_signal(number)
    assert program.wait(timeout=30) == code
    assert not list(out.iterdir())


@posix
def test_a_folder_that_is_removed_meanwhile_ends_the_work_at_once(tmp_path: Path) -> None:
    from flowportrait.media.write_video import write_video

    folder, drawn = tmp_path / "out", []
    folder.mkdir()

    def frames():  # type: ignore[no-untyped-def]
        for number in range(200):
            if number == 5:
                shutil.rmtree(folder)
            drawn.append(number)
            yield np.zeros((64, 64, 3), np.uint8)

    with pytest.raises(BadInput, match="its folder was removed meanwhile"):
        write_video(folder / "o.mp4", frames(), None)
    assert len(drawn) < 20
    assert not folder.exists()


@posix
def test_names_that_are_no_text_are_read_written_and_printed(files: Path, tmp_path: Path) -> None:
    """Latin-1 bytes, as old archives hold them."""
    names = {name: os.path.join(os.fsencode(tmp_path), b"f\xfcr " + name) for name in (b"i.png", b"a.wav", b"o.mp4")}
    for given, name in (("face.png", b"i.png"), ("speech.wav", b"a.wav")):
        shutil.copyfile(os.fsencode(files / given), names[name])
    words = [os.fsencode(word) for word in arguments(files, "OUT")]
    for flag, name in ((b"--image", b"i.png"), (b"--audio", b"a.wav"), (b"--output", b"o.mp4")):
        words[words.index(flag) + 1] = names[name]
    done = subprocess.run([*map(os.fsencode, PROGRAM), *words], capture_output=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    assert b"Traceback" not in done.stderr
    assert b"o.mp4" in done.stdout
    assert os.path.isfile(names[b"o.mp4"])


def test_the_sizes_beside_an_exported_step_replace_no_configuration(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("model.safetensors", "config.json"):
        (tmp_path / name).write_text("mine")
    assert main(["export", "--checkpoint", str(tmp_path), "--output", str(tmp_path / "config.onnx")]) == 2
    assert "give another name" in capsys.readouterr().err
    assert (tmp_path / "config.json").read_text() == "mine"


def test_drawn_prompts_replace_no_videos_that_are_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "out" / "sft"
    folder.mkdir(parents=True)
    (folder / "a.mp4").write_text("mine")
    code = main(["evaluate", "--checkpoint", "sft", "--system", f"other={folder}", "--prompts", str(tmp_path),
                 "--output", str(tmp_path / "out")])  # fmt: skip
    assert code == 2
    assert "give another name" in capsys.readouterr().err
    assert (folder / "a.mp4").read_text() == "mine"
