"""This module asks a judge's model on an OpenAI-compatible server.

    question ─► SDK: request, repeated while the server is away, busy or fails (``attempts``) ─► reply
                  each request ─► rate limit, wall-clock limit, ledger entry
    reply ─► accepted ─► done
      └─ a refusal or an unusable answer: the question is asked again (``answers`` times), then a failure is returned

OpenAI's SDK repeats failed requests. This module adds what the SDK lacks: the ledger, a limit of requests per minute,
the pauses that a server asks for, a time limit for the whole request (the SDK's starts anew with every byte), and the
removal of parameters that a model does not support. ``ChatClient`` is the interface; the HTTP client, the meaning of
errors, and the helpers for waiting follow.
"""

from __future__ import annotations

import asyncio
import email.utils
import random
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, TypeVar

import httpx2
import openai

from flowportrait.errors import BadInput
from flowportrait.judges.answers import AnswerFormat
from flowportrait.judges.clips import JudgeInput
from flowportrait.judges.messages import NO_KEY, SERVED_PANEL_MODEL, Endpoint, MediaFormats, message_parts, text_part
from flowportrait.judges.questions import AcceptReply, JudgeKind, Ledger, LedgerEntry, Question, RequestOutcome
from flowportrait.judges.replies import UnusableReply, read_completion
from flowportrait.rewards.batch import Failure
from flowportrait.web_client import OPENAI_KEY_VARIABLE, async_client_options

_RETRYABLE = (408, 409, 425, 429)
_MEDIA_SETTINGS = {
    "audio": "endpoint.shows.audio=off",
    "video": "endpoint.shows.video=false endpoint.shows.clip=false",
    "image": "endpoint.shows.images=false",
}
"""Kinds of message parts, and the settings that leave them out."""
_MEDIA_REFUSED = re.compile(
    r"(?:not|n't|no|un)[ -]?(?:\w+[ -])?support|mmproj|not a? ?(?:multi-?modal|vision)|at most 0|only supported by"
    r"|unsupported content|invalid content type",
    re.IGNORECASE,
)
"""Words of servers that refuse pictures, video or sound (llama.cpp, vLLM, SGLang, OpenAI)."""
_TOO_LONG = re.compile(r"context (?:length|size|window)|exceed_context|too many tokens", re.IGNORECASE)
_OPTIONAL_PARAMS = (
    (("logprob",), ("logprobs", "top_logprobs")),
    (("max_completion_tokens",), ("max_tokens",)),
    (("temperature",), ("temperature",)),
    (("",), ("response_format",)),
)
"""Words in an error message, and the parameters that are left out after it. An error message that names no parameter is
taken to refuse the schema, because servers word that refusal in many ways."""

Value = TypeVar("Value")


@dataclass(frozen=True)
class RequestError:
    """The error of a request that brought no reply.

    Args:
        outcome: how the ledger records the request.
        detail: description for reports.
        retryable: whether the same request may succeed later.
        status: HTTP status, if there was a response.
        wait: seconds that the server asks to wait.
        fatal: what the user has to change before any request can succeed; None if the error is not of that kind.
    """

    outcome: RequestOutcome
    detail: str
    retryable: bool
    status: int | None = None
    wait: float | None = None
    fatal: str | None = None


