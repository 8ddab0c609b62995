"""The report: one HTML file with everything in it, to read, to send, to print. No other file, no network.

What it says first is what changed, in words; then the videos; then the table with intervals; then where to look; then
how it was measured and what was left out.
"""

from __future__ import annotations

import base64
import html
import os
from importlib.resources import files as package_files
from pathlib import Path

from flowportrait.evaluate.compare import Comparison
from flowportrait.evaluate.groups import groups_table
from flowportrait.evaluate.metrics import BY_KEY, METRICS
from flowportrait.evaluate.plots import curves_svg, intervals_svg
from flowportrait.evaluate.shapes import distributions_svg, radar_svg, strips_svg, truth
from flowportrait.evaluate.sheets import contact_sheet
from flowportrait.evaluate.table import SIGNIFICANT, table, verdict
from flowportrait.evaluate.worst import jpeg, worst_clips

LARGEST_VIDEO = 40_000_000
"""Bytes; larger files are named instead of embedded."""
HEADLINE = ("ler", "sync_in_time", "sync_in_time_short", "ecs", "tfi", "silent_lip")
MOST_REMARKS = 40


def write_report(
    output: Path,
    *,
    title: str,
    comparison: Comparison,
    videos: dict[str, Path],
    curves: list[dict[str, float]] | None,
    notes: list[str],
    files: dict[str, dict[str, Path]] | None = None,
) -> Path:
    """Write a self-contained HTML page and return its path.

    videos: one example per system, shown side by side. curves: one dict per post-training iteration (``iteration`` and
    any logged quantities). notes: sentences printed under the table. files[system][clip]: where worst clips lie.
    """
    sections = [
        _headline(comparison),
        _videos(videos),
        _section("Measured", table(comparison) + _notes(comparison, notes)),
        _section("By group", groups_table(comparison.groups)),
        _section("Against real footage", radar_svg(comparison), "1 − |m − real| / |real|: the rim is real footage."),
        _section("Intervals", intervals_svg(comparison), "Mean over clips and 95 % interval."),
        _section("Every clip", distributions_svg(comparison), "A dot is a clip, the bar their median."),
        _section(
            "Clip by clip", strips_svg(comparison), "A column is a clip; red is worse than the others, blue better."
        ),
        _section("Worst first", worst_clips(comparison, files or {})),
        _section("Post-training", curves_svg(curves) if curves else "", "Thin: each iteration. Thick: running mean."),
        _section("Frame by frame", _sheets(videos)),
        _section("Left out, and to know", _left_out(comparison)),
        _section("Measured by", _networks(comparison)),
        _section("What the rows mean", _glossary(comparison)),
    ]
    page = (package_files("flowportrait.evaluate") / "report.html").read_text(encoding="utf-8")
    page = page.replace("{{title}}", html.escape(title)).replace("{{body}}", "\n".join(filter(None, sections)))
    partial = output.with_name(f".{output.name}.{os.getpid()}")
    partial.write_text(page, encoding="utf-8")
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
            kind = verdict(difference, metric)
            p = "" if difference.p is None else f" · p {_p(difference.p)}"
            cards.append(
                f"<div class='card {kind}'><b>{difference.change:+.0%}</b><span>{metric.title}</span>"
                f"<small>{html.escape(difference.system)} against {html.escape(difference.baseline)}, "
                f"{difference.difference.clips} clips{p}</small></div>"
            )
    return f"<section class=cards>{''.join(cards)}</section>" if cards else ""


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"= {value:.3f}"


def _notes(comparison: Comparison, notes: list[str]) -> str:
    lines = [*notes]
    if comparison.baseline:
        lines.append(
            f"Percentages: relative to {comparison.baseline} on the same clips; * = Wilcoxon signed-rank, "
            f"Holm-corrected p < {SIGNIFICANT}."
        )
    if truth(comparison) is None:
        lines.append("No real footage was given, so the figures have no ground-truth column to be read against.")
    return _list(lines)


def _list(lines: list[str], kind: str = "notes") -> str:
    items = "".join(f"<li>{html.escape(line)}</li>" for line in lines)
    return f"<ul class={kind}>{items}</ul>" if lines else ""


def _left_out(comparison: Comparison) -> str:
    excluded = [f"{e['system']}/{e['file']}, left out: {e['reason']}" for e in comparison.excluded]
    more = len(comparison.remarks) - MOST_REMARKS
    tail = [f"… and {more} more in metrics.json."] if more > 0 else []
    return _list(excluded + comparison.remarks[:MOST_REMARKS] + tail)


def _networks(comparison: Comparison) -> str:
    rows = "".join(f"<dt>{html.escape(k)}</dt><dd>{html.escape(v)}</dd>" for k, v in comparison.networks.items())
    return f"<dl>{rows}</dl>" if rows else ""


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
    return f"<section class=seen><h2>See for yourself</h2>{both}<div class=videos>{''.join(figures)}</div></section>"


def _sheets(videos: dict[str, Path]) -> str:
    return "".join(
        f"<figure class=sheet><figcaption>{html.escape(name)}</figcaption>"
        f"<img alt='frames of {html.escape(name)}, mouths below' src='{jpeg(contact_sheet(path), 88)}'></figure>"
        for name, path in videos.items()
    )
