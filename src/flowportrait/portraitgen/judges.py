"""A judge of still portraits from the same settings as the panel of talking clips."""

from __future__ import annotations

from flowportrait.judge.cache import Cache
from flowportrait.judge.judges import JudgeSettings, backend_of
from flowportrait.portraitgen.measured import MeasuredStills
from flowportrait.portraitgen.panel import StillPanel
from flowportrait.portraitgen.verdict import StillJudge


def build_still_judge(settings: JudgeSettings | None = None) -> StillJudge:
    """Measured, by an OpenAI-compatible server, or a model in this process.

    Raises:
        BadInput: a model or address that cannot be used.
    """
    settings = settings or JudgeSettings()
    if settings.by == "measured":
        return MeasuredStills()
    return StillPanel(backend_of(settings), settings.panel.samples, Cache(settings.kept_in / "answers"))
