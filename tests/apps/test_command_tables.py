"""Claims about what commands print of results: tables with direction, scale and meaning, and folders understood."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from rich.console import Console
from rich.table import Table

from flowportrait.cli import main
from flowportrait.commands.doctor import find_runs
from flowportrait.commands.evaluate import MEANINGS, score_table
from flowportrait.errors import BadInput
from flowportrait.evaluation.comparison import compare_systems
from flowportrait.evaluation.figures import build_text_table
from flowportrait.evaluation.metrics import METRIC_BY_KEY
from flowportrait.pipelines.guidance import MotionCandidate, describe_candidates
from flowportrait.rewards.registry import REWARDS, WEIGHTED_REWARDS


def printed(table: Table, width: int = 160) -> str:
    console = Console(width=width)
    with console.capture() as captured:
        console.print(table)
    return captured.get()


def candidate(seed: int, score: float) -> MotionCandidate:
    return MotionCandidate(seed, torch.zeros(1, 30), score)


def test_the_best_of_two_is_compared_with_their_median_and_the_other() -> None:
    """Of two the middle one is neither: it was printed as the best itself."""
    found = [candidate(0, 0.25), candidate(1, 0.75)]
    sentence = describe_candidates(found, "sync")
    assert "Seed 1 is the best of 2 by sync, where higher is better: 0.750" in sentence
    assert "the worst has 0.250, the median is 0.500" in sentence


def test_performances_that_could_not_be_measured_do_not_count() -> None:
    found = [candidate(0, -torch.inf), candidate(1, 0.1), candidate(2, 0.3)]
    assert "the median is 0.200; 1 could not be measured." in describe_candidates(found, "sync")
    assert "none of 2 candidates could be measured" in describe_candidates([found[0]] * 2, "sync")


def test_scores_come_with_their_direction_scale_and_meaning() -> None:
    text = printed(score_table({"a/one.mp4": {"sync": 0.5, "identity": "no portrait"}, "b/two.mp4": {"sync": -0.25}}))
    assert "Higher is better" in text
    row = next(line for line in text.splitlines() if line.startswith("sync"))
    assert "0.500" in row
    assert "−0.250" in row
    assert "−2 … 2, 0 is chance" in row
    assert MEANINGS["sync"][0] in row
    assert "one.mp4" in text
    assert "{" not in text


def test_many_videos_are_a_mean_and_the_worst() -> None:
    text = printed(score_table({f"{i}.mp4": {"sync": i / 10} for i in range(5)}))
    row = next(line for line in text.splitlines() if line.startswith("sync")).split()
    assert row[1:4] == ["0.200", "0.000", "0.mp4"]


def test_every_reward_that_measures_videos_is_explained() -> None:
    needs_a_policy = {"self_confidence"}
    assert set(WEIGHTED_REWARDS) - needs_a_policy <= set(MEANINGS) <= set(REWARDS)


def test_an_evaluation_is_a_table_with_direction_units_and_changes() -> None:
    rows = {
        "ours": {f"c{i}": {"lse_c": 0.4, "lse_d": 1.0 + i / 100, "frames": 25} for i in range(8)},
        "theirs": {f"c{i}": {"lse_c": 0.2 + i / 1000, "lse_d": 1.2, "frames": 25} for i in range(8)},
    }
    summary = json.loads(json.dumps(compare_systems(rows, "theirs").summary()))
    text = printed(build_text_table(summary), 200)
    up, down = (next(line for line in text.splitlines() if f" {name} " in line) for name in ("LSE-C", "LSE-D"))
    assert "↑" in up
    assert "↓" in down
    assert METRIC_BY_KEY["lse_c"].meaning in up
    assert "0.400 +97%*" in up
    assert "higher is better" in text
    assert "8 clips" in text
    assert "{" not in text


def run_folder(folder: Path) -> Path:
    folder.mkdir(parents=True)
    records = [{"iteration": i, "grad_norm": 1.0, "dead_groups": 0.0} for i in range(12)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    (folder / "recipe.json").write_text("{}")
    return folder


def test_doctor_finds_the_run_of_a_demo(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = run_folder(tmp_path / "demo" / "run")
    assert main(["doctor", str(tmp_path / "demo")]) == 0
    assert capsys.readouterr().out.splitlines() == [f"run: {run}", "healthy: nothing found in 12 iterations"]
    assert main(["doctor", str(run), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"iterations": 12, "findings": []}


def test_doctor_examines_every_run_of_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [run_folder(tmp_path / name) for name in ("a", "b")]
    assert find_runs(tmp_path) == runs
    assert main(["doctor", str(tmp_path)]) == 0
    assert capsys.readouterr().out.count("nothing found in 12 iterations") == 2


def test_doctor_says_what_a_folder_lacks(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"metrics\.jsonl and recipe\.json"):
        find_runs(tmp_path)
    with pytest.raises(BadInput, match="No folder at"):
        find_runs(tmp_path / "nowhere")
    (tmp_path / "metrics.jsonl").write_text("")
    with pytest.raises(BadInput, match="pretraining is not examined"):
        find_runs(tmp_path)


def test_a_folder_without_videos_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "score", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith("No videos (mp4, mov, webm, avi, mkv) in")
