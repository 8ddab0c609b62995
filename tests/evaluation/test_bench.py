"""The benchmark is the same everywhere, notices when what must lose wins, and two results can be held together."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from skimage.data import astronaut

from flowportrait.errors import BadInput
from flowportrait.evaluation.benchmark import check_ordering, compare_benchmark_results, run_benchmark
from flowportrait.evaluation.benchmark_systems import (
    BenchmarkCase,
    BenchmarkProtocol,
    benchmark_cases,
    protocol_fingerprint,
    quick_protocol,
)


def made() -> list[BenchmarkCase]:
    return [BenchmarkCase(f"c{i}", np.zeros((4, 4, 3), np.uint8), np.zeros(640, np.float32), i) for i in range(3)]


def test_the_cases_are_the_same_every_time_and_their_fingerprint_knows_every_input() -> None:
    first, again = (benchmark_cases(BenchmarkProtocol(), None, []) for _ in range(2))
    assert [case.id for case in first] == [case.id for case in again]
    assert protocol_fingerprint(BenchmarkProtocol(), first) == protocol_fingerprint(BenchmarkProtocol(), again)
    assert len({case.seed for case in first}) == len(first)
    assert all(len(case.audio) == 64_000 for case in first)
    louder = [replace(first[0], audio=1.01 * first[0].audio), *first[1:]]
    assert (
        protocol_fingerprint(BenchmarkProtocol(), louder)["inputs"]
        != protocol_fingerprint(BenchmarkProtocol(), first)["inputs"]
    )
    assert quick_protocol(BenchmarkProtocol()).version != BenchmarkProtocol().version


def rows(**sync: float) -> dict:
    rng = np.random.default_rng(0)
    return {
        s: {f"c{i}": {"sync_in_time": m + rng.normal(0, 0.02), "ler": 0.5 - m} for i in range(20)}
        for s, m in sync.items()
    }


def test_a_still_face_that_wins_is_noticed() -> None:
    found = {
        (w, loser, m): holds for w, loser, m, _, holds in check_ordering(rows(real=0.3, still=0.0, shifted=0.4), [])
    }
    assert found[("real", "still", "sync_in_time")]
    assert found[("real", "still", "ler")]
    assert not found[("real", "shifted", "sync_in_time")]


def results(path: Path, mean: float, **protocol: object) -> Path:
    figures = {"sft": {"ler": {"mean": mean, "low": mean - 0.1, "high": mean + 0.1, "clips": 9},
                       "frames_per_second": {"mean": 50 * mean, "low": 1.0, "high": 99.0, "clips": 9}}}  # fmt: skip
    check = {"winner": "sft", "loser": "still", "metric": "ler", "holds": mean < 0.5}
    path.write_text(json.dumps({
        "protocol": protocol_fingerprint(BenchmarkProtocol(), made()) | protocol, "machine": {}, "metrics": figures,
        "checks": [check],
    }))  # fmt: skip
    return path


def test_results_are_equal_within_intervals_or_different(tmp_path: Path) -> None:
    a = results(tmp_path / "a.json", 0.3)
    for mean, verdict in ((0.3, "equal"), (0.35, "within intervals"), (0.7, "different")):
        found = compare_benchmark_results(a, results(tmp_path / "b.json", mean))
        assert found[verdict] == 1
        assert [row["verdict"] for row in found["rows"]] == [verdict, "speed"]
        assert bool(found["checks that differ"]) == (verdict == "different")


def test_results_of_other_protocols_or_other_files_are_refused(tmp_path: Path) -> None:
    a = results(tmp_path / "a.json", 0.3)
    with pytest.raises(BadInput, match="protocols differ: crf 17 and 23"):
        compare_benchmark_results(a, results(tmp_path / "b.json", 0.3, crf=23))
    (tmp_path / "c.json").write_text("{}")
    with pytest.raises(BadInput, match="not written by flowportrait evaluate bench"):
        compare_benchmark_results(a, tmp_path / "c.json")
    with pytest.raises(BadInput, match="No results at"):
        compare_benchmark_results(a, tmp_path / "none.json")


@pytest.mark.slow
def test_a_small_run_makes_every_row_and_keeps_what_is_there(tmp_path: Path) -> None:
    voice = np.random.default_rng(0).normal(0, 0.1, (2, 20_000)).astype(np.float32)
    speech = [BenchmarkCase(f"c{i}", astronaut(), voice[i], i) for i in range(2)]
    protocol = quick_protocol(BenchmarkProtocol())
    found = run_benchmark({"sft": "sft"}, {}, speech, protocol, tmp_path / "out", tmp_path / "cache")
    written = json.loads(Path(found["results"]).read_text())
    assert set(written["clips"]) == {"sft", "shifted", "other sentence", "loudness jaw", "still"}
    assert written["clips"]["sft"]["c0"]["first_frame"] > 0
    stamps = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*.mp4")}
    run_benchmark({"sft": "sft"}, {}, speech, protocol, tmp_path / "out", tmp_path / "cache")
    assert stamps == {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*.mp4")}
    assert compare_benchmark_results(Path(found["results"]), Path(found["results"]))["different"] == 0
