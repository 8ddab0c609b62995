"""This module builds a judge of clips from settings, writes reports of graded files, and makes a judge a reward.

    build_judge(JudgeSettings())                                            the measured panel
    build_judge(override(JudgeSettings(), ["by=server", "endpoint.model=Qwen3-Omni"]))
    build_judge(override(JudgeSettings(), ["by=my_package.judges:MyJudge"]))

A custom judge is a class or function that takes the settings and returns an ``ItemJudge``; it is named as MODULE:NAME
or by an entry point of the group ``flowportrait.judges``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from statistics import fmean
from typing import Any, Literal, Protocol, runtime_checkable

import torch

from flowportrait.config import at_least, load
from flowportrait.errors import BadInput
from flowportrait.files import shipped_weights, write_json
from flowportrait.judges.calibration import Calibration
from flowportrait.judges.clips import JudgedClip, clips_from_batch
from flowportrait.judges.local_model import OmniSettings
from flowportrait.judges.messages import Endpoint
from flowportrait.judges.methods import ComparingPanel, LocatingPanel, PairJudge, ThinkingPanel
from flowportrait.judges.panel import Panel, PanelSettings
from flowportrait.judges.questions import Backend, Ledger, ReplyCache, judge_cache_folder
from flowportrait.judges.rubric import (
    ASPECT_WEIGHTS,
    CLIP_ASPECTS,
    HIGHEST_GRADE,
    LOWEST_GRADE,
    Aspect,
    RubricLibrary,
    rubric_version,
)
from flowportrait.judges.sanity import require_certificate
from flowportrait.judges.verdicts import AspectVerdict, Judge
from flowportrait.plugins import is_reference, load_plugin, plugin_names
from flowportrait.rewards.batch import Failure, RewardBatch
from flowportrait.rewards.interface import Score, score_with_failures
from flowportrait.rewards.registry import RewardOptions
from flowportrait.rewards.relative import PairwiseWinReward
from flowportrait.terminal import progress

PANEL_METHODS: dict[str, type[Panel[JudgedClip]]] = {
    "panel": Panel, "think": ThinkingPanel, "locate": LocatingPanel, "compare": ComparingPanel,
}  # fmt: skip
"""The panel of each method of a model."""
BUILT_IN_JUDGES = ("measured", "server", "omni")
"""The values of ``JudgeSettings.by`` that need no plugin."""
FILES_IN_MEMORY = 8
"""Number of clips that ``grade_files`` reads at once."""


@dataclass(frozen=True)
class JudgeSettings:
    """The settings of a judge of clips or stills."""

    by: str = "measured"
    """Who judges: ``measured`` (experts that measure), ``server`` (a model on a server), ``omni`` (a model in this
    process), or a judge that another package adds, by name or as MODULE:NAME."""
    method: Literal["panel", "think", "locate", "compare"] = "panel"
    """How a model grades: without preparation (``panel``), after writing down what it sees (``think``), or after
    locating flaws (``locate``). ``compare`` grades like ``panel``, and looks at both clips of a pair."""
    panel: PanelSettings = field(default_factory=PanelSettings)
    """The panel of a model."""
    endpoint: Endpoint = field(default_factory=Endpoint)
    """The server, for ``by=server``."""
    omni: OmniSettings = field(default_factory=OmniSettings)
    """The model in this process, for ``by=omni``."""
    pose: bool = False
    """Cap the grade of motion where a head bends or turns in an impossible way."""
    library: Path | None = None
    """A rubric library that ``flowportrait judge learn`` wrote."""
    calibration: Path | None = None
    """A calibration that ``flowportrait judge calibrate`` wrote."""
    noise: float = 0.0
    """Standard deviation of the overall score when the same clip is judged again; the judge as a reward does not
    distinguish samples of one group that differ by less."""
    folder: Path | None = None
    """Folder of cached answers, ledger and certificates; in the user's cache by default."""

    def __post_init__(self) -> None:
        at_least(self, noise=0)

    @property
    def storage_folder(self) -> Path:
        """The folder of cached answers, ledger and certificates."""
        return self.folder or judge_cache_folder()


