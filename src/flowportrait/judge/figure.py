"""Judge against human: one histogram per aspect, as a PNG."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from flowportrait.judge.rubric import ASPECTS, HIGHEST, LOWEST
from flowportrait.written import complete


def draw_histograms(report: dict[str, Any], path: Path) -> None:
    """Human, judge and calibrated judge over 1 … 5 for every aspect of an agreement report that has them."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    known = [aspect for aspect in ASPECTS if report[aspect]["calibrated"]]
    figure = Figure((4 * len(known), 3.2), layout="constrained")
    FigureCanvasAgg(figure)
    grades = np.arange(LOWEST, HIGHEST + 1)
    for place, aspect in enumerate(known):
        axes = figure.add_subplot(1, len(known), place + 1)
        before, after = report[aspect]["before"], report[aspect]["after_on_unseen_clips"]
        bars = {"human": before["human_histogram"], "judge": before["judge_histogram"],
                "calibrated": after["judge_histogram"]}  # fmt: skip
        for shift, (name, counts) in enumerate(bars.items()):
            axes.bar(grades + 0.27 * (shift - 1), counts, 0.25, label=name)
        rho = before["spearman"]
        axes.set_title(f"{aspect.replace('_', ' ')}, ρ = {rho:.2f}" if rho is not None else aspect.replace("_", " "))
        axes.set_xlabel("score")
        axes.set_ylabel("clips")
        axes.legend()
    with complete(path) as partial:
        figure.savefig(partial, dpi=120, format="png")
