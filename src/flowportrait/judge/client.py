"""Questions over HTTP to any OpenAI-compatible server, many at a time, through everything that can go wrong.

question ─► wait for a turn ─► one request ─► ledger line ─► usable? ─► keep
                     ▲                 │ busy, broken, cut, late: wait, again, at most ``attempts``
                     └─────────────────┘ refused, malformed: again, at most ``answers``; then a failure with its reason
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import httpx2
import openai

from flowportrait.errors import BadInput
from flowportrait.judge.endpoint import OWN_MODEL, Endpoint
from flowportrait.judge.evidence import Evidence
from flowportrait.judge.kind import Kind
from flowportrait.judge.ledger import Entry, Ledger, Outcome
from flowportrait.judge.opinion import Reply, Unusable
from flowportrait.judge.parts import Shows, content, text_part
from flowportrait.judge.patience import Pace, backoff
from flowportrait.judge.question import Keep, Question
from flowportrait.judge.response import Trouble, read_answer, trouble_of
from flowportrait.judge.shared import Shared
from flowportrait.reward.batch import Failure
from flowportrait.web_client import make_async_client


class Server:
    """A ``Backend`` at an address. The ledger has every request."""

    def __init__(self, endpoint: Endpoint, ledger: Ledger | None = None) -> None:
        self.endpoint = endpoint.checked()
        self.ledger = ledger or Ledger()
        self._wishes: dict[str, Any] = {"temperature": endpoint.temperature, "max_tokens": endpoint.max_tokens}
        if endpoint.top_logprobs and self.kind != "measured panel":
            self._wishes |= {"logprobs": True, "top_logprobs": endpoint.top_logprobs}

    @property
    def who(self) -> str:
        return self.endpoint.who

    @property
    def kind(self) -> Kind:
        return "measured panel" if self.endpoint.model == OWN_MODEL else "multimodal LLM panel"

    def ask(self, questions: Sequence[Question], keep: Keep) -> dict[int, Failure]:
        """See ``Backend``.

        Raises:
            BadInput: the server knows neither this key nor this model.
        """
        if not questions:
            return {}
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return asyncio.run(self._ask(questions, keep))
        # Inside somebody's event loop (a notebook): in a thread with a loop of its own.
        with ThreadPoolExecutor(1) as thread:
            return thread.submit(asyncio.run, self._ask(questions, keep)).result()

    async def _ask(self, questions: Sequence[Question], keep: Keep) -> dict[int, Failure]:
        end, pace = self.endpoint, Pace(self.endpoint.per_minute)
        uses = Counter(question.show for question in questions)
        # Samples of one aspect are shown the same: encoded once, kept until the last of them is on its way.
        shown = {show: Shared(partial(_encoded, show, end.shows), count) for show, count in uses.items()}
        room, failures = asyncio.Semaphore(end.concurrency), {}
        # The library's own client follows redirects, and would take the clip elsewhere.
        client = openai.AsyncOpenAI(base_url=end.url, api_key=end.key(), max_retries=0, timeout=end.timeout,
                                    http_client=make_async_client(end.timeout))  # fmt: skip

        async def one(place: int, question: Question) -> None:
            async with room:
                found = await self._answer(client, pace, question, shown[question.show])
            if isinstance(found, Failure):
                failures[place] = found
            else:
                keep(place, found)

        async with client:
            tasks = [asyncio.create_task(one(place, question)) for place, question in enumerate(questions)]
            try:
                await asyncio.gather(*tasks)
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
        return failures

    async def _answer(
        self, client: openai.AsyncOpenAI, pace: Pace, question: Question, shown: Shared[list[dict[str, Any]]]
    ) -> Reply | Failure:
        end, address = self.endpoint, question.address(self.who)
        parts = await asyncio.to_thread(shown)
        messages: list[Any] = [
            {"role": "system", "content": question.system},
            {"role": "user", "content": [*parts, text_part(question.text)]},
        ]
        tries = lost = bad = 0
        while True:
            await pace.turn()
            tries += 1
            began, wishes = time.monotonic(), dict(self._wishes)
            try:
                found = await self._request(client, messages, wishes)
            except asyncio.CancelledError:
                self._note(address, tries, "unfinished", None, None, began, "stopped from this side")
                raise
            if isinstance(found, Trouble):
                self._note(address, tries, found.outcome, found.status, None, began, found.detail)
                if found.hopeless:
                    raise BadInput(found.hopeless)
                if found.status == 400 and self._wish_less(found.detail.lower(), wishes):
                    continue
                lost += 1
                if found.wait is not None and found.wait > end.patience:
                    return Failure("unavailable", f"asked to wait {found.wait:.0f} s, longer than {end.patience:g} s")
                if not found.again:
                    return Failure("refused", found.detail)
                if lost >= end.attempts:
                    return Failure("unavailable", f"{found.detail}, {lost} times")
                if found.wait is not None:
                    pace.hold(found.wait)
                else:
                    await asyncio.sleep(backoff(lost, end.first_wait, end.longest_wait))
                continue
            reply, usage = found
            try:
                question.check(reply)
            except Unusable as error:
                outcome: Outcome = "refused" if error.failure.kind == "refused" else "malformed"
                self._note(address, tries, outcome, 200, usage, began, error.failure.detail)
                bad += 1
                if bad >= end.answers:
                    return error.failure
                continue
            self._note(address, tries, "answered", 200, usage, began)
            return reply

    async def _request(
        self, client: openai.AsyncOpenAI, messages: list[Any], wishes: dict[str, Any]
    ) -> tuple[Reply, tuple[int, int] | None] | Trouble:
        end = self.endpoint
        try:
            # The client's own time-out starts anew with every byte; this one does not.
            async with asyncio.timeout(end.timeout):
                answer = await client.chat.completions.create(model=end.model, messages=messages, **wishes)
            return read_answer(answer)
        except (TimeoutError, openai.APITimeoutError):
            return Trouble("timed_out", f"no answer in {end.timeout:g} s", True)
        except openai.APIStatusError as error:
            return trouble_of(error, end)
        except (openai.APIConnectionError, httpx2.HTTPError) as error:
            return Trouble("cut_off", f"connection lost ({error.__cause__ or error})", True)
        except (openai.APIError, ValueError, TypeError, AttributeError, LookupError, ArithmeticError,
                RecursionError) as error:  # fmt: skip
            return Trouble("malformed", f"no readable completion ({type(error).__name__}: {error})", True, 200)

    def _wish_less(self, said: str, sent: dict[str, Any]) -> bool:
        """Some models have no log-probabilities, no temperature, or another name for the length, and say so with a
        400: from now on without. True if the request that was ``sent`` can be made again in another way."""
        if "logprob" in said and "logprobs" in sent:
            gone = {"logprobs", "top_logprobs"}
        elif "max_completion_tokens" in said and "max_tokens" in sent:
            gone = {"max_tokens"}
            self._wishes["max_completion_tokens"] = self.endpoint.max_tokens
        elif "temperature" in said and "temperature" in sent:
            gone = {"temperature"}
        else:
            return False
        self._wishes = {name: wish for name, wish in self._wishes.items() if name not in gone}
        return True

    def _note(self, address: str, tries: int, outcome: Outcome, status: int | None, usage: tuple[int, int] | None,
              began: float, detail: str = "") -> None:  # fmt: skip
        read, written = usage or (None, None)
        dollars = ((read or 0) * self.endpoint.dollars_in + (written or 0) * self.endpoint.dollars_out) / 1e6
        seconds = round(time.monotonic() - began, 3)
        self.ledger.add(Entry(address, tries, outcome, status, read, written, dollars, seconds, detail[:200]))


def _encoded(show: Callable[[], Evidence], shows: Shows) -> list[dict[str, Any]]:
    return content(show(), shows)
