"""A judge of still portraits from the same settings as the panel of talking clips."""

from __future__ import annotations

from flowportrait.judge.cache import Cache
from flowportrait.judge.client import Server
from flowportrait.judge.judges import JudgeSettings
from flowportrait.judge.ledger import Ledger
from flowportrait.judge.omni import Omni
from flowportrait.judge.question import Backend
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
    backend: Backend
    if settings.by == "server":
        backend = Server(settings.endpoint, Ledger(settings.kept_in / "ledger.jsonl"))
    else:
        backend = Omni.from_pretrained(settings.omni)
    return StillPanel(backend, settings.panel.samples, Cache(settings.kept_in / "answers"))
