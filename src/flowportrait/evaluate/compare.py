"""Several systems on the same clips: what each scores, how sure that is, and whether they differ.

Intervals are percentile bootstrap over clips (95 %). Two systems are compared clip by clip (same file name):
mean difference with its interval, and Wilcoxon's signed-rank p, Holm-corrected over everything compared.
"""

from __future__ import annotations

import csv
import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import wilcoxon

from flowportrait.evaluate.flicker import guarded_tfi
from flowportrait.evaluate.metrics import METRICS

Row = dict[str, float | int | str | None]

RESAMPLES = 4000
MIN_PAIRS = 6
"""Below this Wilcoxon cannot reach p < 0.05."""
REAL = "real"
"""Name of the system that is real footage; same-named clips of it guard the TFI."""


@dataclass(frozen=True)
class Estimate:
    """Mean over clips with a 95 % interval; low and high are None for a single clip."""

    mean: float
    low: float | None
    high: float | None
    clips: int


@dataclass(frozen=True)
class Difference:
    """``system`` minus ``baseline`` on the clips both have; change relative to the baseline's mean; p is
    Holm-corrected, None with too few pairs."""

    metric: str
    system: str
    baseline: str
    difference: Estimate
    change: float | None
    p: float | None


@dataclass(frozen=True)
class Comparison:
    """rows[system][clip] → metrics; estimates[system][metric]; differences against ``baseline``; counts per
    system; excluded: what could not be measured and why; remarks: what a reader should know about single files;
    networks: which one each figure comes from; groups: figures per group of clips."""

    rows: dict[str, dict[str, Row]]
    estimates: dict[str, dict[str, Estimate]]
    differences: list[Difference] = field(default_factory=list)
    baseline: str | None = None
    counts: dict[str, dict[str, int]] = field(default_factory=dict)
    excluded: list[dict[str, str]] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    networks: dict[str, str] = field(default_factory=dict)
    groups: dict[str, Any] = field(default_factory=dict)

    def summary(self) -> dict[str, object]:
        """JSON-able, without the single clips."""
        return {
            "baseline": self.baseline,
            "counts": self.counts,
            "excluded": self.excluded,
            "remarks": self.remarks,
            "networks": self.networks,
            "groups": self.groups,
            "metrics": {s: {m: asdict(e) for m, e in found.items()} for s, found in self.estimates.items()},
            "differences": [asdict(d) for d in self.differences],
        }

    def write(self, folder: Path) -> None:
        """Write metrics.json and metrics.csv (one line per system and clip)."""
        _replace(folder / "metrics.json", json.dumps(self.summary() | {"clips": self.rows}, indent=1) + "\n")
        columns = ["system", "clip"]
        for rows in self.rows.values():
            for row in rows.values():
                columns += [key for key in row if key not in columns]
        partial = folder / f".metrics.{os.getpid()}.csv"
        with partial.open("w", newline="", encoding="utf-8") as stream:
            table = csv.DictWriter(stream, columns)
            table.writeheader()
            for system, rows in self.rows.items():
                table.writerows({"system": system, "clip": clip, **row} for clip, row in rows.items())
        os.replace(partial, folder / "metrics.csv")


def _replace(path: Path, text: str) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


def compare(rows: dict[str, dict[str, Row]], baseline: str | None = None, seed: int = 0) -> Comparison:
    """Compare systems given each clip's metrics; ``baseline`` names the one the others are held against."""
    rows = excess(guard(rows))
    estimates = {
        system: {
            metric.key: bootstrap(values, seed) for metric in METRICS if len(values := column(found, metric.key)[1])
        }
        for system, found in rows.items()
    }
    counts = {
        system: {
            "clips": len(found),
            "frames": sum(int(row.get("frames") or 0) for row in found.values()),
            "frames_without_face": sum(int(row.get("frames_without_face") or 0) for row in found.values()),
            "sync_windows": sum(int(row.get("sync_windows") or 0) for row in found.values()),
            "clips_without_sync": sum(row.get("sync_windows") is None for row in found.values()),
        }
        for system, found in rows.items()
    }
    return Comparison(rows, estimates, _differences(rows, baseline, seed), baseline, counts)


