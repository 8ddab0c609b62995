"""Claims about ``flowportrait animate``: several inputs in one run, quiet and long speech, and what it prints."""

from __future__ import annotations

import json
import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import wavfile
from skimage.data import astronaut

from flowportrait.cli import main, read_command
from flowportrait.commands.animate import items_of
from flowportrait.errors import BadInput
from flowportrait.media.mel import QUIET_RMS, loudness_gain_from_power, normalize_quiet_recording
from flowportrait.media.video import iter_frames
from flowportrait.models.sampler import GenerationSession
from flowportrait.models.speech_stream import LevelledSound, closed_lips_share
from flowportrait.pipelines.animate import AnimatePipeline
from flowportrait.pipelines.animator import Animator
from flowportrait.pipelines.batch import BatchItem
from flowportrait.rendering.motion_basis import LOWER_FACE

RATE = 16_000


def babble(seconds: float, seed: int = 0) -> np.ndarray:
    """Noise in the rhythm of syllables, with a pause every two seconds."""
    rng = np.random.default_rng(seed)
    time_axis = np.arange(round(seconds * RATE)) / RATE
    wave = 0.1 * np.abs(np.sin(2 * np.pi * 2.5 * time_axis)) * rng.normal(size=len(time_axis))
    return (wave * (time_axis % 2 < 1.5)).astype(np.float32)


def at_level(wave: np.ndarray, decibels: float) -> np.ndarray:
    """At so many decibels below full scale, RMS."""
    return (wave * 10 ** (decibels / 20) / np.sqrt((wave.astype(np.float64) ** 2).mean())).astype(np.float32)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    face = cv2.resize(astronaut(), (256, 256))
    for name in ("anna", "ben"):
        cv2.imwrite(str(folder / f"{name}.png"), face[..., ::-1])
        wavfile.write(folder / f"{name}.wav", RATE, (babble(0.5, len(name)) * 32767).astype(np.int16))
    (folder / "broken.png").write_text("no picture at all")
    return folder


@pytest.fixture(scope="module")
def animator() -> Animator:
    return Animator.from_pretrained("sft")


def jobs(tmp_path: Path, *words: str | Path) -> list[tuple[str, str | None, str]]:
    """Names of picture, sound and video of every job."""
    options = read_command(["animate", *map(str, words), "--output", str(tmp_path / "out")])[1]
    return [((one.image or one.video).name, one.audio and one.audio.name, output.name)
            for one, output in items_of(options)[0]]  # fmt: skip


def empty(folder: Path, *names: str) -> list[Path]:
    folder.mkdir(exist_ok=True)
    for name in names:
        (folder / name).touch()
    return [folder / name for name in names]


def test_one_of_either_goes_with_all_of_the_other(tmp_path: Path) -> None:
    a, b, x, y = empty(tmp_path, "a.jpg", "b.jpg", "x.wav", "y.mp4")
    assert jobs(tmp_path, "--image", a, b, "--audio", x) == [("a.jpg", "x.wav", "a.mp4"), ("b.jpg", "x.wav", "b.mp4")]
    assert jobs(tmp_path, "--image", a, "--audio", x, y, "--format", "webm") == [
        ("a.jpg", "x.wav", "x.webm"), ("a.jpg", "y.mp4", "y.webm")]  # fmt: skip
    assert jobs(tmp_path, "--image", a, b, "--text", "Hello.") == [("a.jpg", None, "a.mp4"), ("b.jpg", None, "b.mp4")]
    assert jobs(tmp_path, "--image", a, "--image", b, "--audio", x)[1] == ("b.jpg", "x.wav", "b.mp4")


