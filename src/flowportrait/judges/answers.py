"""What each question may be answered with.

    grade · still grade · review · choice · thoughts · windows · box · rule

An answer is read strictly, nothing is filled in. It may stand in free text, where the server enforces no schema.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, NamedTuple, TypeVar

from flowportrait.judges.replies import (
    Reply,
    describe_value,
    expected_score,
    malformed,
    read_object,
    read_score,
    text_or_empty,
)
from flowportrait.judges.rubric import ASPECTS, HIGHEST, LOWEST, Aspect

MAX_WINDOWS = 3
MAX_RULE_LENGTH = 300
_TIME_TOLERANCE = 0.2
"""Seconds past the end at which an error may still be reported."""
_CHOICE_VALUES = {"first": 1.0, "same": 0.0, "second": -1.0}

Answer_co = TypeVar("Answer_co", covariant=True)
Box = tuple[float, float, float, float]
"""Left, top, right and bottom as shares of the picture."""


@dataclass(frozen=True)
class AnswerFormat(Generic[Answer_co]):
    """The form of an answer: a name, its JSON schema, and the function that reads it from a reply.

    ``read`` raises ``UnusableReply`` for a reply that is no such answer.
    """

    name: str
    schema: dict[str, Any]
    read: Callable[[Reply], Answer_co]


class Flaw(NamedTuple):
    """Something wrong from ``start`` to ``end`` (seconds)."""

    start: float
    end: float
    what: str


@dataclass(frozen=True)
class Grade:
    """One sample's grade.

    Args:
        score: 1 … 5; its expectation where log-probabilities allow, else the written score.
        written_score: the score as it stands in the reply.
        from_logprobs: whether ``score`` is the expectation.
        rationale: the reasons in words.
        flaws: reported errors with their times.
        dimensions: further grades by name; None if the reply has none.
        artefacts: name to severity 1 … 3; None if the reply has no list.
        unknown_artefacts: reported artefacts that the catalogue does not have.
    """

    score: float
    written_score: float
    from_logprobs: bool
    rationale: str
    flaws: tuple[Flaw, ...] = ()
    dimensions: dict[str, float] | None = None
    artefacts: dict[str, int] | None = None
    unknown_artefacts: int = 0


def _schema(**properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


def _list_of(**properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": _schema(**properties)}


_TEXT: dict[str, Any] = {"type": "string"}
_NUMBER: dict[str, Any] = {"type": "number"}
_GRADE: dict[str, Any] = {"type": "number", "minimum": LOWEST, "maximum": HIGHEST}
_FLAWS = _list_of(start=_NUMBER, end=_NUMBER, what=_TEXT)


def grade_format(seconds: float) -> AnswerFormat[Grade]:
    """The grade of a clip of ``seconds``, with errors at their times."""
    schema = _schema(rationale=_TEXT, errors=_FLAWS, score=_GRADE)
    return AnswerFormat("grade", schema, partial(read_grade, seconds=seconds))


def read_grade(reply: Reply, seconds: float) -> Grade:
    """Read the grade of a clip of ``seconds``.

    Raises:
        UnusableReply: refused, cut off, not the asked-for JSON, or a score outside 1 … 5.
    """
    found = read_object(reply)
    score = _read_score(found, reply)
    rationale = found.get("rationale")
    if not isinstance(rationale, str) or not rationale.strip():
        raise malformed("no rationale")
    return Grade(*score, rationale.strip(), read_flaws(found.get("errors", []), seconds))


def still_grade_format(dimensions: Sequence[str] = (), artefacts: Collection[str] = ()) -> AnswerFormat[Grade]:
    """The grade of a still picture, with grades of its ``dimensions`` or a list of its ``artefacts``."""
    severity = {"type": "integer", "minimum": 1, "maximum": 3}
    parts = (
        {"dimensions": _schema(**dict.fromkeys(dimensions, _GRADE))}
        if dimensions
        else {"artefacts": _list_of(type=_TEXT | {"enum": sorted(artefacts)}, where=_TEXT, severity=severity)}
    )
    read = partial(read_still_grade, dimensions=dimensions, artefacts=artefacts)
    return AnswerFormat("still_grade", _schema(rationale=_TEXT, **parts, score=_GRADE), read)


def read_still_grade(reply: Reply, dimensions: Sequence[str] = (), artefacts: Collection[str] = ()) -> Grade:
    """Read the grade of a still picture.

    Raises:
        UnusableReply: as in ``read_grade``, or a severity outside 1 … 3.
    """
    found = read_object(reply)
    score, rationale = _read_score(found, reply), text_or_empty(found.get("rationale"))
    if dimensions:
        reported = found.get("dimensions")
        if reported is not None and not isinstance(reported, dict):
            raise malformed("dimensions is not an object")
        grades = None if reported is None else {name: read_score(reported.get(name), name) for name in dimensions}
        return Grade(*score, rationale, dimensions=grades)
    severities, unknown = _read_artefacts(found.get("artefacts"), artefacts)
    return Grade(*score, rationale, artefacts=severities, unknown_artefacts=unknown)


def review_format(disputed: dict[Aspect, Sequence[Grade]]) -> AnswerFormat[tuple[dict[Aspect, float], str]]:
    """A reviewer's scores of disputed aspects, each between the lowest and the highest of the specialists'."""

    def read(reply: Reply) -> tuple[dict[Aspect, float], str]:
        scores, rationale = read_review(reply, tuple(disputed))
        for aspect, score in scores.items():
            written = [grade.written_score for grade in disputed[aspect]]
            if not min(written) <= score <= max(written):
                between = f"{min(written):g} … {max(written):g}"
                raise malformed(f"the review's {aspect} {score:g} is not in {between}")
        return scores, rationale

    return AnswerFormat("review", _schema(rationale=_TEXT, scores=_schema(**dict.fromkeys(disputed, _GRADE))), read)


def read_review(reply: Reply, disputed: tuple[Aspect, ...]) -> tuple[dict[Aspect, float], str]:
    """Read the reviewer's scores of the disputed aspects and its reasons.

    Raises:
        UnusableReply: as in ``read_grade``, or an aspect is missing.
    """
    found = read_object(reply)
    scores = found.get("scores")
    if not isinstance(scores, dict):
        raise malformed("no scores")
    graded: dict[Aspect, float] = {a: read_score(scores.get(a), a) for a in ASPECTS if a in disputed}
    return graded, text_or_empty(found.get("rationale"))


def read_choice(reply: Reply) -> tuple[float, str]:
    """Read which of two clips is better: 1 for the first, −1 for the second, 0 for neither; and the reasons.

    Raises:
        UnusableReply: no such answer.
    """
    found = read_object(reply, ("better",))
    better, rationale = text_or_empty(found["better"]), text_or_empty(found.get("rationale"))
    if better not in _CHOICE_VALUES or not rationale:
        value = describe_value(found["better"])
        raise malformed(f"better is {value}, not first, second or same with a rationale")
    return _CHOICE_VALUES[better], rationale


def read_thoughts(reply: Reply) -> str:
    """Read what was noted before grading.

    Raises:
        UnusableReply: no thoughts.
    """
    thoughts = read_object(reply, ("thoughts",))["thoughts"]
    if not isinstance(thoughts, str) or not thoughts.strip():
        raise malformed("no thoughts")
    return thoughts.strip()


def read_windows(reply: Reply, seconds: float) -> tuple[Flaw, ...]:
    """Read the worst moments of a clip of ``seconds``; times that the clip does not have are left out.

    Raises:
        UnusableReply: no list of start, end and what.
    """
    return read_flaws(read_object(reply, ("windows",))["windows"], seconds)[:MAX_WINDOWS]


def read_box(reply: Reply) -> Box | None:
    """Read where a flaw was seen, None if it was not.

    Raises:
        UnusableReply: neither.
    """
    found = read_object(reply, ("seen",))
    if found["seen"] is False:
        return None
    box = found.get("box")
    if found["seen"] is not True or not isinstance(box, list) or len(box) != 4:
        raise malformed("no seen and box")
    try:
        left, top, right, bottom = (float(side) for side in box)
    except (TypeError, ValueError, OverflowError) as error:
        raise malformed(f"no box: {describe_value(box)}") from error
    if not (0 <= left < right <= 1 and 0 <= top < bottom <= 1):
        raise malformed(f"no box: {describe_value(box)}")
    return left, top, right, bottom


def read_rule(reply: Reply, entries: int) -> tuple[str, int | None]:
    """Read a rule, and the number of the one of ``entries`` rules that it replaces.

    Raises:
        UnusableReply: no rule, or a number that there is not.
    """
    found = read_object(reply, ("rule",))
    rule, replaces = found["rule"], found.get("replaces")
    if not isinstance(rule, str) or not rule.strip() or len(rule) > MAX_RULE_LENGTH:
        raise malformed(f"no rule of at most {MAX_RULE_LENGTH} letters")
    if replaces is not None and (type(replaces) is not int or not 0 <= replaces < entries):
        raise malformed(f"replaces is {describe_value(replaces)}, no number of a rule")
    return rule.strip(), replaces


CHOICE = AnswerFormat(
    "choice", _schema(rationale=_TEXT, better=_TEXT | {"enum": list(_CHOICE_VALUES)}), read_choice
)  # fmt: skip
THOUGHTS = AnswerFormat("thoughts", _schema(thoughts=_TEXT), read_thoughts)
BOX = AnswerFormat("box", _schema(seen={"type": "boolean"}, box={"type": "array", "items": _NUMBER}), read_box)


def windows_format(seconds: float) -> AnswerFormat[tuple[Flaw, ...]]:
    """The worst moments of a clip of ``seconds``."""
    return AnswerFormat("windows", _schema(windows=_FLAWS), partial(read_windows, seconds=seconds))


def rule_format(entries: int) -> AnswerFormat[tuple[str, int | None]]:
    """A rule for a rubric that has ``entries`` rules so far."""
    schema = _schema(rule=_TEXT, replaces={"type": ["integer", "null"]})
    return AnswerFormat("rule", schema, partial(read_rule, entries=entries))


def _read_score(found: dict[str, Any], reply: Reply) -> tuple[float, float, bool]:
    """Return the score, the written score, and whether the first is an expectation."""
    written = read_score(found.get("score"), "score")
    expected = expected_score(reply.tokens, written)
    return written if expected is None else expected, written, expected is not None


def read_flaws(reported: Any, seconds: float) -> tuple[Flaw, ...]:
    """Return the reported errors of a clip of ``seconds``, but for those at times that it does not have.

    Raises:
        UnusableReply: no list of start, end and what.
    """
    if not isinstance(reported, list):
        raise malformed("errors is not a list")
    flaws = []
    for item in reported:
        try:
            start, end, what = float(item["start"]), float(item["end"]), item["what"]
        except (TypeError, KeyError, ValueError, OverflowError) as error:
            raise malformed(f"an error without start, end and what: {describe_value(item)}") from error
        if 0 <= start <= end <= seconds + _TIME_TOLERANCE:
            flaws.append(Flaw(start, end, text_or_empty(what) or describe_value(what)))
    return tuple(flaws)


def _read_artefacts(reported: Any, catalogue: Collection[str]) -> tuple[dict[str, int] | None, int]:
    """Return name to severity, and how many of the reported artefacts the catalogue does not have."""
    if reported is None:
        return None, 0
    if not isinstance(reported, list):
        raise malformed("artefacts is not a list")
    severities: dict[str, int] = {}
    unknown = 0
    for item in reported:
        try:
            name, severity = str(item["type"]), int(item["severity"])
        except (TypeError, KeyError, ValueError, OverflowError, RecursionError) as error:
            raise malformed(f"an artefact without type and severity: {describe_value(item)}") from error
        if not 1 <= severity <= 3:
            raise malformed(f"severity {severity} is outside 1 … 3")
        if name in catalogue:
            severities[name] = max(severity, severities.get(name, 0))
        else:
            unknown += 1
    return severities, unknown
