"""How the package asks servers: no redirect is followed, and no answer is larger than it may be.

A redirect would send a portrait, and with it a key, to a host that nobody named.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx2

LARGEST_ANSWER = 64 * 2**20
"""Bytes."""
_PLAIN = {"Accept-Encoding": "identity"}


class AnswerTooLarge(httpx2.RequestError):
    """A server sent more than an answer may hold."""


def make_client(timeout: float | None = None) -> httpx2.Client:
    """A client for blocking requests."""
    return httpx2.Client(
        event_hooks={"response": [_bound]}, follow_redirects=False, timeout=timeout, headers=_PLAIN
    )  # fmt: skip


def async_client_options(timeout: float | None = None) -> dict[str, Any]:
    """Return the options of an ``httpx2.AsyncClient`` for an event loop, such as OpenAI's library takes."""
    return {
        "event_hooks": {"response": [_bound_async]},
        "follow_redirects": False,
        "timeout": timeout,
        "headers": _PLAIN,
    }


def _bound(answer: httpx2.Response) -> None:
    """Count what is read of an answer; its body has not been asked for yet."""
    _refuse_packed(answer)
    assert isinstance(answer.stream, httpx2.SyncByteStream)
    answer.stream = _Counted(answer.stream, answer.request)


async def _bound_async(answer: httpx2.Response) -> None:
    _refuse_packed(answer)
    assert isinstance(answer.stream, httpx2.AsyncByteStream)
    answer.stream = _AsyncCounted(answer.stream, answer.request)


def _refuse_packed(answer: httpx2.Response) -> None:
    """Compressed answers are counted before they are unpacked: a few packed bytes could become gigabytes."""
    if answer.headers.get("content-encoding", "identity") not in ("identity", ""):
        raise AnswerTooLarge("the answer is compressed although that was not asked for", request=answer.request)


class _Counted(httpx2.SyncByteStream):
    def __init__(self, stream: httpx2.SyncByteStream, request: httpx2.Request) -> None:
        self._stream, self._request = stream, request

    def __iter__(self) -> Iterator[bytes]:
        size = 0
        for piece in self._stream:
            size += len(piece)
            _check(size, self._request)
            yield piece

    def close(self) -> None:
        self._stream.close()


class _AsyncCounted(httpx2.AsyncByteStream):
    def __init__(self, stream: httpx2.AsyncByteStream, request: httpx2.Request) -> None:
        self._stream, self._request = stream, request

    async def __aiter__(self) -> AsyncIterator[bytes]:
        size = 0
        async for piece in self._stream:
            size += len(piece)
            _check(size, self._request)
            yield piece

    async def aclose(self) -> None:
        await self._stream.aclose()


def _check(size: int, request: Any) -> None:
    if size > LARGEST_ANSWER:
        raise AnswerTooLarge(f"the answer is larger than {LARGEST_ANSWER // 2**20} MiB", request=request)
