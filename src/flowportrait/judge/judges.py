"""A judge from settings: measured, by server, or a model in this process.

build_judge(JudgeSettings())                                            the measured panel
build_judge(override(JudgeSettings(), ["by=server", "endpoint.model=Qwen3-Omni"]))
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from flowportrait.config import at_least
from flowportrait.judge.cache import Cache, default_folder
from flowportrait.judge.calibration import Calibration
from flowportrait.judge.client import Server
from flowportrait.judge.endpoint import Endpoint
from flowportrait.judge.ledger import Ledger
from flowportrait.judge.locating import LocatingPanel
from flowportrait.judge.omni import Omni, OmniSettings
from flowportrait.judge.panel import Panel, PanelSettings
from flowportrait.judge.question import Backend
from flowportrait.judge.thinking import ThinkingPanel
from flowportrait.judge.verdict import Judge

METHODS: dict[str, type[Panel]] = {"panel": Panel, "think": ThinkingPanel, "locate": LocatingPanel}


@dataclass(frozen=True)
class JudgeSettings:
    by: Literal["measured", "server", "omni"] = "measured"
    """Who judges: experts that measure, a model behind an address, or a model in this process."""
    method: Literal["panel", "think", "locate"] = "panel"
    """How a model comes to a grade: at once, by thinking first, or by finding moment and place first."""
    panel: PanelSettings = field(default_factory=PanelSettings)
    endpoint: Endpoint = field(default_factory=Endpoint)
    omni: OmniSettings = field(default_factory=OmniSettings)
    calibration: Path | None = None
    """What ``flowportrait judge calibrate`` wrote."""
    noise: float = 0.0
    """Standard deviation of the overall score when the same clip is judged again; as a reward it says nothing about
    siblings that differ by less."""
    folder: Path | None = None
    """Where answers, ledger and certificates are kept; the user's cache by default."""

    def __post_init__(self) -> None:
        at_least(self, noise=0)

    @property
    def kept_in(self) -> Path:
        """The folder."""
        return self.folder or default_folder()


def build_judge(settings: JudgeSettings | None = None) -> Judge:
    """The judge that ``settings`` describe.

    Raises:
        BadInput: a model, address or calibration that cannot be used.
    """
    settings = settings or JudgeSettings()
    calibration = Calibration.load(settings.calibration) if settings.calibration else None
    if settings.by == "measured":
        from flowportrait.judge.measured import MeasuredPanel

        return MeasuredPanel(calibration=calibration)
    backend: Backend
    if settings.by == "server":
        backend = Server(settings.endpoint, Ledger(settings.kept_in / "ledger.jsonl"))
    else:
        backend = Omni.from_pretrained(settings.omni)
    return METHODS[settings.method](backend, settings.panel, Cache(settings.kept_in / "answers"), calibration)


def ledger_of(judge: Judge) -> Ledger | None:
    """The ledger of a judge by server."""
    backend = getattr(judge, "backend", None)
    return backend.ledger if isinstance(backend, Server) else None


def certificate_folders(settings: JudgeSettings) -> list[Path]:
    """Where passed examinations are looked for: the user's, and those that ship."""
    from importlib.resources import files

    return [settings.kept_in / "checked", Path(str(files("flowportrait") / "weights" / "judge" / "checked"))]
