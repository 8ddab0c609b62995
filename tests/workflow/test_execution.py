"""Claims about running stages: what is skipped, continued, refused and made again.

The stages are played by a function here, which writes what it was told to read; ``test_pipeline.py`` runs real ones.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from flowportrait.cli import main
from flowportrait.errors import BadInput
from flowportrait.workflow.execution import PipelineRun
from flowportrait.workflow.records import FileHashes
from flowportrait.workflow.run_file import read_run_file

TEXT = """\
output: out
prepare: {inputs: footage, set: {sync: -2}}
pretrain: {set: {steps: 5}}
evaluate: {prompts: other}
"""


@dataclass
class Commands:
    """Runs the commands of stages: each writes its words into its folder, or ends in the middle with a code."""

    fail: dict[str, int] = field(default_factory=dict)
    seen: list[list[str]] = field(default_factory=list)

    def __call__(self, words: Sequence[str]) -> int:
        name, *rest = words[list(words).index("flowportrait") + 1 :]
        self.seen.append([name, *rest])
        output = Path(next(word for word in rest if word.startswith("--output=")).partition("=")[2])
        folder = output / "checkpoint" if name in ("pretrain", "posttrain") else output
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "half").write_text("half")
        if (code := self.fail.pop(name, 0)) != 0:
            return code
        (folder / "model.safetensors").write_text(" ".join(word for word in rest if word != "--resume"))
        return 0

    @property
    def names(self) -> list[str]:
        return [words[0] for words in self.seen]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("footage", "other"):
        (tmp_path / name).mkdir()
    (tmp_path / "footage" / "a.mp4").write_text("video")
    (tmp_path / "other" / "a.png").write_text("picture")
    (tmp_path / "run.yaml").write_text(TEXT)
    return tmp_path


def run(commands: Commands, **more: str) -> dict[str, str]:
    return PipelineRun(read_run_file(Path("run.yaml")), commands).run(**more)


def change(old: str, new: str) -> None:
    path = Path("run.yaml")
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_finished_stages_are_skipped_with_a_line_each(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = Commands(), Commands()
    assert run(first) == {name: f"out/{name}" for name in ("prepare", "pretrain", "evaluate")}
    assert first.names == ["prepare", "pretrain", "evaluate"]
    capsys.readouterr()
    run(second)
    assert second.seen == []
    lines = capsys.readouterr().err.splitlines()
    assert lines == [f"Stage {i} of 3, {n}: finished before with the same inputs, skipped."
                     for i, n in enumerate(("prepare", "pretrain", "evaluate"), 1)]  # fmt: skip


@pytest.mark.parametrize("stage", ["prepare", "pretrain", "evaluate"])
@pytest.mark.parametrize("code", [-9, 2, 130])
def test_a_stage_that_ended_in_the_middle_continues(stage: str, code: int, place: Path) -> None:
    broken, again = Commands({stage: code}), Commands()
    with pytest.raises(KeyboardInterrupt if code == 130 else BadInput):
        run(broken)
    assert json.loads((place / "out" / f"{stage}.json").read_text())["status"] == "started"
    run(again)
    assert again.names == ["prepare", "pretrain", "evaluate"][["prepare", "pretrain", "evaluate"].index(stage) :]
    assert ("--resume" in again.seen[0]) == (stage == "pretrain")
    whole = Commands()
    change("output: out", "output: whole")
    run(whole)
    for name in ("prepare", "pretrain/checkpoint", "evaluate"):
        files = [(place / folder / name / "model.safetensors").read_text() for folder in ("out", "whole")]
        assert files[0] == files[1].replace("whole/", "out/")


@pytest.mark.parametrize(
    ("old", "new", "stage", "sentence"),
    [
        ("sync: -2", "sync: -1", "prepare", "set sync was -2 and is -1"),
        ("steps: 5", "steps: 5, seed: 1", "pretrain", "set seed was not given and is 1"),
        ("prompts: other", "prompts: other, seed: 3", "evaluate", "seed was 0 and is 3"),
    ],
)
def test_changed_options_are_refused_with_the_way_out(
    old: str, new: str, stage: str, sentence: str, place: Path
) -> None:
    run(Commands())
    change(old, new)
    with pytest.raises(BadInput) as error:
        run(Commands())
    assert f"The stage {stage} of out was made with other inputs: {sentence}" in str(error.value)
    assert f"--from {stage}" in str(error.value)
    again = Commands()
    run(again, from_stage=stage)
    assert again.names == ["prepare", "pretrain", "evaluate"][["prepare", "pretrain", "evaluate"].index(stage) :]
    assert not any("--resume" in words for words in again.seen)
    run(Commands())


def test_options_that_change_no_result_may_change(place: Path) -> None:
    run(Commands())
    change("prompts: other", "prompts: other, workers: 3, title: Ours, ray: auto")
    later = Commands()
    run(later)
    assert later.seen == []


def test_a_changed_input_is_named_even_if_size_and_name_stay(place: Path) -> None:
    run(Commands())
    (place / "footage" / "a.mp4").write_text("VIDEO")
    with pytest.raises(BadInput, match=r"prepare of out .* inputs changed: a\.mp4 has another content"):
        run(Commands())
    (place / "footage" / "a.mp4").write_text("video")
    (place / "footage" / "b.mp4").write_text("video")
    with pytest.raises(BadInput, match=r"inputs changed: b\.mp4 is new"):
        run(Commands())
    (place / "footage" / "b.mp4").unlink()
    (place / "footage" / "run.log").write_text("a log and hidden files are no input")
    (place / "footage" / ".hidden").write_text("")
    run(Commands())


def test_changed_options_of_a_later_stage_are_found_before_an_earlier_one_works(place: Path) -> None:
    run(Commands())
    run_again = Commands({"pretrain": -9})
    with pytest.raises(BadInput, match="killed by signal 9"):
        run(run_again, from_stage="pretrain")
    (place / "out" / "evaluate.json").write_text((place / "out" / "prepare.json").read_text())
    later = Commands()
    with pytest.raises(BadInput, match="The stage evaluate"):
        run(later)
    assert later.seen == []


def test_another_version_of_the_package_is_refused(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(Commands())
    monkeypatch.setattr("flowportrait.workflow.records.__version__", "9.9")
    with pytest.raises(BadInput, match=r"prepare of out .*FlowPortrait was \d\S* and is 9\.9"):
        run(Commands())


def test_the_finished_output_of_a_stage_must_be_as_it_was(place: Path) -> None:
    run(Commands())
    (place / "out" / "evaluate" / "half").unlink()
    with pytest.raises(BadInput, match=r"evaluate .* its finished output changed: half is gone"):
        run(Commands())
    run(Commands(), from_stage="evaluate")
    assert (place / "out" / "evaluate" / "half").is_file()


def test_a_folder_with_other_peoples_files_is_left_alone(place: Path) -> None:
    (place / "out" / "pretrain").mkdir(parents=True)
    (place / "out" / "pretrain" / "mine.txt").write_text("mine")
    commands = Commands()
    for from_stage in (None, "prepare"):
        with pytest.raises(BadInput, match=r"run\.yaml, line 3: the folder out/pretrain of pretrain holds files"):
            PipelineRun(read_run_file(Path("run.yaml")), commands).run(from_stage)
    assert commands.seen == []
    assert (place / "out" / "pretrain" / "mine.txt").read_text() == "mine"


def test_removal_that_was_interrupted_is_completed(place: Path) -> None:
    run(Commands())
    record = json.loads((place / "out" / "pretrain.json").read_text())
    (place / "out" / "pretrain.json").write_text(json.dumps(record | {"status": "discarded"}))
    again = Commands()
    run(again)
    assert again.names == ["pretrain"]
    assert "--resume" not in again.seen[0]


def test_a_dry_run_says_what_would_happen_and_changes_nothing(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pipeline", "run.yaml", "--dry-run", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["pretrain"] == (
        "begins: flowportrait pretrain --set steps=5 --corpus=out/prepare --output=out/pretrain"
    )
    assert not (place / "out").exists()
    with pytest.raises(BadInput, match="failed"):
        run(Commands({"pretrain": 1}))
    before = {path: path.stat().st_mtime_ns for path in (place / "out").rglob("*") if path.name != "hashes.json"}
    assert main(["pipeline", "run.yaml", "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "prepare: is finished and skipped"
    assert lines[1].startswith("pretrain: continues: flowportrait pretrain --resume ")
    assert lines[2].startswith("evaluate: begins: ")
    assert main(["pipeline", "run.yaml", "--dry-run", "--from", "prepare"]) == 0
    assert capsys.readouterr().out.startswith("prepare: begins: ")
    assert before == {p: p.stat().st_mtime_ns for p in (place / "out").rglob("*") if p.name != "hashes.json"}


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("inputs: footage", "inputs: [footage, nowhere]", "line 2: the input nowhere of prepare does not exist."),
        ("prompts: other", "prompts: none", "line 4: the input none of evaluate does not exist."),
        ("prompts: other", "prompts: other, checkpoint: shipped", "line 4: evaluate: No checkpoint named shipped"),
    ],
)
def test_missing_inputs_are_found_before_anything_runs(old: str, new: str, sentence: str, place: Path) -> None:
    change(old, new)
    with pytest.raises(BadInput) as error:
        run(Commands())
    assert sentence in str(error.value)


@pytest.mark.parametrize(
    ("learned", "measured", "warning"),
    [
        (
            {"a.wav": "one", "b.wav": "two"},
            {"c.wav": "two"},
            "evaluate measures c.wav of other, which posttrain learns",
        ),
        ({"a.wav": "one", "prompts.jsonl": "anna"}, {"b.wav": "two", "prompts.jsonl": "anna"}, "the speaker anna"),
        ({"a.wav": "one", "prompts.jsonl": "anna"}, {"b.wav": "two", "prompts.jsonl": "ben"}, ""),
    ],
)
def test_an_evaluation_on_what_was_learned_from_is_warned_of(
    learned: dict[str, str], measured: dict[str, str], warning: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One portrait may be in both."""
    change("pretrain: {set: {steps: 5}}", "posttrain: {prompts: mine, start: sft}")
    for folder, files in (("mine", learned), ("other", measured)):
        (place / folder).mkdir(exist_ok=True)
        (place / folder / "a.png").write_text("picture")
        for name, text in files.items():
            line = json.dumps({"image": "a.png", "audio": next(iter(files)), "speaker": text})
            (place / folder / name).write_text(line if name == "prompts.jsonl" else text)
    PipelineRun(read_run_file(Path("run.yaml")), Commands())
    said = capsys.readouterr().err
    assert warning in said
    assert bool(warning) == ("give prompts of other people" in said)