def column(rows: dict[str, Row], key: str) -> tuple[list[str], np.ndarray]:
    """Clips that have the metric, and its values."""
    found = {clip: value for clip, row in rows.items() if (value := _figure(row, key)) is not None}
    return list(found), np.array(list(found.values()))


def _figure(row: Row, key: str) -> float | None:
    value = row.get(key)
    return None if value is None else float(value)


def bootstrap(values: np.ndarray, seed: int = 0) -> Estimate:
    """Mean of clips ``[n]`` with a percentile interval over resampled clips; of several runs on the same clips
    ``[runs, n]`` over resampled runs and, independently, clips (both are samples; Owen 2007, The pigeonhole bootstrap).
    """
    mean, table = float(values.mean()), np.atleast_2d(values)
    runs, clips = table.shape
    if clips < 2:
        return Estimate(mean, None, None, clips)
    rng = np.random.default_rng(seed)
    columns = rng.integers(clips, size=(RESAMPLES, 1, clips))
    rows = rng.integers(runs, size=(RESAMPLES, runs, 1))
    low, high = np.quantile(table[rows, columns].mean((1, 2)), [0.025, 0.975])
    return Estimate(mean, float(low), float(high), clips)


def excess(rows: dict[str, dict[str, Row]]) -> dict[str, dict[str, Row]]:
    """Add ``ler_excess`` where the real clip of the same name is among the systems: real footage has errors too."""
    real = rows.get(REAL, {})

    def over(clip: str, row: Row) -> Row:
        own, floor = row.get("ler"), real.get(clip, {}).get("ler")
        return row if own is None or floor is None else row | {"ler_excess": float(own) - float(floor)}

    return {
        system: {clip: row if system == REAL else over(clip, row) for clip, row in found.items()}
        for system, found in rows.items()
    }


def guard(rows: dict[str, dict[str, Row]]) -> dict[str, dict[str, Row]]:
    """Add ``tfi_guarded`` where the real clip of the same name is among the systems."""
    real = rows.get(REAL, {})
    measured = [tfi for found in rows.values() for row in found.values() if (tfi := _figure(row, "tfi")) is not None]
    if not real or not measured:
        return rows
    worst = max(measured)

    def guarded(clip: str, row: Row) -> Row:
        tfi, power = _figure(row, "tfi"), _figure(row, "flow_power")
        goal = _figure(real.get(clip, {}), "flow_power")
        if tfi is None or power is None or goal is None:
            return row
        return row | {"tfi_guarded": guarded_tfi(tfi, power, goal, worst)}

    return {system: {clip: guarded(clip, row) for clip, row in found.items()} for system, found in rows.items()}


def _differences(rows: dict[str, dict[str, Row]], baseline: str | None, seed: int) -> list[Difference]:
    if baseline is None or baseline not in rows:
        return []
    found: list[Difference] = []
    for system in rows:
        for metric in METRICS if system not in (baseline, REAL) else ():
            (names, values), (others, theirs) = (column(rows[one], metric.key) for one in (system, baseline))
            _, here, there = np.intersect1d(names, others, return_indices=True)
            if not len(here):
                continue
            other = theirs[there]
            gap = values[here] - other
            p = float(wilcoxon(gap).pvalue) if len(gap) >= MIN_PAIRS and np.any(gap) else None
            change = float(gap.mean() / abs(other.mean())) if abs(other.mean()) > 1e-9 else None
            found.append(Difference(metric.key, system, baseline, bootstrap(gap, seed), change, p))
    return _holm(found)


def _holm(found: list[Difference]) -> list[Difference]:
    """Step-down correction (Holm 1979) over all tests that were made."""
    tested = sorted((d for d in found if d.p is not None), key=lambda d: d.p or 0.0)
    corrected: dict[int, float] = {}
    running = 0.0
    for rank, difference in enumerate(tested):
        running = min(1.0, max(running, (difference.p or 0.0) * (len(tested) - rank)))
        corrected[id(difference)] = running
    return [Difference(d.metric, d.system, d.baseline, d.difference, d.change, corrected.get(id(d))) for d in found]
