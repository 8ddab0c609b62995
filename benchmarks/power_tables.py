"""Tables of the evaluation with power: means over speakers, changes beside the smallest visible one, groups, drift."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from scipy.stats import t as student_t

from benchmarks.evaluation_set import SetPiece
from benchmarks.paired import Rows, metric_title, metric_value
from benchmarks.power_measure import SetMeasurements
from benchmarks.power_videos import (
    BASELINES,
    FACTORS,
    REDRAWN,
    WINDOW_SECONDS,
    exaggerated_name,
    fresh_name,
    long_name,
)
from benchmarks.record import Record, format_row
from flowportrait.evaluation.comparison import SYSTEM_METRICS
from flowportrait.evaluation.measure import VideoMetrics
from flowportrait.evaluation.metrics import METRIC_BY_KEY, METRICS, REAL
from flowportrait.evaluation.statistics import (
    Estimate,
    bootstrap_speakers,
    holm_correction,
    jackknife,
    signed_rank_p,
    smallest_visible_difference,
    speaker_means,
)
from flowportrait.files import atomic_write, write_text

HEADLINE = (
    "sync_in_time",
    "ler",
    "offset_error",
    "opening_correlation",
    "lip_motion_distance",
    "opening_ratio",
    "aed",
    "ecs",
)
"""Metrics of the first table."""
GROUP_KEYS = ("sync_in_time", "opening_correlation", "lip_motion_distance", "aed", "identity_kept")
CLOSURE_KEYS = ("closure", "closure_gap")
FIRST_IDENTITY = "identity with the first seconds"
POSITION_KEYS = ("sync_in_time", "mouth_amplitude", "amplitude", "sharpness", FIRST_IDENTITY, "jerk")


@dataclass(frozen=True)
class PieceChange:
    """The change of a metric from one system to another on the same pieces.

    Attributes:
        before: mean over speakers of the first system.
        difference: mean over speakers of the paired differences.
        p: Wilcoxon's p over speakers.
        visible: smallest difference that these speakers show with 80 % power.
        standard: standard deviation of the speakers' differences.
    """

    before: Estimate
    difference: Estimate
    p: float | None
    visible: float | None
    standard: float


def mean_of_pieces(rows: Rows, key: str, speakers: Mapping[str, str]) -> Estimate | None:
    """Return the mean over speakers of a metric; None where it was not measured."""
    known = {piece: value for piece in rows if (value := metric_value(rows[piece], key)) is not None}
    if not known:
        return None
    return bootstrap_speakers(np.array(list(known.values())), [speakers[piece] for piece in known])


def change_of_pieces(after: Rows, before: Rows, key: str, speakers: Mapping[str, str]) -> PieceChange | None:
    """Return the change of a metric on the pieces that both have; None if there is none."""
    pairs = {
        piece: (one, other)
        for piece in after
        if (one := metric_value(after[piece], key)) is not None
        and (other := metric_value(before.get(piece, {}), key)) is not None
    }
    if not pairs:
        return None
    names, values = [speakers[piece] for piece in pairs], np.array(list(pairs.values()))
    gaps = values[:, 0] - values[:, 1]
    means = speaker_means(gaps, names)
    return PieceChange(
        bootstrap_speakers(values[:, 1], names),
        bootstrap_speakers(gaps, names),
        signed_rank_p(means),
        smallest_visible_difference(means),
        float(means.std(ddof=1)) if len(means) > 1 else float("nan"),
    )


def add_means(
    record: Record, rows: Mapping[str, Rows], keys: Sequence[str], speakers: Mapping[str, str], group: str
) -> None:
    """Add the mean over speakers of every system and metric."""
    for system, own in rows.items():
        for key in keys:
            found = mean_of_pieces(own, key, speakers)
            if found is not None:
                record.add(system, metric_title(key), found, group=group)


def add_changes(
    record: Record, after: Rows, before: Rows, names: tuple[str, str], speakers: Mapping[str, str], group: str
) -> None:
    """Add, for every metric, the change of a system from another, and the smallest that would have been seen."""
    keys = [metric.key for metric in METRICS] + sorted(
        {key for row in after.values() for key in row if ": " in key or key in CLOSURE_KEYS}
    )
    changes = {key: found for key in keys if (found := change_of_pieces(after, before, key, speakers)) is not None}
    p_values = holm_correction([found.p for found in changes.values()])
    title = f"{group}: {names[0]} − {names[1]}, and the smallest visible difference"
    for (key, found), p in zip(changes.items(), p_values, strict=True):
        metric = metric_title(key)
        record.add(metric, names[1], found.before.mean, group=title, n=found.before.speakers)
        record.add(metric, f"{names[0]} − {names[1]}", found.difference, group=title)
        record.add(metric, "visible with 80 % power", found.visible, group=title)
        share = None if found.visible is None or not found.before.mean else found.visible / abs(found.before.mean)
        record.add(metric, "of the mean", None if share is None else 100 * share, unit="%", group=title)
        record.add(metric, "p (Holm)", p, group=title)


def add_whole_systems(
    record: Record,
    videos: Mapping[str, Mapping[str, VideoMetrics]],
    names: tuple[str, str],
    speakers: Mapping[str, str],
    group: str,
) -> None:
    """Add metrics of whole systems with the speakers left out in turn, and the smallest visible change of one."""
    real = videos[REAL]
    pieces = list(real)
    who = [speakers[piece] for piece in pieces]
    for key, metric in SYSTEM_METRICS.items():
        for system, own in videos.items():
            if system == REAL:
                continue
            statistic = partial(_whole, own, real, metric.compute)
            record.add(system, metric_title(key), jackknife(pieces, statistic, speakers=who), group=f"{group}: systems")
        difference = jackknife(pieces, partial(_whole_difference, videos, names, metric.compute), speakers=who)
        if difference is None or difference.high is None or difference.low is None:
            continue
        count = len(set(who))
        quantiles = student_t.ppf(0.975, count - 1) + student_t.ppf(0.8, count - 1)
        visible = quantiles * (difference.high - difference.low) / (2 * 1.96)
        title = f"{group}: {names[0]} − {names[1]}, whole systems"
        record.add(metric_title(key), f"{names[0]} − {names[1]}", difference, group=title)
        record.add(metric_title(key), "visible with 80 % power", float(visible), group=title)


def _whole(
    own: Mapping[str, VideoMetrics],
    real: Mapping[str, VideoMetrics],
    compute: Callable[..., float | None],
    pieces: Sequence[str],
) -> float | None:
    return compute([own[piece] for piece in pieces], real=[real[piece] for piece in pieces])


def _whole_difference(
    videos: Mapping[str, Mapping[str, VideoMetrics]],
    names: tuple[str, str],
    compute: Callable[..., float | None],
    pieces: Sequence[str],
) -> float | None:
    one, other = (_whole(videos[name], videos[REAL], compute, pieces) for name in names)
    return None if one is None or other is None else one - other


def add_ordering(record: Record, rows: Mapping[str, Rows], speakers: Mapping[str, str], group: str) -> None:
    """Add by how much the redrawn real motion is better than each baseline, which must lose, over what is visible."""
    title = f"{group}: real motion redrawn over baselines, in smallest visible differences"
    keys = [key for key in HEADLINE if METRIC_BY_KEY[key].better != "real"]
    for system in BASELINES:
        for key in keys:
            found = change_of_pieces(rows[REDRAWN], rows[system], key, speakers)
            if found is None or not found.visible:
                continue
            sign = 1 if METRIC_BY_KEY[key].better == "up" else -1
            record.add(system, metric_title(key), sign * found.difference.mean / found.visible, group=title)


def add_groups(record: Record, rows: Mapping[str, Rows], pieces: Sequence[SetPiece], systems: Sequence[str]) -> None:
    """Add a table for every kind of group (language, age, gender, skin tone), with counts of pieces and speakers."""
    speakers = {piece.name: piece.speaker for piece in pieces}
    for kind in dict.fromkeys(kind for piece in pieces for kind in piece.labels):
        automatic = any(kind in piece.automatic for piece in pieces)
        title = f"by {kind}{' (automatic)' if automatic else ''}"
        of = {piece.name: piece.labels.get(kind, "not known") for piece in pieces if piece.name in rows[systems[0]]}
        for label in sorted(set(of.values())):
            members = [name for name, own in of.items() if own == label]
            record.add(label, "speakers", len({speakers[name] for name in members}), group=title)
            record.add(f"{label}", "pieces", len(members), group=title)
            for system in systems:
                own = {name: rows[system][name] for name in members}
                for key in GROUP_KEYS:
                    found = mean_of_pieces(own, key, speakers)
                    if found is not None:
                        record.add(label, f"{system}: {metric_title(key)}", found, group=title)


# --- Exaggeration ---


def add_exaggeration(
    record: Record, found: SetMeasurements, bases: Sequence[str], speakers: Mapping[str, str], figure: Path
) -> None:
    """Add sync and fidelity of systems with scaled lips, and draw one against the other."""
    add_means(record, found.rows, HEADLINE, speakers, "exaggeration: sync beside fidelity")
    draw_frontier(found.rows, bases, speakers, figure)


def draw_frontier(rows: Mapping[str, Rows], bases: Sequence[str], speakers: Mapping[str, str], path: Path) -> None:
    """Draw lip sync over fidelity to the true lips as SVG: one mark a system, one line for each base that is scaled."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(11, 4.6), sharey=True)
    for axis, key in zip(axes, ("lip_motion_distance", "opening_correlation"), strict=True):
        marks: dict[str, tuple[Estimate, Estimate]] = {}
        for system, own in rows.items():
            fidelity, sync = (mean_of_pieces(own, one, speakers) for one in (key, "sync_in_time"))
            if system == REAL:
                fidelity = Estimate(0.0 if key == "lip_motion_distance" else 1.0, None, None, len(own))
            if fidelity is not None and sync is not None:
                marks[system] = fidelity, sync
        for system, (fidelity, sync) in marks.items():
            x, y, colour = fidelity.mean, sync.mean, _colour(system, bases)
            bars = dict(zip(("xerr", "yerr"), (_error_bar(fidelity), _error_bar(sync)), strict=True))
            axis.errorbar(x, y, fmt="o", markersize=4, linewidth=0.6, color=colour, **bars)
            axis.annotate(system, (x, y), xytext=(4, 4), textcoords="offset points", fontsize=7)
        for base in bases:
            line = [marks[name] for factor in sorted((*FACTORS, 1.0))
                    if (name := base if factor == 1 else exaggerated_name(base, factor)) in marks]  # fmt: skip
            places = [(fidelity.mean, sync.mean) for fidelity, sync in line]
            axis.plot(*zip(*places, strict=True), linewidth=1.2, alpha=0.6, color=_colour(base, bases))
        axis.set_xlabel(f"{metric_title(key)} ({'lower' if key == 'lip_motion_distance' else 'higher'} is better)")
        axis.grid(alpha=0.2)
    axes[0].invert_xaxis()
    axes[0].set_ylabel("LSE-C at 0 (higher is better)")
    with atomic_write(path) as partial_file:
        figure.savefig(partial_file, format="svg", bbox_inches="tight")
    plt.close(figure)