class ChatClient:
    """A ``Backend`` that asks a model on a server; its ledger records every request."""

    def __init__(self, endpoint: Endpoint, ledger: Ledger | None = None) -> None:
        self.endpoint = endpoint.checked()
        self.ledger = ledger or Ledger()
        self._params: dict[str, Any] = {"temperature": endpoint.temperature, "max_tokens": endpoint.max_tokens}
        if self.kind != "measured panel":
            if endpoint.top_logprobs:
                self._params |= {"logprobs": True, "top_logprobs": endpoint.top_logprobs}
            if endpoint.json_schema:
                self._params["response_format"] = "json_schema"

    @property
    def model_id(self) -> str:
        """See ``Backend``."""
        return self.endpoint.model_id

    @property
    def kind(self) -> JudgeKind:
        """See ``Backend``."""
        if self.endpoint.model == SERVED_PANEL_MODEL:
            return "measured panel"
        return "multimodal LLM panel" if self.endpoint.shows.has_media else "LLM panel without pictures or sound"

    def ask(self, questions: Sequence[Question[Any]], accept: AcceptReply) -> dict[int, Failure]:
        """See ``Backend``.

        Raises:
            BadInput: the server does not accept the key, does not have the model, redirects requests, or does not take
                pictures, video or sound that the settings send.
        """
        if not questions:
            return {}
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return asyncio.run(self._ask(questions, accept))
        # An event loop is running already (in a notebook, say): use a thread with its own loop.
        with ThreadPoolExecutor(1) as thread:
            return thread.submit(asyncio.run, self._ask(questions, accept)).result()

    async def _ask(self, questions: Sequence[Question[Any]], accept: AcceptReply) -> dict[int, Failure]:
        end = self.endpoint
        uses = Counter(question.make_input for question in questions)
        # All samples of an aspect share one input: it is encoded once and released after the last sample.
        encoded = {make: SharedResult(partial(_encode, make, end.shows), count) for make, count in uses.items()}
        slots, failures = asyncio.Semaphore(end.concurrency), {}
        # The SDK's own HTTP client follows redirects and would send the clip to another address.
        http = _RecordingClient(end)
        client = _Client(base_url=end.url, api_key=end.key(), timeout=end.timeout, http_client=http)
        client.endpoint = end

        async def ask_one(index: int, question: Question[Any]) -> None:
            async with slots:
                parts = await asyncio.to_thread(encoded[question.make_input])
                failure = await self._answer(client, question, parts, partial(accept, index))
            if failure is not None:
                failures[index] = failure

        async with client:
            tasks = [asyncio.create_task(ask_one(index, question)) for index, question in enumerate(questions)]
            try:
                await asyncio.gather(*tasks)
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
        return failures

    async def _answer(
        self, client: _Client, question: Question[Any], parts: list[dict[str, Any]], accept: Callable[[Any], None]
    ) -> Failure | None:
        """Ask until a reply is accepted; return the failure if none is, else None."""
        end = self.endpoint
        messages: list[Any] = [
            {"role": "system", "content": question.system},
            {"role": "user", "content": [*parts, text_part(question.text)]},
        ]
        exchange = _Exchange(question.address(self.model_id), end, self.ledger)
        _EXCHANGE.set(exchange)
        unusable = 0
        while True:
            params = dict(self._params)
            try:
                retrying_client = client.with_options(max_retries=end.attempts - 1 - exchange.failed_attempts)
                completion = await retrying_client.chat.completions.create(
                    model=end.model, messages=messages, **_with_schema(params, question.answer)
                )
                reply, usage = read_completion(completion)
            except (openai.APIStatusError, openai.APIConnectionError):
                error = exchange.error
                assert error is not None
                if error.fatal:
                    raise BadInput(error.fatal) from None
                if error.status in (400, 422) and self._drop_unsupported_params(error.detail.lower(), params):
                    exchange.failed_attempts -= 1
                    continue
                if error.wait is not None and error.wait > end.patience:
                    return Failure("unavailable", f"asked to wait {error.wait:.0f} s, longer than {end.patience:g} s")
                if not error.retryable:
                    return Failure("refused", error.detail)
                return Failure("unavailable", f"{error.detail}, {exchange.failed_attempts} times")
            except (openai.APIError, ValueError, TypeError, AttributeError, LookupError, ArithmeticError,
                    RecursionError) as broken:  # fmt: skip
                detail = f"no readable completion ({type(broken).__name__}: {broken})"
                exchange.record_failure(RequestError("malformed", detail, True, 200))
                if exchange.failed_attempts >= end.attempts:
                    return Failure("unavailable", f"{detail}, {exchange.failed_attempts} times")
                await asyncio.sleep(retry_delay(exchange.failed_attempts, end.first_wait, end.longest_wait))
                continue
            try:
                accept(reply)
            except UnusableReply as error:
                outcome: RequestOutcome = "refused" if error.failure.kind == "refused" else "malformed"
                exchange.record(outcome, 200, usage, error.failure.detail)
                unusable += 1
                if unusable >= end.answers:
                    return error.failure
            else:
                exchange.record("answered", 200, usage)
                return None

    def _drop_unsupported_params(self, message: str, sent: Mapping[str, Any]) -> bool:
        """Stop sending a parameter that the model does not support: log-probabilities, the temperature, the schema, or
        the older name of the maximum length.

        Args:
            message: the server's error message in lower case.
            sent: the parameters of the request that was rejected.

        Returns:
            Whether the request can be repeated with fewer or other parameters.
        """
        if _TOO_LONG.search(message):
            return False
        for words, names in _OPTIONAL_PARAMS:
            if names[0] in sent and any(word in message for word in words):
                if "max_tokens" in names:
                    self._params["max_completion_tokens"] = self.endpoint.max_tokens
                self._params = {name: value for name, value in self._params.items() if name not in names}
                return True
        return False


