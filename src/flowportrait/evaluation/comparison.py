"""Systems compared on the same clips.

Intervals are percentile bootstrap over clips (95 %). Two systems are compared clip by clip (same file name): mean
difference with its interval, and Wilcoxon's signed-rank p, Holm-corrected over everything compared.

Metrics of a whole system (pooled ECS, Fréchet distances, THEval) have intervals by a jackknife over ten groups of
clips: resampling with repeats would shrink covariances and move Fréchet distances. The real system itself is split in
half, which gives each metric its ceiling.

    Fréchet distance d² = ‖μ₁ − μ₂‖² + tr( Σ₁ + Σ₂ − 2 (Σ₁ Σ₂)^½ )            (Heusel et al. 2017)

Metrics per group of clips (language, skin tone, age …) take a CSV table with a column ``clip`` and a column of labels
for each grouping.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from flowportrait.errors import BadInput
from flowportrait.evaluation.measure import MEASURES, VideoMetrics, total
from flowportrait.evaluation.metrics import METRICS, REAL, Row, shipped_means
from flowportrait.evaluation.motion_metrics import (
    GROUPS,
    guarded_tfi,
    pooled_ecs,
    reference_quantiles,
    shipped_quantiles,
)
from flowportrait.evaluation.statistics import Estimate, bootstrap_mean, holm_correction, jackknife, signed_rank_p
from flowportrait.files import complete, write_text


@dataclass(frozen=True)
class Difference:
    """A metric of ``system`` minus that of ``baseline``, on the clips that both have.

    Attributes:
        difference: mean and interval of the paired differences.
        change: the difference relative to the baseline's mean.
        p: Wilcoxon's signed-rank p, Holm-corrected; None with too few pairs.
    """

    metric: str
    system: str
    baseline: str
    difference: Estimate
    change: float | None
    p: float | None


@dataclass(frozen=True)
class Comparison:
    """All that an evaluation found.

    Attributes:
        rows: metrics by system and clip, ``rows[system][clip][key]``.
        estimates: means and intervals, ``estimates[system][key]``.
        differences: of every system from ``baseline``.
        counts: clips, frames and frames without a face per system.
        excluded: system, file and reason of what could not be measured.
        remarks: what a reader should know about single files.
        networks: the network that each metric comes from.
        groups: metrics per group of clips, see ``metrics_by_group``.
    """

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
        """Plain values for JSON, without the single clips."""
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

    def to_json(self, path: Path) -> Path:
        """Write the summary and every clip's metrics."""
        write_text(path, json.dumps(self.summary() | {"clips": self.rows}, indent=1) + "\n")
        return path

    def to_csv(self, path: Path) -> Path:
        """Write one line of metrics per system and clip."""
        columns = ["system", "clip"]
        for rows in self.rows.values():
            for row in rows.values():
                columns += [key for key in row if key not in columns]
        with complete(path) as partial, partial.open("w", newline="", encoding="utf-8") as stream:
            table = csv.DictWriter(stream, columns)
            table.writeheader()
            for system, rows in self.rows.items():
                table.writerows({"system": system, "clip": clip, **row} for clip, row in rows.items())
        return path


