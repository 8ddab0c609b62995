"""Requests to other machines, and the keys that they need.

Which key goes to which server. The person at the computer decides that in the environment; a file never does.

    FLOWPORTRAIT_JUDGE_KEY=…   FLOWPORTRAIT_JUDGE_HOST=judge.example.org        the key goes there and nowhere else
    OPENAI_API_KEY=…           api.openai.com, or the host of OPENAI_BASE_URL

Settings and recipes are shared between people. One that names an address and a variable could otherwise send any
variable of the reader's environment to anybody.

How the package asks servers: no redirect is followed, and no answer is larger than it may be.

A redirect would send a portrait, and with it a key, to a host that nobody named.
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import AsyncIterator, Iterator
from typing import Any
from urllib.parse import SplitResult, urlsplit

import httpx2

from flowportrait.errors import BadInput

OPENAI_KEY, OPENAI_ADDRESS, OPENAI_HOST = "OPENAI_API_KEY", "OPENAI_BASE_URL", "api.openai.com"
PLAIN_HTTP = "FLOWPORTRAIT_PLAIN_HTTP"
"""Hosts, separated by commas, that may be asked without encryption; a key is sent to none of them."""
_OWN = re.compile(r"FLOWPORTRAIT_[A-Z0-9_]*KEY")
_TWISTED = re.compile(r"[\s\\@\x00-\x20\x7f]")


def check_address(url: str, setting: str) -> None:
    """Check that a server may be asked at all.

    Raises:
        BadInput: ``url`` is no http(s) address, holds a name and password, or is not encrypted although the server is
            on another computer; ``setting`` is what the sentence calls it.
    """
    place = _parsed(url, setting)
    if place.scheme == "https" or is_loopback(place.hostname or ""):
        return
    allowed = [host.strip().lower() for host in os.environ.get(PLAIN_HTTP, "").split(",")]
    if not {place.hostname, _host_port(place)} & set(allowed):
        raise BadInput(
            f"{setting}={url} would send portraits and voices over the network unencrypted: give an https:// address, "
            f"reach the server through an SSH tunnel to this computer, or set {PLAIN_HTTP}={place.hostname} if the "
            "network is yours alone."
        )


def key_for(url: str, variable: str, setting: str = "endpoint.key_env") -> str | None:
    """The key in the environment variable ``variable`` for the server at ``url``; None where none is set.

    An empty ``variable`` stands for OPENAI_API_KEY where that belongs to the server, and for no key elsewhere.

    Raises:
        BadInput: the variable is not one of those that hold keys for this package, the environment does not assign its
            key to this host, or the key would travel unencrypted.
    """
    place = _parsed(url, "The address")
    host = place.hostname or ""
    if not variable:
        if not _openai_host(place):
            return None
        variable = OPENAI_KEY
    assigned = variable.removesuffix("KEY") + "HOST"
    if variable != OPENAI_KEY and not _OWN.fullmatch(variable):
        raise BadInput(
            f"{setting}={variable[:60]!r} names no key of FlowPortrait: keys are read from {OPENAI_KEY} and from "
            f"FLOWPORTRAIT_…_KEY alone; put it into FLOWPORTRAIT_JUDGE_KEY and the host into FLOWPORTRAIT_JUDGE_HOST."
        )
    key = os.environ.get(variable)
    if variable == OPENAI_KEY:
        if is_loopback(host) and not _openai_host(place):
            # Settings of version 0.1 name this variable by default; a server on this computer needs no key.
            return None
        if not _openai_host(place):
            raise BadInput(
                f"{setting}={OPENAI_KEY} is sent to {OPENAI_HOST} alone, not to {host}: set {setting}="
                f"FLOWPORTRAIT_JUDGE_KEY, put the key there and FLOWPORTRAIT_JUDGE_HOST={_host_port(place)} beside it, "
                f"or leave {setting} empty for a server without a key."
            )
    elif key and not is_loopback(host):
        owners = {name.strip().lower() for name in os.environ.get(assigned, "").split(",")}
        if not {host, _host_port(place)} & owners:
            raise BadInput(
                f"The key in {variable} is not meant for {host}: set {assigned}={_host_port(place)} if it may be sent "
                "there."
            )
    if key and place.scheme != "https" and not is_loopback(host):
        raise BadInput(
            f"The key in {variable} would travel to {host} unencrypted: give an https:// address, or reach the server "
            "through an SSH tunnel to this computer."
        )
    return key or None


def is_loopback(host: str) -> bool:
    """Whether a host name or address is this computer."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _openai_host(place: SplitResult) -> bool:
    own = os.environ.get(OPENAI_ADDRESS, "")
    if own and not _TWISTED.search(own) and _host_port(urlsplit(own)) == _host_port(place):
        return True
    return place.hostname == OPENAI_HOST and _port(place) == 443


def _parsed(url: str, setting: str) -> SplitResult:
    try:
        place = urlsplit(url)
        plain = place.scheme in ("http", "https") and bool(place.hostname) and not _TWISTED.search(url)
        _port(place)
    except ValueError:
        plain = False
    if not plain:
        raise BadInput(f"{setting}={url} is no address: give https://HOST:PORT/v1, without a name or password.")
    return place


def _port(place: SplitResult) -> int:
    return place.port or (443 if place.scheme == "https" else 80)


def _host_port(place: SplitResult) -> str:
    host = place.hostname or ""
    return host if place.port is None else f"{f'[{host}]' if ':' in host else host}:{place.port}"


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
