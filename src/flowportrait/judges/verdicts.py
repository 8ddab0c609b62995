"""This module defines the verdict of a judge and the interface of a judge, for clips and for still pictures.

    Verdict (one clip or picture) ─► AspectVerdict (one aspect): score, reasons, flaws, or a failure

``ItemJudge`` is the interface; ``Judge`` is a judge of clips.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeVar

from flowportrait.judges.answers import Flaw
from flowportrait.judges.clips import JudgedClip
from flowportrait.judges.questions import JudgeKind
from flowportrait.judges.rubric import ASPECT_WEIGHTS, Aspect
from flowportrait.rewards.batch import Failure

DecidedBy = Literal["agreement", "reviewer", "measurement", "nobody"]


@dataclass(frozen=True)
class AspectVerdict:
    """The verdict on one aspect of a clip or picture.

    Args:
        aspect: the aspect that was graded.
        score: the grade 1 … 5 after calibration, None if there is none.
        raw_score: the grade before calibration.
        decided_by: how the score was reached.
        samples: the scores of the samples.
        spread: largest minus smallest sample score.
        rationale: the reasons of the sample nearest to the score, or those of the reviewer.
        flaws: the flaws that the same sample reported.
        measured: the values that experts measured, by expert; None for a model.
        failure: why there is no score, or None.
        value: the score as a reward, where a measurement is finer than a grade.
        dimensions: further grades by name.
        artefacts: whether the picture has each artefact, by name; None if that is unknown.
    """

    aspect: Aspect
    score: float | None
    raw_score: float | None
    decided_by: DecidedBy
    samples: tuple[float, ...] = ()
    spread: float = 0.0
    rationale: str = ""
    flaws: tuple[Flaw, ...] = ()
    measured: Mapping[str, float] | None = None
    failure: Failure | None = None
    value: float | None = None
    dimensions: Mapping[str, float] = field(default_factory=dict)
    artefacts: Mapping[str, bool | None] = field(default_factory=dict)

    @property
    def reward(self) -> float | None:
        """The reward: ``value`` if there is one, else ``score``."""
        return self.score if self.value is None else self.value


def missing_verdict(aspect: Aspect, failure: Failure) -> AspectVerdict:
    """Return a verdict without a score, with the failure that explains why."""
    return AspectVerdict(aspect, None, None, "nobody", failure=failure)


@dataclass(frozen=True)
class Verdict:
    """The verdict on one clip or picture.

    Args:
        name: the clip or picture, as reports show it.
        generator: what made it.
        judge: the name of the judge.
        kind: whether a model looked at it or experts measured it.
        aspects: the verdicts by aspect.
    """

    name: str
    generator: str
    judge: str
    kind: JudgeKind
    aspects: dict[Aspect, AspectVerdict]

    @property
    def overall(self) -> float | None:
        """The weighted mean over the aspects of a clip; None if one of them has no score, and for pictures."""
        known = [
            (ASPECT_WEIGHTS[aspect], self.aspects[aspect].score) for aspect in ASPECT_WEIGHTS if aspect in self.aspects
        ]
        scores = [(weight, score) for weight, score in known if score is not None]
        if len(scores) < len(ASPECT_WEIGHTS):
            return None
        return math.fsum(weight * score for weight, score in scores)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for a report."""
        return {
            "file": self.name,
            "generator": self.generator,
            "judge": self.judge,
            "kind": self.kind,
            "overall": self.overall,
            "aspects": {aspect: _to_dict(verdict) for aspect, verdict in self.aspects.items()},
        }


class Judgeable(Protocol):
    """What a judge needs to know of a clip or a picture."""

    @property
    def name(self) -> str:
        """The name in reports."""
        ...

    @property
    def generator(self) -> str:
        """What made it, for reports."""
        ...

    @property
    def digest(self) -> str:
        """A hash of its content."""
        ...

    def validation_error(self) -> Failure | None:
        """Return the reason why it cannot be judged, or None."""
        ...


Item = TypeVar("Item", bound=Judgeable)
Item_contra = TypeVar("Item_contra", contravariant=True)


class ItemJudge(Protocol[Item_contra]):
    """The interface of a judge of clips or of pictures: a panel that asks a model, or experts that measure."""

    @property
    def name(self) -> str:
        """The judge's name in reports."""
        ...

    @property
    def kind(self) -> JudgeKind:
        """Whether a model looks or experts measure."""
        ...

    @property
    def fingerprint(self) -> str:
        """A hash of everything that changes the judge's verdicts; a certificate is valid for one fingerprint."""
        ...

    def judge(self, items: Sequence[Item_contra], aspects: Sequence[Aspect] | None = None, /) -> list[Verdict]:
        """Return one verdict per clip or picture, in order.

        Args:
            items: what is judged.
            aspects: the aspects that are needed, None for all; a judge may return more.
        """
        ...


Judge = ItemJudge[JudgedClip]
"""A judge of clips."""


def _to_dict(verdict: AspectVerdict) -> dict[str, Any]:
    plain: dict[str, Any] = {
        "score": verdict.score,
        "raw": verdict.raw_score,
        "settled_by": verdict.decided_by,
        "samples": list(verdict.samples),
        "spread": verdict.spread,
        "rationale": verdict.rationale,
        "errors": [flaw._asdict() for flaw in verdict.flaws],
        "measured": None if verdict.measured is None else dict(verdict.measured),
        "failure": None if verdict.failure is None else verdict.failure._asdict(),
    }
    if verdict.dimensions or verdict.artefacts:
        plain |= {"dimensions": dict(verdict.dimensions), "artefacts": dict(verdict.artefacts)}
    return plain
