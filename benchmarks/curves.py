"""Pictures of the results page: rewards along a run, one panel per reward, a line per name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from figures import EVALUATION, HELD, SPREAD

from flowportrait.evaluation.figures import SERIES_COLOURS


def draw_curves(path: Path, curves: Mapping[str, Any]) -> None:
    """Rewards on held-out prompts by processor seconds; the band lies between the runs."""
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
            for place, (name, points) in enumerate(lines.items()):
                x, y = ([point[part] for point in points if key in point] for part in (along, key))
                colour, dashes = (
                    SERIES_COLOURS[place % len(SERIES_COLOURS)],
                    ("-", "--", ":")[place // len(SERIES_COLOURS)],
                )
                axis.plot(x, y, color=colour, lw=1.4, ls=dashes, label=name)
                if points and key + SPREAD in points[0]:
                    reach = [point[key + SPREAD] for point in points]
                    low, high = ([m + sign * r for m, r in zip(y, reach, strict=True)] for sign in (-1, 1))
                    axis.fill_between(x, low, high, color=colour, alpha=0.12, lw=0)
            axis.set_title(key.split("/")[-1].replace("_", " "), loc="left", fontsize=9)
            axis.set_xlabel(label)
            axis.locator_params(nbins=4)
        handles, names = axes[0, 0].get_legend_handles_labels()
        figure.legend(handles, names, frameon=False, fontsize=6, loc="center left", bbox_to_anchor=(1, 0.5))
        figure.tight_layout()
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, format="svg", facecolor="white", metadata={"Date": None}, bbox_inches="tight")
        plt.close(figure)
