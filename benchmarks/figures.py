"""From run folders to the few numbers and points that the results page shows: ``docs/results/figures.json``.

    RUNS/NAME/SEED/rows.json    ─► per figure: mean, 95 % over clips, 95 % over seeds, change from sft, Holm-corrected p
    RUNS/NAME/SEED/curve.jsonl  ─► rewards on held-out prompts by processor seconds, mean and spread over seeds

Clips are compared after averaging each over its seeds, so that seeds do not pass for clips.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from contestants import STUDIES
from scipy.stats import t

from flowportrait.evaluate.compare import Row, compare
from flowportrait.evaluate.metrics import METRICS

SYNC, LER, ECS, TFI = "sync_in_time_short", "ler", "ecs", "tfi"
FIGURES = (
    SYNC, LER, ECS, TFI, "mouth_amplitude", "head_range", "gaze_std", "lid_motion", "silent_lip", "jerk", "sharpness",
)  # fmt: skip
"""Compared and corrected together, per study."""
BESIDE = ("identity_kept", "spread_lips", "spread_head")
"""Printed, not tested: identity, and how far two performances of the same speech are apart."""
BASELINE, POST_TRAINED, REAL = "sft", "rl", "real"
HELD, EVALUATION, SPREAD = "held/", "evaluation/", "/spread"


def collect(runs: Path, studies: Iterable[str] = tuple(STUDIES)) -> dict[str, Any]:
    """Everything of a folder of ``recipes.py`` that belongs to some studies."""
    there = {study: STUDIES[study] for study in studies if _there(runs, STUDIES[study])}
    return {
        "studies": {study: table(runs, names) for study, names in there.items()},
        "curves": {
            study: {name: points for name in names if (points := curve(runs, name))} for study, names in there.items()
        },
        "sampling": _sampling(runs),
    }


def table(runs: Path, names: tuple[str, ...]) -> dict[str, Any]:
    """A study's contestants that were measured, and the real motion."""
    seeds = {name: _rows(runs, name) for name in (REAL, *names)}
    seeds = {name: own for name, own in seeds.items() if own}
    averaged = {name: average(own) for name, own in seeds.items()}
    tested = {name: {c: {k: row.get(k) for k in FIGURES} for c, row in rows.items()} for name, rows in averaged.items()}
    found = compare(tested, BASELINE if BASELINE in tested else None)
    differences = {(d.system, d.metric): d for d in found.differences}
    result: dict[str, Any] = {}
    for name, own in seeds.items():
        result[name] = {"seeds": len(own), "clips": len(averaged[name]), "figures": {}}
        for key in (*FIGURES, *BESIDE):
            values = [_mean(rows, key) for rows in own]
            known = [value for value in values if value is not None]
            if not known:
                continue
            entry: dict[str, Any] = {"mean": float(np.mean(known)), "over_seeds": over_seeds(known)}
            estimate = found.estimates[name].get(key)
            if estimate is not None:
                entry |= {"low": estimate.low, "high": estimate.high}
            difference = differences.get((name, key))
            if difference is not None:
                entry |= {"change": difference.change, "p": difference.p}
            result[name]["figures"][key] = entry
    return result


def average(seeds: list[dict[str, Row]]) -> dict[str, Row]:
    """Every clip's figures, averaged over the seeds that have them."""
    result: dict[str, Row] = {}
    for clip in seeds[0]:
        values: dict[str, list[float]] = defaultdict(list)
        for rows in seeds:
            for key, value in rows.get(clip, {}).items():
                if isinstance(value, int | float) and np.isfinite(value):
                    values[key].append(float(value))
        result[clip] = {key: float(np.mean(own)) for key, own in values.items()}
    return result


def number(row: Row, key: str) -> float | None:
    """A figure of a clip, where it was measured."""
    value = row.get(key)
    return float(value) if isinstance(value, int | float) else None


def over_seeds(values: list[float]) -> float | None:
    """Half of the 95 % interval of the mean of a few runs, by Student's t."""
    if len(values) < 2:
        return None
    return float(t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values)))


def gap_closed(before: float, after: float, real: float) -> float | None:
    """Share of the distance to real motion that is gone; going past it counts as distance again. None where there was
    none to speak of (2 % of the real figure)."""
    gap = abs(real - before)
    return None if gap <= 0.02 * abs(real) else 1 - abs(real - after) / gap


def curve(runs: Path, name: str) -> list[dict[str, float]]:
    """Means over seeds of the held-out rewards at every look, which all runs take at the same shares of their time."""
    folders = sorted((runs / name.replace(" ", "_")).glob("*/curve.jsonl"))
    looks = [[r for r in map(json.loads, path.read_text().splitlines()) if f"{HELD}sync" in r] for path in folders]
    points = []
    for same in zip(*looks, strict=False):
        point = {"seconds": float(np.mean([record["seconds"] for record in same])), "seeds": float(len(same))}
        for key in (key for key in same[0] if key.startswith(HELD)):
            values = [record[key] for record in same]
            point |= {key: float(np.mean(values)), f"{key}{SPREAD}": over_seeds(values) or 0.0}
        points.append({key: round(value, 5) for key, value in point.items()})
    return points


def looks(runs: Sequence[Path]) -> dict[str, list[dict[str, float]]]:
    """What ``flowportrait posttrain`` saw on its held-out prompts, by run folder."""
    found = {}
    for run in runs:
        records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        seen = [record for record in records if "evaluation/sync" in record]
        found[run.name] = [
            {key: round(value, 4) for key, value in record.items() if key == "iteration" or key.startswith(EVALUATION)}
            for record in seen
        ]
    return found


def headline(folder: Path) -> dict[str, Any]:
    """Estimates and differences of ``heldout.py``'s two tables."""
    result = {}
    for name in ("speakers", "voices"):
        path = folder / name / "metrics.json"
        if path.is_file():
            found = json.loads(path.read_text())
            differences = [entry for entry in found["differences"] if entry["system"] == POST_TRAINED]
            result[name] = {"metrics": found["metrics"], "differences": differences}
    return result


def digits(key: str) -> int:
    """How many a figure is printed with."""
    return next((metric.digits for metric in METRICS if metric.key == key), 3)


def _there(runs: Path, names: tuple[str, ...]) -> bool:
    return sum(bool(_rows(runs, name)) for name in names if name != BASELINE) > 1


def _rows(runs: Path, name: str) -> list[dict[str, Row]]:
    return [json.loads(path.read_text()) for path in sorted((runs / name.replace(" ", "_")).glob("*/rows.json"))]


def _mean(rows: Mapping[str, Row], key: str) -> float | None:
    values = [value for row in rows.values() if (value := number(row, key)) is not None]
    return float(np.mean(values)) if values else None


def _sampling(runs: Path) -> dict[str, Any]:
    paths = sorted((runs / "sft_tuned").glob("*/sampling.json"))
    return {path.parent.name: json.loads(path.read_text()) for path in paths}
