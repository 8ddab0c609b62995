"""Comparison of systems on the same clips: estimates, differences, groups of clips, and metrics of whole systems.

Intervals are 95 % percentile bootstrap over clips; where it is known who speaks, over speakers, each of whom counts the
same. Two systems are compared clip by clip (same file name): mean difference with its interval, Wilcoxon's signed-rank
p, Holm-corrected over all comparisons, and the smallest difference that the comparison could have shown.

Metrics of a whole system (pooled ECS, Fréchet distances, THEval) have jackknife intervals over ten groups of clips, or
over speakers, because resampling with repeats would shrink covariances and bias Fréchet distances.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from flowportrait.errors import BadInput
from flowportrait.evaluation.measure import (
    THEVAL_MEASURES,
    THEVAL_QUALITY_MEASURES,
    VideoMetrics,
    theval_total,
)
from flowportrait.evaluation.metrics import METRICS, REAL, MetricRow, shipped_means
from flowportrait.evaluation.motion_metrics import (
    ACTION_GROUPS,
    compute_reference_quantiles,
    guarded_tfi,
    pooled_ecs,
    shipped_quantiles,
)
from flowportrait.evaluation.statistics import (
    Estimate,
    bootstrap_mean,
    bootstrap_speakers,
    holm_correction,
    jackknife,
    signed_rank_p,
    smallest_visible_difference,
    speaker_means,
)
from flowportrait.files import atomic_write


@dataclass(frozen=True)
class MetricDifference:
    """The difference of a metric between ``system`` and ``baseline``, on the clips that both have.

    Attributes:
        difference: mean and interval of the paired differences.
        change: the difference relative to the baseline's mean.
        p: Wilcoxon's signed-rank p, Holm-corrected; None with too few pairs.
        visible: smallest true difference that the comparison finds with 80 % power; None for fewer than three speakers
            or clips.
    """

    metric: str
    system: str
    baseline: str
    difference: Estimate
    change: float | None
    p: float | None
    visible: float | None = None


@dataclass(frozen=True)
class SystemComparison:
    """The results of an evaluation.

    Attributes:
        rows: metrics by system and clip, ``rows[system][clip][key]``.
        estimates: means and intervals, ``estimates[system][key]``.
        differences: differences of every system from ``baseline``.
        baseline: name of the system with which the others are compared.
        counts: clips, frames and frames without a face per system.
        excluded: system, file and reason of every file that could not be measured.
        remarks: sentences about single files that a reader should know.
        networks: the network behind each metric.
        groups: metrics per group of clips; see ``metrics_by_group``.
    """

    rows: dict[str, dict[str, MetricRow]]
    estimates: dict[str, dict[str, Estimate]]
    differences: list[MetricDifference] = field(default_factory=list)
    baseline: str | None = None
    counts: dict[str, dict[str, int]] = field(default_factory=dict)
    excluded: list[dict[str, str]] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    networks: dict[str, str] = field(default_factory=dict)
    groups: dict[str, Any] = field(default_factory=dict)

    def summary(self) -> dict[str, object]:
        """Return plain values for JSON, without the single clips."""
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

    def to_csv(self, path: Path) -> Path:
        """Write one line of metrics per system and clip; return the path."""
        columns = ["system", "clip"]
        for rows in self.rows.values():
            for row in rows.values():
                columns += [key for key in row if key not in columns]
        with atomic_write(path) as partial, partial.open("w", newline="", encoding="utf-8") as stream:
            table = csv.DictWriter(stream, columns)
            table.writeheader()
            for system, rows in self.rows.items():
                table.writerows({"system": system, "clip": clip, **row} for clip, row in rows.items())
        return path


def compare_systems(
    rows: dict[str, dict[str, MetricRow]],
    baseline: str | None = None,
    seed: int = 0,
    speakers: Mapping[str, str] | None = None,
) -> SystemComparison:
    """Compare systems by the metrics of their clips.

    Args:
        rows: metrics by system and clip.
        baseline: the system against which the others are tested; None for no tests.
        seed: random seed of the bootstrap.
        speakers: who speaks in each clip; intervals and tests are then over speakers.

    Raises:
        BadInput: speakers are known of some clips only.
    """
    check_speakers(rows, speakers)
    rows = add_ler_excess(add_guarded_tfi(rows))
    estimates = {
        system: {
            metric.key: estimate_mean(clips, values, speakers, seed)
            for metric in METRICS
            for clips, values in [metric_values(found, metric.key)]
            if clips
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
    return SystemComparison(rows, estimates, _differences(rows, baseline, seed, speakers), baseline, counts)


def check_speakers(rows: Mapping[str, Mapping[str, MetricRow]], speakers: Mapping[str, str] | None) -> None:
    """Check that it is known of every clip who speaks, or of none.

    Raises:
        BadInput: speakers are known of some clips only.
    """
    unknown = sorted({clip for found in rows.values() for clip in found if not (speakers or {}).get(clip)})
    if speakers and unknown:
        raise BadInput(f"It is not said who speaks in {unknown[0]}: name the speaker of every clip, or of none.")


def estimate_mean(
    clips: Sequence[str], values: np.ndarray, speakers: Mapping[str, str] | None = None, seed: int = 0
) -> Estimate:
    """Return the mean of values ``[n]`` of clips, over speakers where it is known who speaks."""
    if not speakers:
        return bootstrap_mean(values, seed)
    return bootstrap_speakers(values, [speakers[clip] for clip in clips], seed)


def metric_values(rows: dict[str, MetricRow], key: str) -> tuple[list[str], np.ndarray]:
    """Return the names of the clips that have the metric ``key``, and its values ``[n]``."""
    values = {clip: value for clip, row in rows.items() if (value := _value(row, key)) is not None}
    return list(values), np.array(list(values.values()))


def _value(row: MetricRow, key: str) -> float | None:
    value = row.get(key)
    return None if value is None else float(value)


def add_ler_excess(rows: dict[str, dict[str, MetricRow]]) -> dict[str, dict[str, MetricRow]]:
    """Add ``ler_excess``, LER minus the real clip's, to clips with a real one of the same name.

    Real footage has errors too, which this subtracts.
    """
    real = rows.get(REAL, {})

    def with_excess(clip: str, row: MetricRow) -> MetricRow:
        ler, real_ler = row.get("ler"), real.get(clip, {}).get("ler")
        return row if ler is None or real_ler is None else row | {"ler_excess": float(ler) - float(real_ler)}

    return {
        system: {clip: row if system == REAL else with_excess(clip, row) for clip, row in found.items()}
        for system, found in rows.items()
    }


def add_guarded_tfi(rows: dict[str, dict[str, MetricRow]]) -> dict[str, dict[str, MetricRow]]:
    """Add ``tfi_guarded`` to clips with a real one of the same name; see ``guarded_tfi``."""
    real = rows.get(REAL, {})
    measured = [tfi for found in rows.values() for row in found.values() if (tfi := _value(row, "tfi")) is not None]
    if not real or not measured:
        return rows
    worst = max(measured)

    def with_guarded(clip: str, row: MetricRow) -> MetricRow:
        tfi, power = _value(row, "tfi"), _value(row, "flow_power")
        real_power = _value(real.get(clip, {}), "flow_power")
        if tfi is None or power is None or real_power is None:
            return row
        return row | {"tfi_guarded": guarded_tfi(tfi, power, real_power, worst)}

    return {system: {clip: with_guarded(clip, row) for clip, row in found.items()} for system, found in rows.items()}


def _differences(
    rows: dict[str, dict[str, MetricRow]], baseline: str | None, seed: int, speakers: Mapping[str, str] | None
) -> list[MetricDifference]:
    if baseline is None or baseline not in rows:
        return []
    differences: list[MetricDifference] = []
    for system in rows:
        for metric in METRICS if system not in (baseline, REAL) else ():
            (clips, values), (baseline_clips, baseline_values) = (
                metric_values(rows[one], metric.key) for one in (system, baseline)
            )
            _, index, baseline_index = np.intersect1d(clips, baseline_clips, return_indices=True)
            if not len(index):
                continue
            baseline_value = baseline_values[baseline_index]
            gap = values[index] - baseline_value
            shared = [clips[place] for place in index]
            estimate = estimate_mean(shared, gap, speakers, seed)
            if speakers:
                gap, baseline_value = (speaker_means(v, [speakers[c] for c in shared]) for v in (gap, baseline_value))
            change = float(gap.mean() / abs(baseline_value.mean())) if abs(baseline_value.mean()) > 1e-9 else None
            p, visible = signed_rank_p(gap), smallest_visible_difference(gap)
            differences.append(MetricDifference(metric.key, system, baseline, estimate, change, p, visible))
    corrected = holm_correction([difference.p for difference in differences])
    return [replace(difference, p=p) for difference, p in zip(differences, corrected, strict=True)]


# --- Metrics per group of clips (language, skin tone, age …) ---

GROUP_METRICS = ("sync_in_time", "sync_in_time_short", "ler", "ecs", "tfi", "identity_kept", "csim")
ClipLabels = dict[str, dict[str, str]]
"""Labels of clips: ``labels[column][clip]``."""
SPEAKER_COLUMN, JOINS_COLUMN = "speaker", "joins"
"""Columns that are no groups: who speaks, and the frames at which a clip is joined from several recordings."""


def read_clip_labels(path: Path) -> ClipLabels:
    """Read a CSV table with a column ``clip`` and one column of labels per grouping.

    Two columns have a meaning of their own: ``speaker``, over whom intervals are then taken, and ``joins``, frames at
    which a clip is joined from several recordings, such as ``29;58;87``.

    Raises:
        BadInput: the file is missing, empty, or lacks the column ``clip`` or a column of labels.
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
    rows: dict[str, dict[str, MetricRow]], labels: ClipLabels, excluded: list[dict[str, str]]
) -> dict[str, dict[str, dict[str, dict[str, Any]]]]:
    """Compute metrics per group of clips.

    Args:
        rows: metrics by system and clip.
        labels: labels of the clips by column.
        excluded: system, file and reason of the files that could not be measured.

    Returns:
        ``groups[column][label][system]`` with the numbers of clips, frames, frames without a face and files left out,
        and each metric of ``GROUP_METRICS`` as mean, low, high.
    """
    speakers = labels.get(SPEAKER_COLUMN)
    groups: dict[str, dict[str, dict[str, dict[str, Any]]]] = {}
    for name, label_by_clip in labels.items():
        if name in (SPEAKER_COLUMN, JOINS_COLUMN):
            continue
        for label in sorted(set(label_by_clip.values())):
            for system, clips in rows.items():
                group_rows = {clip: row for clip, row in clips.items() if label_by_clip.get(clip) == label}
                left_out = [
                    e for e in excluded if e["system"] == system and label_by_clip.get(Path(e["file"]).stem) == label
                ]
                if not group_rows and not left_out:
                    continue
                values = {key: metric_values(group_rows, key) for key in GROUP_METRICS}
                estimates = {key: estimate_mean(c, v, speakers) for key, (c, v) in values.items() if c}
                groups.setdefault(name, {}).setdefault(label, {})[system] = {
                    "clips": len(group_rows),
                    "frames": sum(int(row.get("frames") or 0) for row in group_rows.values()),
                    "frames_without_face": sum(int(row.get("frames_without_face") or 0) for row in group_rows.values()),
                    "left_out": len(left_out),
                    "metrics": {key: [e.mean, e.low, e.high] for key, e in estimates.items()},
                } | ({"speakers": len({speakers[clip] for clip in group_rows})} if speakers else {})
    return groups


