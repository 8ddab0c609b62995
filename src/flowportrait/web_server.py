"""The guards and limits of every server of this package.

    connection ─► whole head within 15 s? ─► Host? Origin? key? content type? ─► body, counted as it arrives ─► app

The checks are one pure ASGI middleware, ``RequestGuard``. A page of another site can neither read from these servers
nor make them act (checking ``Host`` defeats DNS rebinding; checking ``Origin`` and ``Sec-Fetch-Site`` defeats forged
requests), and no request takes more memory or time than is stated here, whether it declares a length or is sent in
chunks.
"""

from __future__ import annotations

import asyncio
import functools
import hmac
import ipaddress
import json
import os
import re
import socket
import ssl
from collections.abc import Awaitable, Callable, Collection, Mapping, MutableMapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from flowportrait.errors import BadInput

if TYPE_CHECKING:
    import uvicorn


# --- Limits -----------------------------------------------------------------------------

LOOPBACK = ("127.0.0.1", "localhost", "::1")
HEADER_TIMEOUT = 15.0
"""Seconds after which a connection that has sent no complete request head is closed."""
BODY_TIMEOUT = 30.0
"""Seconds that a body may take, plus one second for every ``MIN_BODY_RATE`` bytes that have arrived."""
MIN_BODY_RATE = 64 * 2**10
"""Bytes per second below which an upload is given up."""
MAX_BODIES_HELD = 4
"""How many largest bodies all running requests may hold together; further ones are answered with 503."""
MAX_CONNECTIONS = 128
"""Connections that are served; as many again are answered with 503, any further are closed at once."""
_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(?::([0-9]{1,5}))?")
_PATH = re.compile(
    r"(?:file://|(?<![\w:/.<]))(?:[A-Za-z]:[\\/]|\\\\|~?/)(?=[^\s/])(?:[^'\"/\\:;,\n]+[\\/])*[^\s'\":;,)]*"
)

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


# --- The request guard ------------------------------------------------------------------


