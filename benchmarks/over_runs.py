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
from scipy.stats import wilcoxon

from flowportrait.evaluate.compare import MIN_PAIRS, Row
from flowportrait.evaluate.metrics import METRICS

RESAMPLES = 4000
RUNS, CONTROLS = ("rl", "rl_1", "rl_2"), ("sft_wide", "supervised_on", "paid_at_random")
"""Systems of ``heldout.py`` that are the shipped recipe from three seeds, and what it is held against."""
CHANCE, BEYOND = CONTROLS[-1], "rl against paid_at_random"
POOLED = ("ecs_pooled", "theval")
"""Figures of a whole system, not of its clips."""


class Paired(NamedTuple):
    """A figure of the same clips after ``runs`` runs ``[S, n]`` and before ``[S, n]`` or ``[1, n]``."""

    after: np.ndarray
    before: np.ndarray
    clips: list[str]


def paired(runs: Sequence[Mapping[str, Row]], starts: Sequence[Mapping[str, Row]], key: str) -> Paired | None:
    """Of the clips that have the figure everywhere; None without any."""
    everywhere = (*runs, *starts)
    clips = [clip for clip in starts[0] if all(number(rows.get(clip, {}), key) is not None for rows in everywhere)]
    if not clips:
        return None
    after, before = (
        np.array([[number(rows[clip], key) for clip in clips] for rows in some], float) for some in (runs, starts)
    )
    return Paired(after, before, clips)


def draws(shape: tuple[int, int], seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Which runs ``[R, S]`` and which clips ``[R, n]`` every resampling takes."""
    rng = np.random.default_rng(seed)
    return rng.integers(shape[0], size=(RESAMPLES, shape[0])), rng.integers(shape[1], size=(RESAMPLES, shape[1]))


def crossed(values: np.ndarray) -> np.ndarray:
    """Resampled means ``[R]`` of ``[S, n]``."""
    seeds, clips = draws((values.shape[0], values.shape[1]))
    return np.asarray(values[seeds[:, :, None], clips[:, None, :]].mean((1, 2)))


def change(found: Paired) -> dict[str, Any]:
    """Mean after with its interval, and the change: relative, its interval, and p (None on fewer than six clips)."""
    gap, base = found.after - found.before, float(found.before.mean())
    low, high = interval(crossed(found.after))
    result: dict[str, Any] = {"mean": float(found.after.mean()), "low": low, "high": high, "before": base}
    result |= {"gap": float(gap.mean())} | dict(zip(("gap_low", "gap_high"), interval(crossed(gap)), strict=True))
    tested = gap.shape[1] >= MIN_PAIRS and bool(np.any(gap.mean(0)))
    return result | {"p": float(wilcoxon(gap.mean(0)).pvalue) if tested else None}


def interval(values: np.ndarray) -> tuple[float, float]:
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)


def holm(entries: Sequence[dict[str, Any]]) -> None:
    """Correct the p of all entries together, in place (step-down, Holm 1979)."""
    tested = sorted((entry for entry in entries if entry.get("p") is not None), key=lambda entry: entry["p"])
    running = 0.0
    for rank, entry in enumerate(tested):
        running = min(1.0, max(running, entry["p"] * (len(tested) - rank)))
        entry["p"] = running


def gap_closed(before: float, after: float, real: float) -> float | None:
    """Share of the distance to real motion that is gone; going past it counts as distance again. None where there was
    none to speak of (2 % of the real figure)."""
    gap = abs(real - before)
    return None if gap <= 0.02 * abs(real) else 1 - abs(real - after) / gap


def closed(found: Paired, real: Mapping[str, Row], key: str) -> dict[str, Any]:
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
    seeds, clips = draws((after.shape[0], after.shape[1]))
    afters = after[seeds[:, :, None], clips[:, None, :]].mean((1, 2))
    gaps = np.abs(truth[clips].mean(1) - before[clips].mean(1))
    shares = 1 - np.abs(truth[clips].mean(1) - afters) / np.maximum(gaps, 1e-9)
    return result | {"closed": share} | dict(zip(("closed_low", "closed_high"), interval(shares), strict=True))


def headline_runs(folder: Path) -> dict[str, Any]:
    """``heldout.py``'s two tables: the shipped recipe over its runs, and the controls, all against ``sft``."""
    result: dict[str, Any] = {}
    for part in ("speakers", "voices"):
        path = folder / part / "metrics.json"
        found = json.loads(path.read_text()) if path.is_file() else {"clips": {}}
        rows, whole = found["clips"], found.get("metrics", {})
        runs = [rows[name] for name in RUNS if name in rows]
        if len(runs) < 2:
            continue
        systems = {"rl": runs} | {name: [rows[name]] for name in CONTROLS if name in rows}
        result[part] = {name: _against(rows, own) for name, own in systems.items()}
        pooled = dict(result[part])
        if CHANCE in rows:
            result[part][BEYOND] = _against(rows, runs, CHANCE)
        for name, own in pooled.items():
            members = [whole[member] for member in (RUNS if name == "rl" else (name,)) if member in whole]
            for key in POOLED:
                each, before = [member[key]["mean"] for member in members], whole["sft"][key]["mean"]
                own[key] = {"each": each, "mean": float(np.mean(each)), "before": before}
                own[key] |= {"real": whole["real"][key]["mean"]} if "real" in whole else {}
    return result


def _against(
    rows: Mapping[str, Mapping[str, Row]], own: Sequence[Mapping[str, Row]], start: str = "sft"
) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for metric in METRICS:
        found = paired(own, [rows[start]], metric.key)
        if found is not None:
            each = [float(run.mean()) for run in found.after]
            result[metric.key] = change(found) | closed(found, rows.get("real", {}), metric.key) | {"each": each}
    holm(list(result.values()))
    return result


def number(row: Row, key: str) -> float | None:
    """A figure of a clip, where it was measured."""
    value = row.get(key)
    return float(value) if isinstance(value, int | float) and np.isfinite(value) else None
