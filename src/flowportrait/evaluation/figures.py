"""Tables and plots of a comparison: HTML and text tables, and inline SVG for the report.

A table has a row per metric under its heading, a column per system, and intervals and changes in the cells; grouped
clips have a table per grouping. Plots over systems are intervals, curves of post-training and a radar; plots over clips
show how each metric is distributed, and which clips are outliers. SVG takes the text colour of its page.
"""

from __future__ import annotations

import html
import io
import math
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from flowportrait.evaluation.comparison import GROUP_METRICS, MetricDifference, SystemComparison, metric_values
from flowportrait.evaluation.metrics import METRIC_BY_KEY, METRICS, REAL, SHIPPED_FOOTAGE_SYSTEM, Metric
from flowportrait.evaluation.statistics import Estimate

if TYPE_CHECKING:
    from rich.table import Table


# --- Tables ---

SIGNIFICANCE_LEVEL = 0.05
"""p value below which a difference is significant."""
DIRECTION_ARROWS = {"up": "↑", "down": "↓", "real": "≈"}


def html_table(comparison: SystemComparison) -> str:
    """Return the HTML table of a comparison, real footage in the first column."""
    systems = sorted(comparison.estimates, key=lambda name: name not in (REAL, SHIPPED_FOOTAGE_SYSTEM))
    metrics = [m for m in METRICS if any(m.key in comparison.estimates[s] for s in systems)]
    head = "".join(f"<th class='{_css_class(s)}'>{html.escape(s)}</th>" for s in systems)
    lines, heading = [], ""
    for metric in metrics:
        if metric.group != heading:
            heading = metric.group
            lines.append(f"<tr class=group><th colspan={len(systems) + 1}>{heading}</th></tr>")
        best = _best(metric, comparison, systems)
        cells = "".join(
            f"<td class='{_css_class(s)} {'best' if s == best else ''}'>{_cell(comparison, s, metric)}</td>"
            for s in systems
        )
        title = f"{metric.title} <i>{DIRECTION_ARROWS[metric.better]}</i>"
        lines.append(f"<tr><th title='{html.escape(metric.meaning)}'>{title}</th>{cells}</tr>")
    clips = "".join(f"<td class='{_css_class(s)}'>{_counts(comparison, s)}</td>" for s in systems)
    return (
        f"<div class=scroll><table><thead><tr><th></th>{head}</tr></thead><tbody>{''.join(lines)}"
        f"<tr class=counts><th>measured</th>{clips}</tr></tbody></table></div>"
    )


def build_text_table(summary: Mapping[str, Any]) -> Table:
    """Build the table for a terminal.

    It has a row per metric with its direction and meaning, and a column per system with intervals and changes from the
    baseline.

    Args:
        summary: the result of ``SystemComparison.summary``.
    """
    from rich.markup import escape
    from rich.table import Table

    metrics, baseline = summary["metrics"], summary["baseline"]
    systems = sorted(metrics, key=lambda name: name not in (REAL, SHIPPED_FOOTAGE_SYSTEM))
    changes = {(d["system"], d["metric"]): d for d in summary["differences"]}
    over = "speakers" if any(e.get("speakers") for found in metrics.values() for e in found.values()) else "clips"
    title = "↑ higher is better · ↓ lower is better · ≈ closest to real footage · "
    title += f"in brackets 95 % intervals over {over}"
    if baseline:
        title += f" · % from {escape(baseline)}, * p < {SIGNIFICANCE_LEVEL}"
    result = Table(box=None, pad_edge=False, title=title, title_justify="left")
    for name in ("figure", "", *systems, "meaning"):
        result.add_column(escape(name), justify="right" if name in systems else "left")
    heading = ""
    for metric in METRICS:
        if not any(metric.key in metrics[system] for system in systems):
            continue
        if metric.group != heading:
            heading = metric.group
            result.add_row(f"[bold]{heading}")
        cells = [_text_cell(metrics[s].get(metric.key), changes.get((s, metric.key)), metric) for s in systems]
        result.add_row(f"  {metric.title}", DIRECTION_ARROWS[metric.better], *cells, metric.meaning)
    counts = summary["counts"]
    result.add_row("measured", "", *(f"{counts[s]['clips']} clips" if s in counts else "" for s in systems), "")
    return result


