"""The report's pictures of single clips: how each figure is spread, which clips are far off, and a radar over all."""

from __future__ import annotations

import math

import matplotlib.pyplot as plt
import numpy as np

from flowportrait.evaluate.compare import REAL, Comparison, column
from flowportrait.evaluate.metrics import BY_KEY, METRICS, Metric
from flowportrait.evaluate.reference import SHIPPED
from flowportrait.evaluate.svg import SERIES, STYLE, panels, svg

KEY_FIGURES = (
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
RADAR = ("sync_in_time", "sync_in_time_short", "ecs_pooled", "amplitude", "blink_rate", "gaze_std", "head_range", "tfi",
         "sharpness", "flicker", "identity_kept", "theval_lip_dynamics")  # fmt: skip
MOST_CLIPS = 60
MOST_SPREADS = 9.0


def truth(comparison: Comparison) -> str | None:
    """The system that is real footage, measured here or shipped."""
    return next((name for name in (REAL, SHIPPED) if name in comparison.estimates), None)


def radar_svg(comparison: Comparison) -> str:
    """Closeness to real footage, 1 − |m − real| / |real| (not below 0), one spoke per figure; 1 is the rim."""
    real = truth(comparison)
    systems = [s for s in comparison.estimates if s != real]
    if real is None or not systems:
        return ""
    goal = comparison.estimates[real]
    keys = [
        k
        for k in RADAR
        if k in goal and abs(goal[k].mean) > 1e-9 and all(k in comparison.estimates[s] for s in systems)
    ]
    if len(keys) < 3:
        return ""
    angles = np.linspace(0, 2 * np.pi, len(keys), endpoint=False)
    with plt.rc_context(STYLE):
        figure, axis = plt.subplots(figsize=(6.4, 5.2), subplot_kw={"projection": "polar"})
        for place, system in enumerate(systems):
            found = comparison.estimates[system]
            values = [max(0.0, 1 - abs(found[k].mean - goal[k].mean) / abs(goal[k].mean)) for k in keys]
            colour = SERIES[place % len(SERIES)]
            axis.plot([*angles, angles[0]], [*values, values[0]], color=colour, lw=1.8, label=system)
            axis.fill(angles, values, color=colour, alpha=0.08)
        axis.set_xticks(angles, [BY_KEY[k].title for k in keys])
        axis.set_ylim(0, 1)
        axis.set_yticks([0.25, 0.5, 0.75, 1.0], ["", "0.5", "", "1"])
        axis.grid(alpha=0.25)
        axis.legend(loc="upper left", bbox_to_anchor=(1.12, 1.05), frameon=False)
        return f"<div class=half>{svg(figure)}</div>"


def distributions_svg(comparison: Comparison) -> str:
    """Every clip a dot, one small panel per key figure, a row per system; the bar is the median."""
    systems = list(comparison.rows)
    shown = _with_values(comparison)
    if not shown:
        return ""
    rng = np.random.default_rng(0)
    with plt.rc_context(STYLE):
        figure, axes = panels([metric.title for metric in shown], systems, 0.34)
        for axis, metric in zip(axes, shown, strict=True):
            for place, system in enumerate(systems):
                values = column(comparison.rows[system], metric.key)[1]
                if not len(values):
                    continue
                colour = SERIES[place % len(SERIES)]
                axis.plot(
                    values, place + rng.uniform(-0.22, 0.22, len(values)), "o", ms=2.6, alpha=0.45, color=colour, mew=0
                )
                axis.plot([np.median(values)] * 2, [place - 0.32, place + 0.32], color=colour, lw=2)
        figure.tight_layout()
        return svg(figure)


def strips_svg(comparison: Comparison) -> str:
    """Per system a strip of clips (columns, by name) against key figures (rows); red is worse than the rest, blue is
    better, in median absolute deviations over all systems."""
    systems, shown = list(comparison.rows), _with_values(comparison)
    clips = sorted({clip for rows in comparison.rows.values() for clip in rows})[:MOST_CLIPS]
    if len(clips) < 2 or not shown:
        return ""
    with plt.rc_context(STYLE):
        size = (11.0, 0.5 + len(systems) * (0.34 + 0.16 * len(shown)))
        figure, axes = plt.subplots(len(systems), 1, figsize=size, squeeze=False)
        for axis, system in zip(axes[:, 0], systems, strict=True):
            table = np.array([_badness(comparison, metric, system, clips) for metric in shown])
            image = np.ma.masked_invalid(table.clip(-3, 3))
            axis.imshow(image, cmap="RdBu_r", vmin=-3, vmax=3, aspect="auto", interpolation="nearest")
            axis.set_title(system, loc="left")
            axis.set_yticks(range(len(shown)), [m.title for m in shown], fontsize=7)
            axis.set_xticks([])
        figure.tight_layout()
        return svg(figure)


def _with_values(comparison: Comparison) -> list[Metric]:
    return [
        metric
        for metric in METRICS
        if metric.key in KEY_FIGURES
        and any(row.get(metric.key) is not None for rows in comparison.rows.values() for row in rows.values())
    ]


def _badness(comparison: Comparison, metric: Metric, system: str, clips: list[str]) -> list[float]:
    """How many spreads each clip is on the bad side of the middle; NaN where it was not measured."""
    return [badness(comparison, metric, comparison.rows[system].get(clip, {}).get(metric.key)) for clip in clips]


def badness(comparison: Comparison, metric: Metric, value: float | int | str | None) -> float:
    """Spreads (median absolute deviations over all clips) on the bad side of the middle of all clips, or of real
    footage where that is the aim."""
    if value is None:
        return math.nan
    everything = np.concatenate([column(rows, metric.key)[1] for rows in comparison.rows.values()])
    real = column(comparison.rows.get(REAL, {}), metric.key)[1]
    middle = np.median(real if metric.better == "real" and len(real) else everything)
    # Half of all clips may share one value (LER of short clips): then the plain spread has to do.
    spread = 1.4826 * np.median(np.abs(everything - middle)) or everything.std() or 1.0
    off = np.clip((float(value) - middle) / spread, -MOST_SPREADS, MOST_SPREADS)
    return float(abs(off) if metric.better == "real" else -off if metric.better == "up" else off)
