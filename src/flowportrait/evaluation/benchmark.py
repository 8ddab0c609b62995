"""The benchmark with negative controls and a ground-truth ceiling, and the comparison of two of its results.

    real footage, same crop and codec  >  its motion drawn on the portraits
                                       >  negative controls: shifted, other sentence, loudness jaw, still

Without real clips the only ceiling is the shipped result of real footage, and negative controls are made from the first
system's own motion. ``results.json`` records machine, protocol and inputs, so that two machines can compare their
results with ``compare_benchmark_results``.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Callable, Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from flowportrait.errors import BadInput
from flowportrait.evaluation.api import evaluate
from flowportrait.evaluation.benchmark_systems import (
    FOOTAGE_SYSTEM,
    NEGATIVE_CONTROLS,
    REAL,
    BenchmarkCase,
    BenchmarkProtocol,
    VideoFactory,
    build_codecs,
    crop_footage,
    decode_motion,
    extract_real_motions,
    generate_motions,
    match_cases,
    negative_control_motion,
    protocol_fingerprint,
    weights_digest,
    write_videos,
)
from flowportrait.evaluation.metrics import METRIC_BY_KEY, MetricRow
from flowportrait.evaluation.statistics import Estimate, bootstrap_mean
from flowportrait.files import write_json
from flowportrait.pipelines.prompt_videos import rendering_costs

ORDERING_METRICS = ("sync_in_time", "sync_in_time_short", "ler")
REPORTED_PACKAGES = ("flowportrait", "torch", "mediapipe", "opencv-contrib-python", "av", "dlib-bin", "numpy")


def run_benchmark(
    checkpoints: dict[str, str],
    others: dict[str, list[Path]],
    all_cases: list[BenchmarkCase],
    protocol: BenchmarkProtocol,
    output: Path,
    cache: Path | None = None,
    workers: int = 1,
) -> dict[str, Any]:
    """Run the benchmark: draw missing videos, measure all, and write results.json and report.html into ``output``.

    Args:
        checkpoints: checkpoints by the name of their system.
        others: finished videos of other tools by the name of their system; files are named like the cases.
        all_cases: the cases.
        protocol: the settings.
        output: folder for videos, results and report.
        cache: folder of cached tracks (default: the user's cache).
        workers: number of processes that measure videos.

    Returns:
        Paths of results and report, and the checks of the ordering.

    Raises:
        BadInput: there is no checkpoint, or a checkpoint or case cannot be used.
    """
    if not checkpoints:
        raise BadInput("The benchmark needs at least one checkpoint: give --system NAME=CHECKPOINT.")
    systems: dict[str, list[Path]] = {}
    costs: dict[str, dict[str, MetricRow]] = {}
    codecs = build_codecs(all_cases, protocol.size)
    motions = generate_motions(checkpoints, all_cases)
    tracks = extract_real_motions(all_cases)
    source_motions = tracks or next(iter(motions.values()))
    video_makers: dict[str, Callable[[int], VideoFactory]] = {}

    def draw_motions(system_motions: Sequence[torch.Tensor]) -> Callable[[int], VideoFactory]:
        return lambda i: decode_motion(codecs[i], system_motions[i], all_cases[i].audio)

    def draw_control(name: str) -> Callable[[int], VideoFactory]:
        return lambda i: decode_motion(
            codecs[i], negative_control_motion(name, source_motions, all_cases, i, protocol), all_cases[i].audio
        )

    if tracks:
        video_makers[FOOTAGE_SYSTEM] = lambda i: lambda: (crop_footage(all_cases[i], protocol.size), all_cases[i].audio)
        video_makers[REAL] = draw_motions(tracks)
    video_makers |= {name: draw_motions(found) for name, found in motions.items()}
    video_makers |= {name: draw_control(name) for name in NEGATIVE_CONTROLS}
    for name, prepare_video in video_makers.items():
        origin = json.dumps(
            [protocol_fingerprint(protocol, all_cases), weights_digest(checkpoints, name), version("flowportrait")]
        )
        systems[name] = write_videos(
            output / "videos" / name.replace(" ", "_"), name, prepare_video, all_cases, protocol, origin
        )
        if name in checkpoints:
            costs[name] = rendering_costs(output / "videos" / name.replace(" ", "_"))
    systems |= {name: match_cases(name, files, all_cases) for name, files in others.items()}
    baseline = next(iter(checkpoints))
    summary = evaluate(
        systems,
        baseline=baseline,
        title=f"FlowPortrait benchmark, protocol {protocol.version}",
        extra_metrics=costs,
        notes=_notes(protocol, all_cases, bool(tracks)),
        cache=cache,
        workers=workers,
    ).write(output)
    rows = json.loads((output / "metrics.json").read_text(encoding="utf-8"))["clips"]
    results = {
        "protocol": protocol_fingerprint(protocol, all_cases),
        "machine": machine_info(),
        "checks": [check.as_dict() for check in check_ordering(rows, list(checkpoints))],
        "metrics": summary["metrics"],
        "networks": summary["networks"],
        "counts": summary["counts"],
        "excluded": summary["excluded"],
        "clips": rows,
    }
    write_json(output / "results.json", results)
    return {
        "results": str(output / "results.json"),
        "report": str(output / "report.html"),
        "checks": results["checks"],
    }


class OrderCheck(NamedTuple):
    """The check of one expected ordering of two systems.

    Attributes:
        winner: the system that should be better.
        loser: the system that should be worse.
        metric: key of the metric.
        advantage: mean advantage of the winner on the same clips.
        holds: whether the interval of the advantage is positive.
    """

    winner: str
    loser: str
    metric: str
    advantage: Estimate
    holds: bool

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return self._asdict() | {"advantage": asdict(self.advantage)}


def check_ordering(rows: dict[str, dict[str, MetricRow]], checkpoints: list[str]) -> list[OrderCheck]:
    """Compare ceilings, systems and negative controls clip by clip.

    Args:
        rows: metrics by system and clip.
        checkpoints: names of the systems that must beat the negative controls.
    """
    expected = [(REAL, loser) for loser in NEGATIVE_CONTROLS] + [(FOOTAGE_SYSTEM, "still"), (FOOTAGE_SYSTEM, REAL)]
    expected += [(name, loser) for name in checkpoints for loser in ("still", "loudness jaw")]
    checks: list[OrderCheck] = []
    for winner, loser in expected:
        for metric in ORDERING_METRICS:
            pairs = [
                (row.get(metric), rows[loser][clip].get(metric))
                for clip, row in rows.get(winner, {}).items()
                if clip in rows.get(loser, {})
            ]
            gaps = np.array([float(a) - float(b) for a, b in pairs if a is not None and b is not None])
            if len(gaps) < 2:
                continue
            advantage = bootstrap_mean(-gaps if metric == "ler" else gaps)
            holds = advantage.low is not None and advantage.low > 0
            checks.append(OrderCheck(winner, loser, metric, advantage, holds))
    return checks


def machine_info() -> dict[str, Any]:
    """Return system, Python, processor and package versions; nothing that identifies a person or a network."""
    versions = {}
    for package in REPORTED_PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "packages": versions,
    }


def _notes(protocol: BenchmarkProtocol, all_cases: list[BenchmarkCase], real: bool) -> list[str]:
    source = "the motion of the real clips" if real else "the first system's own motion; no real clips were given"
    return [
        f"{len(all_cases)} clips, {protocol.size} px square crop, 25 fps, H.264 crf {protocol.crf}, AAC 16 kHz.",
        f"Negative controls (shifted by {protocol.late}, other sentence, loudness jaw, still) are made from {source}.",
    ]


# --- Comparing two results ---

COMPARED_PROTOCOL_KEYS = ("version", "size", "crf", "piece", "step", "seeds", "late", "clips", "cases", "inputs")
"""Keys of the protocol that must agree."""
SPEED_METRICS = ("seconds_per_second", "frames_per_second", "first_frame", "peak_memory")
"""Metrics of the machine's speed; they are shown and not judged."""


def read_benchmark_results(path: Path) -> dict[str, Any]:
    """Read a results.json of the benchmark.

    Raises:
        BadInput: the file is missing, or was not written by the benchmark.
    """
    if not path.is_file():
        raise BadInput(f"No results at {path}: give the results.json that flowportrait evaluate bench wrote.")
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise BadInput(
            f"{path} is not JSON ({error.msg}): give the results.json of flowportrait evaluate bench."
        ) from error
    if not isinstance(results, dict) or not {"protocol", "metrics", "machine"} <= set(results):
        raise BadInput(f"{path} was not written by flowportrait evaluate bench: give its results.json.")
    return results


def compare_benchmark_results(first: Path, second: Path) -> dict[str, Any]:
    """Compare every mean of two results: equal, within the 95 % intervals, or different.

    Raises:
        BadInput: a file cannot be used, or the two were not measured by the same protocol on the same inputs.
    """
    first_results, second_results = read_benchmark_results(first), read_benchmark_results(second)
    protocols = first_results["protocol"], second_results["protocol"]
    differing = [key for key in COMPARED_PROTOCOL_KEYS if protocols[0].get(key) != protocols[1].get(key)]
    if differing:
        what = ", ".join(f"{k} {protocols[0].get(k)} and {protocols[1].get(k)}" for k in differing)
        raise BadInput(f"{first} and {second} cannot be compared, their protocols differ: {what}.")
    networks = [
        k for k, v in first_results.get("networks", {}).items() if second_results.get("networks", {}).get(k) != v
    ]
    rows = []
    for system, figures in first_results["metrics"].items():
        for key, first_estimate in figures.items():
            second_estimate = second_results["metrics"].get(system, {}).get(key)
            if second_estimate is None:
                continue
            means = {"first": first_estimate["mean"], "second": second_estimate["mean"]}
            verdict = _verdict(key, first_estimate, second_estimate)
            rows.append({"system": system, "metric": key, **means, "verdict": verdict})
    verdicts = [row["verdict"] for row in rows]
    checks = {(c["winner"], c["loser"], c["metric"]): c["holds"] for c in second_results.get("checks", [])}
    return {
        "figures": len(rows),
        "equal": verdicts.count("equal"),
        "within intervals": verdicts.count("within intervals"),
        "different": verdicts.count("different"),
        "measured by other networks": networks,
        "checks that differ": [
            f"{c['winner']} > {c['loser']} by {c['metric']}"
            for c in first_results.get("checks", [])
            if checks.get((c["winner"], c["loser"], c["metric"]), c["holds"]) != c["holds"]
        ],
        "machines": [first_results["machine"], second_results["machine"]],
        "rows": rows,
    }


def _verdict(key: str, first: dict[str, Any], second: dict[str, Any]) -> str:
    if key in SPEED_METRICS:
        return "speed"
    gap = abs(first["mean"] - second["mean"])
    if gap <= 0.5 * 10 ** -(METRIC_BY_KEY[key].digits if key in METRIC_BY_KEY else 3):
        return "equal"
    half_width = max(((e["high"] - e["low"]) / 2 if e["low"] is not None else 0.0) for e in (first, second))
    return "within intervals" if gap <= half_width else "different"
