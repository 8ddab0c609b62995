"""Verdicts on clips and stills."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeVar

from flowportrait.judges.answers import Flaw
from flowportrait.judges.clips import JudgedClip
from flowportrait.judges.questions import Kind
from flowportrait.judges.rubric import WEIGHTS, Aspect
from flowportrait.rewards.batch import Failure

DecidedBy = Literal["agreement", "reviewer", "measurement", "nobody"]


@dataclass(frozen=True)
class AspectVerdict:
    """The verdict on one aspect.

    Args:
        aspect: what was graded.
        score: 1 … 5 after calibration, None if there is none.
        raw_score: before calibration.
        decided_by: how the score came about.
        samples: the scores of the samples.
        spread: largest minus smallest sample.
        rationale: of the sample nearest to the score, or the reviewer's words.
        flaws: of the same sample.
        measured: the experts' own values, where experts were asked.
        failure: why there is no score.
        value: the score as a reward, where a measurement says more than a grade.
        dimensions: further grades by name.
        artefacts: name to whether a picture has it, None where nobody could tell.
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
        """The value where there is one, else the score."""
        return self.score if self.value is None else self.value


def missing_verdict(aspect: Aspect, failure: Failure) -> AspectVerdict:
    """Return a verdict without a score, and why."""
    return AspectVerdict(aspect, None, None, "nobody", failure=failure)


@dataclass(frozen=True)
class Verdict:
    """The verdict on one clip or picture. ``kind`` says honestly whether a model looked or experts measured."""

    name: str
    generator: str
    judge: str
    kind: Kind
    aspects: dict[Aspect, AspectVerdict]

    @property
    def overall(self) -> float | None:
        """Weighted mean of the aspects of a clip; None if one of them has no score, and for pictures."""
        known = [(WEIGHTS[aspect], self.aspects[aspect].score) for aspect in WEIGHTS if aspect in self.aspects]
        scores = [(weight, score) for weight, score in known if score is not None]
        if len(scores) < len(WEIGHTS):
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
    """A clip or a picture."""

    @property
    def name(self) -> str: ...

    @property
    def generator(self) -> str: ...

    @property
    def digest(self) -> str: ...

    def validation_error(self) -> Failure | None:
        """Return why it cannot be judged, or None."""
        ...


Item = TypeVar("Item", bound=Judgeable)
Item_contra = TypeVar("Item_contra", contravariant=True)


class ItemJudge(Protocol[Item_contra]):
    """A judge of clips or of pictures: a panel of a model, or experts that measure."""

    @property
    def name(self) -> str: ...

    @property
    def kind(self) -> Kind: ...

    @property
    def fingerprint(self) -> str:
        """Changes with whatever changes its verdicts: a certificate is for one fingerprint."""
        ...

    def judge(self, items: Sequence[Item_contra], aspects: Sequence[Aspect] | None = None, /) -> list[Verdict]:
        """Return one verdict per clip or picture, in order; on these aspects only, where a judge can do less."""
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
