"""What holds over runs and clips together: a bootstrap that draws both anew.

    x[s, c]: a figure of clip c after the run of seed s      x̄* = mean over drawn seeds × drawn clips

Seeds and clips are crossed (every run speaks the same clips), so both are drawn with replacement, the same clips for
all drawn seeds. With one run this is the bootstrap over clips; with three, their spread is in the interval as well,
a little too narrow, as three can only show so much. p: Wilcoxon's over clips, each averaged over its runs, so that
runs do not pass for clips.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from flowportrait.evaluation.metrics import METRICS, MetricRow
from flowportrait.evaluation.statistics import (
    draw_resample_indices,
    holm_correction,
    percentile_interval,
    resampled_means,
    signed_rank_p,
)

POST_TRAINED, RUNS, CHANCE, CHANCE_MEAN = "rl", "three runs", "paid at random", "their mean"
SYSTEMS = {
    POST_TRAINED: ("rl",), RUNS: ("rl_0", "rl_1", "rl_2"),
    "sft wide": ("sft_wide",), "supervised on": ("supervised_on",),
    CHANCE: ("paid_at_random_0", "paid_at_random_1", "paid_at_random_2"), CHANCE_MEAN: ("paid_at_random",),
}  # fmt: skip
"""What ships, the runs that it is the mean of, what they are held against: systems of ``heldout.py``, run by run."""
OWN_RUNS = f"{POST_TRAINED} against its runs"
PAIRS = {
    OWN_RUNS: (POST_TRAINED, RUNS),
    f"runs against {CHANCE}": (RUNS, CHANCE),
    f"{POST_TRAINED} against {CHANCE_MEAN}": (POST_TRAINED, CHANCE_MEAN),
}
"""What is held against something other than ``sft``. As many runs against as many are paired by seed: the same seed is
the same prompts and the same noise."""
POOLED = ("ecs_pooled", "theval")
"""Figures of a whole system, not of its clips."""


class Paired(NamedTuple):
    """A figure of the same clips after some runs ``[S, n]`` and before, either perhaps one for all ``[1, n]``."""

    after: np.ndarray
    before: np.ndarray
    clips: list[str]


def paired(
    runs: Sequence[Mapping[str, MetricRow]], starts: Sequence[Mapping[str, MetricRow]], key: str
) -> Paired | None:
    """Of the clips that have the figure everywhere; None without any."""
    everywhere = (*runs, *starts)
    clips = [clip for clip in starts[0] if all(number(rows.get(clip, {}), key) is not None for rows in everywhere)]
    if not clips:
        return None
    after, before = (
        np.array([[number(rows[clip], key) for clip in clips] for rows in some], float) for some in (runs, starts)
    )
    return Paired(after, before, clips)


def change(found: Paired) -> dict[str, Any]:
    """Mean after with its interval, and the change: relative, its interval, and p (None on fewer than six clips)."""
    gap, base = found.after - found.before, float(found.before.mean())
    low, high = percentile_interval(resampled_means(found.after))
    result: dict[str, Any] = {"mean": float(found.after.mean()), "low": low, "high": high, "before": base}
    result |= {"gap": float(gap.mean())} | dict(
        zip(("gap_low", "gap_high"), percentile_interval(resampled_means(gap)), strict=True)
    )
    return result | {"p": signed_rank_p(gap.mean(0))}


def correct(entries: Sequence[dict[str, Any]]) -> None:
    """Holm's correction of the p of all entries together, in place."""
    corrected = holm_correction([entry.get("p") for entry in entries])
    for entry, p in zip(entries, corrected, strict=True):
        if p is not None:
            entry["p"] = p


def gap_closed(before: float, after: float, real: float) -> float | None:
    """Share of the distance to real motion that is gone; going past it counts as distance again. None where there was
    none to speak of (2 % of the real figure)."""
    gap = abs(real - before)
    return None if gap <= 0.02 * abs(real) else 1 - abs(real - after) / gap


def closed(found: Paired, real: Mapping[str, MetricRow], key: str) -> dict[str, Any]:
    """``gap_closed`` of the means, with its interval over runs and clips."""
    have = [place for place, clip in enumerate(found.clips) if number(real.get(clip, {}), key) is not None]
    if not have:
        return {}
    truth = np.array([number(real[found.clips[place]], key) for place in have], float)
    after, before = found.after[:, have], found.before.mean(0)[have]
    result: dict[str, Any] = {"real": float(truth.mean())}
    share = gap_closed(float(before.mean()), float(after.mean()), float(truth.mean()))
    if share is None:
        return result
    seeds, clips = draw_resample_indices(after.shape[1], after.shape[0])
    afters = after[seeds[:, :, None], clips[:, None, :]].mean((1, 2))
    gaps = np.abs(truth[clips].mean(1) - before[clips].mean(1))
    shares = 1 - np.abs(truth[clips].mean(1) - afters) / np.maximum(gaps, 1e-9)
    return (
        result | {"closed": share} | dict(zip(("closed_low", "closed_high"), percentile_interval(shares), strict=True))
    )


def headline_runs(folder: Path) -> dict[str, Any]:
    """``heldout.py``'s two tables: ``SYSTEMS`` that are there against ``sft``, and ``PAIRS`` against each other."""
    result: dict[str, Any] = {}
    for part in ("speakers", "voices"):
        path = folder / part / "metrics.json"
        found = json.loads(path.read_text()) if path.is_file() else {"clips": {}}
        rows, whole = found["clips"], found.get("metrics", {})
        there = {name: members for name, members in SYSTEMS.items() if all(member in rows for member in members)}
        if POST_TRAINED not in there or RUNS not in there:
            continue
        result[part] = {name: _against(rows, members) | _pooled(whole, members) for name, members in there.items()}
        for name, (one, other) in PAIRS.items():
            if one in there and other in there:
                result[part][name] = _against(rows, there[one], there[other])
    return result


def _against(
    rows: Mapping[str, Mapping[str, MetricRow]], own: Sequence[str], starts: Sequence[str] = ("sft",)
) -> dict[str, Any]:
    """Figures clip by clip of some systems, and their change from others."""
    result: dict[str, Any] = {}
    for metric in METRICS:
        found = paired([rows[name] for name in own], [rows[name] for name in starts], metric.key)
        if found is not None:
            each = [float(run.mean()) for run in found.after]
            result[metric.key] = change(found) | closed(found, rows.get("real", {}), metric.key) | {"each": each}
    correct(list(result.values()))
    return result


def _pooled(whole: Mapping[str, Any], own: Sequence[str]) -> dict[str, Any]:
    """Figures of whole systems, and of ``sft`` and real motion."""
    result: dict[str, Any] = {}
    for key in POOLED:
        each = [whole[name][key]["mean"] for name in own]
        result[key] = {"each": each, "mean": float(np.mean(each)), "before": whole["sft"][key]["mean"]}
        result[key] |= {"real": whole["real"][key]["mean"]} if "real" in whole else {}
    return result


def number(row: MetricRow, key: str) -> float | None:
    """A figure of a clip, where it was measured."""
    value = row.get(key)
    return float(value) if isinstance(value, int | float) and np.isfinite(value) else None
