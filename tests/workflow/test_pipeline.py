"""Claims about a whole pipeline of tiny stages: killed in the middle of each, it ends where an unbroken one ends."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from scipy.io import wavfile
from skimage.data import astronaut

from flowportrait.media.write_video import write_video
from flowportrait.training.state import latest_state
from tests.corpus.test_prepare import face, syllables

TEXT = """\
output: OUT
prepare:
  inputs: footage
  workers: 1
  set: {sync: -2, sharpness: 0, speech: 0}
pretrain:
  set:
    steps: 4
    batch: 2
    windows: 28
    variants: 1
    lip_steps: 2
    check_every: 1
    generator: {hidden: 32, layers: 1, heads: 2, front_end: mel}
posttrain:
  recipe: nft-regions
  prompts: mine
  iterations: 3
  set: {groups: 1, group_size: 4, frames: 24, updates: 1, checkpoint_every: 1}
distil:
  iterations: 3
  set: {groups: 1, group_size: 4, frames: 24, updates: 1, epochs: 1, checkpoint_every: 1}
evaluate:
  system: ["posttrain=${posttrain.output}", "distil=${distil.output}"]
  prompts: other
"""
TIMINGS = ("frames_per_second", "seconds_per_second", "first_frame", "peak_memory")
FINISHED = "finished"


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    for speaker, shift in (("anna", 0), ("ben", 20)):
        (folder / "footage" / speaker).mkdir(parents=True)
        write_video(folder / "footage" / speaker / f"{speaker}.mp4", face(50, shift), syllables(2))
    for name in ("mine", "other"):
        (folder / name).mkdir()
        cv2.imwrite(str(folder / name / "a.png"), astronaut()[:320, 60:380, ::-1])
        wavfile.write(folder / name / "a.wav", 16_000, (syllables(1) * 32767).astype(np.int16))
    return folder


def start(folder: Path, output: str) -> subprocess.Popen[bytes]:
    (folder / f"{output}.yaml").write_text(TEXT.replace("OUT", output))
    words = [sys.executable, "-m", "flowportrait.cli", "pipeline", f"{output}.yaml"]
    environment = os.environ | {"XDG_CACHE_HOME": str(folder / "cache")}
    # A session of its own, so that all of its processes can be killed at once, as a power cut does.
    return subprocess.Popen(words, cwd=folder, env=environment, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                            start_new_session=True)  # fmt: skip


def in_the_middle(run: Path) -> dict[str, Callable[[], bool]]:
    """Whether a stage has something to go on from, by its name."""

    def has_state(stage: str) -> Callable[[], bool]:
        return lambda: (run / stage / "state").is_dir() and latest_state(run / stage / "state") is not None

    done = run / "prepare" / "sources.jsonl"
    return {
        "prepare": lambda: done.is_file() and bool(done.read_text()),
        **{stage: has_state(stage) for stage in ("pretrain", "posttrain", "distil")},
        "evaluate": lambda: any((run / "evaluate").rglob("*.mp4")),
    }


def status(run: Path, stage: str) -> str | None:
    path = run / f"{stage}.json"
    return json.loads(path.read_text())["status"] if path.is_file() else None


def kill_in(stage: str, folder: Path, output: str) -> str | None:
    """Start the pipeline, kill it in the middle of a stage, and return the state of that stage."""
    process, begun = start(folder, output), in_the_middle(folder / output)[stage]
    while not (status(folder / output, stage) == "started" and begun()):
        assert process.poll() is None, "the pipeline ended by itself"
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return status(folder / output, stage)


def results(run: Path) -> dict[str, Any]:
    """What a pipeline delivers, without how long it took."""
    files = [run / "prepare" / "clips.jsonl", *sorted((run / "prepare" / "clips").rglob("*.safetensors"))]
    files += [run / stage / "checkpoint" / "model.safetensors" for stage in ("pretrain", "posttrain", "distil")]
    found: dict[str, Any] = {str(file.relative_to(run)): file.read_bytes() for file in files}
    clips = json.loads((run / "evaluate" / "metrics.json").read_text())["clips"]
    for system, rows in clips.items():
        for clip, row in rows.items():
            found[f"{system} {clip}"] = {name: value for name, value in row.items() if name not in TIMINGS}
    return found


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="kills a group of processes")
def test_killed_in_every_stage_and_resumed_it_ends_as_without(inputs: Path) -> None:
    stages = list(in_the_middle(inputs))
    assert start(inputs, "whole").wait() == 0
    assert [status(inputs / "whole", stage) for stage in stages] == [FINISHED] * 5
    for number, stage in enumerate(stages):
        assert kill_in(stage, inputs, "broken") == "started"
        assert [status(inputs / "broken", name) for name in stages[:number]] == [FINISHED] * number
    assert start(inputs, "broken").wait() == 0
    whole, broken = results(inputs / "whole"), results(inputs / "broken")
    assert whole.keys() == broken.keys()
    assert len(whole) == 2 + 2 + 2 + 2
    assert [name for name in whole if whole[name] != broken[name]] == []
    # Nothing is done again, and what one stage learned is not what the next one learned.
    before = {path: path.stat().st_mtime_ns for path in (inputs / "broken").rglob("*.safetensors")}
    assert start(inputs, "broken").wait() == 0
    assert before == {path: path.stat().st_mtime_ns for path in (inputs / "broken").rglob("*.safetensors")}
    assert len({whole[f"{stage}/checkpoint/model.safetensors"] for stage in ("pretrain", "posttrain", "distil")}) == 3
    shutil.rmtree(inputs / "whole")


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="sends SIGINT to a group of processes")
def test_ctrl_c_leaves_a_state_that_the_next_run_continues(inputs: Path) -> None:
    process, begun = start(inputs, "stopped"), in_the_middle(inputs / "stopped")["pretrain"]
    while not begun():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)  # to the pipeline alone, which passes it on
    assert process.wait() == 130
    assert status(inputs / "stopped", "pretrain") == "started"
    states = latest_state(inputs / "stopped" / "pretrain" / "state")
    assert states is not None
    assert (states / "progress.json").is_file()