def _error_bar(estimate: Estimate) -> list[list[float]] | None:
    if estimate.low is None or estimate.high is None:
        return None
    return [[estimate.mean - estimate.low], [estimate.high - estimate.mean]]


def _colour(system: str, bases: Sequence[str]) -> str:
    base = system.partition(",")[0]
    if base in bases:
        return ("#2f6fde", "#e0662f", "#2a9d6f")[bases.index(base) % 3]
    return {REAL: "#222222"}.get(system, "#8a8f98")


# --- Positions in a minute ---


def add_positions(
    record: Record, windows: Mapping[int, Mapping[str, Rows]], systems: Sequence[str], speakers: Mapping[str, str]
) -> None:
    """Add scores by position in a minute, less those of the same sound generated on its own.

    Args:
        record: where the figures go.
        windows: rows by position in seconds and by system, generated in a minute and on their own.
        systems: the systems.
        speakers: who speaks, by window.
    """
    for system in systems:
        for position, rows in windows.items():
            label = f"{system}, {position} to {position + WINDOW_SECONDS} s"
            long, fresh = rows[long_name(system)], rows[fresh_name(system)]
            for key in POSITION_KEYS:
                if (mean := mean_of_pieces(long, key, speakers)) is not None:
                    record.add(label, metric_title(key), mean, group="position in a minute")
                if (change := change_of_pieces(long, fresh, key, speakers)) is not None:
                    title = "position in a minute: less the same sound generated on its own"
                    record.add(label, metric_title(key), change.difference, group=title)


# --- Markdown ---


def write_markdown(record: Record, path: Path) -> None:
    """Write all tables of a record as Markdown; intervals are 95 %, over speakers."""
    lines = [f"# {record.measurement}", "", f"    {record.command}", "", *(f"* {note}" for note in record.notes)]
    for group in dict.fromkeys(row.group for row in record.rows):
        rows = [row for row in record.rows if row.group == group]
        systems, metrics = (
            list(dict.fromkeys(names)) for names in zip(*((r.system, r.metric) for r in rows), strict=True)
        )
        cells = {(row.system, row.metric): format_row(row, unit=False) for row in rows}
        down, across = (systems, metrics) if len(metrics) <= len(systems) + 8 else (metrics, systems)
        lines += ["", f"## {group}", "", f"| | {' | '.join(across)} |", f"|---|{'---|' * len(across)}"]
        for name in down:
            pairs = [(name, other) if down is systems else (other, name) for other in across]
            lines.append(f"| {name} | {' | '.join(cells.get(pair, '–') for pair in pairs)} |")
    write_text(path, "\n".join(lines) + "\n")
