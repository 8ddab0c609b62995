"""What the measured panel says of finished videos."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from flowportrait.media.video import FPS
from flowportrait.studio.render_queue import RenderJob

SHORTEST_SCORED = 1.5
"""Seconds; the experts' windows are a little shorter."""


@lru_cache(maxsize=1)
def _panel() -> Any:
    from flowportrait.judge.judges import build_judge

    return build_judge()


def scores(jobs: Mapping[str, RenderJob], names: Sequence[str | None]) -> str:
    """A table in Markdown, or the sentence that says why there is none."""
    from flowportrait.judge.judges import grade_files
    from flowportrait.judge.rubric import ASPECTS

    chosen = [jobs[name] for name in names if name and name in jobs]
    if not chosen or not all(job.done.is_set() and job.frames for job in chosen):
        return "There is no finished video yet: make one first."
    if any(job.frames < SHORTEST_SCORED * FPS for job in chosen):
        return f"The panel's experts need {SHORTEST_SCORED} seconds of video: let it say more."
    panel = _panel()
    head = f"| {panel.name} ({panel.kind}) | " + " | ".join(ASPECTS) + " |\n" + "|---" * (len(ASPECTS) + 1) + "|\n"
    rows = []
    for job in chosen:
        summary = grade_files(panel, [job.path])["summary"]
        cells = (summary[aspect] for aspect in ASPECTS)
        rows.append(
            f"| {job.request.checkpoint} | " + " | ".join("–" if c is None else f"{c:.2f}" for c in cells) + " |"
        )
    return head + "\n".join(rows)
