"""The results page: ``docs/results.md`` with its pictures, from run folders or from the figures kept in the repository.

    python benchmarks/results.py                                                   docs/results/figures.json ─► page
    python benchmarks/results.py --runs RUNS --headline HELDOUT --noisy NOISY      run folders ─► figures.json ─► page

The prose, and which command measured what, is ``docs/results/template.md``; the tables and curves are filled in.
"""

from __future__ import annotations

import argparse
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from contestants import STUDIES
from figures import BESIDE, EVALUATION, FIGURES, HELD, REAL, SPREAD, collect, digits, gap_closed, headline, looks

from flowportrait.evaluate.metrics import METRICS
from flowportrait.evaluate.reference import SHIPPED
from flowportrait.evaluate.svg import SERIES

FOLDER = Path(__file__).parents[1] / "docs" / "results"
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, nargs="+", default=[], help="folders of recipes.py")
    parser.add_argument("--studies", nargs="+", choices=tuple(STUDIES), default=list(STUDIES), help="of those folders")
    parser.add_argument("--posttrained", type=Path, nargs="+", default=[], help="run folders of flowportrait posttrain")
    parser.add_argument("--headline", type=Path, help="folder of heldout.py")
    parser.add_argument("--noisy", type=Path, help="noisy.json of noisy.py")
    parser.add_argument("--proxy", type=Path, help="proxy.json of proxy.py")
    parser.add_argument("--output", type=Path, default=FOLDER.parent, help="folder of results.md (default docs)")
    given = parser.parse_args()
    kept = FOLDER / "figures.json"
    found: dict[str, Any] = json.loads(kept.read_text()) if kept.is_file() else {}
    for runs in given.runs:
        for part, own in collect(runs, given.studies).items():
            found[part] = {**found.get(part, {}), **own}
    if given.posttrained:
        found["looks"] = looks(given.posttrained)
    if given.headline:
        found["headline"] = headline(given.headline)
    if given.noisy:
        found["noisy"] = {**found.get("noisy", {}), **json.loads(given.noisy.read_text())}
    if given.proxy:
        found["proxy"] = json.loads(given.proxy.read_text())
    if given.runs or given.headline or given.noisy or given.posttrained or given.proxy:
        write(kept, json.dumps(found, indent=1) + "\n")
    pictures = given.output / "results"
    for study in found.get("studies", {}):
        draw_curves(pictures / f"{study}.svg", study, found)
    if "looks" in found:
        draw_looks(pictures / "looks.svg", found["looks"])
    write(given.output / "results.md", page(found, (FOLDER / "template.md").read_text()))


def page(found: Mapping[str, Any], template: str) -> str:
    """The template with its ``{{places}}`` filled: ``{{study NAME}}``, ``{{headline NAME}}``, ``{{noisy}}``,
    ``{{proxy}}``.

    Raises:
        KeyError: the template asks for what has not been measured.
    """

    def fill(place: re.Match[str]) -> str:
        kind, _, name = place[1].partition(" ")
        if kind == "study":
            picture = f"\n\n![Rewards on held-out prompts by processor seconds](results/{name}.svg)"
            return study_table(found["studies"][name]) + picture * bool(found["curves"].get(name))
        if kind == "headline":
            return headline_table(found["headline"][name])
        return noisy_table(found[kind]) if kind == "noisy" else proxy_table(found[kind])

    return re.sub(r"\{\{([^}]+)\}\}", fill, template)


def study_table(contestants: Mapping[str, Any]) -> str:
    """A row per contestant: mean ± half of the 95 % interval over seeds; * where the paired test against ``sft`` over
    clips is below 0.05 after Holm's correction."""
    keys = [key for key in (*FIGURES, *BESIDE) if any(key in own["figures"] for own in contestants.values())]
    lines = [row("", *(TITLES[key] + ARROWS.get(key, "") for key in keys)), "|---" * (len(keys) + 1) + "|"]
    for name, own in contestants.items():
        label = "real motion, drawn" if name == REAL else name
        lines.append(row(label, *(_cell(own["figures"].get(key), key) for key in keys)))
    counts = {(own["seeds"], own["clips"]) for name, own in contestants.items() if name != REAL}
    told = "; ".join(f"{seeds} seed{'s' * (seeds > 1)} × {clips} clips" for seeds, clips in sorted(counts))
    return "\n".join(lines) + f"\n\n{told}. Intervals over clips are in `results/figures.json`."


