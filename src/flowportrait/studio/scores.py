"""Scores of finished videos by the built-in judges."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from flowportrait.errors import BadInput
from flowportrait.studio.job import FPS, RenderJob

MIN_SCORED_SECONDS = 1.5
"""Fewest seconds of a scored video; the windows of the judges' networks are a little shorter."""


@lru_cache(maxsize=1)
def _panel() -> Any:
    from flowportrait.judges.build import build_judge

    return build_judge()


def score_job(job: RenderJob | None) -> dict[str, Any]:
    """Score a finished video with the judges.

    Returns:
        ``judge``: its name, and ``scores``: grades from 1 to 5 by aspect, None where one cannot be measured.

    Raises:
        BadInput: the video is not finished, or too short.
    """
    from flowportrait.judges.build import grade_files
    from flowportrait.judges.rubric import CLIP_ASPECTS

    if job is None or not job.done.is_set() or not job.has_video():
        raise BadInput("There is no finished video yet: make one first.")
    if job.path.suffix != ".mp4":
        raise BadInput("Only mp4 videos are scored: choose the format mp4.")
    if job.frames < MIN_SCORED_SECONDS * FPS:
        raise BadInput(f"Scoring needs {MIN_SCORED_SECONDS} seconds of video: use a longer text or recording.")
    panel = _panel()
    summary = grade_files(panel, [job.path])["summary"]
    return {"judge": f"{panel.name} ({panel.kind})", "scores": {aspect: summary[aspect] for aspect in CLIP_ASPECTS}}
