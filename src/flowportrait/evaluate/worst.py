"""Where to look first: the clips of each system that are furthest on the bad side, with their frames."""

from __future__ import annotations

import base64
import html
from pathlib import Path

import cv2
import numpy as np

from flowportrait.errors import BadInput
from flowportrait.evaluate.compare import REAL, Comparison
from flowportrait.evaluate.metrics import BY_KEY
from flowportrait.evaluate.shapes import KEY_FIGURES, badness
from flowportrait.evaluate.sheets import contact_sheet
from flowportrait.evaluate.table import number

LISTED = 5
SHEETS = 2
"""Contact sheets per system."""
REASONS = 3


def ranked(comparison: Comparison, system: str) -> list[tuple[str, float, list[str]]]:
    """Clips from worst to best: name, mean of their three worst figures in spreads, and those figures."""
    found = []
    for clip, row in comparison.rows[system].items():
        marks = {k: badness(comparison, BY_KEY[k], row[k]) for k in KEY_FIGURES if row.get(k) is not None}
        keys = sorted(marks, key=lambda k: -marks[k])[:REASONS]
        if keys:
            found.append((clip, float(np.mean([marks[k] for k in keys])), keys))
    return sorted(found, key=lambda entry: -entry[1])


def worst_clips(comparison: Comparison, files: dict[str, dict[str, Path]]) -> str:
    """HTML: per system the worst clips with what is wrong with them, contact sheets of the first."""
    parts = []
    for system, rows in comparison.rows.items():
        if system == REAL or len(rows) < 2:
            continue
        lines = []
        for place, (clip, mark, keys) in enumerate(ranked(comparison, system)[:LISTED]):
            why = ", ".join(f"{BY_KEY[k].title} {number(float(rows[clip][k] or 0), BY_KEY[k])}" for k in keys)
            sheet = _sheet(files.get(system, {}).get(clip)) if place < SHEETS else ""
            lines.append(f"<li><b>{html.escape(clip)}</b> <small>{mark:.1f} spreads off: {why}</small>{sheet}</li>")
        parts.append(f"<h3>{html.escape(system)}</h3><ol class=worst>{''.join(lines)}</ol>")
    return "".join(parts)


def _sheet(path: Path | None) -> str:
    if path is None:
        return ""
    try:
        picture = contact_sheet(path, columns=8)
    except BadInput:
        return ""
    return f"<div class=sheet><img alt='frames of {html.escape(path.stem)}' src='{jpeg(picture)}'></div>"


def jpeg(image: np.ndarray, quality: int = 82) -> str:
    """A data URL of an RGB picture."""
    _, data = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality])
    return "data:image/jpeg;base64," + base64.b64encode(data.tobytes()).decode()