def test_a_stage_that_is_not_in_the_file_cannot_be_made_again(place: Path) -> None:
    with pytest.raises(BadInput, match=r"--from distil is no stage of run\.yaml: choose one of prepare, pretrain"):
        run(Commands(), from_stage="distil")


def test_training_stages_alone_are_started_by_the_launcher(place: Path) -> None:
    change("output: out", "output: out\nlaunch: torchrun --nproc_per_node 2")
    lines = PipelineRun(read_run_file(Path("run.yaml")), Commands()).preview()
    assert "torchrun --nproc_per_node 2 flowportrait pretrain" in lines["pretrain"]
    assert "torchrun" not in lines["prepare"] + lines["evaluate"]


def test_a_file_is_read_once_while_size_and_time_stay(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    video, hashes = place / "footage" / "a.mp4", FileHashes(place / "hashes.json", place / "out")
    first = hashes.digests({"a": video})
    os.chmod(video, 0)
    monkeypatch.setattr(FileHashes, "_read", None)  # would fail if anything were read again
    assert FileHashes(place / "hashes.json", place / "out").digests({"a": video}) == first


def test_the_folder_of_a_run_below_an_input_is_no_part_of_it(place: Path) -> None:
    change("output: out", "output: footage/out")
    run(Commands())
    later = Commands()
    run(later)
    assert later.seen == []


LEFT_BEHIND = """\
import os, sys, time
from pathlib import Path
from flowportrait.workflow.execution import PipelineRun
from flowportrait.workflow.run_file import read_run_file
run = PipelineRun(read_run_file(Path("run.yaml")))
run._command = lambda stage, action: [sys.executable, "-c", "import time; time.sleep(60)", "flowportrait"]
run.run()
"""


@pytest.mark.skipif(os.name != "posix", reason="there are no such locks")
def test_a_stage_that_outlives_its_killed_pipeline_keeps_others_out(place: Path) -> None:
    """A second pipeline beside it would write into the same folder."""
    parent = subprocess.Popen([sys.executable, "-c", LEFT_BEHIND], stderr=subprocess.DEVNULL)
    lock = place / "out" / ".lock"
    while not (lock.is_file() and lock.read_text()):
        assert parent.poll() is None
        time.sleep(0.05)
    stage = int(lock.read_text())
    try:
        parent.kill()
        parent.wait()
        with pytest.raises(BadInput, match=rf"in use by .* \(process {stage}\)"):
            run(Commands())
    finally:
        os.kill(stage, 9)
    for _ in range(200):
        try:
            run(Commands())
            break
        except BadInput:
            time.sleep(0.05)
    else:
        pytest.fail("the folder stays locked")
