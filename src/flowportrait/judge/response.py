"""What comes back over HTTP: a reply with what it cost, or the trouble there was and whether asking again can help."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import openai

from flowportrait.api_keys import OPENAI_KEY
from flowportrait.judge.endpoint import KEYLESS, Endpoint
from flowportrait.judge.ledger import Outcome
from flowportrait.judge.opinion import Reply, Token
from flowportrait.judge.patience import retry_after

_AGAIN = (408, 409, 425, 429)


@dataclass(frozen=True)
class Trouble:
    """A request without a reply: whether to try again, and when at the earliest."""

    outcome: Outcome
    detail: str
    again: bool
    status: int | None = None
    wait: float | None = None
    hopeless: str | None = None
    """What the user has to change before any request can succeed."""


def trouble_of(error: openai.APIStatusError, end: Endpoint) -> Trouble:
    """What a server's refusal or failure means."""
    status, said = error.status_code, str(error)[:200]
    if 300 <= status < 400:
        place = str(error.response.headers.get("location", "another address"))[:120]
        moved = f"{end.url} sends requests on to {place}, which is not followed: set endpoint.url to where it is."
        return Trouble("rejected", f"redirected ({status})", False, status, hopeless=moved)
    key = f"the key in {end.key_env or OPENAI_KEY}"
    if end.key() == KEYLESS:
        key = f"the key {KEYLESS!r}, which stands for none,"
    hopeless = {
        401: f"{end.url} does not accept {key} ({status}): give a valid one by endpoint.key_env.",
        403: f"{end.url} does not let {key} do this ({status}): use another key or model.",
        404: f"{end.url} knows no model {end.model!r} (404): check endpoint.url and endpoint.model.",
    }.get(status)
    wait = retry_after(error.response.headers)
    if status == 429:
        return Trouble("rate_limited", "too many requests (429)", True, status, wait)
    if status >= 500 or status in _AGAIN:
        return Trouble("server_error", f"the server failed ({status})", True, status, wait)
    return Trouble("rejected", f"the server would not take it: {said}", False, status, hopeless=hopeless)


def read_answer(answer: Any) -> tuple[Reply, tuple[int, int] | None]:
    """A completion's words, and how many tokens were read and written where it says.

    OpenAI's library passes on whatever types a server sends.

    Raises:
        ValueError, TypeError, AttributeError, IndexError, ArithmeticError: it is no completion.
    """
    choice = answer.choices[0]
    message, usage = choice.message, answer.usage
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