def compare_systems(rows: dict[str, dict[str, Row]], baseline: str | None = None, seed: int = 0) -> Comparison:
    """Compare systems, given each clip's metrics; the others are tested against ``baseline``."""
    rows = add_ler_excess(add_guarded_tfi(rows))
    estimates = {
        system: {
            metric.key: bootstrap_mean(values, seed)
            for metric in METRICS
            if len(values := metric_values(found, metric.key)[1])
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


def metric_values(rows: dict[str, Row], key: str) -> tuple[list[str], np.ndarray]:
    """Clips that have the metric, and its values."""
    found = {clip: value for clip, row in rows.items() if (value := _value(row, key)) is not None}
    return list(found), np.array(list(found.values()))


def _value(row: Row, key: str) -> float | None:
    value = row.get(key)
    return None if value is None else float(value)


def add_ler_excess(rows: dict[str, dict[str, Row]]) -> dict[str, dict[str, Row]]:
    """Add ``ler_excess`` where the real clip of the same name is among the systems: real footage has errors too."""
    real = rows.get(REAL, {})

    def over(clip: str, row: Row) -> Row:
        own, floor = row.get("ler"), real.get(clip, {}).get("ler")
        return row if own is None or floor is None else row | {"ler_excess": float(own) - float(floor)}

    return {
        system: {clip: row if system == REAL else over(clip, row) for clip, row in found.items()}
        for system, found in rows.items()
    }


def add_guarded_tfi(rows: dict[str, dict[str, Row]]) -> dict[str, dict[str, Row]]:
    """Add ``tfi_guarded`` where the real clip of the same name is among the systems."""
    real = rows.get(REAL, {})
    measured = [tfi for found in rows.values() for row in found.values() if (tfi := _value(row, "tfi")) is not None]
    if not real or not measured:
        return rows
    worst = max(measured)

    def guarded(clip: str, row: Row) -> Row:
        tfi, power = _value(row, "tfi"), _value(row, "flow_power")
        goal = _value(real.get(clip, {}), "flow_power")
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
            (names, values), (others, theirs) = (metric_values(rows[one], metric.key) for one in (system, baseline))
            _, here, there = np.intersect1d(names, others, return_indices=True)
            if not len(here):
                continue
            other = theirs[there]
            gap = values[here] - other
            change = float(gap.mean() / abs(other.mean())) if abs(other.mean()) > 1e-9 else None
            found.append(
                Difference(metric.key, system, baseline, bootstrap_mean(gap, seed), change, signed_rank_p(gap))
            )
    corrected = holm_correction([difference.p for difference in found])
    return [replace(difference, p=p) for difference, p in zip(found, corrected, strict=True)]


GROUP_METRICS = ("sync_in_time", "sync_in_time_short", "ler", "ecs", "tfi", "identity_kept", "csim")
Labels = dict[str, dict[str, str]]
"""labels[column][clip]."""


def read_labels(path: Path) -> Labels:
    """The table.

    Raises:
        BadInput: missing, without a column ``clip`` and another one, or with no line.
    """
    if not path.is_file():
        raise BadInput(f"No table of groups at {path}: give a CSV file with a column 'clip'.")
    with path.open(newline="", encoding="utf-8-sig") as stream:
        lines = list(csv.DictReader(stream))
    if not lines or "clip" not in lines[0] or len(lines[0]) < 2:
        raise BadInput(f"{path} needs a column 'clip' and at least one column of labels, with a line per clip.")
    names = [name for name in lines[0] if name and name != "clip"]
    return {name: {line["clip"]: (line[name] or "").strip() for line in lines if line[name]} for name in names}


def metrics_by_group(
    rows: dict[str, dict[str, Row]], labels: Labels, excluded: list[dict[str, str]]
) -> dict[str, dict[str, dict[str, dict[str, Any]]]]:
    """found[column][label][system]: clips, frames, frames without a face, files left out, and each shown metric as
    mean, low, high."""
    found: dict[str, dict[str, dict[str, dict[str, Any]]]] = {}
    for name, of_clip in labels.items():
        for label in sorted(set(of_clip.values())):
            for system, clips in rows.items():
                own = {clip: row for clip, row in clips.items() if of_clip.get(clip) == label}
                left = [e for e in excluded if e["system"] == system and of_clip.get(Path(e["file"]).stem) == label]
                if not own and not left:
                    continue
                values = {key: metric_values(own, key)[1] for key in GROUP_METRICS}
                estimates = {key: bootstrap_mean(v) for key, v in values.items() if len(v)}
                found.setdefault(name, {}).setdefault(label, {})[system] = {
                    "clips": len(own),
                    "frames": sum(int(row.get("frames") or 0) for row in own.values()),
                    "frames_without_face": sum(int(row.get("frames_without_face") or 0) for row in own.values()),
                    "left_out": len(left),
                    "metrics": {key: [e.mean, e.low, e.high] for key, e in estimates.items()},
                }
    return found


SHRINK = 1e-3
"""Share of the mean variance added to the diagonal, so that few clips do not make a singular covariance."""


def frechet_distance(one: np.ndarray, other: np.ndarray) -> float:
    """d² between ``[N, D]`` and ``[M, D]``; both need at least two rows."""
    gap = one.mean(0) - other.mean(0)
    first, second = _covariance(one), _covariance(other)
    # tr (Σ₁ Σ₂)^½ is the sum of square roots of the eigenvalues of the symmetric Σ₁^½ Σ₂ Σ₁^½.
    values, vectors = np.linalg.eigh(first)
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    cross = np.sqrt(np.linalg.eigvalsh(root @ second @ root).clip(0)).sum()
    return float(max(0.0, gap @ gap + np.trace(first) + np.trace(second) - 2 * cross))


def _covariance(rows: np.ndarray) -> np.ndarray:
    found = np.atleast_2d(np.cov(rows.astype(np.float64), rowvar=False))
    return found + SHRINK * np.trace(found) / len(found) * np.eye(len(found))


FEWEST = 4
"""Clips that each side needs for a metric of distributions."""
Clips = Sequence[VideoMetrics]


class SetFunction(Protocol):
    """A number from a system's clips and the real ones; None where they are too few."""

    def __call__(self, clips: Clips, /, real: Clips) -> float | None: ...


class SetMetric(NamedTuple):
    """A metric of a whole system; its interval stays between ``lowest`` and ``highest``."""

    compute: SetFunction
    lowest: float
    highest: float


def set_estimates(systems: dict[str, dict[str, VideoMetrics]]) -> dict[str, dict[str, Estimate]]:
    """Metrics of whole systems.

    Without real clips, ECS and THEval are compared with the shipped metrics of real footage, and Fréchet distances are
    left out.
    """
    real = list(systems.get(REAL, {}).values())
    found: dict[str, dict[str, Estimate]] = {}
    for name, clips in systems.items():
        own, truth = list(clips.values()), real
        if name == REAL:
            # Shuffled, because prompts often take portraits in turn and every other clip would be of the same ones.
            order = np.random.default_rng(0).permutation(len(own))
            own, truth = [own[i] for i in order[::2]], [own[i] for i in order[1::2]]
        found[name] = {}
        for key, metric in SET_METRICS.items():
            estimate = jackknife(own, partial(metric.compute, real=truth), metric.lowest, metric.highest)
            if estimate is not None:
                found[name][key] = estimate
    return found


def ecs_of_set(clips: Clips, real: Clips) -> float | None:
    """Pooled ECS against the real clips, or the shipped footage."""
    network = clips[0].network if clips else ""
    own, truth = ([c.dynamics for c in side if c.dynamics and c.network == network] for side in (clips, real))
    if not own:
        return None
    reference = shipped_quantiles(network)
    if len(truth) >= FEWEST:
        reference = {group: reference_quantiles([clip[group] for clip in truth]) for group in GROUPS}
    scores = pooled_ecs(own, reference)
    return scores["all"] if scores else None


def frechet_of_set(clips: Clips, real: Clips, features: Callable[[VideoMetrics], np.ndarray]) -> float | None:
    """Fréchet distance of the clips' features from those of the real clips."""
    own, truth = ([found for clip in side if len(found := features(clip))] for side in (clips, real))
    if min(len(own), len(truth)) < FEWEST:
        return None
    return frechet_distance(np.concatenate(own), np.concatenate(truth))


def theval_of_set(clips: Clips, real: Clips) -> float | None:
    """Total of the THEval measures that are measured here, each a mean over clips."""
    truth_means = theval_means(real) if len(real) >= FEWEST else shipped_means("theval_")
    found = total(theval_means(clips), truth_means)
    return found[0] if found else None


def theval_means(clips: Clips) -> dict[str, float]:
    """Mean over clips of each THEval measure."""
    found = {}
    for name in MEASURES:
        values = [float(v) for c in clips if (v := c.row.get(f"theval_{name}")) is not None]
        if values:
            found[name] = float(np.mean(values))
    return found


SET_METRICS: dict[str, SetMetric] = {
    "ecs_pooled": SetMetric(ecs_of_set, -np.inf, 1.0),
    "e_fid": SetMetric(partial(frechet_of_set, features=lambda clip: clip.expression[::3]), 0.0, np.inf),
    "fid": SetMetric(partial(frechet_of_set, features=lambda clip: clip.features.image), 0.0, np.inf),
    "fvd": SetMetric(partial(frechet_of_set, features=lambda clip: clip.features.video), 0.0, np.inf),
    "theval": SetMetric(theval_of_set, -np.inf, 1.0),
}