class _Exchange:
    """All requests about one question: it counts them and writes their ledger entries."""

    def __init__(self, address: str, endpoint: Endpoint, ledger: Ledger) -> None:
        self._address, self._endpoint, self._ledger = address, endpoint, ledger
        self.attempt = self.failed_attempts = 0
        self.error: RequestError | None = None
        self._began = 0.0

    def start_request(self) -> None:
        """Count a request that is about to be sent, and start its clock."""
        self.attempt += 1
        self._began = time.monotonic()

    def record_failure(self, error: RequestError) -> None:
        """Record that the request brought no reply."""
        self.failed_attempts += 1
        self.error = error
        self.record(error.outcome, error.status, None, error.detail)

    def record(
        self, outcome: RequestOutcome, status: int | None, usage: tuple[int, int] | None, detail: str = ""
    ) -> None:
        """Write the ledger entry of the request."""
        end, (read, written) = self._endpoint, usage or (None, None)
        dollars = ((read or 0) * end.dollars_in + (written or 0) * end.dollars_out) / 1e6
        seconds = round(time.monotonic() - self._began, 3)
        entry = LedgerEntry(self._address, self.attempt, outcome, status, read, written, dollars, seconds, detail[:200])
        self._ledger.add(entry)


_EXCHANGE: ContextVar[_Exchange] = ContextVar("exchange")
"""The question that a request belongs to; a context variable, because the SDK passes only the request to its HTTP
client."""


class _Client(openai.AsyncOpenAI):
    """The SDK's client with the endpoint's pauses between repeated requests."""

    endpoint = Endpoint()

    def copy(self, **options: Any) -> _Client:
        """See ``AsyncOpenAI.copy``; ``with_options`` is the same method."""
        client = super().copy(**options)
        client.endpoint = self.endpoint
        return client

    with_options = copy

    def _calculate_retry_timeout(self, remaining_retries: int, options: Any, response_headers: Any = None) -> float:
        retries = options.get_max_retries(self.max_retries) - remaining_retries
        return retry_delay(retries + 1, self.endpoint.first_wait, self.endpoint.longest_wait)


class _RecordingClient(httpx2.AsyncClient):
    """The SDK's HTTP client with a rate limit, a wall-clock limit per request, and a ledger entry for each."""

    def __init__(self, endpoint: Endpoint) -> None:
        super().__init__(**async_client_options(endpoint.timeout))
        self._endpoint = endpoint
        self._pacer = RequestPacer(endpoint.per_minute)

    async def send(self, request: httpx2.Request, **options: Any) -> httpx2.Response:
        """Send one request; the response's header ``x-should-retry`` tells the SDK whether to repeat it."""
        end, exchange = self._endpoint, _EXCHANGE.get()
        await self._pacer.wait_turn()
        exchange.start_request()
        try:
            # The SDK's time-out starts anew with every byte; this one covers the whole request.
            async with asyncio.timeout(end.timeout):
                response = await super().send(request, **options)
        except asyncio.CancelledError:
            exchange.record("unfinished", None, None, "stopped from this side")
            raise
        except (TimeoutError, httpx2.TimeoutException) as error:
            exchange.record_failure(RequestError("timed_out", f"no answer in {end.timeout:g} s", True))
            raise httpx2.ReadTimeout(str(error), request=request) from error
        except httpx2.HTTPError as error:
            exchange.record_failure(RequestError("cut_off", f"connection lost ({error})", True))
            raise
        if response.is_success:
            return response
        refusal = error_of_response(response, end)
        exchange.record_failure(refusal)
        retry = refusal.retryable and (refusal.wait is None or refusal.wait <= end.patience)
        if retry and refusal.wait is not None:
            self._pacer.pause(refusal.wait)
        response.headers["x-should-retry"] = "true" if retry else "false"
        for name in ("retry-after", "retry-after-ms"):
            response.headers.pop(name, None)
        return response