class _RefusedBody(Exception):
    """The reason why a body that is too long or too slow is refused; the guard sends it as its response."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class RequestGuard:
    """ASGI middleware with the checks of this module; add it last, so that it runs first.

    Args:
        app: the application behind it.
        hosts: names by which the server may be called, without a port. Besides these, the address that the connection
            was made to is accepted; a page can only use a name that its owner controls.
        largest_body: bytes of a request's body.
        content_types: path prefix to media types that a body sent there may have; the first matching prefix counts.
        key: a bearer token that every request must carry; None for none.
        headers: response headers that are added to every response which does not set them itself.
        keyless_paths: paths that need no key, such as those of a page; one that ends in ``/`` stands for all below it.
        origins: further origins, such as ``https://example.org``, whose pages may use this server.
        websocket_paths: paths that accept WebSockets; all others refuse them.
    """

    def __init__(
        self,
        app: App,
        *,
        hosts: Collection[str] = LOOPBACK,
        largest_body: int,
        content_types: Mapping[str, Collection[str]],
        key: str | None = None,
        headers: Mapping[str, str] | None = None,
        keyless_paths: Collection[str] = (),
        origins: Collection[str] = (),
        websocket_paths: Collection[str] = (),
    ) -> None:
        self._app, self._key, self._largest = app, key, largest_body
        self._keyless, self._websockets = frozenset(keyless_paths), frozenset(websocket_paths)
        self._origins = frozenset(origin.lower() for origin in origins)
        self._hosts = frozenset(host.lower().strip("[]") for host in hosts)
        self._types = dict(content_types)
        added = {
            "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer",
            "Cross-Origin-Resource-Policy": "same-origin", **(headers or {}),
        }  # fmt: skip
        self._headers = [(name.lower().encode(), value.encode()) for name, value in added.items()]
        self._bytes_held = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer with the reason why it is refused."""
        if scope["type"] == "websocket":
            # Browsers let every page open a WebSocket to any site: these checks of the head are all there is.
            if scope["path"] not in self._websockets or self._refusal(scope) is not None:
                await send({"type": "websocket.close", "code": 1008})
            else:
                await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        send = self._sending_to_origin(scope, send)
        refusal = self._refusal(scope)
        if refusal is not None:
            await self._answer(send, *refusal)
        elif self._is_preflight(scope):
            await send({"type": "http.response.start", "status": 204, "headers": [(b"access-control-max-age", b"600")]})
            await send({"type": "http.response.body", "body": b""})
        else:
            await self._pass_on(scope, receive, send)

    def _refusal(self, scope: Scope) -> tuple[int, str] | None:
        """Return status and message for a request whose head is not acceptable, else None."""
        headers: dict[str, list[str]] = {}
        for name, value in scope["headers"]:
            headers.setdefault(name.decode("latin-1").lower(), []).append(value.decode("latin-1"))
        if any(len(headers.get(name, ())) > 1 for name in ("host", "origin", "content-type", "authorization")):
            return 400, "A header of the request is given twice."
        values = {name: values[0] for name, values in headers.items()}
        host = _HOST.fullmatch(values.get("host", "").lower())
        if host is None or not self._is_known_host(host[1].strip("[]"), scope.get("server")):
            name = values.get("host", "")[:80]
            return 400, f"This server does not go by the name {name!r}: start it with that name as a public name."
        method = scope.get("method", "GET")
        if not self._is_same_site(values, values["host"].lower(), method):
            return 403, "Pages of other sites may not use this server."
        # Browsers send no key with the question whether they may send one.
        needs_key = not (self._is_keyless(scope["path"]) or self._is_preflight(scope))
        if self._key is not None and needs_key and not has_bearer_key(values.get("authorization", ""), self._key):
            return 401, "This server asks for its key as a bearer token."
        length = values.get("content-length", "")
        if length and (not length.isdigit() or len(length) > 15 or int(length) > self._largest):
            return 413, self._too_large()
        if method not in _SAFE_METHODS:
            accepted_types = next(
                (types for prefix, types in self._types.items() if scope["path"].startswith(prefix)), ()
            )
            given_type = values.get("content-type", "").partition(";")[0].strip().lower()
            has_body = "transfer-encoding" in values or length not in ("", "0")
            if (given_type or has_body) and given_type not in accepted_types:
                return 415, f"A body sent here must be of the type {' or '.join(accepted_types) or 'none'}."
        return None

    def _is_known_host(self, name: str, server: Sequence[Any] | None) -> bool:
        if name in self._hosts:
            return True
        try:
            address = ipaddress.ip_address(name)
            return server is not None and address == ipaddress.ip_address(str(server[0]).partition("%")[0])
        except ValueError:
            return False

    def _is_same_site(self, headers: Mapping[str, str], host: str, method: str) -> bool:
        """Return whether the request comes from a page of this server, by a browser's headers, or from no browser at
        all.
        """
        site = headers.get("sec-fetch-site", "").lower()
        if headers.get("origin", "").lower() in self._origins:
            return True
        if site not in ("", "none", "same-origin"):
            # A link from another site may be followed; every other request of a foreign page is refused.
            follows_link = method == "GET" and headers.get("sec-fetch-mode", "").lower() == "navigate"
            if not follows_link or headers.get("sec-fetch-dest", "").lower() != "document":
                return False
        origin = headers.get("origin")
        if origin is None:
            return True
        if origin == "null":
            # A page whose Referrer-Policy is no-referrer may hide its origin even from itself.
            return site == "same-origin"
        try:
            address = urlsplit(origin.lower())
            hostname = address.hostname or ""
        except ValueError:
            return False
        # Behind a proxy the Host may be the server's own name while the page was opened under the public one.
        return address.netloc == host or (hostname in self._hosts and hostname not in LOOPBACK)

    def _is_keyless(self, path: str) -> bool:
        folder = path[: path.rfind("/") + 1]
        return path in self._keyless or (folder != "/" and folder in self._keyless)

    def _is_preflight(self, scope: Scope) -> bool:
        """Return whether a browser asks if a page of an allowed origin may send a request (CORS)."""
        names = {name for name, _ in scope["headers"]}
        asks = scope.get("method") == "OPTIONS" and b"access-control-request-method" in names
        return asks and self._allowed_origin(scope) is not None

    def _allowed_origin(self, scope: Scope) -> bytes | None:
        origin = next((value for name, value in scope["headers"] if name == b"origin"), b"")
        return origin if origin.decode("latin-1").lower() in self._origins else None

    def _sending_to_origin(self, scope: Scope, send: Send) -> Send:
        """Return a ``send`` that lets a page of an allowed origin read the response."""
        origin = self._allowed_origin(scope)
        if origin is None:
            return send
        cors_headers = [
            (b"access-control-allow-origin", origin), (b"vary", b"origin"),
            (b"access-control-allow-methods", b"GET, POST, PUT, DELETE"),
            (b"access-control-allow-headers", b"authorization, content-type"),
            (b"access-control-expose-headers", b"location, retry-after"),
            (b"cross-origin-resource-policy", b"cross-origin"),
        ]  # fmt: skip

        async def send_with_origin(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                own = [pair for pair in message.get("headers", ()) if pair[0] != b"cross-origin-resource-policy"]
                message = {**message, "headers": [*own, *cors_headers]}
            await send(message)

        return send_with_origin

    async def _pass_on(self, scope: Scope, receive: Receive, send: Send) -> None:
        loop = asyncio.get_running_loop()
        names = {name for name, value in scope["headers"] if name == b"transfer-encoding" or value != b"0"}
        complete = not names & {b"transfer-encoding", b"content-length"}
        started_at, received, started = loop.time(), 0, False
        refused: _RefusedBody | None = None

        def refuse(status: int, message: str) -> _RefusedBody:
            nonlocal refused
            refused = _RefusedBody(status, message)
            return refused

        async def receive_bounded() -> MutableMapping[str, Any]:
            nonlocal received, complete
            if refused is not None:
                raise refused
            if complete:
                return await receive()
            seconds_left = BODY_TIMEOUT + received / MIN_BODY_RATE - (loop.time() - started_at)
            try:
                message = await asyncio.wait_for(receive(), max(seconds_left, 0.001))
            except TimeoutError:
                raise refuse(408, "The body of the request arrives too slowly.") from None
            if message["type"] == "http.request":
                size = len(message.get("body", b""))
                received, self._bytes_held = received + size, self._bytes_held + size
                complete = not message.get("more_body", False)
                if received > self._largest:
                    raise refuse(413, self._too_large())
                if self._bytes_held > MAX_BODIES_HELD * self._largest:
                    raise refuse(503, "Too many large requests at once: try again in a moment.")
            return message

        async def send_guarded(message: MutableMapping[str, Any]) -> None:
            nonlocal started
            if refused is not None and not started:
                return
            if message["type"] == "http.response.start":
                started = True
                headers = self._with_added(message.get("headers", ()))
                if not complete:
                    # The application does not read the rest of the body, so the server does not wait for it.
                    headers.append((b"connection", b"close"))
                message = {**message, "headers": headers}
            await send(message)

        try:
            await self._app(scope, receive_bounded, send_guarded)
        except Exception:
            if refused is None:
                raise
        finally:
            self._bytes_held -= received
        if refused is not None and not started:
            await self._answer(send, refused.status, str(refused))

    def _with_added(self, headers: Any) -> list[tuple[bytes, bytes]]:
        own_headers = [(bytes(name).lower(), bytes(value)) for name, value in headers]
        present = {name for name, _ in own_headers}
        return own_headers + [pair for pair in self._headers if pair[0] not in present]

    async def _answer(self, send: Send, status: int, message: str) -> None:
        """Send an error in the form that the clients of OpenAI and FastAPI read; the rest of the body is not read."""
        error = {"message": message, "type": "invalid_request_error", "code": status}
        body = json.dumps({"error": error, "detail": message}).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()),
                   (b"connection", b"close")]  # fmt: skip
        if status == 503:
            headers.append((b"retry-after", b"2"))
        await send({"type": "http.response.start", "status": status, "headers": self._with_added(headers)})
        await send({"type": "http.response.body", "body": body})

    def _too_large(self) -> str:
        return f"The body of the request is larger than {self._largest / 2**20:.3g} MiB."


