"""From run folders to the few numbers and points that the results page shows: ``docs/results/figures.json``.

RUNS/NAME/SEED/rows.json    ─► per figure: mean and change from sft, 95 % over seeds and clips, Holm-corrected p
RUNS/NAME/SEED/held.json    ─► rewards on held-out prompts at the end, likewise, over seeds and performances
RUNS/NAME/SEED/curve.jsonl  ─► the same by processor seconds, mean and spread over seeds
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from contestants import STUDIES
from over_runs import POST_TRAINED, change, correct, paired

from flowportrait.evaluation.metrics import METRICS, MetricRow
from flowportrait.rewards.registry import RewardWeights

SYNC, LER, ECS, TFI = "sync_in_time_short", "ler", "ecs", "tfi"
FIGURES = (
    SYNC, LER, ECS, TFI, "mouth_amplitude", "head_range", "gaze_std", "lid_motion", "silent_lip", "jerk", "sharpness",
)  # fmt: skip
"""Compared and corrected together, per study."""
BESIDE = ("identity_kept", "spread_lips", "spread_head")
"""Printed, not tested: identity, and how far two performances of the same speech are apart."""
BASELINE, REAL = "sft", "real"
COMPOSITE = "composite"
HELD, EVALUATION, SPREAD = "held/", "evaluation/", "/spread"


def collect(runs: Path, studies: Iterable[str] = tuple(STUDIES)) -> dict[str, Any]:
    """Everything of a folder of ``recipes.py`` that belongs to some studies."""
    names = {study: STUDIES[study] for study in studies}
    curves = {study: {name: points for name in own if (points := curve(runs, name))} for study, own in names.items()}
    watched = {study: held(runs, own) for study, own in names.items()}
    return {
        "studies": {study: table(runs, own) for study, own in names.items() if _there(runs, own)},
        "curves": {study: own for study, own in curves.items() if len(own) > 1},
        "held": {study: own for study, own in watched.items() if len(own) > 1},
        "sampling": _sampling(runs),
    }


def table(runs: Path, names: tuple[str, ...]) -> dict[str, Any]:
    """A study's contestants that were measured, and the real motion."""
    seeds = {name: own for name in (REAL, *names) if (own := _rows(runs, name))}
    starts, result = seeds.get(BASELINE, {}), dict[str, Any]()
    for name, own in seeds.items():
        compared = name not in (REAL, BASELINE) and bool(starts)
        after = list(own.values())
        before = list(starts.values())[:1] if compared else after
        figures = {key: change(found) for key in (*FIGURES, *BESIDE) if (found := paired(after, before, key))}
        for key, entry in figures.items():
            if key in BESIDE or not compared:
                entry["p"] = None
        result[name] = {"seeds": len(after), "clips": len(after[0]), "figures": figures}
    correct([entry for own in result.values() for entry in own["figures"].values()])
    return result


def held(runs: Path, names: tuple[str, ...]) -> dict[str, Any]:
    """What every contestant's rewards became on held-out prompts, performance by performance, and in how many
    iterations."""
    start, result = _folder(runs, BASELINE) / "0" / "held.json", dict[str, Any]()
    for name in names if start.is_file() else ():
        folders = sorted(path.parent for path in _folder(runs, name).glob("*/held.json"))
        if name == BASELINE or not folders:
            continue
        before, after = _performances(start, start), [_performances(folder / "held.json", start) for folder in folders]
        found = {key: pairs for key in before["0"] if (pairs := paired(after, [before], key))}
        last = [json.loads((folder / "curve.jsonl").read_text().splitlines()[-1])["iteration"] for folder in folders]
        rewards = {key: change(pairs) for key, pairs in found.items()}
        result[name] = {"seeds": len(after), "iterations": float(np.mean(last)), "rewards": rewards}
    correct([entry for own in result.values() for entry in own["rewards"].values()])
    return result


def curve(runs: Path, name: str) -> list[dict[str, float]]:
    """Means over seeds of the held-out rewards, and half of what lies between them, at every look, which all runs take
    at the same shares of their time."""
    folders = sorted(_folder(runs, name).glob("*/curve.jsonl"))
    looks = [[r for r in map(json.loads, path.read_text().splitlines()) if f"{HELD}sync" in r] for path in folders]
    points = []
    for same in zip(*looks, strict=False):
        point = {"seconds": float(np.mean([record["seconds"] for record in same])), "seeds": float(len(same))}
        for key in (key for key in same[0] if key.startswith(HELD)):
            values = [record[key] for record in same]
            point |= {key: float(np.mean(values)), f"{key}{SPREAD}": float(np.ptp(values)) / 2}
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


def _folder(runs: Path, name: str) -> Path:
    return runs / name.replace(" ", "_")


def _rows(runs: Path, name: str) -> dict[str, dict[str, MetricRow]]:
    """Clips' figures by seed."""
    paths = sorted(_folder(runs, name).glob("*/rows.json"))
    return {path.parent.name: json.loads(path.read_text()) for path in paths}


def _performances(path: Path, start: Path) -> dict[str, MetricRow]:
    """Rewards of every held-out performance, by its number; ``composite``: their weighted sum, each in standard
    deviations of the start."""
    seen, first = ({k: np.array(v) for k, v in json.loads(one.read_text()).items()} for one in (path, start))
    weights = RewardWeights().by_name()
    total = sum(weights[name] * (seen[name] - first[name].mean()) / first[name].std() for name in weights)
    columns = {COMPOSITE: np.asarray(total), **seen}
    places = range(len(columns[COMPOSITE]))
    return {str(place): {name: float(values[place]) for name, values in columns.items()} for place in places}


def _sampling(runs: Path) -> dict[str, Any]:
    paths = sorted((runs / "sft_tuned").glob("*/sampling.json"))
    return {path.parent.name: json.loads(path.read_text()) for path in paths}
