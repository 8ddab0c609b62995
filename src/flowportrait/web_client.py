"""Requests to other machines: allowed addresses, the key for each server, and the largest response.

Only the environment decides which key is sent to which server; settings in a file cannot:

    FLOWPORTRAIT_JUDGE_KEY=…   FLOWPORTRAIT_JUDGE_HOST=judge.example.org        the key goes to this host alone
    OPENAI_API_KEY=…           api.openai.com, or the host of OPENAI_BASE_URL

Settings and recipes are shared between people. Otherwise a file that names an address and a variable could send any
variable of the environment to anybody. No redirect is followed: it would send a portrait, and with it a key,
to a host that the user did not name.
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

# --- Addresses and keys -----------------------------------------------------------------

OPENAI_KEY_VARIABLE, OPENAI_ADDRESS_VARIABLE, OPENAI_HOST = "OPENAI_API_KEY", "OPENAI_BASE_URL", "api.openai.com"
PLAIN_HTTP_VARIABLE = "FLOWPORTRAIT_PLAIN_HTTP"
"""Variable with the hosts, separated by commas, that may be asked without encryption; no key is sent to them."""
_KEY_VARIABLE = re.compile(r"FLOWPORTRAIT_[A-Z0-9_]*KEY")
_UNSAFE_CHARACTERS = re.compile(r"[\s\\@\x00-\x20\x7f]")


def check_server_address(url: str, setting: str) -> None:
    """Check that requests may be sent to a server.

    Args:
        url: the server's address.
        setting: the name of the setting that holds the address, for the message.

    Raises:
        BadInput: ``url`` is no http(s) address, holds a name and password, or is not encrypted although the server is
            on another computer.
    """
    address = _parse_address(url, setting)
    if address.scheme == "https" or is_loopback(address.hostname or ""):
        return
    allowed = [host.strip().lower() for host in os.environ.get(PLAIN_HTTP_VARIABLE, "").split(",")]
    if not {address.hostname, _host_port(address)} & set(allowed):
        raise BadInput(
            f"{setting}={url} would send portraits and voices over the network unencrypted: give an https:// "
            "address, reach the server through an SSH tunnel to this computer, or set "
            f"{PLAIN_HTTP_VARIABLE}={address.hostname} if the network is yours alone."
        )


def api_key_for(url: str, variable: str, setting: str = "endpoint.key_env") -> str | None:
    """Return the key in the environment variable ``variable`` for the server at ``url``; None where none is set.

    An empty ``variable`` stands for OPENAI_API_KEY where that belongs to the server, and for no key elsewhere.

    Raises:
        BadInput: the variable is not one of those that hold keys for this package, the environment does not assign its
            key to this host, or the key would travel unencrypted.
    """
    address = _parse_address(url, "The address")
    host = address.hostname or ""
    if not variable:
        if not _is_openai_host(address):
            return None
        variable = OPENAI_KEY_VARIABLE
    host_variable = variable.removesuffix("KEY") + "HOST"
    if variable != OPENAI_KEY_VARIABLE and not _KEY_VARIABLE.fullmatch(variable):
        raise BadInput(
            f"{setting}={variable[:60]!r} names no key of FlowPortrait: keys are read from {OPENAI_KEY_VARIABLE} and "
            f"from FLOWPORTRAIT_…_KEY alone; put it into FLOWPORTRAIT_JUDGE_KEY and the host into "
            "FLOWPORTRAIT_JUDGE_HOST."
        )
    key = os.environ.get(variable)
    if variable == OPENAI_KEY_VARIABLE:
        if is_loopback(host) and not _is_openai_host(address):
            # Settings of version 0.1 name this variable by default; a server on this computer needs no key.
            return None
        if not _is_openai_host(address):
            raise BadInput(
                f"{setting}={OPENAI_KEY_VARIABLE} is sent to {OPENAI_HOST} alone, not to {host}: set {setting}="
                f"FLOWPORTRAIT_JUDGE_KEY, put the key there and FLOWPORTRAIT_JUDGE_HOST={_host_port(address)} beside "
                f"it, or leave {setting} empty for a server without a key."
            )
    elif key and not is_loopback(host):
        assigned_hosts = {name.strip().lower() for name in os.environ.get(host_variable, "").split(",")}
        if not {host, _host_port(address)} & assigned_hosts:
            raise BadInput(
                f"The key in {variable} is not meant for {host}: set {host_variable}={_host_port(address)} if it may "
                "be sent there."
            )
    if key and address.scheme != "https" and not is_loopback(host):
        raise BadInput(
            f"The key in {variable} would travel to {host} unencrypted: give an https:// address, or reach the server "
            "through an SSH tunnel to this computer."
        )
    return key or None


def is_loopback(host: str) -> bool:
    """Return whether a host name or IP address refers to this computer."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _is_openai_host(address: SplitResult) -> bool:
    configured = os.environ.get(OPENAI_ADDRESS_VARIABLE, "")
    is_clean = bool(configured) and not _UNSAFE_CHARACTERS.search(configured)
    if is_clean and _host_port(urlsplit(configured)) == _host_port(address):
        return True
    return address.hostname == OPENAI_HOST and _port(address) == 443


