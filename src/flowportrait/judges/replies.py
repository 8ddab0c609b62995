"""This module reads a model's reply: its JSON object, its score, and the expectation of the score.

    E[score] = Σ_k k p(k) / Σ_k p(k)       over the score token's alternatives k = 1 … 5, if the server returns them

``read_completion`` reads a server's completion into a ``Reply``; ``read_object``, ``read_score`` and
``expected_score`` read a ``Reply``. The forms of answers are in ``judges.answers``.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from typing import Any, NamedTuple

from flowportrait.judges.rubric import HIGHEST_GRADE, LOWEST_GRADE
from flowportrait.rewards.batch import Failure

MAX_REPLY_LENGTH = 64 * 2**10
"""Longest reply that is read, in characters; every expected answer is far shorter."""
_MAX_WASTED = 8 * MAX_REPLY_LENGTH
"""Number of characters that may be parsed as JSON without success before the search ends."""
MIN_GRADE_MASS = 0.5
"""Least probability that 1 … 5 must have together, among all alternatives of the score token, for an expectation."""
_DECLINED = re.compile(r"\b(I'?m sorry|I can(?:no|')t|I am unable|I'm unable|I won't|as an AI)\b", re.IGNORECASE)
_HALF_PAIR = re.compile("[\ud800-\udfff]")
_SCORE = re.compile(r'"score"\s*:\s*"?')


class Token(NamedTuple):
    """One token of a reply and its alternatives, each with text and log-probability."""

    text: str
    alternatives: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class Reply:
    """A model's reply before it is read as an answer.

    Args:
        text: the text of the reply.
        tokens: the tokens with their alternatives, if the server returns them.
        refusal: the server's field ``refusal``, None if the model did not refuse.
        complete: False if the reply was cut off at the maximum length.
    """

    text: str
    tokens: tuple[Token, ...] = ()
    refusal: str | None = None
    complete: bool = True

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, as they are written into the cache."""
        return {"text": self.text, "tokens": self.tokens, "refusal": self.refusal, "whole": self.complete}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Reply:
        """Return the reply that ``to_dict`` described, also after a round trip through JSON."""
        tokens = tuple(Token(text, tuple((word, float(p)) for word, p in others)) for text, others in data["tokens"])
        return cls(data["text"], tokens, data["refusal"], data["whole"])


class UnusableReply(Exception):
    """An error for a reply that is not the answer that was asked for; ``failure`` says why."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.detail)
        self.failure = failure


def read_completion(completion: Any) -> tuple[Reply, tuple[int, int] | None]:
    """Return the reply in a chat completion, and the numbers of input and output tokens, None if they are not reported.

    Types are checked here, because OpenAI's library passes on whatever a server sends.

    Raises:
        ValueError, TypeError, AttributeError, IndexError, ArithmeticError: ``completion`` is not a chat completion.
    """
    choice = completion.choices[0]
    message, usage = choice.message, completion.usage
    pieces = choice.logprobs.content if choice.logprobs is not None and choice.logprobs.content else ()
    tokens = tuple(
        Token(_text(p.token), tuple((_text(o.token), float(o.logprob)) for o in p.top_logprobs or ())) for p in pieces
    )
    refusal = message.refusal or ("content filter" if choice.finish_reason == "content_filter" else None)
    reply = Reply(_text(message.content or ""), tokens, refusal and _text(refusal), choice.finish_reason != "length")
    return reply, None if usage is None else (_count(usage.prompt_tokens), _count(usage.completion_tokens))


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{type(value).__name__} where text belongs")
    return value


def _count(value: Any) -> int:
    count = int(value)
    if not 0 <= count < 2**53:
        raise ValueError(f"{count:.3g} tokens")
    return count


def read_object(reply: Reply, keys: tuple[str, ...] = ("score", "scores")) -> dict[str, Any]:
    """Return the last JSON object in a reply.

    Args:
        reply: the reply; text between ``<think>`` and ``</think>`` is ignored.
        keys: keys of which the object must have at least one.

    Raises:
        UnusableReply: there is no such object, the model refused, or the reply was cut off or is longer than
            ``MAX_REPLY_LENGTH``.
    """
    if reply.refusal:
        raise UnusableReply(Failure("refused", _short(reply.refusal)))
    if len(reply.text) > MAX_REPLY_LENGTH:
        raise malformed_reply(f"an answer of {len(reply.text)} characters: {_short(reply.text[:200])}")
    text = _without_thoughts(reply.text)
    found = _last_object(text)
    if isinstance(found, dict) and any(key in found for key in keys):
        return _encodable(found)
    if not reply.complete:
        raise malformed_reply(f"the answer was cut off: {_short(text)}")
    if _DECLINED.search(text):
        raise UnusableReply(Failure("refused", _short(text)))
    raise malformed_reply(f"no JSON with a {keys[0]} in {_short(text)}")


def read_score(value: Any, name: str) -> float:
    """Return ``value`` as a score from 1 to 5; ``name`` is for the error message.

    Raises:
        UnusableReply: ``value`` is not a number from 1 to 5.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise malformed_reply(f"{name} is {describe_value(value)}, not a number")
    # Python's JSON reader accepts NaN and integers of any length.
    if not LOWEST_GRADE <= value <= HIGHEST_GRADE:
        raise malformed_reply(f"{name} {describe_value(value)} is outside {LOWEST_GRADE} … {HIGHEST_GRADE}")
    return float(value)


