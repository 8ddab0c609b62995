"""The benchmark as one command: systems between what must lose and what must win, and whether it came out so.

    real footage, same crop and codec  >  its motion drawn on the portraits
                                       >  shifted, other sentence, loudness jaw, still

Without real clips there is no ceiling but the shipped figures, and what must lose is made from the first system's own
motion. ``results.json`` says on what it was measured, so that two machines can compare theirs.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Callable, Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from flowportrait.errors import BadInput
from flowportrait.evaluate.bench_systems import (
    FOOTAGE,
    LOSERS,
    REAL,
    Draw,
    codecs_of,
    cropped,
    drawn,
    losing_motion,
    matching,
    motions_of,
    real_motion,
    weights_of,
    written,
)
from flowportrait.evaluate.compare import Estimate, Row, bootstrap
from flowportrait.evaluate.protocol import Case, Protocol, fingerprint
from flowportrait.evaluate.run import evaluate_videos
from flowportrait.rendering import rendering_costs
from flowportrait.written import write_json

ORDER_BY = ("sync_in_time", "sync_in_time_short", "ler")
PACKAGES = ("flowportrait", "torch", "mediapipe", "opencv-contrib-python", "av", "dlib-bin", "numpy")


def bench(
    checkpoints: dict[str, str],
    others: dict[str, list[Path]],
    made: list[Case],
    protocol: Protocol,
    output: Path,
    cache: Path | None = None,
    workers: int = 1,
) -> dict[str, Any]:
    """Make every video that is not there yet, measure all, and write results.json and report.html into ``output``.

    checkpoints: name → checkpoint. others: finished videos of other tools, named like the cases.

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

    def moved_by(found: Sequence[torch.Tensor]) -> Callable[[int], Draw]:
        return lambda i: drawn(codecs[i], found[i], made[i].audio)

    def losing_by(name: str) -> Callable[[int], Draw]:
        return lambda i: drawn(codecs[i], losing_motion(name, driven, made, i, protocol), made[i].audio)

    if tracks:
        jobs[FOOTAGE] = lambda i: lambda: (cropped(made[i], protocol.size), made[i].audio)
        jobs[REAL] = moved_by(tracks)
    jobs |= {name: moved_by(found) for name, found in motions.items()}
    jobs |= {name: losing_by(name) for name in LOSERS}
    for name, job in jobs.items():
        origin = json.dumps([fingerprint(protocol, made), weights_of(checkpoints, name), version("flowportrait")])
        systems[name] = written(output / "videos" / name.replace(" ", "_"), name, job, made, protocol, origin)
        if name in checkpoints:
            costs[name] = rendering_costs(output / "videos" / name.replace(" ", "_"))
    systems |= {name: matching(name, files, made) for name, files in others.items()}
    baseline = next(iter(checkpoints))
    summary = evaluate_videos(
        systems,
        output,
        baseline,
        title=f"FlowPortrait benchmark, protocol {protocol.version}",
        extra=costs,
        notes=_notes(protocol, made, bool(tracks)),
        cache=cache,
        workers=workers,
    )
    rows = json.loads((output / "metrics.json").read_text(encoding="utf-8"))["clips"]
    results = {
        "protocol": fingerprint(protocol, made),
        "machine": machine(),
        "checks": [asdict_check(check) for check in ordering(rows, list(checkpoints))],
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


Check = tuple[str, str, str, Estimate, bool]
"""winner, loser, metric, winner's advantage on the same clips, whether its whole interval is above zero."""


def ordering(rows: dict[str, dict[str, Row]], checkpoints: list[str]) -> list[Check]:
    """Whether what must win wins, clip by clip."""
    winners = [(REAL, loser) for loser in LOSERS] + [(FOOTAGE, "still"), (FOOTAGE, REAL)]
    winners += [(name, loser) for name in checkpoints for loser in ("still", "loudness jaw")]
    found: list[Check] = []
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
            advantage = bootstrap(-gaps if metric == "ler" else gaps)
            found.append((winner, loser, metric, advantage, bool(advantage.low is not None and advantage.low > 0)))
    return found


def asdict_check(check: Check) -> dict[str, Any]:
    """JSON-able."""
    winner, loser, metric, advantage, holds = check
    return {"winner": winner, "loser": loser, "metric": metric, "advantage": asdict(advantage), "holds": holds}


def machine() -> dict[str, Any]:
    """What it ran on, without anything that names a person or a network."""
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
        f"What must lose (shifted by {protocol.late}, other sentence, loudness jaw, still) is made from {source}.",
    ]