def _parse_address(url: str, setting: str) -> SplitResult:
    try:
        address = urlsplit(url)
        is_valid = address.scheme in ("http", "https") and bool(address.hostname) and not _UNSAFE_CHARACTERS.search(url)
        _port(address)
    except ValueError:
        is_valid = False
    if not is_valid:
        raise BadInput(f"{setting}={url} is no address: give https://HOST:PORT/v1, without a name or password.")
    return address


def _port(address: SplitResult) -> int:
    return address.port or (443 if address.scheme == "https" else 80)


def _host_port(address: SplitResult) -> str:
    host = address.hostname or ""
    return host if address.port is None else f"{f'[{host}]' if ':' in host else host}:{address.port}"


# --- HTTP clients -----------------------------------------------------------------------

MAX_RESPONSE_BYTES = 64 * 2**20
"""Largest size of a response body in bytes."""
_HEADERS = {"Accept-Encoding": "identity"}


class ResponseTooLarge(httpx2.RequestError):
    """The error for a response that is larger than ``MAX_RESPONSE_BYTES`` or compressed."""


def make_http_client(timeout: float | None = None) -> httpx2.Client:
    """Return a client for blocking requests with the limits of this module; ``timeout`` is in seconds."""
    hooks = {"response": [_limit_size]}
    return httpx2.Client(event_hooks=hooks, follow_redirects=False, timeout=timeout, headers=_HEADERS)


def async_client_options(timeout: float | None = None) -> dict[str, Any]:
    """Return the options of an ``httpx2.AsyncClient`` with this module's limits, such as OpenAI's library takes."""
    return {
        "event_hooks": {"response": [_limit_size_async]},
        "follow_redirects": False,
        "timeout": timeout,
        "headers": _HEADERS,
    }


def _limit_size(response: httpx2.Response) -> None:
    """Count the bytes of a response as they are read; its body has not been requested yet."""
    _refuse_compressed(response)
    assert isinstance(response.stream, httpx2.SyncByteStream)
    response.stream = _CountedStream(response.stream, response.request)


async def _limit_size_async(response: httpx2.Response) -> None:
    _refuse_compressed(response)
    assert isinstance(response.stream, httpx2.AsyncByteStream)
    response.stream = _AsyncCountedStream(response.stream, response.request)


def _refuse_compressed(response: httpx2.Response) -> None:
    """Refuse compressed responses: they are counted before they are unpacked, and few bytes could become gigabytes."""
    if response.headers.get("content-encoding", "identity") not in ("identity", ""):
        raise ResponseTooLarge("the answer is compressed although that was not asked for", request=response.request)


class _CountedStream(httpx2.SyncByteStream):
    def __init__(self, stream: httpx2.SyncByteStream, request: httpx2.Request) -> None:
        self._stream, self._request = stream, request

    def __iter__(self) -> Iterator[bytes]:
        size = 0
        for piece in self._stream:
            size += len(piece)
            _check_size(size, self._request)
            yield piece

    def close(self) -> None:
        self._stream.close()


class _AsyncCountedStream(httpx2.AsyncByteStream):
    def __init__(self, stream: httpx2.AsyncByteStream, request: httpx2.Request) -> None:
        self._stream, self._request = stream, request

    async def __aiter__(self) -> AsyncIterator[bytes]:
        size = 0
        async for piece in self._stream:
            size += len(piece)
            _check_size(size, self._request)
            yield piece

    async def aclose(self) -> None:
        await self._stream.aclose()


def _check_size(size: int, request: Any) -> None:
    if size > MAX_RESPONSE_BYTES:
        raise ResponseTooLarge(f"the answer is larger than {MAX_RESPONSE_BYTES // 2**20} MiB", request=request)
