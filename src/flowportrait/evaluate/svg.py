"""Inline SVG whose ink is the surrounding page's colour."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Sequence

import matplotlib
from matplotlib.axes import Axes

matplotlib.use("Agg")
import matplotlib.pyplot as plt

INK = "#123456"
"""Stands for the page's text colour until ``svg`` replaces it."""
SERIES = ("#2f6fde", "#e0662f", "#2a9d6f", "#a44fc4", "#c9a227", "#d0416b", "#4fa3c7", "#7a7f87")
STYLE = {
    "font.family": "sans-serif",
    "font.size": 9,
    "svg.fonttype": "none",
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.linewidth": 0.6,
    "savefig.transparent": True,
}

COLUMNS = 4
"""Panels side by side."""


def panels(titles: Sequence[str], systems: Sequence[str], row: float) -> tuple[plt.Figure, list[Axes]]:
    """A figure with a small panel for each title, a row of ``row`` inches for each system in it."""
    count = math.ceil(len(titles) / COLUMNS)
    size = (11.6, count * (0.8 + row * len(systems)))
    figure, axes = plt.subplots(count, COLUMNS, figsize=size, squeeze=False, sharey=True)
    for axis, title in zip(axes.flat, titles, strict=False):
        axis.set_title(title, loc="left")
        axis.set_yticks(range(len(systems)), systems)
        axis.set_ylim(len(systems) - 0.5, -0.5)
        axis.locator_params(axis="x", nbins=4)
        axis.grid(axis="x", alpha=0.15)
    for axis in list(axes.flat)[len(titles) :]:
        axis.axis("off")
    return figure, list(axes.flat)[: len(titles)]


def svg(figure: plt.Figure) -> str:
    """The figure, as wide as its place on the page; the figure is closed."""
    text = io.StringIO()
    figure.savefig(text, format="svg", bbox_inches="tight", pad_inches=0.12)
    plt.close(figure)
    found = text.getvalue()
    return re.sub(r'width="[\d.]+pt" height="[\d.]+pt"', 'width="100%"', found[found.index("<svg") :], count=1).replace(
        INK, "currentColor"
    )