def _text_cell(estimate: Mapping[str, Any] | None, change: Mapping[str, Any] | None, metric: Metric) -> str:
    if estimate is None:
        return "–"
    text = format_metric(estimate["mean"], metric)
    if change is not None and change["change"] is not None:
        text += f" {change['change']:+.0%}{'*' if change['p'] is not None and change['p'] < SIGNIFICANCE_LEVEL else ''}"
    if estimate["low"] is not None:
        text += f" ({format_metric(estimate['low'], metric)} … {format_metric(estimate['high'], metric)})"
    return text


def rate_difference(difference: MetricDifference, metric: Metric) -> str:
    """Rate a difference as ``good``, ``bad`` or ``even``; it is even unless both interval and corrected p are clear."""
    gap = difference.difference
    if metric.better == "real" or not gap.excludes_zero:
        return "even"
    if difference.p is None or difference.p > SIGNIFICANCE_LEVEL:
        return "even"
    return "good" if (gap.mean > 0) == (metric.better == "up") else "bad"


def format_metric(value: float, metric: Metric) -> str:
    """Return a value with the decimals of its metric."""
    return f"{value:.{metric.digits}f}".replace("-", "−")


def _css_class(system: str) -> str:
    return "real" if system in (REAL, SHIPPED_FOOTAGE_SYSTEM) else ""


def _cell(comparison: SystemComparison, system: str, metric: Metric) -> str:
    estimate = comparison.estimates[system].get(metric.key)
    if estimate is None:
        return "<span class=none>–</span>"
    text = f"<b>{format_metric(estimate.mean, metric)}</b>"
    for difference in comparison.differences:
        if (difference.system, difference.metric) == (system, metric.key) and difference.change is not None:
            star = "*" if difference.p is not None and difference.p < SIGNIFICANCE_LEVEL else ""
            visible = "unknown" if difference.visible is None else format_metric(difference.visible, metric)
            power = f"smallest difference with 80 % power: {visible}"
            rating = rate_difference(difference, metric)
            text += f"<em class={rating} title='{power}'>{difference.change:+.0%}{star}</em>"
    return text + _interval(estimate, metric)


def _interval(estimate: Estimate, metric: Metric) -> str:
    if estimate.low is None or estimate.high is None:
        return "<small>one clip</small>"
    return f"<small>{format_metric(estimate.low, metric)} … {format_metric(estimate.high, metric)}</small>"


def _best(metric: Metric, comparison: SystemComparison, systems: list[str]) -> str | None:
    """Return the best system other than real footage; None if there are fewer than two."""
    means = {
        s: comparison.estimates[s][metric.key].mean
        for s in systems
        if s not in (REAL, SHIPPED_FOOTAGE_SYSTEM) and metric.key in comparison.estimates[s]
    }
    if len(means) < 2:
        return None
    if metric.better == "real":
        real = comparison.estimates.get(REAL, comparison.estimates.get(SHIPPED_FOOTAGE_SYSTEM, {})).get(metric.key)
        return min(means, key=lambda s: abs(means[s] - real.mean)) if real else None
    return (max if metric.better == "up" else min)(means, key=lambda s: means[s])


def _counts(comparison: SystemComparison, system: str) -> str:
    counts = comparison.counts.get(system)
    if not counts:
        return ""
    text = f"{counts['clips']} clips, {counts['frames']} frames"
    if counts["frames_without_face"]:
        text += f", no face in {counts['frames_without_face']}"
    if counts["clips_without_sync"]:
        text += f", no sync in {counts['clips_without_sync']}"
    left_out = sum(entry["system"] == system for entry in comparison.excluded)
    return text + (f", <b>{left_out} left out</b>" if left_out else "")


def html_groups_table(groups: dict[str, dict[str, dict[str, dict[str, Any]]]]) -> str:
    """Return one HTML table per column of labels; ``groups`` is the result of ``metrics_by_group``."""
    return "".join(f"<h3>{html.escape(name)}</h3>{_group_rows(labels)}" for name, labels in groups.items())


def _group_rows(labels: dict[str, dict[str, dict[str, Any]]]) -> str:
    entries = [entry for systems in labels.values() for entry in systems.values()]
    keys = [key for key in GROUP_METRICS if any(key in entry["metrics"] for entry in entries)]
    head = "".join(f"<th>{METRIC_BY_KEY[key].title}</th>" for key in keys)
    lines = []
    for label, systems in labels.items():
        for system, entry in systems.items():
            cells = "".join(f"<td>{_group_cell(entry['metrics'].get(key), key)}</td>" for key in keys)
            faceless = f"{entry['frames_without_face']} of {entry['frames']}"
            lines.append(
                f"<tr><th>{html.escape(label)}</th><td>{html.escape(system)}</td><td>{entry['clips']}</td>"
                f"<td>{faceless}</td><td>{entry['left_out']}</td>{cells}</tr>"
            )
    return (
        "<div class=scroll><table><thead><tr><th></th><th>system</th><th>clips</th><th>frames without face</th>"
        f"<th>left out</th>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"
    )