def test_several_of_both_are_paired_by_name_or_in_the_order_given(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    empty(folder, "b.wav", "a.jpg", "b.PNG", "a.mp3", ".hidden.jpg", "notes.txt")
    assert jobs(tmp_path, "--image", folder, "--audio", folder) == [
        ("a.jpg", "a.mp3", "a.mp4"), ("b.PNG", "b.wav", "b.mp4")]  # fmt: skip
    one, two, first, second = empty(tmp_path, "one.jpg", "two.jpg", "1.wav", "2.wav")
    assert jobs(tmp_path, "--image", one, two, "--audio", second, first) == [
        ("one.jpg", "2.wav", "one.mp4"), ("two.jpg", "1.wav", "two.mp4")]  # fmt: skip
    videos = empty(tmp_path, "c.mov", "d.mp4")
    assert [out for *_, out in jobs(tmp_path, "--video", *videos, "--audio", first)] == ["c.mp4", "d.mp4"]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("--image a.jpg b.jpg --audio x.wav y.wav z.wav", "It is not clear"),
        ("--image a.jpg b.jpg --audio a.wav x.wav", "It is not clear"),
        ("--image empty --audio x.wav", "holds no suitable file"),
        ("--image a.jpg A.png --audio x.wav", "Two of the inputs"),
        ("--image a.jpg b.jpg --audio x.wav --motion-out m.csv", "goes with one input"),
        ("--image a.jpg b.jpg --text -", "read once"),
        ("--image a.jpg --audio x.wav --format webm", "goes with several inputs"),
        ("--image a.jpg b.jpg --audio x.wav --output o.mp4", "names one video"),
        ("--image a.jpg --audio o.mp4 x.wav --output .", "take the place"),
        ("--image a.jpg b.jpg --stream --output o.mp4", "names one video|makes one video"),
    ],
)
def test_what_cannot_be_paired_or_named_is_refused_in_a_sentence(
    words: str, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    empty(tmp_path, "a.jpg", "b.jpg", "A.png", "a.wav", "x.wav", "y.wav", "z.wav", "o.mp4", "p.wav")
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    wish = words.split()
    assert main(["animate", *wish, *([] if "--output" in wish else ["--output", "out"])]) == 2
    error = capsys.readouterr().err
    assert re.search(sentence, error), error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_file_that_cannot_be_used_does_not_stop_the_others(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    loaded = []
    before = AnimatePipeline.from_pretrained.__func__  # type: ignore[attr-defined]
    AnimatePipeline.from_pretrained = classmethod(  # type: ignore[method-assign]
        lambda *given, **named: loaded.append(1) or before(*given, **named)
    )
    try:
        code = main(["animate", "--image", *(str(files / f"{n}.png") for n in ("anna", "broken", "ben")), "--audio",
                     str(files / "anna.wav"), "--output", str(tmp_path / "out"), "--size", "64", "--crop", "--json",
                     "--checkpoint", "sft"])  # fmt: skip
    finally:
        AnimatePipeline.from_pretrained = classmethod(before)  # type: ignore[method-assign]
    captured = capsys.readouterr()
    found = json.loads(captured.out)
    assert code == 2
    assert len(loaded) == 1
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["anna.mp4", "ben.mp4"]
    assert [Path(video["output"]).name for video in found["videos"]] == ["anna.mp4", "ben.mp4"]
    assert [Path(name).name for name in found["failures"]] == ["broken.mp4"]
    assert "1 of 3 videos were not made. broken.mp4:" in captured.err.splitlines()[-1]


def test_a_batch_makes_what_single_runs_make(files: Path, tmp_path: Path) -> None:
    common = ["--size", "64", "--crop", "--checkpoint", "sft"]
    assert main(["animate", "--image", str(files / "anna.png"), "--audio", *(str(files / f"{n}.wav") for n in
                 ("anna", "ben")), "--output", str(tmp_path / "out"), *common]) == 0  # fmt: skip
    assert main(["animate", "--image", str(files / "anna.png"), "--audio", str(files / "ben.wav"), "--output",
                 str(tmp_path / "single.mp4"), *common]) == 0  # fmt: skip
    both = [np.stack(list(iter_frames(path))) for path in (tmp_path / "out" / "ben.mp4", tmp_path / "single.mp4")]
    np.testing.assert_array_equal(*both)


def test_ctrl_c_keeps_what_is_finished(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from flowportrait.commands import animate

    made = []

    def save(item: BatchItem) -> dict[str, object]:
        if made:
            raise KeyboardInterrupt
        made.append(item.output)
        item.output.write_text("a video")
        return {}

    monkeypatch.setattr(animate, "_saver", lambda options: save)
    code = main(["animate", "--image", *(str(files / f"{n}.png") for n in ("anna", "ben")), "--audio",
                 str(files / "anna.wav"), "--output", str(tmp_path / "out")])  # fmt: skip
    assert code == 130
    assert "1 of 2 videos are finished in" in capsys.readouterr().err
    assert [path.read_text() for path in (tmp_path / "out").iterdir()] == ["a video"]


def test_a_transparent_photo_shows_the_chosen_background(files: Path, tmp_path: Path) -> None:
    face = cv2.resize(astronaut(), (256, 256))
    alpha = np.full((256, 256, 1), 255, np.uint8)
    alpha[:40, :40] = 0
    Image.fromarray(np.concatenate([face, alpha], 2)).save(tmp_path / "cut.png")
    for colour, wanted in (("#00ff00", (0, 255, 0)), ("navy", (0, 0, 128)), (None, (255, 255, 255))):
        more = ["--background", colour] if colour else []
        assert main(["animate", "--image", str(tmp_path / "cut.png"), "--audio", str(files / "anna.wav"), "--output",
                     str(tmp_path / "o.mp4"), "--checkpoint", "sft", *more]) == 0  # fmt: skip
        corner = next(iter_frames(tmp_path / "o.mp4"))[4:16, 4:16].reshape(-1, 3).mean(0)
        np.testing.assert_allclose(corner, wanted, atol=10)
    assert main(["animate", "--image", "a.png", "--audio", "a.wav", "--output", str(tmp_path / "p.mp4"),
                 "--background", "nocolour"]) == 2  # fmt: skip


@pytest.mark.parametrize("decibels", [-45, -50, -55, -60, -65])
def test_quiet_speech_moves_the_lips_as_loud_speech_does(animator: Animator, decibels: float) -> None:
    loud = at_level(babble(4.0), -26)
    quiet = np.round(at_level(loud, decibels) * 32768) / 32768  # as a 16-bit file holds it
    one, other = (
        torch.cat(list(animator.motion(wave.astype(np.float32), seed=1)))[:, LOWER_FACE] for wave in (loud, quiet)
    )
    assert np.corrcoef(one.flatten(), other.flatten())[0, 1] > 0.98
    assert float(other.norm() / one.norm()) == pytest.approx(1.0, abs=0.05)


@pytest.mark.parametrize("decibels", [-50, -60, -65])
def test_quiet_speech_is_raised_while_it_streams(animator: Animator, decibels: float) -> None:
    loud = at_level(babble(6.0), -26)

    def streamed(wave: np.ndarray) -> torch.Tensor:
        return torch.cat(list(animator.live(np.array_split(wave, 100), seed=1)))[:, LOWER_FACE]

    one, other = streamed(loud), streamed(at_level(loud, decibels))
    assert np.corrcoef(one[50:].flatten(), other[50:].flatten())[0, 1] > 0.9


def test_a_stream_is_raised_by_what_was_heard_alone() -> None:
    quiet = at_level(babble(4.0), -60)
    other = quiet.copy()
    other[3 * RATE :] = babble(1.0, 5)
    heard = [LevelledSound().push(wave)[2][: 3 * RATE] for wave in (quiet, other)]
    np.testing.assert_array_equal(*heard)


def test_ordinary_speech_is_heard_as_before_to_the_bit() -> None:
    """RMS 0.05 over the louder half of 10 ms blocks, whatever the recording's own loudness down to −45 dB."""
    for decibels in (-6, -20, -40):
        wave = at_level(babble(3.0), decibels)
        assert normalize_quiet_recording(wave) is wave
        power = (wave[: len(wave) // 160 * 160].reshape(-1, 160).astype(np.float64) ** 2).mean(1)
        ordered = np.sort(power)
        assert loudness_gain_from_power(power) == min(0.05 / float(np.sqrt(ordered[len(ordered) // 2 :].mean())), 20.0)


@pytest.mark.parametrize("colour", [0.0, 0.5])
@pytest.mark.parametrize("decibels", [-80, -65, -60, -55, -50, -46.5])
def test_hiss_is_not_speech(decibels: float, colour: float) -> None:
    """White and pink noise from 20 Hz."""
    spectrum = np.fft.rfft(np.random.default_rng(1).normal(size=12 * RATE))
    frequency = np.arange(len(spectrum)) / 12
    spectrum[frequency < 20] = 0
    hiss = at_level(np.fft.irfft(spectrum / np.maximum(frequency, 1) ** colour), decibels)
    assert closed_lips_share(hiss) == 1.0
    speech = np.concatenate([hiss, at_level(babble(2.0), -26)])
    assert closed_lips_share(speech) < 0.9


@pytest.mark.parametrize(
    ("decibels", "said"), [(-26, ""), (-58, "Note: {} is quiet, 58 dB below full scale: it is raised for the lips")]
)
def test_quiet_speech_is_said_to_be_raised(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], decibels: float, said: str
) -> None:
    speech = tmp_path / "speech.wav"
    wavfile.write(speech, RATE, np.round(at_level(babble(1.0), decibels) * 32767).astype(np.int16))
    assert main(["animate", "--image", str(files / "anna.png"), "--audio", str(speech), "--output",
                 str(tmp_path / "o.mp4"), "--size", "64", "--crop", "--checkpoint", "sft"]) == 0  # fmt: skip
    error = capsys.readouterr().err
    assert said.format(speech) in error
    assert ("raised" in error) == bool(said)


@pytest.mark.parametrize("noise", [0.0, 0.03])
def test_portions_change_nothing_but_the_order_of_sums(
    animator: Animator, monkeypatch: pytest.MonkeyPatch, noise: float
) -> None:
    speech = babble(26.03) + noise * np.random.default_rng(0).normal(size=round(26.03 * RATE)).astype(np.float32)

    def performed() -> torch.Tensor:
        return torch.cat(list(animator.motion(speech.astype(np.float32), seed=2)))

    found = performed()
    monkeypatch.setattr("flowportrait.models.speech_stream.PORTION_SAMPLES", 10**9)
    # Some processors sum a matrix product of another length in another order: up to 5e-6 was seen, of motion near 1.
    assert torch.allclose(found, performed(), rtol=0, atol=1e-4)


def test_a_long_recording_begins_at_once_and_takes_no_more_memory(animator: Animator) -> None:
    """The first chunk of ten minutes is there when seconds of them were processed, and what is kept does not grow."""
    speech = np.tile(babble(20.0), 30)
    session = GenerationSession(animator.generator, enhancer=animator.enhancer)
    drawn = session.push(speech)
    next(drawn)
    assert session.streams[0].sound.frames <= 2 * 128
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(120):
        next(drawn)
    assert session.streams[0].sound.frames < 120 * 4 + 3 * 128
    unit = 1024 if sys.platform != "darwin" else 1024**2
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 * unit
    assert len(session.streams[0].feature_stream.mel) < 4 * 800


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="needs a pseudo-terminal")
def test_every_wait_says_what_it_is_for(files: Path, tmp_path: Path) -> None:
    """On a terminal; elsewhere standard error stays clean."""
    import pty

    ours, theirs = pty.openpty()
    words = ["animate", "--image", str(files / "anna.png"), "--audio", str(files / "anna.wav"), "--size", "64",
             "--crop", "--output", str(tmp_path / "o.mp4")]  # fmt: skip
    program = subprocess.Popen(
        [sys.executable, "-m", "flowportrait", *words], stdin=theirs, stdout=theirs, stderr=theirs,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "100"},
    )  # fmt: skip
    os.close(theirs)
    shown = b""
    while True:
        try:
            piece = os.read(ours, 4096)
        except OSError:
            break
        if not piece:
            break
        shown += piece
    assert program.wait() == 0
    text = shown.decode()
    for doing in ("reading the speech", "loading the model", "looking for the face", "drawing"):
        assert doing in text


def test_bad_pairs_are_no_folder_of_videos(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="holds no suitable file"):
        jobs(tmp_path, "--image", *[path.parent for path in empty(tmp_path / "in", "a.txt")], "--audio", "x.wav")


def test_quiet_begins_where_ordinary_speech_ends() -> None:
    assert 20 * np.log10(QUIET_RMS) == pytest.approx(-45, abs=0.1)