def build_judge(settings: JudgeSettings | None = None) -> Judge:
    """Return the judge of clips that ``settings`` describe.

    Args:
        settings: the kind of judge and its options; by default the measured panel, which needs no model.

    Raises:
        BadInput: a model, address or calibration cannot be used, or no judge has this name.
    """
    settings = settings or JudgeSettings()
    judge = build_judge_with_library(
        settings, RubricLibrary.load(settings.library) if settings.library else RubricLibrary()
    )
    if not settings.pose:
        return judge
    from flowportrait.judges.measured_panel import PoseCappedJudge

    return PoseCappedJudge(judge)


def build_judge_with_library(settings: JudgeSettings, library: RubricLibrary, backend: Backend | None = None) -> Judge:
    """Return the judge of clips with a library of rules or experts, without the check of head poses.

    Args:
        settings: which judge; its own ``library`` is not read.
        library: the rules or experts.
        backend: a loaded model, for ``by=server`` and ``by=omni``; loaded by default.

    Raises:
        BadInput: as for ``build_judge``.
    """
    if settings.by not in BUILT_IN_JUDGES:
        return build_plugin_judge(settings, "clips")
    calibration = Calibration.load(settings.calibration) if settings.calibration else None
    if settings.by == "measured":
        from flowportrait.judges.measured_panel import Experts, MeasuredPanel

        return MeasuredPanel(Experts.load().with_library(library), calibration)
    cache = ReplyCache(settings.storage_folder / "answers")
    return PANEL_METHODS[settings.method](
        backend or build_judge_backend(settings), settings.panel, cache, calibration, library
    )


def build_plugin_judge(settings: JudgeSettings, items: Literal["clips", "stills"]) -> Any:
    """Return the judge that another package or script provides.

    Args:
        settings: ``by`` is the judge's name.
        items: what it has to judge; a judge of stills states that in an attribute ``items``.

    Raises:
        BadInput: no judge has this name, or it judges other items.
    """
    added = plugin_names("judges")
    if settings.by not in added and not is_reference(settings.by):
        choices = ", ".join([*BUILT_IN_JUDGES, *added])
        raise BadInput(f"by={settings.by} is not possible: choose one of {choices}, or give MODULE:NAME.")
    judge = load_plugin("judges", settings.by)(settings)
    subject = getattr(judge, "items", "clips")
    if subject != items:
        raise BadInput(f"The judge {settings.by!r} grades {subject}, not {items}: choose another with by=NAME.")
    return judge


def build_judge_backend(settings: JudgeSettings) -> Backend:
    """Return the model on a server or in this process.

    Raises:
        BadInput: the model cannot be used, or ``settings`` name none.
    """
    if settings.by == "server":
        from flowportrait.judges.client import ChatClient

        return ChatClient(settings.endpoint, Ledger(settings.storage_folder / "ledger.jsonl"))
    if settings.by == "omni":
        from flowportrait.judges.local_model import OmniBackend

        return OmniBackend.from_pretrained(settings.omni)
    raise BadInput(f"The judge {settings.by!r} has no model: set by=server or by=omni.")


def certificate_folders(settings: JudgeSettings) -> list[Path]:
    """Return the folders that hold certificates: the user's, and that of the package."""

    return [settings.storage_folder / "checked", shipped_weights("judge/checked")]


def read_judge_settings(path: Path | None) -> JudgeSettings:
    """Return the judge settings in a file; without a file those of the measured panel.

    Raises:
        BadInput: the file cannot be read.
    """
    return JudgeSettings() if path is None else load(JudgeSettings, path)


# --- Reports of graded files


