"""Tables of a comparison: HTML for the report, and text for a terminal.

A row per metric under its heading, a column per system, intervals and changes in the cells; and a table per grouping of
clips.
"""

from __future__ import annotations

import html
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from flowportrait.evaluation.comparison import GROUP_METRICS, Comparison, Difference
from flowportrait.evaluation.metrics import BY_KEY, METRICS, REAL, SHIPPED, Metric
from flowportrait.evaluation.statistics import Estimate

if TYPE_CHECKING:
    from rich.table import Table

SIGNIFICANT = 0.05
ARROWS = {"up": "↑", "down": "↓", "real": "≈"}


def html_table(comparison: Comparison) -> str:
    """HTML of the table, real footage first."""
    systems = sorted(comparison.estimates, key=lambda name: name not in (REAL, SHIPPED))
    shown = [m for m in METRICS if any(m.key in comparison.estimates[s] for s in systems)]
    head = "".join(f"<th class='{_css_class(s)}'>{html.escape(s)}</th>" for s in systems)
    lines, heading = [], ""
    for metric in shown:
        if metric.group != heading:
            heading = metric.group
            lines.append(f"<tr class=group><th colspan={len(systems) + 1}>{heading}</th></tr>")
        best = _best(metric, comparison, systems)
        cells = "".join(
            f"<td class='{_css_class(s)} {'best' if s == best else ''}'>{_cell(comparison, s, metric)}</td>"
            for s in systems
        )
        title = f"{metric.title} <i>{ARROWS[metric.better]}</i>"
        lines.append(f"<tr><th title='{html.escape(metric.meaning)}'>{title}</th>{cells}</tr>")
    clips = "".join(f"<td class='{_css_class(s)}'>{_counts(comparison, s)}</td>" for s in systems)
    return (
        f"<div class=scroll><table><thead><tr><th></th>{head}</tr></thead><tbody>{''.join(lines)}"
        f"<tr class=counts><th>measured</th>{clips}</tr></tbody></table></div>"
    )


def text_table(summary: Mapping[str, Any]) -> Table:
    """The table for a terminal: a row per figure with its direction and meaning, a column per system with intervals and
    changes from the baseline; ``summary`` as ``Comparison.summary`` gives it."""
    from rich.markup import escape
    from rich.table import Table

    metrics, baseline = summary["metrics"], summary["baseline"]
    systems = sorted(metrics, key=lambda name: name not in (REAL, SHIPPED))
    changes = {(d["system"], d["metric"]): d for d in summary["differences"]}
    title = "↑ higher is better · ↓ lower is better · ≈ closest to real footage · in brackets 95 % intervals over clips"
    if baseline:
        title += f" · % from {escape(baseline)}, * p < {SIGNIFICANT}"
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
        result.add_row(f"  {metric.title}", ARROWS[metric.better], *cells, metric.meaning)
    counts = summary["counts"]
    result.add_row("measured", "", *(f"{counts[s]['clips']} clips" if s in counts else "" for s in systems), "")
    return result


def _text_cell(estimate: Mapping[str, Any] | None, change: Mapping[str, Any] | None, metric: Metric) -> str:
    if estimate is None:
        return "–"
    text = format_metric(estimate["mean"], metric)
    if change is not None and change["change"] is not None:
        text += f" {change['change']:+.0%}{'*' if change['p'] is not None and change['p'] < SIGNIFICANT else ''}"
    if estimate["low"] is not None:
        text += f" ({format_metric(estimate['low'], metric)} … {format_metric(estimate['high'], metric)})"
    return text


def verdict(difference: Difference, metric: Metric) -> str:
    """good, bad or even: even unless interval and corrected p agree."""
    gap = difference.difference
    if metric.better == "real" or not gap.excludes_zero:
        return "even"
    if difference.p is None or difference.p > SIGNIFICANT:
        return "even"
    return "good" if (gap.mean > 0) == (metric.better == "up") else "bad"