def expected_score(tokens: tuple[Token, ...], written: float) -> float | None:
    """Return the expectation of the score over the alternatives of its token.

    Args:
        tokens: the tokens of the reply.
        written: the score in the text of the reply.

    Returns:
        The expectation; None without log-probabilities, for a score that is not one digit, or if 1 … 5 have less than
        ``MIN_GRADE_MASS`` of the probability.
    """
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
        if digit in {str(grade) for grade in range(LOWEST_GRADE, HIGHEST_GRADE + 1)}:
            if not log <= 1e-6:
                return None  # not a valid log-probability
            share[int(digit)] = share.get(int(digit), 0.0) + math.exp(log)
    mass = sum(share.values())
    if mass < MIN_GRADE_MASS or int(written) not in share:
        return None
    return sum(grade * p for grade, p in share.items()) / mass


def text_or_empty(value: Any) -> str:
    """Return text without surrounding blanks, or an empty string for a value that is not text."""
    return value.strip() if isinstance(value, str) else ""


def describe_value(value: Any) -> str:
    """Return a value as an error message shows it, in at most 80 characters."""
    try:
        text = repr(value)
    except (RecursionError, ValueError):
        return type(value).__name__
    return text if len(text) <= 80 else f"{text[:77]}…"


def malformed_reply(detail: str) -> UnusableReply:
    """Return an ``UnusableReply`` for a reply that is not the asked-for answer; the caller raises it."""
    return UnusableReply(Failure("malformed", detail))


def _encodable(found: dict[str, Any]) -> dict[str, Any]:
    """Replace unpaired surrogates, which JSON can express but UTF-8 cannot, by question marks."""
    try:
        written = json.dumps(found, ensure_ascii=False)
    except RecursionError:
        raise malformed_reply("JSON that is nested too deeply") from None
    if not _HALF_PAIR.search(written):
        return found
    return dict(json.loads(written.encode("utf-8", "replace")))


def _last_object(text: str) -> Any:
    """Return the last JSON object that is not part of another one, None if there is none."""
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
        # Unclosed braces would make every attempt read to the end of the text.
        if wasted > _MAX_WASTED:
            break
        place += 1
    return found


def _without_thoughts(text: str) -> str:
    """Remove text between ``<think>`` and ``</think>``; a ``<think>`` without an end tag is left in."""
    answer_parts, place = [], 0
    while (begin := text.find("<think>", place)) >= 0 and (end := text.find("</think>", begin)) >= 0:
        answer_parts.append(text[place:begin])
        place = end + len("</think>")
    return "".join(answer_parts) + text[place:]


def _short(text: str) -> str:
    text = " ".join(text.split())
    return repr(text if len(text) <= 80 else text[:77] + "…")