# --- Metrics of whole systems ---

COVARIANCE_SHRINKAGE = 1e-3
"""Share of the mean variance that is added to the diagonal, so that few clips do not give a singular covariance."""


def frechet_distance(one: np.ndarray, other: np.ndarray) -> float:
    """Return the squared Fréchet distance between ``[N, D]`` and ``[M, D]`` (Heusel et al. 2017).

    d² = ‖μ₁ − μ₂‖² + tr( Σ₁ + Σ₂ − 2 (Σ₁ Σ₂)^½ ); both need at least two rows.
    """
    gap = one.mean(0) - other.mean(0)
    first, second = _covariance(one), _covariance(other)
    # tr (Σ₁ Σ₂)^½ is the sum of square roots of the eigenvalues of the symmetric Σ₁^½ Σ₂ Σ₁^½.
    values, vectors = np.linalg.eigh(first)
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    cross = np.sqrt(np.linalg.eigvalsh(root @ second @ root).clip(0)).sum()
    return float(max(0.0, gap @ gap + np.trace(first) + np.trace(second) - 2 * cross))


def _covariance(rows: np.ndarray) -> np.ndarray:
    covariance = np.atleast_2d(np.cov(rows.astype(np.float64), rowvar=False))
    return covariance + COVARIANCE_SHRINKAGE * np.trace(covariance) / len(covariance) * np.eye(len(covariance))


