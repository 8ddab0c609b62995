"""A model's reply, read in one place.

    E[score] = Σ_k k p(k) / Σ_k p(k)       over the score token's alternatives k = 1 … 5, where the server gives them

What kinds of answers there are is in ``answers``.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from typing import Any, NamedTuple

from flowportrait.judges.rubric import HIGHEST, LOWEST
from flowportrait.rewards.batch import Failure

MAX_REPLY_LENGTH = 64 * 2**10
"""Characters of a reply; no answer that was asked for is as long."""
_MAX_WASTED = 8 * MAX_REPLY_LENGTH
"""Characters that are read as JSON in vain before the rest of a reply is given up."""
MIN_GRADE_MASS = 0.5
"""Of the score token's probability that must fall on 1 … 5 for the expectation to be taken."""
_DECLINED = re.compile(r"\b(I'?m sorry|I can(?:no|')t|I am unable|I'm unable|I won't|as an AI)\b", re.IGNORECASE)
_HALF_PAIR = re.compile("[\ud800-\udfff]")
_SCORE = re.compile(r'"score"\s*:\s*"?')


class Token(NamedTuple):
    """One token of a reply and its alternatives: (text, log-probability)."""

    text: str
    alternatives: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class Reply:
    """A model's reply as it came.

    Args:
        text: the words.
        tokens: with alternatives, where the server gives them.
        refusal: what the server put into that field.
        complete: False if the reply was cut off at the maximum length.
    """

    text: str
    tokens: tuple[Token, ...] = ()
    refusal: str | None = None
    complete: bool = True

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, as they are cached."""
        return {"text": self.text, "tokens": self.tokens, "refusal": self.refusal, "whole": self.complete}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Reply:
        """Inverse of ``to_dict``, also after JSON."""
        tokens = tuple(Token(text, tuple((word, float(p)) for word, p in others)) for text, others in data["tokens"])
        return cls(data["text"], tokens, data["refusal"], data["whole"])


class UnusableReply(Exception):
    """The reply is not the answer that was asked for; ``failure`` says why."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.detail)
        self.failure = failure


def read_completion(completion: Any) -> tuple[Reply, tuple[int, int] | None]:
    """Return the reply in a chat completion, and how many tokens were read and written where the server says.

    OpenAI's library passes on whatever types a server sends.

    Raises:
        ValueError, TypeError, AttributeError, IndexError, ArithmeticError: it is no completion.
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


def read_object(reply: Reply, wanted: tuple[str, ...] = ("score", "scores")) -> dict[str, Any]:
    """Return the last JSON object in a reply, which has one of the ``wanted`` keys.

    Raises:
        UnusableReply: there is none, the model refused, or the reply was cut off or is longer than
            ``MAX_REPLY_LENGTH``.
    """
    if reply.refusal:
        raise UnusableReply(Failure("refused", _short(reply.refusal)))
    if len(reply.text) > MAX_REPLY_LENGTH:
        raise malformed(f"an answer of {len(reply.text)} characters: {_short(reply.text[:200])}")
    text = _without_thoughts(reply.text)
    found = _last_object(text)
    if isinstance(found, dict) and any(key in found for key in wanted):
        return _encodable(found)
    if not reply.complete:
        raise malformed(f"the answer was cut off: {_short(text)}")
    if _DECLINED.search(text):
        raise UnusableReply(Failure("refused", _short(text)))
    raise malformed(f"no JSON with a {wanted[0]} in {_short(text)}")


def read_score(value: Any, name: str) -> float:
    """Return a score from 1 to 5.

    Raises:
        UnusableReply: anything else.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise malformed(f"{name} is {describe_value(value)}, not a number")
    # Python reads integers of any length, and NaN.
    if not LOWEST <= value <= HIGHEST:
        raise malformed(f"{name} {describe_value(value)} is outside {LOWEST} … {HIGHEST}")
    return float(value)


def expected_score(tokens: tuple[Token, ...], written: float) -> float | None:
    """Return the score's expectation, or None where tokens do not carry it.

    That is without log-probabilities, for a score that is not one digit, or with less than half of the probability on
    1 … 5.
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
        if digit in {str(grade) for grade in range(LOWEST, HIGHEST + 1)}:
            if not log <= 1e-6:
                return None  # a log-probability that is none
            share[int(digit)] = share.get(int(digit), 0.0) + math.exp(log)
    mass = sum(share.values())
    if mass < MIN_GRADE_MASS or int(written) not in share:
        return None
    return sum(grade * p for grade, p in share.items()) / mass


def text_or_empty(value: Any) -> str:
    """Return text without surrounding blanks, nothing for any other value."""
    return value.strip() if isinstance(value, str) else ""


def describe_value(value: Any) -> str:
    """Return a value of a reply as a sentence shows it, at most 80 characters."""
    try:
        text = repr(value)
    except (RecursionError, ValueError):
        return type(value).__name__
    return text if len(text) <= 80 else f"{text[:77]}…"


def malformed(detail: str) -> UnusableReply:
    """Return the error for a reply that is not the asked-for answer, to be raised."""
    return UnusableReply(Failure("malformed", detail))


def _encodable(found: dict[str, Any]) -> dict[str, Any]:
    """Replace half a surrogate pair, which JSON can spell and no file can hold, by a question mark."""
    try:
        written = json.dumps(found, ensure_ascii=False)
    except RecursionError:
        raise malformed("JSON that is nested too deeply") from None
    if not _HALF_PAIR.search(written):
        return found
    return dict(json.loads(written.encode("utf-8", "replace")))


def _last_object(text: str) -> Any:
    """Return the last JSON value that begins with a brace and is no part of another one; None where there is none."""
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
        if wasted > _MAX_WASTED:
            break
        place += 1
    return found


def _without_thoughts(text: str) -> str:
    """Remove what stands between ``<think>`` and ``</think>``; a thought that does not end is left."""
    kept, place = [], 0
    while (begin := text.find("<think>", place)) >= 0 and (end := text.find("</think>", begin)) >= 0:
        kept.append(text[place:begin])
        place = end + len("</think>")
    return "".join(kept) + text[place:]


def _short(text: str) -> str:
    text = " ".join(text.split())
    return repr(text if len(text) <= 80 else text[:77] + "…")
