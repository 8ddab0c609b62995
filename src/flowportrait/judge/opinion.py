"""A specialist's answer, read strictly: a rationale, errors with times, and a score from 1 to 5, or the reason
why there is none. Nothing is filled in.

    E[score] = Σ_k k p(k) / Σ_k p(k)       over the score token's alternatives k = 1 … 5, where the server gives them
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from flowportrait.judge.rubric import ASPECTS, HIGHEST, LOWEST, Aspect
from flowportrait.reward.batch import Failure

LONGEST_REPLY = 64 * 2**10
"""Characters of a reply; no answer that was asked for is as long."""
_MOST_WASTED = 8 * LONGEST_REPLY
"""Characters that are read as JSON in vain before the rest of a reply is given up."""
LEAST_MASS = 0.5
"""Of the score token's probability that must fall on 1 … 5 for the expectation to be taken."""
_SLACK = 0.2
"""Seconds past the end at which an error may still be reported."""
_DECLINED = re.compile(r"\b(I'?m sorry|I can(?:no|')t|I am unable|I'm unable|I won't|as an AI)\b", re.IGNORECASE)
_HALF_PAIR = re.compile("[\ud800-\udfff]")
_SCORE = re.compile(r'"score"\s*:\s*"?')


class Token(NamedTuple):
    """One piece of an answer, and what else it might have been: (text, log-probability)."""

    text: str
    alternatives: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class Reply:
    """A model's words as they came. refusal: what the server put in that field; whole: whether it came to its end."""

    text: str
    tokens: tuple[Token, ...] = ()
    refusal: str | None = None
    whole: bool = True

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Reply:
        """Inverse of ``to_dict``, also after JSON."""
        tokens = tuple(Token(text, tuple((word, float(p)) for word, p in others)) for text, others in data["tokens"])
        return cls(data["text"], tokens, data["refusal"], data["whole"])


class Flaw(NamedTuple):
    """Something wrong from ``start`` to ``end`` (seconds)."""

    start: float
    end: float
    what: str


@dataclass(frozen=True)
class Opinion:
    """written: the score as it stands in the answer; score: its expectation where log-probabilities allow, else the
    written one; expected: which of the two."""

    score: float
    written: float
    expected: bool
    rationale: str
    flaws: tuple[Flaw, ...]


class Unusable(Exception):
    """The answer is no opinion; ``failure`` says why."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.detail)
        self.failure = failure


def read_opinion(reply: Reply, seconds: float) -> Opinion:
    """The opinion in a reply about a clip of ``seconds``.

    Raises:
        Unusable: refused, cut off, not the asked-for JSON, or a score outside 1 … 5.
    """
    found = read_object(reply)
    score = number(found.get("score"), "score")
    rationale = found.get("rationale")
    if not isinstance(rationale, str) or not rationale.strip():
        raise Unusable(Failure("malformed", "no rationale"))
    flaws = read_flaws(found.get("errors", []), seconds)
    expected = expectation(reply.tokens, score)
    return Opinion(score if expected is None else expected, score, expected is not None, rationale.strip(), flaws)


def read_review(reply: Reply, disputed: tuple[Aspect, ...]) -> tuple[dict[Aspect, float], str]:
    """The reviewer's scores of the disputed aspects and its reasons.

    Raises:
        Unusable: as above, or an aspect left out.
    """
    found = read_object(reply)
    scores = found.get("scores")
    if not isinstance(scores, dict):
        raise Unusable(Failure("malformed", "no scores"))
    return {aspect: number(scores.get(aspect), aspect) for aspect in ASPECTS if aspect in disputed}, text_or_empty(
        found.get("rationale")
    )


def read_object(reply: Reply, wanted: tuple[str, ...] = ("score", "scores")) -> dict[str, Any]:
    """The last JSON object in a reply, which has one of the ``wanted`` keys.

    Raises:
        Unusable: there is none, the model refused, or the answer was cut off or is longer than ``LONGEST_REPLY``.
    """
    if reply.refusal:
        raise Unusable(Failure("refused", _short(reply.refusal)))
    if len(reply.text) > LONGEST_REPLY:
        raise Unusable(Failure("malformed", f"an answer of {len(reply.text)} characters: {_short(reply.text[:200])}"))
    text = _without_thoughts(reply.text)
    found = _last_object(text)
    if isinstance(found, dict) and any(key in found for key in wanted):
        return _encodable(found)
    if not reply.whole:
        raise Unusable(Failure("malformed", f"the answer was cut off: {_short(text)}"))
    if _DECLINED.search(text):
        raise Unusable(Failure("refused", _short(text)))
    raise Unusable(Failure("malformed", f"no JSON with a {wanted[0]} in {_short(text)}"))


def number(value: Any, name: str) -> float:
    """A score from 1 to 5.

    Raises:
        Unusable: anything else.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise Unusable(Failure("malformed", f"{name} is {describe_value(value)}, not a number"))
    # Python reads integers of any length, and NaN.
    if not LOWEST <= value <= HIGHEST:
        raise Unusable(Failure("malformed", f"{name} {describe_value(value)} is outside {LOWEST} … {HIGHEST}"))
    return float(value)


