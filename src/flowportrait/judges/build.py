"""A judge from settings, and reports of graded files.

build_judge(JudgeSettings())                                            the measured panel
build_judge(override(JudgeSettings(), ["by=server", "endpoint.model=Qwen3-Omni"]))
build_judge(override(JudgeSettings(), ["by=my_package.judges:MyJudge"]))

A judge of one's own is a class or function that takes the settings and returns an ``ItemJudge``; it is named as
MODULE:NAME or by an entry point of the group ``flowportrait.judges``.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any, Literal, Protocol, runtime_checkable

import torch

from flowportrait.config import at_least, load
from flowportrait.errors import BadInput
from flowportrait.files import write_json
from flowportrait.judges.calibration import Calibration
from flowportrait.judges.clips import JudgedClip, clips_from_batch
from flowportrait.judges.messages import Endpoint
from flowportrait.judges.methods import ComparingPanel, LocatingPanel, ThinkingPanel
from flowportrait.judges.omni import OmniSettings
from flowportrait.judges.panel import Panel, PanelSettings
from flowportrait.judges.questions import Backend, Ledger, ReplyCache, default_folder
from flowportrait.judges.rubric import ASPECTS, HIGHEST, LOWEST, WEIGHTS, Aspect, Library, rubric_version
from flowportrait.judges.sanity import require_certificate
from flowportrait.judges.verdicts import AspectVerdict, Judge
from flowportrait.plugins import is_reference, load_plugin, plugin_names
from flowportrait.rewards.batch import Failure, RewardBatch
from flowportrait.rewards.interface import Score, measured
from flowportrait.rewards.registry import RewardOptions
from flowportrait.terminal import progress

METHODS: dict[str, type[Panel[JudgedClip]]] = {
    "panel": Panel, "think": ThinkingPanel, "locate": LocatingPanel, "compare": ComparingPanel,
}  # fmt: skip
BUILT_IN = ("measured", "server", "omni")
FILES_IN_MEMORY = 8


@dataclass(frozen=True)
class JudgeSettings:
    by: str = "measured"
    """Who judges: ``measured`` (experts that measure), ``server`` (a model behind an address), ``omni`` (a model in
    this process), or a judge that another package adds, by name or as MODULE:NAME."""
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
        """The folder where answers, ledger and certificates are kept."""
        return self.folder or default_folder()


def build_judge(settings: JudgeSettings | None = None) -> Judge:
    """Return the judge of clips that ``settings`` describe.

    Raises:
        BadInput: a model, address or calibration that cannot be used, or no judge of that name.
    """
    settings = settings or JudgeSettings()
    judge = build_with_library(settings, Library.load(settings.library) if settings.library else Library())
    if not settings.pose:
        return judge
    from flowportrait.judges.measured import PoseChecked

    return PoseChecked(judge)


def build_with_library(settings: JudgeSettings, library: Library, backend: Backend | None = None) -> Judge:
    """Return the judge of clips with this library, before any check of poses; ``backend``: one that is loaded."""
    if settings.by not in BUILT_IN:
        return build_plugin(settings, "clips")
    calibration = Calibration.load(settings.calibration) if settings.calibration else None
    if settings.by == "measured":
        from flowportrait.judges.measured import Experts, MeasuredPanel

        return MeasuredPanel(Experts.load().with_library(library), calibration)
    cache = ReplyCache(settings.kept_in / "answers")
    return METHODS[settings.method](backend or build_backend(settings), settings.panel, cache, calibration, library)


def build_plugin(settings: JudgeSettings, items: Literal["clips", "stills"]) -> Any:
    """Return the judge that another package or script adds.

    Args:
        settings: ``by`` names it.
        items: what it has to judge; a judge of stills says so in an attribute ``items``.

    Raises:
        BadInput: no judge of that name, or one of something else.
    """
    added = plugin_names("judges")
    if settings.by not in added and not is_reference(settings.by):
        choices = ", ".join([*BUILT_IN, *added])
        raise BadInput(f"by={settings.by} is not possible: choose one of {choices}, or give MODULE:NAME.")
    judge = load_plugin("judges", settings.by)(settings)
    subject = getattr(judge, "items", "clips")
    if subject != items:
        raise BadInput(f"The judge {settings.by!r} grades {subject}, not {items}: choose another with by=NAME.")
    return judge


def build_backend(settings: JudgeSettings) -> Backend:
    """Return the model behind an address, or in this process.

    Raises:
        BadInput: it cannot be used, or ``settings`` name none.
    """
    if settings.by == "server":
        from flowportrait.judges.client import ChatClient

        return ChatClient(settings.endpoint, Ledger(settings.kept_in / "ledger.jsonl"))
    if settings.by == "omni":
        from flowportrait.judges.omni import Omni

        return Omni.from_pretrained(settings.omni)
    raise BadInput(f"The judge {settings.by!r} has no model: set by=server or by=omni.")


def certificate_folders(settings: JudgeSettings) -> list[Path]:
    """Return where certificates are looked for: the user's folder, and those that ship."""
    from importlib.resources import files

    return [settings.kept_in / "checked", Path(str(files("flowportrait") / "weights" / "judge" / "checked"))]


def read_settings(path: Path | None) -> JudgeSettings:
    """Return the judge settings in a file; those of the measured panel without one.

    Raises:
        BadInput: the file cannot be read.
    """
    return JudgeSettings() if path is None else load(JudgeSettings, path)


# --- reports


