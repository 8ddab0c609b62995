"""The report's pictures: post-training curves and metric intervals, as inline SVG that follows the page's
colours."""

from __future__ import annotations

import math

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from flowportrait.evaluate.compare import Comparison, Estimate
from flowportrait.evaluate.metrics import METRICS
from flowportrait.evaluate.svg import SERIES, STYLE, panels, svg


def curves_svg(curves: list[dict[str, float]], step: str = "iteration") -> str:
    """One small panel per logged quantity over ``step`` (row number if absent), thin raw line and running
    mean."""
    names = [name for name in dict.fromkeys(k for row in curves for k in row) if name != step and _number(curves, name)]
    if not names:
        return ""
    columns = min(3, len(names))
    rows = math.ceil(len(names) / columns)
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(rows, columns, figsize=(3.4 * columns, 1.9 * rows), squeeze=False)
        for place, axis in enumerate(axes.flat):
            if place >= len(names):
                axis.axis("off")
                continue
            _panel(axis, curves, names[place], step, SERIES[place % len(SERIES)])
        for axis in axes[-1]:
            axis.set_xlabel(step)
        figure.tight_layout()
        return svg(figure)


def intervals_svg(comparison: Comparison) -> str:
    """Dot and 95 % interval of every system, one small panel per metric that at least two systems have."""
    systems = list(comparison.estimates)
    shown = [m for m in METRICS if sum(m.key in found for found in comparison.estimates.values()) > 1]
    if not shown or len(systems) < 2:
        return ""
    arrows = {"up": "↑", "down": "↓", "real": "≈ real"}
    with plt.rc_context(STYLE):
        figure, axes = panels([f"{m.title} {arrows[m.better]}" for m in shown], systems, 0.24)
        for axis, metric in zip(axes, shown, strict=True):
            for place, system in enumerate(systems):
                estimate = comparison.estimates[system].get(metric.key)
                if estimate is not None:
                    _dot(axis, place, estimate, SERIES[place % len(SERIES)])
        figure.tight_layout()
        return svg(figure)


def _dot(axis: Axes, place: int, estimate: Estimate, colour: str) -> None:
    if estimate.low is not None and estimate.high is not None:
        axis.plot(
            [estimate.low, estimate.high],
            [place, place],
            color=colour,
            lw=2.2,
            solid_capstyle="round",
            alpha=0.55,
        )
    axis.plot(estimate.mean, place, "o", color=colour, ms=5)


def _panel(axis: Axes, curves: list[dict[str, float]], name: str, step: str, colour: str) -> None:
    points = [(float(row.get(step, place)), float(row[name])) for place, row in enumerate(curves) if name in row]
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


def _number(curves: list[dict[str, float]], name: str) -> bool:
    values = [row[name] for row in curves if name in row]
    return all(isinstance(v, int | float) for v in values) and any(math.isfinite(v) for v in values)
