"""What comes back over HTTP: a reply with what it cost, or the trouble there was and whether asking again can help."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import openai

from flowportrait.judge.endpoint import Endpoint
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
    hopeless = {
        401: f"{end.url} does not accept the key in {end.key_env} ({status}): set it to a valid one.",
        403: f"{end.url} does not let the key in {end.key_env} do this ({status}): use another key or model.",
        404: f"{end.url} knows no model {end.model!r} (404): check endpoint.url and endpoint.model.",
    }.get(status)
    wait = retry_after(error.response.headers)
    if status == 429:
        return Trouble("rate_limited", "too many requests (429)", True, status, wait)
    if status >= 500 or status in _AGAIN:
        return Trouble("server_error", f"the server failed ({status})", True, status, wait)
    return Trouble("rejected", f"the server would not take it: {said}", False, status, hopeless=hopeless)


def read_answer(answer: Any) -> tuple[Reply, tuple[int, int] | None]:
    """A completion's words, and how many tokens were read and written where it says."""
    choice = answer.choices[0]
    message, usage = choice.message, answer.usage
    pieces = choice.logprobs.content if choice.logprobs is not None and choice.logprobs.content else ()
    tokens = tuple(Token(p.token, tuple((o.token, float(o.logprob)) for o in p.top_logprobs or ())) for p in pieces)
    refusal = message.refusal or ("content filter" if choice.finish_reason == "content_filter" else None)
    reply = Reply(message.content or "", tokens, refusal, choice.finish_reason != "length")
    return reply, None if usage is None else (int(usage.prompt_tokens), int(usage.completion_tokens))
