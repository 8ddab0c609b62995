"""A gain counts only as far as it exceeds that of the random-reward control on the same clips."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from flowportrait.errors import BadInput
from flowportrait.evaluation.api import EvaluationReport, evaluate
from flowportrait.evaluation.comparison import compare_systems
from flowportrait.evaluation.control import ControlledGain, compare_with_control, html_control_table
from flowportrait.evaluation.metrics import MetricRow

CLIPS = 20


def systems(gain: float, chance: float, key: str = "ecs") -> dict[str, dict[str, MetricRow]]:
    draw = np.random.default_rng(0)
    start = draw.normal(0.5, 0.2, CLIPS)
    values = {"sft": start} | {
        name: start + mean + draw.normal(0, 0.02, CLIPS) for name, mean in (("chance", chance), ("run", gain))
    }
    return {name: {f"c{i}": {key: float(value)} for i, value in enumerate(found)} for name, found in values.items()}


def only(gains: list[ControlledGain]) -> ControlledGain:
    assert len(gains) == 1
    return gains[0]


@pytest.mark.parametrize(
    ("gain", "chance", "key", "verdict"),
    [
        (0.3, 0.1, "ecs", "better"), (0.1, 0.3, "ecs", "worse"), (0.2, 0.2, "ecs", "as chance"),
        (-0.2, 0.0, "ler", "better"), (0.2, 0.0, "ler", "worse"), (0.2, 0.0, "head_range", "other"),
    ],
)  # fmt: skip
def test_the_verdict_is_about_the_difference_of_the_gains(gain: float, chance: float, key: str, verdict: str) -> None:
    found = only(compare_with_control(systems(gain, chance, key), "sft", "chance"))
    assert found.verdict == verdict
    assert found.gain.mean == pytest.approx(gain, abs=0.02)
    assert found.control_gain.mean == pytest.approx(chance, abs=0.02)
    assert found.difference.mean == pytest.approx(found.gain.mean - found.control_gain.mean)


def test_clips_that_one_system_lacks_are_left_out_of_all_three_means() -> None:
    rows = systems(0.3, 0.1)
    del rows["chance"]["c0"]
    rows["run"]["c1"] = {"ecs": None}
    rows["real"] = rows["sft"]
    found = only(compare_with_control(rows, "sft", "chance"))
    assert found.gain.clips == found.control_gain.clips == found.difference.clips == CLIPS - 2


def test_a_gain_on_one_clip_has_no_interval_and_no_verdict() -> None:
    rows = {name: {"c0": clips["c0"] | {"peak_memory": 9.0}} for name, clips in systems(5.0, 0.0).items()}
    found = only(compare_with_control(rows, "sft", "chance"))
    assert (found.difference.low, found.p, found.verdict) == (None, None, "too few clips")


def test_text_page_and_json_show_both_gains(tmp_path: Path) -> None:
    rows = systems(0.3, 0.1)
    gains = compare_with_control(rows, "sft", "chance")
    report = EvaluationReport(compare_systems(rows, "sft"), {}, controlled=gains)
    text = str(report)
    assert "control's gain" in text
    assert "better" in text
    assert "+0.30" in html_control_table(gains)
    assert report.summary["against_chance"][0]["verdict"] == "better"
    assert '"against_chance"' in report.to_json(tmp_path / "metrics.json").read_text("utf-8")
    assert "Against chance" in report.to_html(tmp_path / "report.html").read_text("utf-8")
    assert "against_chance" not in EvaluationReport(compare_systems(rows, "sft"), {}).summary


def test_a_control_that_is_no_system_or_the_baseline_itself_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"")
    for baseline, control in (("a", "chance"), ("a", "a"), (None, "a")):
        with pytest.raises(BadInput, match="is compared by its gain"):
            evaluate({"a": [tmp_path / "a.mp4"]}, baseline=baseline, control=control)