def grade_files(judge: Judge, paths: Sequence[Path], generators: Sequence[str] = ()) -> dict[str, Any]:
    """Grade every file and return a report.

    With a server, answers are cached as they come, and the report says what they cost.

    Raises:
        BadInput: a file cannot be read.
    """
    generators = list(generators) or [path.parent.name for path in paths]
    ledger: Ledger | None = getattr(getattr(judge, "backend", None), "ledger", None)
    before = ledger.totals() if ledger else None
    verdicts = []
    for first in progress(range(0, len(paths), FILES_IN_MEMORY), -(-len(paths) // FILES_IN_MEMORY), "judging"):
        lot = zip(paths[first : first + FILES_IN_MEMORY], generators[first : first + FILES_IN_MEMORY], strict=True)
        verdicts += judge.judge([JudgedClip.from_video(path, generator) for path, generator in lot])
    summary: dict[str, Any] = {"judge": f"{judge.name} ({judge.kind})", "files": len(paths)}
    for aspect in ASPECTS:
        scores = [score for verdict in verdicts if (score := verdict.aspects[aspect].score) is not None]
        summary[aspect] = round(fmean(scores), 3) if scores else None
        summary[f"{aspect}_without_score"] = len(verdicts) - len(scores)
    report: dict[str, Any] = {
        "judge": judge.name, "kind": judge.kind, "fingerprint": judge.fingerprint, "rubric": rubric_version(),
        "summary": summary, "verdicts": [verdict.to_dict() for verdict in verdicts],
    }  # fmt: skip
    if ledger is not None and before is not None:
        after = ledger.totals()
        report["cost"] = {
            name: after[name] - before[name] for name in ("requests", "tokens_in", "tokens_out", "untold")
        }
        report["cost"]["dollars"] = round(after["dollars"] - before["dollars"], 6)
        summary["requests"], summary["dollars"] = report["cost"]["requests"], report["cost"]["dollars"]
    return report


def write_report(report: dict[str, Any], path: Path) -> None:
    """Write a report, whole or not at all."""
    write_json(path, report)


def read_report(path: Path) -> dict[str, Any]:
    """Read what ``write_report`` wrote.

    Raises:
        BadInput: it is something else.
    """
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        raw_scores(report)
        str(report["judge"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadInput(f"{path} is no report of judge score ({type(error).__name__}): make one first.") from error
    return report


def raw_scores(report: dict[str, Any]) -> dict[str, dict[Aspect, float | None]]:
    """Return the scores before calibration, by file and aspect."""
    return {
        verdict["file"]: {aspect: verdict["aspects"][aspect]["raw"] for aspect in ASPECTS}
        for verdict in report["verdicts"]
    }


# --- the judge as a reward


@runtime_checkable
class BatchJudge(Protocol):
    """A judge that grades a batch of rewards without drawing every frame."""

    def measure(self, batch: RewardBatch, silent: Sequence[bool]) -> list[dict[Aspect, AspectVerdict]]:
        """Return the verdicts on every row."""
        ...


@dataclass(frozen=True)
class JudgeReward:
    """A judge as a reward: its overall score of a clip, or the score of one aspect.

        value = Σ_aspect w_aspect · score_aspect,   1 … 5       invalid where the judge gave no score, with its reason

    A measured panel reads motion and a few frames, the others look at every frame and listen. By recipe:
    ``--set rewards.judge_by=panel``, with ``rewards.options.judge=FILE`` for a judge by server or model.
    """

    judge: Judge
    aspect: Aspect | None = None
    name: str = "panel"
    retries: int = 0
    noise: float = 0.0
    range: tuple[float, float] = (float(LOWEST), float(HIGHEST))

    @classmethod
    def for_training(cls, settings: JudgeSettings | None = None, aspect: Aspect | None = None) -> JudgeReward:
        """Return the reward of a judge that has passed the sanity set.

        Raises:
            BadInput: it has not, or cannot be built.
        """
        settings = settings or JudgeSettings()
        judge = build_judge(settings)
        require_certificate(judge, certificate_folders(settings))
        return cls(judge, aspect, noise=settings.noise)

    @property
    def needs(self) -> frozenset[str]:
        if isinstance(self.judge, BatchJudge):
            return frozenset({"motion", "mel", "frames", "places"})
        return frozenset({"frames", "audio"})

    def __call__(self, batch: RewardBatch) -> Score:
        if isinstance(self.judge, BatchJudge):
            found = self.judge.measure(batch, [False] * len(batch))
        else:
            found = [verdict.aspects for verdict in self.judge.judge(clips_from_batch(batch))]
        values, failures = torch.full((len(batch),), torch.nan), {}
        for row, aspects in enumerate(found):
            value, why = self._value(aspects)
            if why is None:
                values[row] = value
            else:
                failures[row] = why
        return measured(values, failures)

    def _value(self, verdicts: dict[Aspect, AspectVerdict]) -> tuple[float, Failure | None]:
        total = 0.0
        for aspect in (self.aspect,) if self.aspect else ASPECTS:
            verdict = verdicts[aspect]
            if verdict.score is None:
                return 0.0, verdict.failure or Failure("not_finite", f"no {aspect} score")
            total += verdict.score * (1.0 if self.aspect else WEIGHTS[aspect])
        return total, None


def panel_reward(options: RewardOptions) -> JudgeReward:
    """Return the reward ``panel``: the judge of clips of the options' settings file, measured without one."""
    return JudgeReward.for_training(read_settings(options.judge))
