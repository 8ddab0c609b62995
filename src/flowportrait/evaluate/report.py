"""The report: one HTML file with everything in it, to read, to send, to print. No other file, no network.

What it says first is what changed, in words; then the videos; then the table with intervals; then how it was
measured.
"""

from __future__ import annotations

import base64
import html
import os
from importlib.resources import files
from pathlib import Path

import cv2
import numpy as np

from flowportrait.evaluate.compare import REAL, Comparison, Difference, Estimate
from flowportrait.evaluate.metrics import BY_KEY, METRICS, Metric
from flowportrait.evaluate.plots import curves_svg, intervals_svg
from flowportrait.evaluate.sheets import contact_sheet

LARGEST_VIDEO = 40_000_000
"""Bytes; larger files are named instead of embedded."""
SIGNIFICANT = 0.05
HEADLINE = ("ler", "sync_in_time", "sync_in_time_short", "ecs", "tfi", "silent_lip")


def write_report(
    output: Path,
    *,
    title: str,
    comparison: Comparison,
    videos: dict[str, Path],
    curves: list[dict[str, float]] | None,
    notes: list[str],
) -> Path:
    """Write a self-contained HTML page and return its path.

    videos: one example per system, shown side by side. curves: one dict per post-training iteration
    (``iteration`` and any logged quantities). notes: sentences printed under the table.
    """
    sections = [
        _headline(comparison),
        _videos(videos),
        _section("Measured", _table(comparison) + _notes(comparison, notes)),
        _section("Intervals", intervals_svg(comparison), "Mean over clips and 95 % bootstrap interval."),
        _section(
            "Post-training",
            curves_svg(curves) if curves else "",
            "Thin: each iteration. Thick: running mean.",
        ),
        _section("Frame by frame", _sheets(videos)),
        _section("What the columns mean", _glossary(comparison)),
    ]
    page = (files("flowportrait.evaluate") / "report.html").read_text()
    page = page.replace("{{title}}", html.escape(title)).replace(
        "{{body}}", "\n".join(filter(None, sections))
    )
    partial = output.with_name(f".{output.name}.{os.getpid()}")
    partial.write_text(page)
    os.replace(partial, output)
    return output


def _section(heading: str, body: str, lead: str = "") -> str:
    if not body:
        return ""
    lead = f"<p class=lead>{lead}</p>" if lead else ""
    return f"<section><h2>{heading}</h2>{lead}{body}</section>"


def _headline(comparison: Comparison) -> str:
    """Cards with the relative change of what matters most, where one system is held against a baseline."""
    if len({difference.system for difference in comparison.differences}) != 1:
        return ""
    cards = []
    for difference in comparison.differences:
        if difference.metric in HEADLINE and difference.change is not None:
            metric = BY_KEY[difference.metric]
            kind = _verdict(difference, metric)
            p = "" if difference.p is None else f" · p {_p(difference.p)}"
            cards.append(
                f"<div class='card {kind}'><b>{difference.change:+.0%}</b><span>{metric.title}</span>"
                f"<small>{html.escape(difference.system)} against {html.escape(difference.baseline)}, "
                f"{difference.difference.clips} clips{p}</small></div>"
            )
    return f"<section class=cards>{''.join(cards)}</section>" if cards else ""


def _verdict(difference: Difference, metric: Metric) -> str:
    gap = difference.difference
    if metric.better == "real" or gap.low is None or gap.high is None or gap.low <= 0 <= gap.high:
        return "even"
    if difference.p is None or difference.p > SIGNIFICANT:
        return "even"
    return "good" if (gap.mean > 0) == (metric.better == "up") else "bad"


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"= {value:.3f}"


def _table(comparison: Comparison) -> str:
    systems = sorted(comparison.estimates, key=lambda name: name != REAL)
    shown = [m for m in METRICS if any(m.key in comparison.estimates[s] for s in systems)]
    head = "".join(f"<th class='{_look(s)}'>{html.escape(s)}</th>" for s in systems)
    lines = []
    for metric in shown:
        arrow = {"up": "↑", "down": "↓", "real": "≈"}[metric.better]
        best = _best(metric, comparison, systems)
        cells = "".join(
            f"<td class='{_look(s)} {'best' if s == best else ''}'>{_cell(comparison, s, metric)}</td>"
            for s in systems
        )
        lines.append(
            f"<tr><th title='{html.escape(metric.meaning)}'>{metric.title} <i>{arrow}</i></th>{cells}</tr>"
        )
    clips = "".join(f"<td class='{_look(s)}'>{_counts(comparison.counts.get(s, {}))}</td>" for s in systems)
    return (
        f"<div class=scroll><table><thead><tr><th></th>{head}</tr></thead><tbody>{''.join(lines)}"
        f"<tr class=counts><th>measured</th>{clips}</tr></tbody></table></div>"
    )