def headline_table(own: Mapping[str, Any]) -> str:
    """The shipped checkpoints: per figure supervised, post-trained, real motion drawn again, real footage, and how
    much of the distance was closed."""
    metrics, differences = own["metrics"], {(d["system"], d["metric"]): d for d in own["differences"]}
    systems = [s for s in ("sft", "rl", REAL, SHIPPED, "loudness jaw", "still") if s in metrics]
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
        closed = "–" if real is None else _closed(key, before, after, real["mean"])
        lines.append(row(TITLES.get(key, key) + ARROWS.get(key, ""), *cells, change, p, closed))
    return "\n".join(lines)


def noisy_table(found: Mapping[str, Any]) -> str:
    """A row per kind of sound, a pair of columns per checkpoint."""
    systems = list(found)
    kinds = list(found[systems[0]])
    keys = list(found[systems[0]][kinds[0]])
    heads = [f"{system}: {TITLES[key]}{ARROWS[key]}" for system in systems for key in keys]
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


def draw_curves(path: Path, study: str, found: Mapping[str, Any]) -> None:
    """One panel per held-out reward, a line per contestant, the band its 95 % interval over seeds."""
    curves = found["curves"].get(study)
    if curves:
        rewards = [key for key in next(iter(curves.values()))[0] if key.startswith(HELD) and not key.endswith(SPREAD)]
        panels(path, curves, rewards, "seconds", "processor seconds")


def draw_looks(path: Path, runs: Mapping[str, list[dict[str, float]]]) -> None:
    """What the evaluation saw on held-out prompts while the parts of ``rl`` were trained."""
    seen = [key for key in next(iter(runs.values()))[0] if key.startswith(EVALUATION)]
    panels(path, runs, seen, "iteration", "iterations")


def panels(
    path: Path, lines: Mapping[str, list[dict[str, float]]], keys: Sequence[str], along: str, label: str
) -> None:
    """A row of small panels, one per key, a line per name."""
    style = {"font.size": 8, "svg.fonttype": "none", "svg.hashsalt": path.stem, "axes.spines.top": False,
             "axes.spines.right": False}  # fmt: skip
    with plt.rc_context(style):
        figure, axes = plt.subplots(1, len(keys), figsize=(2.4 * len(keys), 2.3), squeeze=False)
        for axis, key in zip(axes[0], keys, strict=True):
            for colour, (name, points) in zip(SERIES * 2, lines.items(), strict=False):
                x, y = ([point[part] for point in points if key in point] for part in (along, key))
                axis.plot(x, y, color=colour, lw=1.4, label=name)
                if points and key + SPREAD in points[0]:
                    reach = [point[key + SPREAD] for point in points]
                    low, high = ([m + sign * r for m, r in zip(y, reach, strict=True)] for sign in (-1, 1))
                    axis.fill_between(x, low, high, color=colour, alpha=0.12, lw=0)
            axis.set_title(key.split("/")[-1].replace("_", " "), loc="left", fontsize=9)
            axis.set_xlabel(label)
            axis.locator_params(nbins=4)
        axes[0, 0].legend(frameon=False, fontsize=6)
        figure.tight_layout()
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, format="svg", facecolor="white", metadata={"Date": None})
        plt.close(figure)


def row(*cells: str) -> str:
    return "| " + " | ".join(cell.replace("|", "&#124;") for cell in cells) + " |"


def write(path: Path, text: str) -> None:
    """Under a temporary name first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}")
    partial.write_text(text)
    os.replace(partial, path)


def _closed(key: str, before: float, after: float, real: float) -> str:
    better = next((metric.better for metric in METRICS if metric.key == key), "real")
    beyond = before >= real if better == "up" else before <= real
    if better != "real" and key not in NEAR_REAL and beyond:
        return "beyond it already"
    closed = gap_closed(before, after, real)
    return "no gap" if closed is None else f"{closed:+.0%}"


def _cell(figure: Mapping[str, float] | None, key: str) -> str:
    if figure is None:
        return "–"
    star = "*" if figure.get("p") is not None and figure["p"] < 0.05 else ""
    seeds = f" ±{figure['over_seeds']:.{digits(key)}f}" if figure.get("over_seeds") is not None else ""
    return f"{figure['mean']:.{digits(key)}f}{star}{seeds}"


def _estimate(figure: Mapping[str, float] | None, key: str) -> str:
    if figure is None:
        return "–"
    mean = f"{figure['mean']:.{digits(key)}f}"
    if figure.get("low") is None:
        return mean
    return f"{mean} ({figure['low']:.{digits(key)}f} … {figure['high']:.{digits(key)}f})"


if __name__ == "__main__":
    main()
