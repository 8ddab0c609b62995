"""A judge from settings: measured, by server, or a model in this process.

build_judge(JudgeSettings())                                            the measured panel
build_judge(override(JudgeSettings(), ["by=server", "endpoint.model=Qwen3-Omni"]))
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from flowportrait.config import at_least
from flowportrait.errors import BadInput
from flowportrait.judge.cache import Cache, default_folder
from flowportrait.judge.calibration import Calibration
from flowportrait.judge.client import Server
from flowportrait.judge.comparing import ComparingPanel
from flowportrait.judge.endpoint import Endpoint
from flowportrait.judge.ledger import Ledger
from flowportrait.judge.library import Library
from flowportrait.judge.locating import LocatingPanel
from flowportrait.judge.omni import Omni, OmniSettings
from flowportrait.judge.panel import Panel, PanelSettings
from flowportrait.judge.question import Backend
from flowportrait.judge.thinking import ThinkingPanel
from flowportrait.judge.verdict import Judge

METHODS: dict[str, type[Panel]] = {
    "panel": Panel, "think": ThinkingPanel, "locate": LocatingPanel, "compare": ComparingPanel,
}  # fmt: skip


@dataclass(frozen=True)
class JudgeSettings:
    by: Literal["measured", "server", "omni"] = "measured"
    """Who judges: experts that measure, a model behind an address, or a model in this process."""
    method: Literal["panel", "think", "locate", "compare"] = "panel"
    """How a model comes to a grade: at once, by thinking first, or by finding moment and place first. ``compare``
    grades at once, and where two clips are to be told apart looks at both."""
    panel: PanelSettings = field(default_factory=PanelSettings)
    endpoint: Endpoint = field(default_factory=Endpoint)
    omni: OmniSettings = field(default_factory=OmniSettings)
    pose: bool = False
    """Let a head that bends or turns as heads do not cap the grade of motion."""
    library: Path | None = None
    """What ``flowportrait judge learn`` wrote."""
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
    judge = judge_with(settings, Library.load(settings.library) if settings.library else Library())
    if not settings.pose:
        return judge
    from flowportrait.judge.posed import PoseChecked

    return PoseChecked(judge)


def judge_with(settings: JudgeSettings, library: Library, backend: Backend | None = None) -> Judge:
    """The judge with a library of one's own, before any check of poses; ``backend``: one that is there already."""
    calibration = Calibration.load(settings.calibration) if settings.calibration else None
    if settings.by == "measured":
        from flowportrait.judge.measured import Experts, MeasuredPanel

        return MeasuredPanel(Experts.load().asking(library), calibration)
    cache = Cache(settings.kept_in / "answers")
    return METHODS[settings.method](backend or backend_of(settings), settings.panel, cache, calibration, library)


def backend_of(settings: JudgeSettings) -> Backend:
    """The model behind an address, or in this process.

    Raises:
        BadInput: it cannot be used, or ``settings`` name none.
    """
    if settings.by == "server":
        return Server(settings.endpoint, Ledger(settings.kept_in / "ledger.jsonl"))
    if settings.by == "omni":
        return Omni.from_pretrained(settings.omni)
    raise BadInput("The measured panel has no model: set by=server or by=omni.")


def ledger_of(judge: Judge) -> Ledger | None:
    """The ledger of a judge by server."""
    backend = getattr(judge, "backend", None)
    return backend.ledger if isinstance(backend, Server) else None


def certificate_folders(settings: JudgeSettings) -> list[Path]:
    """Where passed examinations are looked for: the user's, and those that ship."""
    from importlib.resources import files

    return [settings.kept_in / "checked", Path(str(files("flowportrait") / "weights" / "judge" / "checked"))]
