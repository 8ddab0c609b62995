"""Tables of the results page, from the figures kept in the repository.

A star: p < 0.05 over clips, Holm-corrected over the table, and the interval over seeds and clips leaves out 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from figures import BESIDE, COMPOSITE, FIGURES, REAL, digits
from over_runs import OWN_RUNS, PAIRS, POOLED, POST_TRAINED, RUNS, SYSTEMS, gap_closed

from flowportrait.evaluation.metrics import METRICS, SHIPPED_FOOTAGE_SYSTEM

TITLES = {metric.key: metric.title for metric in METRICS} | {
    "identity_kept": "Identity", "spread_lips": "Spread, lips", "spread_head": "Spread, head",
}  # fmt: skip
ARROWS = {metric.key: {"up": " ↑", "down": " ↓", "real": " ≈"}[metric.better] for metric in METRICS}
NEAR_REAL = ("tfi",)
"""Figures of motion whose better direction ends at real motion: stillness would win otherwise."""
HEADLINE_ROWS = (
    "sync_in_time_short", "sync_in_time", "ler", "offset_error_short", "offset_error", "ecs", "ecs_mouth", "ecs_eyes",
    "tfi", "tfi_guarded", "jerk", "mouth_amplitude", "head_range", "gaze_std", "lid_motion", "blink_rate", "silent_lip",
    "identity_kept", "sharpness", "ecs_pooled", "theval",
)  # fmt: skip


def runs_table(found: Mapping[str, Any]) -> str:
    """What ships and the runs that it is the mean of, against ``sft`` and real motion."""
    has_real = any("real" in entry for entry in found[POST_TRAINED].values())
    heads = ["", "sft", POST_TRAINED, "change", RUNS, "change", OWN_RUNS]
    heads += ["real", f"gap closed by {POST_TRAINED}"] * has_real
    lines = [row(*heads), "|---" * len(heads) + "|"]
    for key in _measured(found):
        own, runs, n = found[POST_TRAINED][key], found[RUNS][key], digits(key)
        cells = [f"{own['before']:.{n}f}"]
        for entry in (own, runs):
            cells += [_with_interval(entry, "mean", "low", "high", n), _change(entry, n)]
        cells.append(_change(found[OWN_RUNS].get(key), n))
        if has_real:
            cells += [f"{own['real']:.{n}f}" if "real" in own else "–", _share(own, key)]
        lines.append(row(_label(key), *cells))
    return "\n".join(lines)


def controls_table(found: Mapping[str, Any]) -> str:
    """What else the same time, or none, brings: changes from ``sft``, and of the runs from those paid at random."""
    controls = (name for name in SYSTEMS if name not in (POST_TRAINED, RUNS))
    names = [name for name in (*controls, RUNS, *PAIRS) if name in found and name != OWN_RUNS]
    lines = [row("", *names), "|---" * (len(names) + 1) + "|"]
    for key in _measured(found):
        if key not in POOLED:
            lines.append(row(_label(key), *(_change(found[name].get(key), digits(key)) for name in names)))
    return "\n".join(lines)


def headline_table(own: Mapping[str, Any]) -> str:
    """The shipped checkpoints: per figure supervised, post-trained, real motion drawn again, real footage, and how
    much of the distance was closed."""
    metrics, differences = own["metrics"], {(d["system"], d["metric"]): d for d in own["differences"]}
    systems = [s for s in ("sft", "rl", REAL, SHIPPED_FOOTAGE_SYSTEM, "loudness jaw", "still") if s in metrics]
    lines = [row("", *systems, "change", "p", "gap to real motion closed"), "|---" * (len(systems) + 4) + "|"]
    for key in HEADLINE_ROWS:
        if key not in metrics["sft"] or key not in metrics["rl"]:
            continue
        cells = [_estimate(metrics[system].get(key), key) for system in systems]
        difference = differences.get(("rl", key))
        before, after = metrics["sft"][key]["mean"], metrics["rl"][key]["mean"]
        change = f"{after / before - 1:+.1%}" if abs(before) > 1e-9 else "–"
        p = "–" if difference is None or difference["p"] is None else f"{difference['p']:.3f}"
        real = metrics.get(REAL, {}).get(key)
        closed = "–" if real is None else _beyond(key, before, real["mean"]) or _percent(
            gap_closed(before, after, real["mean"])
        )  # fmt: skip
        lines.append(row(_label(key), *cells, change, p, closed))
    return "\n".join(lines)


def study_table(contestants: Mapping[str, Any]) -> str:
    """A row per contestant of finished video."""
    keys = [key for key in (*FIGURES, *BESIDE) if any(key in own["figures"] for own in contestants.values())]
    lines = [row("", *map(_label, keys)), "|---" * (len(keys) + 1) + "|"]
    for name, own in contestants.items():
        label = "real motion, drawn" if name == REAL else name
        lines.append(row(label, *(_cell(own["figures"].get(key), digits(key)) for key in keys)))
    return "\n".join(lines) + "\n\n" + _counted(contestants, "clips")


def held_table(contestants: Mapping[str, Any]) -> str:
    """A row per contestant, the best first: what its rewards on held-out prompts gained over ``sft``."""
    rewards = list(next(iter(contestants.values()))["rewards"])
    lines = [row("", "seeds", "iterations", *rewards), "|---" * (len(rewards) + 3) + "|"]
    for name, own in sorted(contestants.items(), key=lambda entry: -entry[1]["rewards"][COMPOSITE]["gap"]):
        cells = (_gain(own["rewards"][reward]) for reward in rewards)
        lines.append(row(name, str(own["seeds"]), f"{own['iterations']:.0f}", *cells))
    return "\n".join(lines)


def noisy_table(found: Mapping[str, Any]) -> str:
    """A row per kind of sound, a pair of columns per checkpoint."""
    systems = list(found)
    kinds = list(found[systems[0]])
    keys = list(found[systems[0]][kinds[0]])
    heads = [f"{system}: {_label(key)}" for system in systems for key in keys]
    lines = [row("heard", *heads), "|---" * (len(heads) + 1) + "|"]
    for kind in kinds:
        lines.append(row(kind, *(_estimate(found[system][kind][key], key) for system in systems for key in keys)))
    return "\n".join(lines)


def proxy_table(found: Mapping[str, Mapping[str, Sequence[float]]]) -> str:
    """A row per reward: how it agrees with the evaluation inside eight takes, and what choosing by it brings."""
    lines = [row("chosen by", "agrees with the evaluation (r)", "best of eight adds to LSE-C at 0"), "|---|---|---|"]
    for name, own in found.items():
        cells = (f"{own[k][0]:+.{n}f} ({own[k][1]:+.{n}f} … {own[k][2]:+.{n}f})" for k, n in (("r", 2), ("gain", 3)))
        lines.append(row(name, *cells))
    return "\n".join(lines)


def preferred_table(found: Mapping[str, Mapping[str, Sequence[float]]]) -> str:
    """A row per system: the share of pairs in which each judge prefers it to ``sft``."""
    keys = list(next(iter(found.values())))
    lines = [row("", *keys), "|---" * (len(keys) + 1) + "|"]
    for name, own in found.items():
        cells = (f"{own[key][0]:.0%} ({own[key][1]:.0%} … {own[key][2]:.0%})" for key in keys)
        lines.append(row(name.replace("_", " "), *cells))
    return "\n".join(lines)


def row(*cells: str) -> str:
    return "| " + " | ".join(cell.replace("|", "&#124;") for cell in cells) + " |"


def _measured(found: Mapping[str, Any]) -> list[str]:
    return [key for key in HEADLINE_ROWS if key in found[POST_TRAINED]]


def _label(key: str) -> str:
    return TITLES.get(key, key) + ARROWS.get(key, "")


def _counted(contestants: Mapping[str, Any], what: str) -> str:
    counts = {(own["seeds"], own[what]) for name, own in contestants.items() if name not in (REAL, "sft")}
    told = "; ".join(f"{seeds} seed{'s' * (seeds > 1)} × {each} {what}" for seeds, each in sorted(counts))
    return f"{told}. Intervals are in `results/figures.json`."


def _change(entry: Mapping[str, Any] | None, n: int) -> str:
    """Relative change with its interval, in percent of the start; the raw one where the start is nothing."""
    if entry is None:
        return "–"
    gap, base = entry.get("gap", entry["mean"] - entry["before"]), abs(entry["before"])
    if base < 1e-6:
        return f"{gap:+.{n}f}"
    if "gap_low" not in entry:
        return f"{gap / base:+.0%}"
    return f"{gap / base:+.0%}{_star(entry)} ({entry['gap_low'] / base:+.0%} … {entry['gap_high'] / base:+.0%})"


def _share(entry: Mapping[str, Any], key: str) -> str:
    if "real" not in entry:
        return "–"
    beyond = _beyond(key, entry["before"], entry["real"])
    if beyond or "closed_low" not in entry:
        return beyond or _percent(gap_closed(entry["before"], entry["mean"], entry["real"]))
    low = "under −100%" if entry["closed_low"] < -1 else f"{entry['closed_low']:+.0%}"
    return f"{entry['closed']:+.0%} ({low} … {entry['closed_high']:+.0%})"


def _beyond(key: str, before: float, real: float) -> str:
    better = next((metric.better for metric in METRICS if metric.key == key), "real")
    past = before >= real if better == "up" else before <= real
    return "beyond it already" if better != "real" and key not in NEAR_REAL and past else ""


def _percent(share: float | None) -> str:
    return "no gap" if share is None else f"{share:+.0%}"


def _gain(entry: Mapping[str, Any]) -> str:
    return f"{entry['gap']:+.3f}{_star(entry)} ({entry['gap_low']:+.3f} … {entry['gap_high']:+.3f})"


def _star(entry: Mapping[str, Any]) -> str:
    sure = entry.get("p") is not None and entry["p"] < 0.05
    return "*" if sure and entry["gap_low"] * entry["gap_high"] > 0 else ""


def _with_interval(entry: Mapping[str, Any], key: str, low: str, high: str, n: int) -> str:
    mean = f"{entry[key]:.{n}f}"
    return f"{mean} ({entry[low]:.{n}f} … {entry[high]:.{n}f})" if entry.get(low) is not None else mean


def _cell(entry: Mapping[str, Any] | None, n: int) -> str:
    return "–" if entry is None else f"{entry['mean']:.{n}f}{_star(entry)}"


def _estimate(figure: Mapping[str, Any] | None, key: str) -> str:
    return "–" if figure is None else _with_interval(figure, "mean", "low", "high", digits(key))
