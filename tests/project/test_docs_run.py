"""Commands of the pages, run as written in a small world with the files they name; why the others are only parsed."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from scipy.io import wavfile
from skimage.data import astronaut

from flowportrait.cli import main
from flowportrait.human_study.plan import QUESTIONS, AnswerStore, Study
from flowportrait.media.audio import SAMPLE_RATE
from flowportrait.preferences.dataset import Label
from tests.doc_commands import ROOT, commands, words
from tests.pipelines.test_animator import babble
from tests.project.test_docs import QUICK
from tests.project.test_guides import SMALL
from tests.study_browser import small_study

ONLY_PARSED = {
    "footage, and up to hours": r"CORPUS|FOOTAGE|CLIPS|corpus|--real clips/$|power\.json|rl/recipe\.json",
    "results of two benchmarks, made in test_bench and test_portraitgen": r"(bench|portraits) --compare",
    "a judge that has passed its examination on real clips or stills": r"judge check|judge\.json",
    "models that are not at hand, or minutes to lay them all out": r"Qwen|Wan-AI/|flux|policies memory$",
    "a server": r"endpoint\.url",
    "only explains, as test_docs does": r"--help",
    "somebody's own code": r"mylab\.|mine:Mine",
    "goes on until it is stopped; test_studio_browser, test_judge_serve, test_study_browser":
        r"^flowportrait (studio|judge serve|preferences study serve)",
    "run as written by test_guides": r"--prompts (mine|kept)|mine/me\.png|doctor run$",
    "runs in test_docs": "^(" + "|".join(QUICK) + ")$",
    "hundreds of pictures": r"evaluate portraits --images",
    "minutes: every expert under every aspect; test_judge_measured": r"judge learn|library\.json",
}  # fmt: skip
"""Reason → commands that no small world suffices for."""
EVERY = [line for _, line in commands("flowportrait ")]
RUN = [line for line in EVERY if not any(re.search(part, line) for part in ONLY_PARSED.values())]
PHOTOS = ("photo", "me", "anna", "ben", "a", "b", "photos/one", "photos/two")
SOUNDS = ("speech", "me", "anna", "ben", "a", "b", "a1", "a2", "b1", "live", "translation", "recordings/one",
          "recordings/two")  # fmt: skip
PROMPTS = ("DIR", "DIR2", "PROMPTS", "prompts")
VIDEOS = {"VIDEOS": 3, "clips": 8, "videos/a": 1, "videos/b": 1, "videos/ours": 1, "videos/theirs": 1, "out": 1,
          "wav2lip": 1, "folder": 1}  # fmt: skip
DAMAGE = ["--per-video", "4", "--damage", "offset", "still", "jitter", "slowed"]


def test_what_is_only_parsed_has_a_reason_that_is_still_needed() -> None:
    assert [why for why, part in ONLY_PARSED.items() if not any(re.search(part, line) for line in EVERY)] == []
    assert len(RUN) > 45


def smaller(line: str) -> list[str]:
    """The words of a command, cut to what a test can wait for and to one folder that all pages share."""
    given = ["videos/ours" if word == "videos/" else word for word in words(line)]
    if given[0] == "animate" and "--video" not in given:
        given += ["--size", "64"]
    if given[0] == "posttrain" and "--output" in given:
        given += ["--set", "groups=1", "group_size=2", "iterations=1"] if "--policy" in given else SMALL
    if given[:3] == ["preferences", "study", "make"]:
        given[given.index("--output") + 1] = "another"
    if given[:3] == ["preferences", "make"]:
        given += DAMAGE
    return given


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with everything that the pages take for granted."""
    folder = tmp_path_factory.mktemp("world")
    face = np.ascontiguousarray(astronaut()[:300, 60:360])
    for name in ("photos", "recordings"):
        (folder / name).mkdir()
    cv2.imwrite(str(folder / "logo.png"), np.dstack([face[..., ::-1], np.full(face.shape[:2], 255, np.uint8)]))
    for name in PHOTOS:
        cv2.imwrite(str(folder / f"{name}.jpg"), face[..., ::-1])
    cv2.imwrite(str(folder / "both.jpg"), np.concatenate([face, face], 1)[..., ::-1])
    sound = (babble(1.3).clip(-1, 1) * 32767).astype(np.int16)
    for name in SOUNDS:
        wavfile.write(folder / f"{name}.wav", SAMPLE_RATE, sound)
    (folder / "story.txt").write_text("Good day.\n")
    for name in PROMPTS:
        (folder / name).mkdir()
        cv2.imwrite(str(folder / name / "me.png"), face[..., ::-1])
        wavfile.write(folder / name / "0.wav", SAMPLE_RATE, sound)
    run(folder, "animate --image photo.jpg --audio speech.wav --crop --size 128 --output talking.mp4")
    for name in ("clip", "interview", "video"):
        shutil.copy(folder / "talking.mp4", folder / f"{name}.mp4")
    for name, count in VIDEOS.items():
        (folder / name).mkdir(parents=True)
        for number in range(count):
            shutil.copy(folder / "talking.mp4", folder / name / f"{number}.mp4")
    with (folder / "scores.csv").open("w", newline="") as file:
        csv.writer(file).writerows(
            [["file", "generator", "lip_sync", "expressiveness", "motion"]]
            + [[f"{number}.mp4", "ours", 1 + number % 5, 3, 4] for number in range(VIDEOS["clips"])]
        )
    run(folder, "posttrain --prompts DIR --output RUN", *SMALL)
    for name in ("run", "runs/rl", "fast"):
        shutil.copytree(folder / "RUN", folder / name)
    run(folder, "preferences make VIDEOS --output made", *DAMAGE)
    pairs = [json.loads(line) for line in (folder / "made" / "pairs.jsonl").read_text().splitlines()]
    rated = [pair | {"points": {"first": {"sync": 2}, "second": {"sync": 4}}} for pair in pairs]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in rated))
    shutil.copytree(folder / "made" / "media", folder / "media")
    for own in "ab":
        run(folder, f"judge score videos/{own} --output {own.upper()}.json")
    shutil.copy(folder / "A.json", folder / "calibration.json")
    answered(folder)
    run(folder, "preferences study analyse study")
    return folder


def run(folder: Path, line: str, *more: str) -> None:
    """One command in a folder, which must succeed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main([*line.split(), *more]) == 0


def answered(folder: Path) -> None:
    """A study that somebody took part in."""
    study = small_study(folder / "systems")
    plan, store = Study.load(study), AnswerStore(study, Study.load(study))
    token = store.add_participant()
    for one in plan.comparisons:
        for aspect in QUESTIONS:
            store.answer(token, one.key, aspect, Label.TIE if one.kind == "identical" else Label.FIRST)
    shutil.copytree(study, folder / "study")


@pytest.mark.slow
@pytest.mark.parametrize("line", RUN)
def test_a_command_of_the_pages_runs(line: str, world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = smaller(line)
    monkeypatch.chdir(world)
    monkeypatch.syspath_prepend(ROOT)
    source = re.search(r"\s<\s*(\S+)", line)
    if source:
        monkeypatch.setattr(sys, "stdin", (world / source.group(1)).open())
    if given[0] == "posttrain" and "--output" in given:
        shutil.rmtree(world / given[given.index("--output") + 1], ignore_errors=True)
    with io.TextIOWrapper((world / "piped").open("wb")) as pipe:
        if "-" in given:
            monkeypatch.setattr(sys, "stdout", pipe)
        assert main(given) == 0