# --- Keys, names, sockets and certificates ----------------------------------------------


def has_bearer_key(authorization: str, key: str) -> bool:
    """Return whether a header ``Authorization`` carries this key, in a time that tells nothing about it."""
    return hmac.compare_digest(authorization.encode("latin-1", "replace"), f"Bearer {key}".encode())


def strip_paths(sentence: str, *folders: Path) -> str:
    """Return a message for a client in which each absolute path is cut to its last part.

    So a client does not learn where files are.

    Args:
        sentence: the message.
        *folders: paths that may hold blanks or quotes and are known to occur; these are found exactly.
    """
    for folder in folders:
        for name in {str(folder), str(folder.absolute())}:
            sentence = sentence.replace(name + os.sep, "").replace(name, folder.name)
    return _PATH.sub(lambda match: re.split(r"[\\/]", match[0].rstrip("\\/"))[-1], sentence)


def allowed_host_names(host: str, names: Sequence[str]) -> list[str]:
    """Return the names by which a server that listens on ``host`` may be called.

    These are the names of loopback, this computer's where others can reach it, and ``names``, which the owner gives.

    Raises:
        BadInput: one of ``names`` is no host name.
    """
    for name in names:
        match = _HOST.fullmatch(name.lower())
        if match is None or match[2]:
            raise BadInput(f"--public-name {name} is no host name: give it without https:// and without a port.")
    if host in LOOPBACK:
        return [*LOOPBACK, *names]
    computer = socket.gethostname().lower()
    listens_everywhere = host in ("0.0.0.0", "::", "")
    return [*LOOPBACK, computer, f"{computer}.local", *([] if listens_everywhere else [host]), *names]


