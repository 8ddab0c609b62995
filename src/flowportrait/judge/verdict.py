"""What a panel says about a clip: per aspect a score with its reasons, or why there is none; and who said it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from flowportrait.judge.exhibit import Exhibit
from flowportrait.judge.kind import Kind
from flowportrait.judge.opinion import Flaw
from flowportrait.judge.rubric import ASPECTS, WEIGHTS, Aspect
from flowportrait.reward.batch import Failure

Settled = Literal["agreement", "reviewer", "measurement", "nobody"]


@dataclass(frozen=True)
class Finding:
    """score: 1 … 5 after calibration, None if there is none; raw: before; spread: largest minus smallest sample;
    samples: the samples' scores; settled: by whom; flaws and rationale: of the sample nearest to the score, or the
    reviewer's words; measured: the experts' own figures, where experts were asked."""

    aspect: Aspect
    score: float | None
    raw: float | None
    settled: Settled
    samples: tuple[float, ...] = ()
    spread: float = 0.0
    rationale: str = ""
    flaws: tuple[Flaw, ...] = ()
    measured: Mapping[str, float] | None = None
    failure: Failure | None = None


@dataclass(frozen=True)
class Verdict:
    """One clip. kind says honestly whether a model looked or experts measured."""

    name: str
    generator: str
    judge: str
    kind: Kind
    findings: dict[Aspect, Finding]

    @property
    def overall(self) -> float | None:
        """Weighted mean of the aspects; None if one of them is missing."""
        scores = [self.findings[aspect].score for aspect in ASPECTS]
        known = [score for score in scores if score is not None]
        if len(known) < len(scores):
            return None
        return math.fsum(weight * score for weight, score in zip(WEIGHTS.values(), known, strict=True))

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a report."""
        return {
            "file": self.name,
            "generator": self.generator,
            "judge": self.judge,
            "kind": self.kind,
            "overall": self.overall,
            "aspects": {aspect: _plain(finding) for aspect, finding in self.findings.items()},
        }


class Judge(Protocol):
    """A panel: by server, in this process, or measured."""

    @property
    def name(self) -> str: ...

    @property
    def kind(self) -> Kind: ...

    @property
    def fingerprint(self) -> str:
        """Changes with whatever changes its verdicts: a certificate is for one fingerprint."""
        ...

    def judge(self, exhibits: list[Exhibit]) -> list[Verdict]:
        """One verdict per clip, in order."""
        ...


def missing(aspect: Aspect, failure: Failure) -> Finding:
    """No score, and why."""
    return Finding(aspect, None, None, "nobody", failure=failure)


def _plain(finding: Finding) -> dict[str, Any]:
    return {
        "score": finding.score,
        "raw": finding.raw,
        "settled_by": finding.settled,
        "samples": list(finding.samples),
        "spread": finding.spread,
        "rationale": finding.rationale,
        "errors": [flaw._asdict() for flaw in finding.flaws],
        "measured": None if finding.measured is None else dict(finding.measured),
        "failure": None if finding.failure is None else finding.failure._asdict(),
    }