def _group_cell(values: list[float] | None, key: str) -> str:
    if values is None:
        return "<span class=none>–</span>"
    mean, *interval = (format_metric(value, METRIC_BY_KEY[key]) for value in values if value is not None)
    return f"<b>{mean}</b>" + (f"<small>{' … '.join(interval)}</small>" if interval else "")


# --- Plots ---

matplotlib.use("Agg")

INK_PLACEHOLDER = "#123456"
"""Placeholder of the page's text colour, which ``to_svg`` replaces."""
SERIES_COLOURS = ("#2f6fde", "#e0662f", "#2a9d6f", "#a44fc4", "#c9a227", "#d0416b", "#4fa3c7", "#7a7f87")
PLOT_STYLE = {
    "font.family": "sans-serif",
    "font.size": 9,
    "svg.fonttype": "none",
    "axes.edgecolor": INK_PLACEHOLDER,
    "axes.labelcolor": INK_PLACEHOLDER,
    "axes.titlecolor": INK_PLACEHOLDER,
    "text.color": INK_PLACEHOLDER,
    "xtick.color": INK_PLACEHOLDER,
    "ytick.color": INK_PLACEHOLDER,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.linewidth": 0.6,
    "savefig.transparent": True,
}
PANEL_COLUMNS = 4
"""Number of panels side by side."""


def panel_grid(titles: Sequence[str], systems: Sequence[str], row: float) -> tuple[plt.Figure, list[Axes]]:
    """Create a figure with one small panel per title, each with one row of ``row`` inches per system."""
    count = math.ceil(len(titles) / PANEL_COLUMNS)
    size = (11.6, count * (0.8 + row * len(systems)))
    figure, axes = plt.subplots(count, PANEL_COLUMNS, figsize=size, squeeze=False, sharey=True)
    for axis, title in zip(axes.flat, titles, strict=False):
        axis.set_title(title, loc="left")
        axis.set_yticks(range(len(systems)), systems)
        axis.set_ylim(len(systems) - 0.5, -0.5)
        axis.locator_params(axis="x", nbins=4)
        axis.grid(axis="x", alpha=0.15)
    for axis in list(axes.flat)[len(titles) :]:
        axis.axis("off")
    return figure, list(axes.flat)[: len(titles)]


