"""This module defines the forms of answers: for every kind of question a JSON schema and a function that reads a reply.

    grade · still grade · review · choice · thoughts · windows · box · rule

An answer is read strictly and missing parts are not filled in. The JSON object may be surrounded by free text, for
servers that do not enforce a schema. Every ``read_…`` function raises ``UnusableReply`` for a reply that is not the
answer; the ``…_format`` functions and ``CHOICE_FORMAT``, ``THOUGHTS_FORMAT`` and ``BOX_FORMAT`` are the forms.
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
    malformed_reply,
    read_object,
    read_score,
    text_or_empty,
)
from flowportrait.judges.rubric import CLIP_ASPECTS, HIGHEST_GRADE, LOWEST_GRADE, Aspect

MAX_WINDOWS = 3
MAX_RULE_LENGTH = 300
_TIME_TOLERANCE = 0.2
"""Seconds by which a reported error may end after the end of the clip."""
_CHOICE_VALUES = {"first": 1.0, "same": 0.0, "second": -1.0}

Answer_co = TypeVar("Answer_co", covariant=True)
Box = tuple[float, float, float, float]
"""Left, top, right and bottom of a box as fractions of the picture's width and height."""


@dataclass(frozen=True)
class AnswerFormat(Generic[Answer_co]):
    """The form of an answer: a name, its JSON schema, and the function that reads it from a reply.

    ``read`` raises ``UnusableReply`` for a reply that is no such answer.
    """

    name: str
    schema: dict[str, Any]
    read: Callable[[Reply], Answer_co]


class Flaw(NamedTuple):
    """A flaw of a clip from ``start`` to ``end`` (seconds), described by ``what``."""

    start: float
    end: float
    what: str


@dataclass(frozen=True)
class Grade:
    """The grade that one sample of a specialist gives.

    Args:
        score: the grade 1 … 5: its expectation if there are log-probabilities, else the written score.
        written_score: the score in the text of the reply.
        from_logprobs: whether ``score`` is the expectation.
        rationale: the reasons.
        flaws: the reported errors with their times.
        dimensions: further grades by name; None if the reply has none.
        artefacts: severities 1 … 3 by the name of the artefact; None if the reply has no list.
        unknown_artefacts: number of reported artefacts that are not in the catalogue.
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
_GRADE: dict[str, Any] = {"type": "integer", "minimum": LOWEST_GRADE, "maximum": HIGHEST_GRADE}
"""A whole grade: only digits have an expectation, and servers enforce the bounds of integers (llama.cpp ignores those
of numbers). A written grade such as 3.5 is read all the same."""
_SETTLED: dict[str, Any] = _GRADE | {"type": "number"}
"""A reviewer's score, which may lie between two grades."""
_FLAWS = _list_of(start=_NUMBER, end=_NUMBER, what=_TEXT)


def grade_format(seconds: float) -> AnswerFormat[Grade]:
    """Return the form of a clip's grade: reasons, errors with their times, and a score.

    Args:
        seconds: length of the clip.
    """
    schema = _schema(rationale=_TEXT, errors=_FLAWS, score=_GRADE)
    return AnswerFormat("grade", schema, partial(read_grade, seconds=seconds))


def read_grade(reply: Reply, seconds: float) -> Grade:
    """Read the grade of a clip that lasts ``seconds``.

    Raises:
        UnusableReply: the reply was refused, cut off, is not the asked-for JSON, or has a score outside 1 … 5.
    """
    found = read_object(reply)
    score = _read_score(found, reply)
    rationale = found.get("rationale")
    if not isinstance(rationale, str) or not rationale.strip():
        raise malformed_reply("no rationale")
    return Grade(*score, rationale.strip(), read_flaws(found.get("errors", []), seconds))


