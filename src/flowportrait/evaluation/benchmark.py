"""The benchmark and the comparison of two of its results.

    real footage, same crop and codec  >  its motion drawn on the portraits
                                       >  shifted, other sentence, loudness jaw, still

Without real clips the only ceiling is the shipped row of real footage, and negative controls are made from the first
system's own motion. ``results.json`` says on what it was measured, so that two machines can compare theirs:
``compare_results``.
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
    FOOTAGE,
    LOSERS,
    REAL,
    Case,
    Draw,
    Protocol,
    codecs_of,
    cropped,
    drawn,
    fingerprint,
    losing_motion,
    matching,
    motions_of,
    real_motion,
    weights_of,
    written,
)
from flowportrait.evaluation.metrics import BY_KEY, Row
from flowportrait.evaluation.statistics import Estimate, bootstrap_mean
from flowportrait.files import write_json
from flowportrait.pipelines.prompt_videos import rendering_costs

ORDER_BY = ("sync_in_time", "sync_in_time_short", "ler")
PACKAGES = ("flowportrait", "torch", "mediapipe", "opencv-contrib-python", "av", "dlib-bin", "numpy")


def run_benchmark(
    checkpoints: dict[str, str],
    others: dict[str, list[Path]],
    made: list[Case],
    protocol: Protocol,
    output: Path,
    cache: Path | None = None,
    workers: int = 1,
) -> dict[str, Any]:
    """Draw every video that is not there yet, measure all, and write results.json and report.html into ``output``.

    Args:
        checkpoints: checkpoints by the name of their system.
        others: finished videos of other tools, named like the cases.
        made: the cases.
        protocol: how they are cut, drawn and written.
        output: folder for videos, results and report.
        cache: folder of what was measured before (default: the user's cache).
        workers: processes that look at videos.

    Raises:
        BadInput: no checkpoint; a checkpoint or case that cannot be used.
    """
    if not checkpoints:
        raise BadInput("The benchmark needs at least one checkpoint: give --system NAME=CHECKPOINT.")
    systems: dict[str, list[Path]] = {}
    costs: dict[str, dict[str, Row]] = {}
    codecs = codecs_of(made, protocol.size)
    motions = motions_of(checkpoints, made)
    tracks = real_motion(made)
    driven = tracks or next(iter(motions.values()))
    jobs: dict[str, Callable[[int], Draw]] = {}

    def draw_motions(found: Sequence[torch.Tensor]) -> Callable[[int], Draw]:
        return lambda i: drawn(codecs[i], found[i], made[i].audio)

    def draw_control(name: str) -> Callable[[int], Draw]:
        return lambda i: drawn(codecs[i], losing_motion(name, driven, made, i, protocol), made[i].audio)

    if tracks:
        jobs[FOOTAGE] = lambda i: lambda: (cropped(made[i], protocol.size), made[i].audio)
        jobs[REAL] = draw_motions(tracks)
    jobs |= {name: draw_motions(found) for name, found in motions.items()}
    jobs |= {name: draw_control(name) for name in LOSERS}
    for name, job in jobs.items():
        origin = json.dumps([fingerprint(protocol, made), weights_of(checkpoints, name), version("flowportrait")])
        systems[name] = written(output / "videos" / name.replace(" ", "_"), name, job, made, protocol, origin)
        if name in checkpoints:
            costs[name] = rendering_costs(output / "videos" / name.replace(" ", "_"))
    systems |= {name: matching(name, files, made) for name, files in others.items()}
    baseline = next(iter(checkpoints))
    summary = evaluate(
        systems,
        baseline=baseline,
        title=f"FlowPortrait benchmark, protocol {protocol.version}",
        extra_metrics=costs,
        notes=_notes(protocol, made, bool(tracks)),
        cache=cache,
        workers=workers,
    ).write(output)
    rows = json.loads((output / "metrics.json").read_text(encoding="utf-8"))["clips"]
    results = {
        "protocol": fingerprint(protocol, made),
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
    """Whether a system that should win does: its advantage on the same clips, and whether that is surely positive."""

    winner: str
    loser: str
    metric: str
    advantage: Estimate
    holds: bool

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return self._asdict() | {"advantage": asdict(self.advantage)}


def check_ordering(rows: dict[str, dict[str, Row]], checkpoints: list[str]) -> list[OrderCheck]:
    """Compare ceiling, systems and negative controls clip by clip."""
    winners = [(REAL, loser) for loser in LOSERS] + [(FOOTAGE, "still"), (FOOTAGE, REAL)]
    winners += [(name, loser) for name in checkpoints for loser in ("still", "loudness jaw")]
    found: list[OrderCheck] = []
    for winner, loser in winners:
        for metric in ORDER_BY:
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
            found.append(OrderCheck(winner, loser, metric, advantage, holds))
    return found


def machine_info() -> dict[str, Any]:
    """System, Python, processor and package versions; nothing that names a person or a network."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "packages": found,
    }


