"""Comparison of systems on the same clips, over several training runs of a system.

    x[s, c]: metric of clip c after the run with seed s      x̄* = mean over drawn seeds × drawn clips

Runs and clips are crossed (every run has the same clips), so the bootstrap draws both with replacement. With one run it
is the bootstrap over clips. With three, the spread between runs is in the interval too, which is a little too narrow,
since three runs show so much and no more. p is Wilcoxon's over clips, each averaged over its runs, so that runs do not
count as clips; it is Holm-corrected over all changes of a table.

The runs of a system are named NAME@SEED in tables of single runs, and NAME where they are taken together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.record import Record
from flowportrait.evaluation.metrics import METRIC_BY_KEY, REAL
from flowportrait.evaluation.statistics import (
    Estimate,
    bootstrap_mean,
    draw_resample_indices,
    holm_correction,
    percentile_interval,
    signed_rank_p,
)

Rows = Mapping[str, Mapping[str, object]]
"""Metrics of every clip of one run."""
NO_GAP = 0.02
"""A distance to real motion of at most this share of the real value is none."""


@dataclass(frozen=True)
class Paired:
    """A metric of the same clips in two systems.

    Attributes:
        after: values ``[S, n]`` of S runs.
        before: values of the system that they are compared with, of as many runs or of any other number.
        clips: names of the n clips.
    """

    after: np.ndarray
    before: np.ndarray
    clips: list[str]

    @property
    def difference(self) -> np.ndarray:
        """After minus before ``[S, n]``, run by run where both have as many, or either has one."""
        counts = {len(self.after), len(self.before), 1}
        return np.asarray(self.after - (self.before if len(counts) <= 2 else self.before.mean(0)))

    @property
    def change(self) -> Estimate:
        """Mean difference with its interval over runs and clips."""
        return bootstrap_mean(self.difference)

    @property
    def p(self) -> float | None:
        """Wilcoxon's p over clips; None with fewer than six."""
        return signed_rank_p(self.difference.mean(0))

    def gap_closed(self, real: Rows, key: str) -> Estimate | None:
        """Return the share of the distance to real motion that is gone; None if there was none, or no real motion."""
        there = [place for place, clip in enumerate(self.clips) if metric_value(real.get(clip, {}), key) is not None]
        if not there:
            return None
        truth = np.array([metric_value(real[self.clips[place]], key) for place in there], float)
        after, before = self.after[:, there], self.before.mean(0)[there]
        share = gap_closed(float(before.mean()), float(after.mean()), float(truth.mean()))
        if share is None:
            return None
        runs, clips = draw_resample_indices(after.shape[1], after.shape[0])
        drawn = after[runs[:, :, None], clips[:, None, :]].mean((1, 2))
        target = truth[clips].mean(1)
        gaps = np.maximum(np.abs(target - before[clips].mean(1)), 1e-9)
        return Estimate(share, *percentile_interval(1 - np.abs(target - drawn) / gaps), len(there))


def pair(runs: Sequence[Rows], starts: Sequence[Rows], key: str) -> Paired | None:
    """Return a metric of the clips that have it in all runs of both systems; None if there are no such clips."""
    both = (*runs, *starts)
    clips = [clip for clip in starts[0] if all(metric_value(rows.get(clip, {}), key) is not None for rows in both)]
    if not clips:
        return None
    after, before = (
        np.array([[metric_value(rows[clip], key) for clip in clips] for rows in own]) for own in (runs, starts)
    )
    return Paired(after, before, clips)


def gap_closed(before: float, after: float, real: float) -> float | None:
    """Return the share of the distance to ``real`` that is gone. Going past it counts as distance again.

    Returns:
        1 at the real value, 0 where nothing changed, negative where the distance grew; None if there was no distance.
    """
    gap = abs(real - before)
    return None if gap <= NO_GAP * abs(real) else 1 - abs(real - after) / gap


def group_runs(systems: Sequence[str]) -> dict[str, list[str]]:
    """Return the runs of every system: those called NAME@SEED belong to NAME."""
    groups: dict[str, list[str]] = {}
    for system in systems:
        groups.setdefault(system.partition("@")[0], []).append(system)
    return groups


def compare_runs(
    record: Record,
    rows: Mapping[str, Rows],
    keys: Sequence[str],
    *,
    baseline: str,
    group: str = "",
    pairs: Sequence[tuple[str, str]] = (),
    untested: Sequence[str] = (),
) -> None:
    """Add the means of all systems, their changes from a baseline with p, and the share of the gap to real motion.

    Args:
        record: where the figures go.
        rows: metrics by run and clip; runs called NAME@SEED are taken together as NAME.
        keys: the metrics.
        baseline: the system from which changes are measured.
        group: title of the tables.
        pairs: further changes: of the first system from the second.
        untested: metrics that are shown without a test.
    """
    groups = {name: [rows[run] for run in runs] for name, runs in group_runs(list(rows)).items()}
    for name, runs in groups.items():
        for key in keys:
            if (own := pair(runs, runs[:1], key)) is not None:
                record.add(name, metric_title(key), bootstrap_mean(own.after), group=group)
    if baseline not in groups:
        return
    compared = {name: (name, baseline) for name in groups if name not in (baseline, REAL)}
    compared |= {f"{one} against {other}": (one, other) for one, other in pairs if one in groups and other in groups}
    changes = {
        (label, key): found
        for label, (one, other) in compared.items()
        for key in keys
        if (found := pair(groups[one], groups[other], key)) is not None
    }
    p_values = holm_correction([None if key in untested else found.p for (_, key), found in changes.items()])
    title, real = f"{group}: " if group else "", groups.get(REAL, [{}])[0]
    for ((label, key), found), p in zip(changes.items(), p_values, strict=True):
        record.add(label, metric_title(key), found.change, group=f"{title}change from {baseline}")
        if p is not None:
            record.add(label, metric_title(key), p, group=f"{title}p of the change (Wilcoxon, Holm)")
        if label in groups and (closed := found.gap_closed(real, key)) is not None:
            record.add(label, metric_title(key), closed, group=f"{title}share of the gap to real motion that is closed")


def metric_title(key: str) -> str:
    """Return the name of a metric in tables."""
    return METRIC_BY_KEY[key].title if key in METRIC_BY_KEY else key.replace("_", " ")


def metric_value(row: Mapping[str, object], key: str) -> float | None:
    """Return a metric of a clip; None where it was not measured."""
    value = row.get(key)
    return float(value) if isinstance(value, int | float) and np.isfinite(value) else None
