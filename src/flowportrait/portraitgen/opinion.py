"""A judge's reply about a still portrait, read strictly: nothing is filled in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from flowportrait.judge.opinion import Reply, Unusable, describe_value, expectation, number, read_object, text_or_empty
from flowportrait.portraitgen.artefacts import BY_NAME
from flowportrait.portraitgen.rubric import DIMENSIONS, RubricName
from flowportrait.reward.batch import Failure


@dataclass(frozen=True)
class StillOpinion:
    """score 1 … 5 (its expectation where log-probabilities allow); dimensions of OmniReward; artefacts of AI-Portrait:
    name to severity 1 … 3; None for either where the reply has only a score; unknown: reported artefacts that the list
    does not have."""

    score: float
    rationale: str
    dimensions: dict[str, float] | None = None
    artefacts: dict[str, int] | None = None
    unknown: int = 0


def read_still(reply: Reply, rubric: RubricName) -> StillOpinion:
    """The opinion in a reply.

    Raises:
        Unusable: refused, cut off, not the asked-for JSON, a grade outside 1 … 5 or a severity outside 1 … 3.
    """
    found = read_object(reply)
    written = number(found.get("score"), "score")
    expected = expectation(reply.tokens, written)
    score = written if expected is None else expected
    rationale = text_or_empty(found.get("rationale"))
    if rubric == "omni_reward":
        return StillOpinion(score, rationale, dimensions=_dimensions(found.get("dimensions")))
    named, unknown = _artefacts(found.get("artefacts"))
    return StillOpinion(score, rationale, artefacts=named, unknown=unknown)


def _dimensions(reported: Any) -> dict[str, float] | None:
    if reported is None:
        return None
    if not isinstance(reported, dict):
        raise Unusable(Failure("malformed", "dimensions is not an object"))
    return {name: number(reported.get(name), name) for name in DIMENSIONS}


def _artefacts(reported: Any) -> tuple[dict[str, int] | None, int]:
    if reported is None:
        return None, 0
    if not isinstance(reported, list):
        raise Unusable(Failure("malformed", "artefacts is not a list"))
    named: dict[str, int] = {}
    unknown = 0
    for item in reported:
        try:
            kind, severity = str(item["type"]), int(item["severity"])
        except (TypeError, KeyError, ValueError, OverflowError, RecursionError) as error:
            said = describe_value(item)
            raise Unusable(Failure("malformed", f"an artefact without type and severity: {said}")) from error
        if not 1 <= severity <= 3:
            raise Unusable(Failure("malformed", f"severity {severity} is outside 1 … 3"))
        if kind in BY_NAME:
            named[kind] = max(severity, named.get(kind, 0))
        else:
            unknown += 1
    return named, unknown