def still_grade_format(dimensions: Sequence[str] = (), artefacts: Collection[str] = ()) -> AnswerFormat[Grade]:
    """Return the form of a still picture's grade.

    Args:
        dimensions: names of further grades.
        artefacts: names that the list of artefacts may contain, if there are no ``dimensions``.
    """
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
        UnusableReply: as for ``read_grade``, or a severity is outside 1 … 3.
    """
    found = read_object(reply)
    score, rationale = _read_score(found, reply), text_or_empty(found.get("rationale"))
    if dimensions:
        reported = found.get("dimensions")
        if reported is not None and not isinstance(reported, dict):
            raise malformed_reply("dimensions is not an object")
        grades = None if reported is None else {name: read_score(reported.get(name), name) for name in dimensions}
        return Grade(*score, rationale, dimensions=grades)
    severities, unknown = _read_artefacts(found.get("artefacts"), artefacts)
    return Grade(*score, rationale, artefacts=severities, unknown_artefacts=unknown)


def review_format(disputed: dict[Aspect, Sequence[Grade]]) -> AnswerFormat[tuple[dict[Aspect, float], str]]:
    """Return the form of a review: the scores of disputed aspects, and the reasons.

    Each score has to lie between the lowest and the highest that the specialists wrote.

    Args:
        disputed: the specialists' grades by aspect.
    """

    def read(reply: Reply) -> tuple[dict[Aspect, float], str]:
        scores, rationale = read_review(reply, tuple(disputed))
        for aspect, score in scores.items():
            written = [grade.written_score for grade in disputed[aspect]]
            if not min(written) <= score <= max(written):
                between = f"{min(written):g} … {max(written):g}"
                raise malformed_reply(f"the review's {aspect} {score:g} is not in {between}")
        return scores, rationale

    return AnswerFormat("review", _schema(rationale=_TEXT, scores=_schema(**dict.fromkeys(disputed, _SETTLED))), read)


def read_review(reply: Reply, disputed: tuple[Aspect, ...]) -> tuple[dict[Aspect, float], str]:
    """Read the reviewer's scores of the disputed aspects and its reasons.

    Raises:
        UnusableReply: as for ``read_grade``, or an aspect is missing.
    """
    found = read_object(reply)
    scores = found.get("scores")
    if not isinstance(scores, dict):
        raise malformed_reply("no scores")
    graded: dict[Aspect, float] = {a: read_score(scores.get(a), a) for a in CLIP_ASPECTS if a in disputed}
    return graded, text_or_empty(found.get("rationale"))


def read_choice(reply: Reply) -> tuple[float, str]:
    """Read which of two clips is better: 1 for the first, −1 for the second, 0 for neither; and the reasons.

    Raises:
        UnusableReply: the choice is missing or unknown, or there are no reasons.
    """
    found = read_object(reply, ("better",))
    better, rationale = text_or_empty(found["better"]), text_or_empty(found.get("rationale"))
    if better not in _CHOICE_VALUES or not rationale:
        value = describe_value(found["better"])
        raise malformed_reply(f"better is {value}, not first, second or same with a rationale")
    return _CHOICE_VALUES[better], rationale


def read_thoughts(reply: Reply) -> str:
    """Read the observations that a specialist writes down before grading.

    Raises:
        UnusableReply: there are none.
    """
    thoughts = read_object(reply, ("thoughts",))["thoughts"]
    if not isinstance(thoughts, str) or not thoughts.strip():
        raise malformed_reply("no thoughts")
    return thoughts.strip()


def read_windows(reply: Reply, seconds: float) -> tuple[Flaw, ...]:
    """Read the worst moments of a clip that lasts ``seconds``; those outside the clip are left out.

    Raises:
        UnusableReply: there is no list of start, end and what.
    """
    return read_flaws(read_object(reply, ("windows",))["windows"], seconds)[:MAX_WINDOWS]


def read_box(reply: Reply) -> Box | None:
    """Read the box in which a flaw was seen, None if the flaw was not seen.

    Raises:
        UnusableReply: the reply says neither.
    """
    found = read_object(reply, ("seen",))
    if found["seen"] is False:
        return None
    box = found.get("box")
    if found["seen"] is not True or not isinstance(box, list) or len(box) != 4:
        raise malformed_reply("no seen and box")
    try:
        left, top, right, bottom = (float(side) for side in box)
    except (TypeError, ValueError, OverflowError) as error:
        raise malformed_reply(f"no box: {describe_value(box)}") from error
    if not (0 <= left < right <= 1 and 0 <= top < bottom <= 1):
        raise malformed_reply(f"no box: {describe_value(box)}")
    return left, top, right, bottom


def read_rule(reply: Reply, entries: int) -> tuple[str, int | None]:
    """Read a new rule, and the number of the existing rule that it replaces, None if it is added.

    Args:
        reply: the model's reply.
        entries: number of existing rules.

    Raises:
        UnusableReply: there is no rule, or no existing rule has the number.
    """
    found = read_object(reply, ("rule",))
    rule, replaces = found["rule"], found.get("replaces")
    if not isinstance(rule, str) or not rule.strip() or len(rule) > MAX_RULE_LENGTH:
        raise malformed_reply(f"no rule of at most {MAX_RULE_LENGTH} letters")
    if replaces is not None and (type(replaces) is not int or not 0 <= replaces < entries):
        raise malformed_reply(f"replaces is {describe_value(replaces)}, no number of a rule")
    return rule.strip(), replaces


CHOICE_FORMAT = AnswerFormat(
    "choice", _schema(rationale=_TEXT, better=_TEXT | {"enum": list(_CHOICE_VALUES)}), read_choice
)  # fmt: skip
THOUGHTS_FORMAT = AnswerFormat("thoughts", _schema(thoughts=_TEXT), read_thoughts)
BOX_FORMAT = AnswerFormat("box", _schema(seen={"type": "boolean"}, box={"type": "array", "items": _NUMBER}), read_box)


def windows_format(seconds: float) -> AnswerFormat[tuple[Flaw, ...]]:
    """Return the form of a list of the worst moments of a clip that lasts ``seconds``."""
    return AnswerFormat("windows", _schema(windows=_FLAWS), partial(read_windows, seconds=seconds))


def rule_format(entries: int) -> AnswerFormat[tuple[str, int | None]]:
    """Return the form of a new rule for a rubric that has ``entries`` rules so far."""
    schema = _schema(rule=_TEXT, replaces={"type": ["integer", "null"]})
    return AnswerFormat("rule", schema, partial(read_rule, entries=entries))


def _read_score(found: dict[str, Any], reply: Reply) -> tuple[float, float, bool]:
    """Return the score, the written score, and whether the score is an expectation."""
    written = read_score(found.get("score"), "score")
    expected = expected_score(reply.tokens, written)
    return written if expected is None else expected, written, expected is not None


def read_flaws(reported: Any, seconds: float) -> tuple[Flaw, ...]:
    """Return the reported errors of a clip that lasts ``seconds``, without those outside the clip.

    Raises:
        UnusableReply: ``reported`` is not a list of start, end and what.
    """
    if not isinstance(reported, list):
        raise malformed_reply("errors is not a list")
    flaws = []
    for item in reported:
        try:
            start, end, what = float(item["start"]), float(item["end"]), item["what"]
        except (TypeError, KeyError, ValueError, OverflowError) as error:
            raise malformed_reply(f"an error without start, end and what: {describe_value(item)}") from error
        if 0 <= start <= end <= seconds + _TIME_TOLERANCE:
            flaws.append(Flaw(start, end, text_or_empty(what) or describe_value(what)))
    return tuple(flaws)


def _read_artefacts(reported: Any, catalogue: Collection[str]) -> tuple[dict[str, int] | None, int]:
    """Return the severities by name, and the number of reported artefacts that are not in the catalogue."""
    if reported is None:
        return None, 0
    if not isinstance(reported, list):
        raise malformed_reply("artefacts is not a list")
    severities: dict[str, int] = {}
    unknown = 0
    for item in reported:
        try:
            name, severity = str(item["type"]), int(item["severity"])
        except (TypeError, KeyError, ValueError, OverflowError, RecursionError) as error:
            raise malformed_reply(f"an artefact without type and severity: {describe_value(item)}") from error
        if not 1 <= severity <= 3:
            raise malformed_reply(f"severity {severity} is outside 1 … 3")
        if name in catalogue:
            severities[name] = max(severity, severities.get(name, 0))
        else:
            unknown += 1
    return severities, unknown