def error_of_response(response: httpx2.Response, end: Endpoint) -> RequestError:
    """Return the error that an unsuccessful response stands for."""
    status = response.status_code
    if 300 <= status < 400:
        target = str(response.headers.get("location", "another address"))[:120]
        redirected = f"{end.url} sends requests on to {target}, which is not followed: set endpoint.url to where it is."
        return RequestError("rejected", f"redirected ({status})", False, status, fatal=redirected)
    key = f"the key in {end.key_env or OPENAI_KEY_VARIABLE}"
    if end.key() == NO_KEY:
        key = f"the key {NO_KEY!r}, which stands for none,"
    fatal = {
        401: f"{end.url} does not accept {key} ({status}): give a valid one by endpoint.key_env.",
        403: f"{end.url} does not let {key} do this ({status}): use another key or model.",
        404: f"{end.url} knows no model {end.model!r} (404): check endpoint.url and endpoint.model.",
    }.get(status)
    refused = refused_media(response.text, end.shows)
    if refused:
        return RequestError("rejected", f"takes no {refused}", False, status, fatal=(
            f"{end.url} takes no {refused} ({status}): serve a model that does (llama.cpp: --mmproj), or leave "
            f"them out by --set {_MEDIA_SETTINGS[refused]}."
        ))  # fmt: skip
    wait = retry_after(response.headers)
    if status == 429:
        return RequestError("rate_limited", "too many requests (429)", True, status, wait)
    if status >= 500 or status in _RETRYABLE:
        return RequestError("server_error", f"the server failed ({status})", True, status, wait)
    message = f"Error code: {status} - {response.text}"[:200]
    return RequestError("rejected", f"the server would not take it: {message}", False, status, fatal=fatal)


def refused_media(message: str, shows: MediaFormats) -> str:
    """Return which kind of message part an error message refuses: audio, video or image; empty if it refuses none.

    Args:
        message: the body of an unsuccessful response.
        shows: what is sent; a kind that is not sent cannot be refused.
    """
    if not _MEDIA_REFUSED.search(message):
        return ""
    sent = {"audio": shows.audio != "off", "video": shows.video or shows.clip, "image": shows.images}
    named = [kind for kind, is_sent in sent.items() if is_sent and kind in message.lower()]
    if named:
        return named[0]
    # A server that knows no such part at all names its type only as content[].type.
    anonymous = "content[].type" in message or re.search("multi-?modal|mmproj", message, re.IGNORECASE)
    return next((kind for kind, is_sent in sent.items() if is_sent), "") if anonymous else ""


def _with_schema(params: Mapping[str, Any], answer: AnswerFormat[Any]) -> dict[str, Any]:
    """Return the parameters, with the JSON schema of the answer if ``response_format`` is among them."""
    if "response_format" not in params:
        return dict(params)
    schema = {"name": answer.name, "strict": True, "schema": answer.schema}
    return {**params, "response_format": {"type": "json_schema", "json_schema": schema}}


def _encode(make_input: Callable[[], JudgeInput], formats: MediaFormats) -> list[dict[str, Any]]:
    return message_parts(make_input(), formats)


# --- Waiting and sharing


def retry_after(headers: Mapping[str, str], now: Callable[[], float] = time.time) -> float | None:
    """Return the seconds that a server asks to wait, given as a number or a date; None if it asks for nothing."""
    for name, unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        text = headers.get(name)
        if text is None:
            continue
        try:
            return max(0.0, float(text) * unit)
        except ValueError:
            pass
        try:
            return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - now())
        except (TypeError, ValueError):
            continue
    return None


def retry_delay(tried: int, first: float, longest: float) -> float:
    """Return the seconds to wait after the ``tried``-th failure, with random jitter of up to one half.

    delay = min(longest, first · 2^(tried − 1)) · U(0.5, 1)
    """
    return min(longest, first * 2.0 ** min(tried - 1, 1000)) * random.uniform(0.5, 1.0)


class RequestPacer:
    """A rate limit: at most ``per_minute`` requests begin in a minute, evenly spaced, and none during a pause.

    Args:
        per_minute: requests per minute, 0 for no limit.
    """

    def __init__(self, per_minute: float = 0.0) -> None:
        self._gap = 60.0 / per_minute if per_minute else 0.0
        self._next = 0.0
        self._paused_until = 0.0

    async def wait_turn(self) -> None:
        """Wait until the next request may begin."""
        while True:
            now = time.monotonic()
            start = max(now, self._next, self._paused_until)
            if start <= now:
                self._next = now + self._gap
                return
            await asyncio.sleep(start - now)

    def pause(self, seconds: float) -> None:
        """Let no request begin for ``seconds``, as the server has asked."""
        self._paused_until = max(self._paused_until, time.monotonic() + seconds)


class SharedResult(Generic[Value]):
    """The result of ``make()`` shared by ``uses`` calls from any thread.

    The first call computes it; after the last call it is released.
    """

    def __init__(self, make: Callable[[], Value], uses: int) -> None:
        self._make = make
        self._remaining_uses = uses
        self._lock = threading.Lock()
        self._result: list[Value] = []

    def __call__(self) -> Value:
        with self._lock:
            if not self._result:
                self._result.append(self._make())
            value = self._result[0]
            self._remaining_uses -= 1
            if self._remaining_uses <= 0:
                self._result.clear()
            return value
