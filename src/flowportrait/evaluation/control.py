"""The gain of post-trained systems beside the gain of a random-reward control, on the same clips.

    gain = system − baseline        control's gain = control − baseline        what was learned = gain − control's gain

All three are paired by clip: a clip counts if all three systems have the metric. The interval of the difference is a
bootstrap over clips, as in ``comparison``.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from flowportrait.evaluation.figures import DIRECTION_ARROWS, SIGNIFICANCE_LEVEL, format_metric
from flowportrait.evaluation.metrics import COST_METRICS, METRIC_BY_KEY, METRICS, REAL, Metric, MetricRow
from flowportrait.evaluation.statistics import MIN_PAIRS, Estimate, bootstrap_mean, holm_correction, signed_rank_p

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True)
class ControlledGain:
    """The gain of a system over the baseline, beside that of the random-reward control.

    Attributes:
        metric: key of the metric.
        system: the post-trained system.
        baseline: what both were trained from.
        control: the system trained with random rewards.
        gain: mean of system − baseline over clips.
        control_gain: mean of control − baseline over the same clips.
        difference: mean of the differences of both gains.
        p: Wilcoxon's signed-rank p of the difference, Holm-corrected over all metrics; None with too few clips.
    """

    metric: str
    system: str
    baseline: str
    control: str
    gain: Estimate
    control_gain: Estimate
    difference: Estimate
    p: float | None

    @property
    def verdict(self) -> str:
        """``better``, ``worse`` or ``other`` than chance (for metrics without a direction), or ``as chance``.

        It is ``as chance`` unless the interval of the difference excludes zero and p is below 0.05, and ``too few
        clips`` where p cannot be below 0.05.
        """
        if self.difference.clips < MIN_PAIRS:
            return "too few clips"
        if not self.difference.excludes_zero or self.p is None or self.p >= SIGNIFICANCE_LEVEL:
            return "as chance"
        direction = METRIC_BY_KEY[self.metric].better
        if direction == "real":
            return "other"
        return "better" if (self.difference.mean > 0) == (direction == "up") else "worse"


def compare_with_control(
    rows: Mapping[str, Mapping[str, MetricRow]], baseline: str, control: str, seed: int = 0
) -> list[ControlledGain]:
    """Return the gains of every system beside the control's, in every metric but cost.

    Args:
        rows: metrics by system and clip.
        baseline: the system that all were trained from.
        control: the system trained with random rewards.
        seed: random seed of the bootstrap.
    """
    gains: list[ControlledGain] = []
    for system in (name for name in rows if name not in (baseline, control, REAL)):
        for metric in (metric for metric in METRICS if metric not in COST_METRICS):
            before, after, random = (
                {clip: float(value) for clip, row in rows[name].items() if (value := row.get(metric.key)) is not None}
                for name in (baseline, system, control)
            )
            clips = sorted(before.keys() & after.keys() & random.keys())
            if clips:
                gains.append(_controlled_gain(metric, (system, baseline, control), clips, before, after, random, seed))
    corrected = holm_correction([gain.p for gain in gains])
    return [replace(gain, p=p) for gain, p in zip(gains, corrected, strict=True)]


def _controlled_gain(
    metric: Metric,
    systems: tuple[str, str, str],
    clips: Sequence[str],
    before: Mapping[str, float],
    after: Mapping[str, float],
    random: Mapping[str, float],
    seed: int,
) -> ControlledGain:
    gain, chance = (np.array([side[clip] - before[clip] for clip in clips]) for side in (after, random))
    own, random_gain, difference = (bootstrap_mean(values, seed) for values in (gain, chance, gain - chance))
    system, baseline, control = systems
    p = signed_rank_p(gain - chance)
    return ControlledGain(metric.key, system, baseline, control, own, random_gain, difference, p)


def build_control_table(gains: Sequence[ControlledGain]) -> Table:
    """Return the table for a terminal: a row per metric, with both gains and their difference."""
    from rich.markup import escape
    from rich.table import Table

    baseline = escape(gains[0].baseline) if gains else ""
    title = (
        f"Gain over {baseline}, beside the same training with random rewards · in brackets 95 % intervals over clips · "
        f"* p < {SIGNIFICANCE_LEVEL}"
    )
    table = Table(box=None, pad_edge=False, title=title, title_justify="left")
    for name in ("system", "figure", "", "gain", "control's gain", "difference", ""):
        table.add_column(name, justify="right" if "gain" in name or name == "difference" else "left")
    for gain in gains:
        metric = METRIC_BY_KEY[gain.metric]
        table.add_row(escape(gain.system), metric.title, DIRECTION_ARROWS[metric.better], *_cells(gain, metric))
    return table


def html_control_table(gains: Sequence[ControlledGain]) -> str:
    """Return the table as HTML; empty without gains."""
    if not gains:
        return ""
    lines = []
    for gain in gains:
        metric = METRIC_BY_KEY[gain.metric]
        cells = "".join(f"<td>{html.escape(cell)}</td>" for cell in _cells(gain, metric))
        name = f"{metric.title} <i>{DIRECTION_ARROWS[metric.better]}</i>"
        lines.append(f"<tr><th>{html.escape(gain.system)}</th><th>{name}</th>{cells}</tr>")
    head = "".join(f"<th>{name}</th>" for name in ("system", "figure", "gain", "control's gain", "difference", ""))
    return f"<div class=scroll><table><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"


def _cells(gain: ControlledGain, metric: Metric) -> tuple[str, str, str, str]:
    star = "*" if gain.p is not None and gain.p < SIGNIFICANCE_LEVEL else ""
    return (
        _signed(gain.gain.mean, metric),
        _signed(gain.control_gain.mean, metric),
        _signed(gain.difference.mean, metric) + star + _interval(gain.difference, metric),
        gain.verdict,
    )


def _interval(estimate: Estimate, metric: Metric) -> str:
    if estimate.low is None or estimate.high is None:
        return ""
    return f" ({_signed(estimate.low, metric)} … {_signed(estimate.high, metric)})"


def _signed(value: float, metric: Metric) -> str:
    return ("+" if value >= 0 else "") + format_metric(value, metric)