def _notes(protocol: Protocol, made: list[Case], real: bool) -> list[str]:
    source = "the motion of the real clips" if real else "the first system's own motion; no real clips were given"
    return [
        f"{len(made)} clips, {protocol.size} px square crop, 25 frames a second, H.264 crf {protocol.crf}, AAC 16 kHz.",
        f"Negative controls (shifted by {protocol.late}, other sentence, loudness jaw, still) are made from {source}.",
    ]


COMPARED = ("version", "size", "crf", "piece", "step", "seeds", "late", "clips", "cases", "inputs")
MACHINE_BOUND = ("seconds_per_second", "frames_per_second", "first_frame", "peak_memory")
"""Figures that say how fast a machine is; they are shown and not judged."""


def read_results(path: Path) -> dict[str, Any]:
    """A results.json.

    Raises:
        BadInput: missing, or not made by the benchmark.
    """
    if not path.is_file():
        raise BadInput(f"No results at {path}: give the results.json that flowportrait evaluate bench wrote.")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise BadInput(
            f"{path} is not JSON ({error.msg}): give the results.json of flowportrait evaluate bench."
        ) from error
    if not isinstance(found, dict) or not {"protocol", "metrics", "machine"} <= set(found):
        raise BadInput(f"{path} was not written by flowportrait evaluate bench: give its results.json.")
    return found


def compare_results(first: Path, second: Path) -> dict[str, Any]:
    """Every figure of both: equal, within each other's 95 % intervals, or different.

    Raises:
        BadInput: a file cannot be used, or the two were not measured by the same protocol on the same inputs.
    """
    one, other = read_results(first), read_results(second)
    apart = [key for key in COMPARED if one["protocol"].get(key) != other["protocol"].get(key)]
    if apart:
        what = ", ".join(f"{k} {one['protocol'].get(k)} and {other['protocol'].get(k)}" for k in apart)
        raise BadInput(f"{first} and {second} cannot be compared, their protocols differ: {what}.")
    networks = [k for k, v in one.get("networks", {}).items() if other.get("networks", {}).get(k) != v]
    rows = []
    for system, figures in one["metrics"].items():
        for key, mine in figures.items():
            theirs = other["metrics"].get(system, {}).get(key)
            if theirs is None:
                continue
            rows.append({"system": system, "metric": key, "first": mine["mean"], "second": theirs["mean"],
                         "verdict": _verdict(key, mine, theirs)})  # fmt: skip
    verdicts = [row["verdict"] for row in rows]
    checks = {(c["winner"], c["loser"], c["metric"]): c["holds"] for c in other.get("checks", [])}
    return {
        "figures": len(rows),
        "equal": verdicts.count("equal"),
        "within intervals": verdicts.count("within intervals"),
        "different": verdicts.count("different"),
        "measured by other networks": networks,
        "checks that differ": [
            f"{c['winner']} > {c['loser']} by {c['metric']}"
            for c in one.get("checks", [])
            if checks.get((c["winner"], c["loser"], c["metric"]), c["holds"]) != c["holds"]
        ],
        "machines": [one["machine"], other["machine"]],
        "rows": rows,
    }


def _verdict(key: str, mine: dict[str, Any], theirs: dict[str, Any]) -> str:
    if key in MACHINE_BOUND:
        return "speed"
    gap = abs(mine["mean"] - theirs["mean"])
    if gap <= 0.5 * 10 ** -(BY_KEY[key].digits if key in BY_KEY else 3):
        return "equal"
    reach = max(((e["high"] - e["low"]) / 2 if e["low"] is not None else 0.0) for e in (mine, theirs))
    return "within intervals" if gap <= reach else "different"