MIN_SET_CLIPS = 4
"""Fewest clips on each side for a metric of distributions."""
VideoMetricsSequence = Sequence[VideoMetrics]


class SystemMetricFunction(Protocol):
    """Interface of a function from the clips of a system and the real clips to a number; None if they are too few."""

    def __call__(self, clips: VideoMetricsSequence, /, real: VideoMetricsSequence) -> float | None: ...


class SystemMetric(NamedTuple):
    """A metric of a whole system, with bounds of its interval."""

    compute: SystemMetricFunction
    lowest: float
    highest: float


def estimate_system_metrics(
    systems: dict[str, dict[str, VideoMetrics]], speakers: Mapping[str, str] | None = None
) -> dict[str, dict[str, Estimate]]:
    """Compute the metrics of whole systems, by system and key.

    Without real clips, ECS and THEval are compared with the shipped metrics of real footage, and Fréchet distances are
    left out. The real system is split in half and compared with itself, which gives the ceiling of each metric.

    Args:
        systems: measured videos by system and clip.
        speakers: who speaks in each clip; intervals are then from leaving out one speaker at a time.
    """
    real = list(systems.get(REAL, {}).values())
    estimates: dict[str, dict[str, Estimate]] = {}
    for name, clips in systems.items():
        compared, real_clips, names = list(clips.values()), real, list(clips)
        if name == REAL:
            # Shuffled, because prompts often alternate portraits, and every other clip would show the same ones.
            order = np.random.default_rng(0).permutation(len(compared))
            compared, real_clips = [compared[i] for i in order[::2]], [compared[i] for i in order[1::2]]
            names = [names[i] for i in order[::2]]
        who = [speakers[clip] for clip in names] if speakers else None
        estimates[name] = {}
        for key, metric in SYSTEM_METRICS.items():
            estimate = jackknife(compared, partial(metric.compute, real=real_clips), metric.lowest, metric.highest, who)
            if estimate is not None:
                estimates[name][key] = estimate
    return estimates