def _look(system: str) -> str:
    return "real" if system == REAL else ""


def _cell(comparison: Comparison, system: str, metric: Metric) -> str:
    estimate = comparison.estimates[system].get(metric.key)
    if estimate is None:
        return "<span class=none>–</span>"
    text = f"<b>{_number(estimate.mean, metric)}</b>{_interval(estimate, metric)}"
    for difference in comparison.differences:
        if (difference.system, difference.metric) == (system, metric.key) and difference.change is not None:
            star = "*" if difference.p is not None and difference.p < SIGNIFICANT else ""
            text += f"<em class={_verdict(difference, metric)}>{difference.change:+.0%}{star}</em>"
    return text


def _number(value: float, metric: Metric) -> str:
    return f"{value:.{metric.digits}f}".replace("-", "−")


def _interval(estimate: Estimate, metric: Metric) -> str:
    if estimate.low is None or estimate.high is None:
        return "<small>one clip</small>"
    return f"<small>{_number(estimate.low, metric)} … {_number(estimate.high, metric)}</small>"


def _best(metric: Metric, comparison: Comparison, systems: list[str]) -> str | None:
    """The best system other than real footage, among at least two."""
    means = {
        s: comparison.estimates[s][metric.key].mean
        for s in systems
        if s != REAL and metric.key in comparison.estimates[s]
    }
    if len(means) < 2:
        return None
    if metric.better == "real":
        real = comparison.estimates.get(REAL, {}).get(metric.key)
        return min(means, key=lambda s: abs(means[s] - real.mean)) if real else None
    return (max if metric.better == "up" else min)(means, key=lambda s: means[s])


def _counts(counts: dict[str, int]) -> str:
    if not counts:
        return ""
    lost = counts["frames_without_face"]
    text = f"{counts['clips']} clips, {counts['frames']} frames"
    return (
        text
        + (f", no face in {lost}" if lost else "")
        + (f", no sync in {counts['clips_without_sync']}" if counts["clips_without_sync"] else "")
    )


def _notes(comparison: Comparison, notes: list[str]) -> str:
    lines = [*notes]
    if comparison.baseline:
        lines.append(
            f"Percentages: relative to {comparison.baseline} on the same clips; * = Wilcoxon signed-rank, "
            f"Holm-corrected p < {SIGNIFICANT}."
        )
    if REAL not in comparison.rows:
        lines.append(
            "No real footage was given, so the figures have no ground-truth column to be read against."
        )
    return (
        "<ul class=notes>" + "".join(f"<li>{html.escape(line)}</li>" for line in lines) + "</ul>"
        if lines
        else ""
    )


def _glossary(comparison: Comparison) -> str:
    shown = [m for m in METRICS if any(m.key in found for found in comparison.estimates.values())]
    return "<dl>" + "".join(f"<dt>{m.title}</dt><dd>{html.escape(m.meaning)}</dd>" for m in shown) + "</dl>"


def _videos(videos: dict[str, Path]) -> str:
    figures = []
    for name, path in videos.items():
        if path.stat().st_size > LARGEST_VIDEO:
            body = f"<p class=lead>{html.escape(path.name)} is too large to embed.</p>"
        else:
            data = base64.b64encode(path.read_bytes()).decode()
            body = f"<video controls playsinline preload=metadata src='data:video/mp4;base64,{data}'></video>"
        figures.append(f"<figure>{body}<figcaption>{html.escape(name)}</figcaption></figure>")
    if not figures:
        return ""
    both = "<button type=button onclick='playAll()'>Play together</button>" if len(figures) > 1 else ""
    return f"<section><h2>See for yourself</h2>{both}<div class=videos>{''.join(figures)}</div></section>"


def _sheets(videos: dict[str, Path]) -> str:
    return "".join(
        f"<figure class=sheet><figcaption>{html.escape(name)}</figcaption>"
        f"<img alt='frames of {html.escape(name)}, mouths below' src='{_jpeg(contact_sheet(path))}'></figure>"
        for name, path in videos.items()
    )


def _jpeg(image: np.ndarray) -> str:
    _, data = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 88])
    return "data:image/jpeg;base64," + base64.b64encode(data.tobytes()).decode()