def bind_listener(host: str, port: int) -> socket.socket:
    """Return a socket that is bound to the address; port 0 takes a free one.

    Raises:
        BadInput: the address cannot be used.
    """
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    if os.name == "posix":
        # On other systems this option would let two servers share a port.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except (OSError, OverflowError) as error:
        listener.close()
        raise BadInput(f"Cannot listen on {host}:{port} ({error}): choose another --port.") from error
    return listener


def listener_url(listener: socket.socket, scheme: str = "http") -> str:
    """Return ``http://HOST:PORT`` of a bound socket."""
    host, port = listener.getsockname()[:2]
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


def check_tls_certificate(certificate: Path | None, private_key: Path | None) -> None:
    """Check that a server can use this certificate and its private key, PEM files, or neither.

    Raises:
        BadInput: one of them is missing, or they cannot be used together.
    """
    if (certificate is None) != (private_key is None):
        raise BadInput("A certificate and its private key belong together: give --certificate and --private-key.")
    if certificate is None or private_key is None:
        return
    for path in (certificate, private_key):
        if not path.is_file():
            raise BadInput(f"No file at {path}: give a certificate and its private key in PEM format.")
    try:
        # Without the callback an encrypted key would be asked for on the terminal.
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, private_key, lambda: b"")
    except (OSError, ValueError) as error:
        raise BadInput(
            f"{certificate} and {private_key} cannot be used for https: give a certificate and its own private key, "
            "without a password, in PEM format."
        ) from error


# --- The server -------------------------------------------------------------------------


def make_server(
    app: Any,
    ready: Callable[[], None] = lambda: None,
    certificate: Path | None = None,
    private_key: Path | None = None,
    ending: Callable[[], Awaitable[None]] | None = None,
    **options: Any,
) -> uvicorn.Server:
    """Return a uvicorn server with the limits of this module; ``.run(sockets=[listener])`` serves until Ctrl-C.

    Args:
        app: the ASGI application.
        ready: called once connections are accepted.
        certificate: a PEM file, for https.
        private_key: its key, a PEM file.
        ending: awaited before connections are closed, so that clients can be told.
        **options: further settings of uvicorn. Only warnings and errors are logged by default.
    """
    import uvicorn

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            ready()

        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            if ending is not None:
                await ending()
            await super().shutdown(sockets)

    settings: dict[str, Any] = {
        "http": _timed_protocol(), "ws": "none", "limit_concurrency": MAX_CONNECTIONS, "log_level": "warning",
        "access_log": False, "server_header": False, "ssl_certfile": certificate, "ssl_keyfile": private_key,
    }  # fmt: skip
    return Server(uvicorn.Config(app, **settings | options))


@functools.cache
def _timed_protocol() -> Any:
    """Return uvicorn's HTTP/1.1 protocol with a time limit for the request head, which uvicorn itself does not have."""
    from uvicorn.protocols.http.h11_impl import H11Protocol

    class TimedProtocol(H11Protocol):
        def __init__(self, *sent: Any, **named: Any) -> None:
            super().__init__(*sent, **named)
            self._head_timer: asyncio.TimerHandle | None = None
            self._is_upgraded = False

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            if len(self.connections) > 2 * MAX_CONNECTIONS:
                transport.abort()
                return
            self._await_head()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self.cycle is not None and not self.cycle.response_complete:
                self._cancel_head_timer()
            elif self._head_timer is None and not self.transport.is_closing() and not self._is_upgraded:
                self._await_head()

        def on_response_complete(self) -> None:
            super().on_response_complete()
            # A next request that has already begun must be completed in time as well.
            if self.cycle is None or self.cycle.response_complete:
                self._cancel_head_timer()

        def handle_websocket_upgrade(self, event: Any) -> None:
            # The connection is another protocol's from here on, and this one sees no more of it.
            self._is_upgraded = True
            self._cancel_head_timer()
            super().handle_websocket_upgrade(event)

        def connection_lost(self, exc: Exception | None) -> None:
            self._cancel_head_timer()
            super().connection_lost(exc)

        def _await_head(self) -> None:
            self._head_timer = self.loop.call_later(HEADER_TIMEOUT, self.transport.abort)

        def _cancel_head_timer(self) -> None:
            if self._head_timer is not None:
                self._head_timer.cancel()
                self._head_timer = None

    return TimedProtocol