def expectation(tokens: tuple[Token, ...], written: float) -> float | None:
    """The score's expectation, or None where tokens do not carry it: no log-probabilities, a score that is not one
    digit, or less than half of the probability on 1 … 5."""
    if written != round(written):
        return None
    text = "".join(token.text for token in tokens)
    found = list(_SCORE.finditer(text))
    if not found:
        return None
    place, index = 0, 0
    while index < len(tokens) and place + len(tokens[index].text) <= found[-1].end():
        place += len(tokens[index].text)
        index += 1
    # A blank before the digit may be a token of its own.
    while index < len(tokens) and not tokens[index].text.strip():
        index += 1
    if index == len(tokens):
        return None
    share: dict[int, float] = {}
    for word, log in tokens[index].alternatives:
        digit = word.strip().strip('"')
        if digit in {str(grade) for grade in range(LOWEST, HIGHEST + 1)}:
            if not log <= 1e-6:
                return None  # a log-probability that is none
            share[int(digit)] = share.get(int(digit), 0.0) + math.exp(log)
    mass = sum(share.values())
    if mass < LEAST_MASS or int(written) not in share:
        return None
    return sum(grade * p for grade, p in share.items()) / mass


def read_flaws(reported: Any, seconds: float) -> tuple[Flaw, ...]:
    """Reported errors of a clip of ``seconds``, but for those at times that it does not have.

    Raises:
        Unusable: no list of start, end and what.
    """
    if not isinstance(reported, list):
        raise Unusable(Failure("malformed", "errors is not a list"))
    flaws = []
    for item in reported:
        try:
            start, end, what = float(item["start"]), float(item["end"]), item["what"]
        except (TypeError, KeyError, ValueError, OverflowError) as error:
            said = describe_value(item)
            raise Unusable(Failure("malformed", f"an error without start, end and what: {said}")) from error
        if 0 <= start <= end <= seconds + _SLACK:
            flaws.append(Flaw(start, end, text_or_empty(what) or describe_value(what)))
    return tuple(flaws)


def text_or_empty(value: Any) -> str:
    """Text as it is, nothing for any other value."""
    return value.strip() if isinstance(value, str) else ""


def describe_value(value: Any) -> str:
    """A value of a reply as a sentence shows it, at most 80 characters."""
    try:
        text = repr(value)
    except (RecursionError, ValueError):
        return type(value).__name__
    return text if len(text) <= 80 else f"{text[:77]}…"


def _encodable(found: dict[str, Any]) -> dict[str, Any]:
    """Half a surrogate pair, which JSON can spell and no file can hold, becomes a question mark."""
    try:
        written = json.dumps(found, ensure_ascii=False)
    except RecursionError:
        raise Unusable(Failure("malformed", "JSON that is nested too deeply")) from None
    if not _HALF_PAIR.search(written):
        return found
    return dict(json.loads(written.encode("utf-8", "replace")))


def _last_object(text: str) -> Any:
    """The last JSON value that begins with a brace and is no part of another one; None where there is none."""
    decoder, place, found, wasted = json.JSONDecoder(), 0, None, 0
    while (place := text.find("{", place)) >= 0:
        try:
            found, place = decoder.raw_decode(text, place)
            continue
        except json.JSONDecodeError as error:
            wasted += error.pos - place
        except ValueError:
            wasted += len(text) - place  # a number of thousands of digits
        except RecursionError:
            break
        # Braces that open and never close would be read to the end again and again.
        if wasted > _MOST_WASTED:
            break
        place += 1
    return found


def _without_thoughts(text: str) -> str:
    """Without what stands between ``<think>`` and ``</think>``; a thought that does not end is left."""
    kept, place = [], 0
    while (begin := text.find("<think>", place)) >= 0 and (end := text.find("</think>", begin)) >= 0:
        kept.append(text[place:begin])
        place = end + len("</think>")
    return "".join(kept) + text[place:]


def _short(text: str) -> str:
    text = " ".join(text.split())
    return repr(text if len(text) <= 80 else text[:77] + "…")