def system_ecs(clips: VideoMetricsSequence, real: VideoMetricsSequence) -> float | None:
    """Return the pooled ECS against the real clips, or against the shipped footage if there are few."""
    network = clips[0].network if clips else ""
    samples, real_samples = (
        [c.dynamics for c in side if c.dynamics and c.network == network] for side in (clips, real)
    )
    if not samples:
        return None
    reference = shipped_quantiles(network)
    if len(real_samples) >= MIN_SET_CLIPS:
        reference = {
            group: compute_reference_quantiles([clip[group] for clip in real_samples]) for group in ACTION_GROUPS
        }
    scores = pooled_ecs(samples, reference)
    return scores["all"] if scores else None


def system_frechet_distance(
    clips: VideoMetricsSequence, real: VideoMetricsSequence, features: Callable[[VideoMetrics], np.ndarray]
) -> float | None:
    """Return the Fréchet distance between the features of the clips and of the real clips."""
    rows, real_rows = ([clip_rows for clip in side if len(clip_rows := features(clip))] for side in (clips, real))
    if min(len(rows), len(real_rows)) < MIN_SET_CLIPS:
        return None
    return frechet_distance(np.concatenate(rows), np.concatenate(real_rows))


def system_theval(clips: VideoMetricsSequence, real: VideoMetricsSequence) -> float | None:
    """Return the total THEval score of the clips against the real ones or the shipped footage."""
    truth_means = theval_means(real) if len(real) >= MIN_SET_CLIPS else shipped_means("theval_")
    result = theval_total(theval_means(clips), truth_means)
    return result[0] if result else None


def system_theval_whole(clips: VideoMetricsSequence, real: VideoMetricsSequence) -> float | None:
    """Return the total of all eight THEval scores; None where a network of theirs is missing."""
    names = (*THEVAL_MEASURES, *THEVAL_QUALITY_MEASURES)
    measured, truth = theval_means(clips, names), theval_means(real, names)
    result = theval_total(measured, truth, names)
    return result[0] if result and len(result[1]) == len(names) else None


def theval_means(clips: VideoMetricsSequence, names: Sequence[str] = THEVAL_MEASURES) -> dict[str, float]:
    """Return the mean over clips of each THEval measure."""
    means = {}
    for name in names:
        values = [float(v) for c in clips if (v := c.row.get(f"theval_{name}")) is not None]
        if values:
            means[name] = float(np.mean(values))
    return means


SYSTEM_METRICS: dict[str, SystemMetric] = {
    "ecs_pooled": SystemMetric(system_ecs, -np.inf, 1.0),
    "e_fid": SystemMetric(partial(system_frechet_distance, features=lambda clip: clip.expression[::3]), 0.0, np.inf),
    "fid": SystemMetric(partial(system_frechet_distance, features=lambda clip: clip.features.image), 0.0, np.inf),
    "fvd": SystemMetric(partial(system_frechet_distance, features=lambda clip: clip.features.video), 0.0, np.inf),
    "theval": SystemMetric(system_theval, -np.inf, 1.0),
    "theval_8": SystemMetric(system_theval_whole, -np.inf, 1.0),
}