def to_svg(figure: plt.Figure) -> str:
    """Convert a figure to SVG as wide as its place on the page, and close the figure."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", bbox_inches="tight", pad_inches=0.12)
    plt.close(figure)
    svg = buffer.getvalue()
    return re.sub(r'width="[\d.]+pt" height="[\d.]+pt"', 'width="100%"', svg[svg.index("<svg") :], count=1).replace(
        INK_PLACEHOLDER, "currentColor"
    )


def curves_svg(curves: list[dict[str, float]], step: str = "iteration") -> str:
    """Plot logged quantities of post-training, one small panel each, with raw values (thin) and a running mean.

    Args:
        curves: one row of quantities per iteration.
        step: key of the horizontal axis; the row number if it is missing.
    """
    names = [
        name for name in dict.fromkeys(k for row in curves for k in row) if name != step and _is_numeric(curves, name)
    ]
    if not names:
        return ""
    columns = min(3, len(names))
    rows = math.ceil(len(names) / columns)
    with plt.rc_context(PLOT_STYLE):
        figure, axes = plt.subplots(rows, columns, figsize=(3.4 * columns, 1.9 * rows), squeeze=False)
        for index, axis in enumerate(axes.flat):
            if index >= len(names):
                axis.axis("off")
                continue
            _draw_curve(axis, curves, names[index], step, SERIES_COLOURS[index % len(SERIES_COLOURS)])
        for axis in axes[-1]:
            axis.set_xlabel(step)
        figure.tight_layout()
        return to_svg(figure)


def intervals_svg(comparison: SystemComparison) -> str:
    """Plot mean and 95 % interval of every system, one small panel per metric that at least two systems have."""
    systems = list(comparison.estimates)
    metrics = [m for m in METRICS if sum(m.key in found for found in comparison.estimates.values()) > 1]
    if not metrics or len(systems) < 2:
        return ""
    arrows = {"up": "↑", "down": "↓", "real": "≈ real"}
    with plt.rc_context(PLOT_STYLE):
        figure, axes = panel_grid([f"{m.title} {arrows[m.better]}" for m in metrics], systems, 0.24)
        for axis, metric in zip(axes, metrics, strict=True):
            for index, system in enumerate(systems):
                estimate = comparison.estimates[system].get(metric.key)
                if estimate is not None:
                    _draw_interval(axis, index, estimate, SERIES_COLOURS[index % len(SERIES_COLOURS)])
        figure.tight_layout()
        return to_svg(figure)


def _draw_interval(axis: Axes, index: int, estimate: Estimate, colour: str) -> None:
    if estimate.low is not None and estimate.high is not None:
        axis.plot(
            [estimate.low, estimate.high],
            [index, index],
            color=colour,
            lw=2.2,
            solid_capstyle="round",
            alpha=0.55,
        )
    axis.plot(estimate.mean, index, "o", color=colour, ms=5)


def _draw_curve(axis: Axes, curves: list[dict[str, float]], name: str, step: str, colour: str) -> None:
    points = [(float(row.get(step, index)), float(row[name])) for index, row in enumerate(curves) if name in row]
    points = [point for point in points if math.isfinite(point[1])]
    x, y = [p[0] for p in points], [p[1] for p in points]
    width = max(1, len(y) // 12)
    smooth = [
        sum(y[max(0, i - width) : i + width + 1]) / len(y[max(0, i - width) : i + width + 1]) for i in range(len(y))
    ]
    axis.plot(x, y, color=colour, lw=0.7, alpha=0.35)
    axis.plot(x, smooth, color=colour, lw=1.8)
    axis.set_title(name.replace("_", " "), loc="left")
    axis.grid(alpha=0.12)
    axis.locator_params(nbins=4)


def _is_numeric(curves: list[dict[str, float]], name: str) -> bool:
    values = [row[name] for row in curves if name in row]
    return all(isinstance(v, int | float) for v in values) and any(math.isfinite(v) for v in values)


KEY_METRICS = (
    "sync_in_time",
    "sync_in_time_short",
    "ler",
    "silent_lip",
    "ecs",
    "tfi",
    "jerk",
    "amplitude",
    "identity_kept",
    "sharpness",
    "flicker",
    "colour_drift",
)
RADAR_METRICS = ("sync_in_time", "sync_in_time_short", "ecs_pooled", "amplitude", "blink_rate", "gaze_std",
                 "head_range", "tfi", "sharpness", "flicker", "identity_kept", "theval_lip_dynamics")  # fmt: skip
MAX_STRIP_CLIPS = 60
"""Most clips in a strip."""
MAX_BADNESS = 9.0
"""Bound of ``badness``."""


def ground_truth_name(comparison: SystemComparison) -> str | None:
    """Return the name of the system that is real footage, measured or shipped; None if there is none."""
    return next((name for name in (REAL, SHIPPED_FOOTAGE_SYSTEM) if name in comparison.estimates), None)


def radar_svg(comparison: SystemComparison) -> str:
    """Plot the closeness to real footage, max(0, 1 − |m − real| / |real|), with one spoke per metric; 1 is the rim."""
    real = ground_truth_name(comparison)
    systems = [s for s in comparison.estimates if s != real]
    if real is None or not systems:
        return ""
    goal = comparison.estimates[real]
    keys = [
        k
        for k in RADAR_METRICS
        if k in goal and abs(goal[k].mean) > 1e-9 and all(k in comparison.estimates[s] for s in systems)
    ]
    if len(keys) < 3:
        return ""
    angles = np.linspace(0, 2 * np.pi, len(keys), endpoint=False)
    with plt.rc_context(PLOT_STYLE):
        figure, axis = plt.subplots(figsize=(6.4, 5.2), subplot_kw={"projection": "polar"})
        for index, system in enumerate(systems):
            estimates = comparison.estimates[system]
            values = [max(0.0, 1 - abs(estimates[k].mean - goal[k].mean) / abs(goal[k].mean)) for k in keys]
            colour = SERIES_COLOURS[index % len(SERIES_COLOURS)]
            axis.plot([*angles, angles[0]], [*values, values[0]], color=colour, lw=1.8, label=system)
            axis.fill(angles, values, color=colour, alpha=0.08)
        axis.set_xticks(angles, [METRIC_BY_KEY[k].title for k in keys])
        axis.set_ylim(0, 1)
        axis.set_yticks([0.25, 0.5, 0.75, 1.0], ["", "0.5", "", "1"])
        axis.grid(alpha=0.25)
        axis.legend(loc="upper left", bbox_to_anchor=(1.12, 1.05), frameon=False)
        return f"<div class=half>{to_svg(figure)}</div>"


def distributions_svg(comparison: SystemComparison) -> str:
    """Plot every clip as a dot, with one small panel per key metric and one row per system; the bar is the median."""
    systems = list(comparison.rows)
    metrics = _measured_key_metrics(comparison)
    if not metrics:
        return ""
    rng = np.random.default_rng(0)
    with plt.rc_context(PLOT_STYLE):
        figure, axes = panel_grid([metric.title for metric in metrics], systems, 0.34)
        for axis, metric in zip(axes, metrics, strict=True):
            for index, system in enumerate(systems):
                values = metric_values(comparison.rows[system], metric.key)[1]
                if not len(values):
                    continue
                colour = SERIES_COLOURS[index % len(SERIES_COLOURS)]
                axis.plot(
                    values, index + rng.uniform(-0.22, 0.22, len(values)), "o", ms=2.6, alpha=0.45, color=colour, mew=0
                )
                axis.plot([np.median(values)] * 2, [index - 0.32, index + 0.32], color=colour, lw=2)
        figure.tight_layout()
        return to_svg(figure)


def strips_svg(comparison: SystemComparison) -> str:
    """Plot one strip per system with clips as columns (by name) and key metrics as rows.

    Red is worse than the other clips and blue is better, in median absolute deviations over all systems.
    """
    systems, metrics = list(comparison.rows), _measured_key_metrics(comparison)
    clips = sorted({clip for rows in comparison.rows.values() for clip in rows})[:MAX_STRIP_CLIPS]
    if len(clips) < 2 or not metrics:
        return ""
    with plt.rc_context(PLOT_STYLE):
        size = (11.0, 0.5 + len(systems) * (0.34 + 0.16 * len(metrics)))
        figure, axes = plt.subplots(len(systems), 1, figsize=size, squeeze=False)
        for axis, system in zip(axes[:, 0], systems, strict=True):
            table = np.array([_badness_of_clips(comparison, metric, system, clips) for metric in metrics])
            image = np.ma.masked_invalid(table.clip(-3, 3))
            axis.imshow(image, cmap="RdBu_r", vmin=-3, vmax=3, aspect="auto", interpolation="nearest")
            axis.set_title(system, loc="left")
            axis.set_yticks(range(len(metrics)), [m.title for m in metrics], fontsize=7)
            axis.set_xticks([])
        figure.tight_layout()
        return to_svg(figure)


def _measured_key_metrics(comparison: SystemComparison) -> list[Metric]:
    return [
        metric
        for metric in METRICS
        if metric.key in KEY_METRICS
        and any(row.get(metric.key) is not None for rows in comparison.rows.values() for row in rows.values())
    ]


def _badness_of_clips(comparison: SystemComparison, metric: Metric, system: str, clips: list[str]) -> list[float]:
    """Return the ``badness`` of every clip; NaN for a clip that was not measured."""
    return [badness(comparison, metric, comparison.rows[system].get(clip, {}).get(metric.key)) for clip in clips]


def badness(comparison: SystemComparison, metric: Metric, value: float | int | str | None) -> float:
    """Return how far a value lies on the bad side of the median, in median absolute deviations over all clips.

    The median is that of all clips, or of real footage for metrics that should be close to it. NaN without a value.
    """
    if value is None:
        return math.nan
    all_values = np.concatenate([metric_values(rows, metric.key)[1] for rows in comparison.rows.values()])
    real = metric_values(comparison.rows.get(REAL, {}), metric.key)[1]
    middle = np.median(real if metric.better == "real" and len(real) else all_values)
    # Half of all clips may share one value (LER of short clips); then the standard deviation is used.
    spread = 1.4826 * np.median(np.abs(all_values - middle)) or all_values.std() or 1.0
    deviation = np.clip((float(value) - middle) / spread, -MAX_BADNESS, MAX_BADNESS)
    return float(abs(deviation) if metric.better == "real" else -deviation if metric.better == "up" else deviation)