def format_metric(value: float, metric: Metric) -> str:
    """As the metric is printed."""
    return f"{value:.{metric.digits}f}".replace("-", "−")


def _css_class(system: str) -> str:
    return "real" if system in (REAL, SHIPPED) else ""


def _cell(comparison: Comparison, system: str, metric: Metric) -> str:
    estimate = comparison.estimates[system].get(metric.key)
    if estimate is None:
        return "<span class=none>–</span>"
    text = f"<b>{format_metric(estimate.mean, metric)}</b>"
    for difference in comparison.differences:
        if (difference.system, difference.metric) == (system, metric.key) and difference.change is not None:
            star = "*" if difference.p is not None and difference.p < SIGNIFICANT else ""
            text += f"<em class={verdict(difference, metric)}>{difference.change:+.0%}{star}</em>"
    return text + _interval(estimate, metric)


def _interval(estimate: Estimate, metric: Metric) -> str:
    if estimate.low is None or estimate.high is None:
        return "<small>one clip</small>"
    return f"<small>{format_metric(estimate.low, metric)} … {format_metric(estimate.high, metric)}</small>"


def _best(metric: Metric, comparison: Comparison, systems: list[str]) -> str | None:
    """The best system other than real footage, among at least two."""
    means = {
        s: comparison.estimates[s][metric.key].mean
        for s in systems
        if s not in (REAL, SHIPPED) and metric.key in comparison.estimates[s]
    }
    if len(means) < 2:
        return None
    if metric.better == "real":
        real = comparison.estimates.get(REAL, comparison.estimates.get(SHIPPED, {})).get(metric.key)
        return min(means, key=lambda s: abs(means[s] - real.mean)) if real else None
    return (max if metric.better == "up" else min)(means, key=lambda s: means[s])


def _counts(comparison: Comparison, system: str) -> str:
    counts = comparison.counts.get(system)
    if not counts:
        return ""
    text = f"{counts['clips']} clips, {counts['frames']} frames"
    if counts["frames_without_face"]:
        text += f", no face in {counts['frames_without_face']}"
    if counts["clips_without_sync"]:
        text += f", no sync in {counts['clips_without_sync']}"
    left = sum(entry["system"] == system for entry in comparison.excluded)
    return text + (f", <b>{left} left out</b>" if left else "")


def html_groups_table(groups: dict[str, dict[str, dict[str, dict[str, Any]]]]) -> str:
    """HTML: a table per column of labels."""
    return "".join(f"<h3>{html.escape(name)}</h3>{_group_rows(labels)}" for name, labels in groups.items())


def _group_rows(labels: dict[str, dict[str, dict[str, Any]]]) -> str:
    entries = [entry for systems in labels.values() for entry in systems.values()]
    shown = [key for key in GROUP_METRICS if any(key in entry["metrics"] for entry in entries)]
    head = "".join(f"<th>{BY_KEY[key].title}</th>" for key in shown)
    lines = []
    for label, systems in labels.items():
        for system, entry in systems.items():
            cells = "".join(f"<td>{_group_cell(entry['metrics'].get(key), key)}</td>" for key in shown)
            lost = f"{entry['frames_without_face']} of {entry['frames']}"
            lines.append(
                f"<tr><th>{html.escape(label)}</th><td>{html.escape(system)}</td><td>{entry['clips']}</td>"
                f"<td>{lost}</td><td>{entry['left_out']}</td>{cells}</tr>"
            )
    return (
        "<div class=scroll><table><thead><tr><th></th><th>system</th><th>clips</th><th>frames without face</th>"
        f"<th>left out</th>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"
    )


def _group_cell(values: list[float] | None, key: str) -> str:
    if values is None:
        return "<span class=none>–</span>"
    mean, *interval = (format_metric(value, BY_KEY[key]) for value in values if value is not None)
    return f"<b>{mean}</b>" + (f"<small>{' … '.join(interval)}</small>" if interval else "")