def grade_files(judge: Judge, paths: Sequence[Path], generators: Sequence[str] = ()) -> dict[str, Any]:
    """Grade video files and return a report.

    With a server, every answer is cached when it arrives, and the report has the cost.

    Args:
        judge: the judge.
        paths: the video files.
        generators: what made each file, for reports; by default the names of the files' folders.

    Raises:
        BadInput: a file cannot be read.
    """
    generators = list(generators) or [path.parent.name for path in paths]
    ledger: Ledger | None = getattr(getattr(judge, "backend", None), "ledger", None)
    first_entry = len(ledger.entries) if ledger else 0
    verdicts = []
    for first in progress(range(0, len(paths), FILES_IN_MEMORY), -(-len(paths) // FILES_IN_MEMORY), "judging"):
        chunk = zip(paths[first : first + FILES_IN_MEMORY], generators[first : first + FILES_IN_MEMORY], strict=True)
        verdicts += judge.judge([JudgedClip.from_video(path, generator) for path, generator in chunk])
    summary: dict[str, Any] = {"judge": f"{judge.name} ({judge.kind})", "files": len(paths)}
    for aspect in CLIP_ASPECTS:
        scores = [score for verdict in verdicts if (score := verdict.aspects[aspect].score) is not None]
        summary[aspect] = round(fmean(scores), 3) if scores else None
        summary[f"{aspect}_without_score"] = len(verdicts) - len(scores)
    report: dict[str, Any] = {
        "judge": judge.name, "kind": judge.kind, "fingerprint": judge.fingerprint, "rubric": rubric_version(),
        "summary": summary, "verdicts": [verdict.to_dict() for verdict in verdicts],
    }  # fmt: skip
    if ledger is not None:
        spent = ledger.totals(first_entry)
        report["cost"] = {name: spent[name] for name in ("requests", "tokens_in", "tokens_out", "untold", "dollars")}
        summary["requests"], summary["dollars"] = report["cost"]["requests"], report["cost"]["dollars"]
    return report


def write_judge_report(report: dict[str, Any], path: Path) -> None:
    """Write a report as JSON; an existing file is replaced only when the new one is complete."""
    write_json(path, report)


def read_judge_report(path: Path) -> dict[str, Any]:
    """Read a report of graded files.

    Raises:
        BadInput: the file cannot be read or is not a report.
    """
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        scores_before_calibration(report)
        str(report["judge"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadInput(f"{path} is no report of judge score ({type(error).__name__}): make one first.") from error
    return report


def scores_before_calibration(report: dict[str, Any]) -> dict[str, dict[Aspect, float | None]]:
    """Return the scores of a report before calibration, by file and aspect."""
    return {
        verdict["file"]: {aspect: verdict["aspects"][aspect]["raw"] for aspect in CLIP_ASPECTS}
        for verdict in report["verdicts"]
    }


# --- The judge as a reward


@runtime_checkable
class BatchJudge(Protocol):
    """The interface of a judge that grades a batch of rewards without rendering every frame."""

    def measure(self, batch: RewardBatch, silent: Sequence[bool]) -> list[dict[Aspect, AspectVerdict]]:
        """Return the verdicts on every row.

        Args:
            batch: the samples.
            silent: for every row whether it has no sound to be judged.
        """
        ...


@dataclass(frozen=True)
class JudgeReward:
    """A reward from a judge: its overall score of a clip, or its score on one aspect.

        value = Σ_aspect w_aspect · score_aspect,   1 … 5       invalid, with the reason, if the judge gives no score

    A measured panel reads motion and a few frames; other judges look at every frame and listen. A recipe uses it by
    ``--set rewards.judge_by=panel``, with ``rewards.options.judge=FILE`` for a judge on a server or in this process.

    Args:
        judge: the judge.
        aspect: the aspect that is the reward; None for the weighted mean of all.
        name: name of the reward.
        retries: number of retries of a failed score.
        noise: standard deviation of the score when the same clip is judged again.
        range: least and largest value.
    """

    judge: Judge
    aspect: Aspect | None = None
    name: str = "panel"
    retries: int = 0
    noise: float = 0.0
    range: tuple[float, float] = (float(LOWEST_GRADE), float(HIGHEST_GRADE))

    @classmethod
    def for_training(cls, settings: JudgeSettings | None = None, aspect: Aspect | None = None) -> JudgeReward:
        """Return the reward of a judge that has passed the sanity set.

        Raises:
            BadInput: the judge has not passed it, or cannot be built.
        """
        settings = settings or JudgeSettings()
        judge = build_judge(settings)
        require_certificate(judge, certificate_folders(settings))
        return cls(judge, aspect, noise=settings.noise)

    @property
    def needs(self) -> frozenset[str]:
        """The parts of a batch that the judge reads."""
        if isinstance(self.judge, BatchJudge):
            return frozenset({"motion", "mel", "frames", "places"})
        return frozenset({"frames", "audio"})

    def __call__(self, batch: RewardBatch) -> Score:
        """Score every sample of the batch."""
        if isinstance(self.judge, BatchJudge):
            found = self.judge.measure(batch, [False] * len(batch))
        else:
            found = [verdict.aspects for verdict in self.judge.judge(clips_from_batch(batch))]
        values, failures = torch.full((len(batch),), torch.nan), {}
        for row, aspects in enumerate(found):
            value, failure = self._value(aspects)
            if failure is None:
                values[row] = value
            else:
                failures[row] = failure
        return score_with_failures(values, failures)

    def _value(self, verdicts: dict[Aspect, AspectVerdict]) -> tuple[float, Failure | None]:
        total = 0.0
        for aspect in (self.aspect,) if self.aspect else CLIP_ASPECTS:
            verdict = verdicts[aspect]
            if verdict.score is None:
                return 0.0, verdict.failure or Failure("not_finite", f"no {aspect} score")
            total += verdict.score * (1.0 if self.aspect else ASPECT_WEIGHTS[aspect])
        return total, None


def panel_reward(options: RewardOptions) -> JudgeReward:
    """Return the reward ``panel``: the judge in the options' settings file, without a file the measured panel."""
    return JudgeReward.for_training(read_judge_settings(options.judge))


@dataclass
class PairPreference:
    """The probability that a judge prefers one clip of a batch to another, both shown together in both orders.

        P(a is better than b) = (1 + Σ_aspect w_aspect · margin_aspect(a, b)) / 2,     margins from −1 to 1

    All pairs of a batch are asked about at once, when the first is needed. Pairs of which the judge settles no aspect
    have no probability (NaN); of other pairs the settled aspects count.
    """

    judge: PairJudge
    batch: RewardBatch | None = None
    probabilities: dict[tuple[int, int], float] = field(default_factory=dict)

    def __call__(self, batch: RewardBatch, a: int, b: int) -> float:
        """Return the probability that row ``a`` of the batch is better than row ``b``, for a < b of one group."""
        if self.batch is not batch:
            assert batch.group is not None
            clips, group = clips_from_batch(batch), batch.group.tolist()
            rows = [(one, other) for one, other in combinations(range(len(batch)), 2) if group[one] == group[other]]
            choices = self.judge.compare([(clips[one], clips[other]) for one, other in rows])
            settled = [
                [(ASPECT_WEIGHTS[aspect], choice.margin) for aspect, choice in found.items()] for found in choices
            ]
            self.batch, self.probabilities = batch, dict(zip(rows, map(_probability, settled), strict=True))
        return self.probabilities[a, b]


def _probability(margins: Sequence[tuple[float, float | None]]) -> float:
    """Return the probability of the first clip from weights and margins of aspects; a margin of None does not count."""
    known = [(weight, margin) for weight, margin in margins if margin is not None]
    if not known:
        return math.nan
    return (1 + sum(weight * margin for weight, margin in known) / sum(weight for weight, _ in known)) / 2


def pairwise_reward(options: RewardOptions) -> PairwiseWinReward:
    """Return the reward ``pairwise``: the share of the samples of its group that a judge prefers a sample to.

    Raises:
        BadInput: the judge in the options' settings file does not look at two clips together.
    """
    settings = read_judge_settings(options.judge)
    judge = build_judge(settings)
    if not isinstance(judge, PairJudge):
        raise BadInput(
            f"The reward pairwise asks about two clips at once, and the {judge.name} grades one at a time: set "
            "rewards.options.judge to the settings of a judge with method=compare, or compare grades with "
            "rewards.judge_by=measured and credit.win_rate=all."
        )
    require_certificate(judge, certificate_folders(settings))
    return PairwiseWinReward(PairPreference(judge), "pairwise", frozenset({"frames", "audio", "group"}))
