"""Evaluation from Python: the program of the manual, and everything that a system may be."""

from __future__ import annotations

import csv
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from skimage.data import astronaut

import flowportrait as fp
from flowportrait.errors import BadInput
from flowportrait.evaluation.api import EvaluationReport, score_videos
from flowportrait.media.write_video import write_video

FRAMES = 30


def pictures(step: float) -> Iterator[np.ndarray]:
    """A face that drifts."""
    face = cv2.resize(astronaut()[:256, 96:352], (160, 160), interpolation=cv2.INTER_AREA)
    for t in range(FRAMES):
        matrix = np.array([[1, 0, step * np.sin(t / 5)], [0, 1, step * np.cos(t / 4)]])
        yield cv2.warpAffine(face, matrix, (160, 160), borderMode=cv2.BORDER_REPLICATE)


def sound() -> np.ndarray:
    return np.random.default_rng(0).normal(0, 0.1, 640 * FRAMES).astype(np.float32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders out, other and clips with two videos each, and prompts."""
    folder = tmp_path_factory.mktemp("work")
    for step, name in enumerate(("clips", "out", "other"), 1):
        (folder / name).mkdir()
        for clip in ("a", "b"):
            write_video(folder / name / f"{clip}.mp4", pictures(step), sound())
    (folder / "prompts").mkdir()
    cv2.imwrite(str(folder / "prompts" / "face.png"), astronaut()[..., ::-1])
    write_wav(folder / "prompts" / "voice.wav")
    return folder


def write_wav(path: Path) -> None:
    from scipy.io import wavfile

    wavfile.write(path, 16_000, sound())


@pytest.fixture(autouse=True)
def work_in(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))


def test_two_folders_are_held_against_real_clips_in_one_line(folder: Path) -> None:
    fp.evaluate({"ours": "out/", "theirs": "other/"}, real="clips/").to_html("report.html")
    page = (folder / "report.html").read_text()
    assert all(name in page for name in ("ours", "theirs", "real"))
    assert page.count("data:video/mp4;base64,") == 3


def test_a_report_is_read_from_python_printed_and_written(folder: Path, tmp_path: Path) -> None:
    report = fp.evaluate({"ours": "out/", "theirs": "other/"}, real="clips/", baseline="theirs")
    assert isinstance(report, EvaluationReport)
    assert set(report.rows) == {"ours", "theirs", "real"}
    assert report.rows["ours"]["a"]["apd"] is not None
    assert {d.system for d in report.comparison.differences} == {"ours"}
    assert report.summary["counts"]["ours"]["clips"] == 2
    assert "LER" in str(report)
    stored = json.loads(report.to_json(tmp_path / "m.json").read_text())
    assert stored["clips"]["ours"]["a"] == json.loads(json.dumps(report.rows["ours"]["a"]))
    with report.to_csv(tmp_path / "m.csv").open(newline="") as stream:
        assert [(row["system"], row["clip"]) for row in csv.DictReader(stream)][:2] == [("ours", "a"), ("ours", "b")]
    written = report.write(tmp_path / "all")
    assert {Path(written[key]).name for key in ("report", "metrics.json", "metrics.csv")} == {
        path.name for path in (tmp_path / "all").iterdir()
    }


def test_one_folder_is_a_system_and_a_file_list_is_one(folder: Path) -> None:
    assert set(fp.evaluate("out/").rows) == {"videos"}
    listed = fp.evaluate({"some": [folder / "out" / "a.mp4", "other/b.mp4"]})
    assert set(listed.rows["some"]) == {"a", "b"}


def test_a_callable_is_a_system_that_is_asked_for_every_prompt(folder: Path) -> None:
    class Result:
        def __init__(self) -> None:
            self.frames = list(pictures(2.0))

    asked = []

    def pipeline(image: Path, audio: Path) -> Result:
        asked.append((image.name, audio.name))
        return Result()

    systems = {"pipeline": pipeline, "generator": lambda image, audio: pictures(1.0)}
    report = fp.evaluate(systems, prompts="prompts/")
    assert asked == [("face.png", "voice.wav")]
    assert set(report.rows) == {"pipeline", "generator"}
    assert report.rows["pipeline"]["face-voice"]["frames"] == FRAMES
    assert report.files["generator"]["face-voice"].is_file(), "as long as the report lives"


@pytest.mark.slow
def test_a_checkpoint_is_a_system_and_its_videos_stay_where_they_are_wanted(folder: Path, tmp_path: Path) -> None:
    report = fp.evaluate({"sft": "sft"}, prompts="prompts/", output=tmp_path)
    assert (tmp_path / "sft" / "face-voice.mp4").is_file()
    assert report.rows["sft"]["face-voice"]["frames_per_second"] is not None


def test_rewards_score_finished_videos_too(folder: Path) -> None:
    scores, left_out = score_videos(["out/"], ["sync", "eyes"])
    assert not left_out
    assert [Path(video).name for video in scores] == ["a.mp4", "b.mp4"]
    assert all(set(found) == {"sync", "eyes"} for found in scores.values())


@pytest.mark.parametrize(
    ("systems", "arguments", "sentence"),
    [
        ({"ours": "nowhere"}, {}, "No video or folder at nowhere"),
        ({"ours": "sft"}, {}, "'ours' must draw its videos: give prompts"),
        ({"a/b": "sft"}, {"prompts": "prompts"}, "cannot be the name of a folder"),
        ({"real": "clips"}, {"real": "clips"}, "given twice"),
        ({"ours": "out"}, {"baseline": "theirs"}, "baseline 'theirs' is not among the systems ours"),
        ({"ours": "out"}, {"workers": 0}, "0 is not a number of processes"),
        ({}, {}, "nothing to evaluate"),
    ],
)
def test_what_cannot_be_evaluated_is_refused_in_a_sentence(
    systems: dict[str, str], arguments: dict[str, object], sentence: str
) -> None:
    with pytest.raises(BadInput, match=sentence):
        fp.evaluate(systems, **arguments)  # type: ignore[arg-type]


def test_the_function_stays_a_function_whatever_was_imported_before() -> None:
    code = "import flowportrait.evaluation.benchmark, flowportrait as fp; "
    code += "print(callable(fp.evaluate), fp.evaluate.__doc__)"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.startswith("True Measure the videos")


@pytest.mark.parametrize("package", ["evaluation", "corruption"])
def test_what_judges_and_what_damages_import_neither_commands_nor_post_training(package: str) -> None:
    for path in (Path(fp.__file__).parent / package).glob("*.py"):
        imported = re.findall(r"^\s*(?:from|import) (flowportrait\.\w+)", path.read_text(), re.M)
        assert not {"flowportrait.commands", "flowportrait.cli", "flowportrait.posttrain"} & set(imported), path.name
