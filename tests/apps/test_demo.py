"""The demo says what its short training changed, and nothing that its random-reward control changes too."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from flowportrait import demo
from flowportrait.demo import BEFORE, CONTROL, TESTED_METRICS, TRAINED, judge_training


def rows(**gains: float) -> dict[str, dict[str, dict[str, float]]]:
    """Metrics of eight seeds: noise that all systems share, a little of their own, and a gain of a system."""
    shared = np.random.default_rng(0).normal(3, 1, (8, 3))
    return {
        system: {
            str(seed): dict(zip(TESTED_METRICS, values, strict=True))
            for seed, values in enumerate(shared + np.random.default_rng(number).normal(gain, 0.05, (8, 3)))
        }
        for number, (system, gain) in enumerate(
            ((BEFORE, 0.0), (TRAINED, gains["trained"]), (CONTROL, gains["control"])), 1
        )
    }


def test_a_gain_beyond_the_control_is_named() -> None:
    verdict = judge_training(rows(trained=1.0, control=0.3))
    assert verdict.changed == TESTED_METRICS
    assert "beyond its random-reward control" in verdict.sentence
    assert len(verdict.tests) == len(TESTED_METRICS)


@pytest.mark.parametrize(("trained", "control"), [(0.0, 0.0), (1.0, 1.0), (0.3, 1.0)])
def test_what_the_control_changes_too_is_no_gain(trained: float, control: float) -> None:
    verdict = judge_training(rows(trained=trained, control=control))
    assert verdict.changed == ()
    assert "no difference that can be seen or measured" in verdict.sentence


@pytest.mark.slow
def test_the_demo_trains_a_run_and_its_control_and_shows_the_shipped_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "DEMO_SEEDS", 2)
    result = demo.run_demo(tmp_path, iterations=1)
    assert next(iter(result)) == "result"
    assert "no difference" in result["result"]  # two seeds cannot show one
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert set(summary["metrics"]) >= {"sft", "trained", "random rewards", "rl (shipped)"}
    control = json.loads((tmp_path / "control" / "recipe.json").read_text())
    assert set(control["rewards"]["other"]) == {"chance_mouth", "chance_eyes", "chance_head"}
    page = (tmp_path / "report.html").read_text()
    assert page.index(result["result"][:40]) < page.index("<table")
    assert {"sft.mp4", "trained.mp4", "random.mp4", "rl.mp4", "moving.webp", "sheet.jpg"} <= {
        path.name for path in tmp_path.iterdir()
    }
