"""The live server as a web application: the page, sessions by WebRTC and WebSocket, health and figures.

    GET  /, /page/NAME, /clients/NAME       the page and the clients of one file
    GET  /live/config, /live/poster         what a page needs: sizes, voices, STUN and TURN servers; the face at rest
    PUT  /live/image?name=                  a photo for one's own session ─► {"image": ID}
    POST /live/offer                        WebRTC: an offer ─► 201, the answer, Location of the session
    WS   /live/ws                           the same session over a WebSocket
    GET  /live/sessions/ID                  its state, or 410 and why it ended; POST a control message; DELETE ends it
    GET  /healthz, /metrics, /openapi.json, /asyncapi.json

Whoever may reach the server is decided by one guard (``web_server.RequestGuard``): names, origins, sizes, and the
token. Pages, clients and health need no token; an offer and a WebSocket may carry it in their ``start``.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from fastapi import FastAPI, HTTPException, Request, Response, WebSocket
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.json_schema import models_json_schema

from flowportrait import __version__
from flowportrait.errors import BadInput
from flowportrait.live.admission import ServerFull
from flowportrait.live.connection import LiveConnection
from flowportrait.live.host import SessionHost
from flowportrait.live.limits import LiveLimits
from flowportrait.live.metrics import METRICS_TYPE
from flowportrait.live.protocol import NOTICE, StartMessage, asyncapi_document, check_version, field_path
from flowportrait.live.websocket import JPEG_MIME, WRONG_TOKEN, encode_jpeg, is_authorised, serve_websocket
from flowportrait.rendering.motion_basis import MOTION_DIM
from flowportrait.speech.offered_voices import installed_voices
from flowportrait.uploads import delete_old_files
from flowportrait.web_server import LOOPBACK, RequestGuard, strip_paths

PAGE_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
CLIENT_TYPES = {".js": "text/javascript", ".py": "text/x-python"}
LIVE_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "media-src 'self' blob:; connect-src 'self'; worker-src 'self' blob:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
}
KEYLESS_PATHS = ("/", "/page/", "/clients/", "/live/offer", "/live/ws", "/healthz", "/openapi.json", "/asyncapi.json")
"""What needs no token: an offer and a WebSocket may carry it in their first message."""
PHOTO_TYPES = ("image/jpeg", "image/png", "image/webp", "image/avif", "image/heic", "image/heif",
               "application/octet-stream")  # fmt: skip
SDP_TYPE = "application/sdp"
MAX_OFFER_BYTES = 2**18
"""Bytes of an offer or of a control message over HTTP."""
OFFER_BODY: dict[str, Any] = {
    "requestBody": {"required": True, "content": {
        "application/json": {"schema": {"$ref": "#/components/schemas/OfferForm"}},
        SDP_TYPE: {"schema": {"type": "string"}},
    }},
}  # fmt: skip
"""The body of an offer in the OpenAPI document, because the handler reads it itself."""
_LAST_WORDS_SECONDS = 0.2
_END_SECONDS = 5.0
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class LiveServerSettings:
    """Who may use a live server, and what its page is told.

    Attributes:
        hosts: names by which the server may be called.
        token: what clients must send; None for nothing.
        origins: other origins whose pages may use the server.
        ice_servers: STUN and TURN servers of WebRTC (``IceServer``).
        limits: what a client may do.
    """

    hosts: tuple[str, ...] = LOOPBACK
    token: str | None = None
    origins: tuple[str, ...] = ()
    ice_servers: tuple[Any, ...] = ()
    limits: LiveLimits = field(default_factory=LiveLimits)


class OfferForm(BaseModel):
    """A WebRTC offer with the wish for a session."""

    model_config = ConfigDict(extra="forbid")
    sdp: str = Field(max_length=MAX_OFFER_BYTES)
    type: str = Field(default="offer", pattern="^offer$")
    start: StartMessage = Field(default_factory=StartMessage)


# --- The application --------------------------------------------------------------------


def live_app(host: SessionHost, settings: LiveServerSettings) -> FastAPI:
    """Return the application of one process that draws its sessions itself.

    Args:
        host: opens and carries the sessions.
        settings: who may use it.
    """
    app = pages_app(settings)
    _add_information(app, host, settings)
    _add_sessions(app, host)
    _add_webrtc(app, host, settings)

    @app.websocket("/live/ws")
    async def websocket(websocket: WebSocket) -> None:
        await serve_websocket(websocket, host, settings.token)

    describe_offer(app)
    return app


def pages_app(settings: LiveServerSettings) -> FastAPI:
    """Return an application with the page, the clients, the error messages and the guard, and no sessions."""
    app = FastAPI(title="FlowPortrait live", version=__version__, description=NOTICE, docs_url=None, redoc_url=None)
    app.add_exception_handler(BadInput, _bad_input)
    app.add_exception_handler(ServerFull, _full)
    app.add_exception_handler(RequestValidationError, _wrong_form)
    app.add_exception_handler(Exception, _failure)
    _add_files(app)
    app.add_middleware(
        RequestGuard, hosts=settings.hosts, largest_body=settings.limits.photo_megabytes * 2**20,
        content_types={
            "/live/image": PHOTO_TYPES, "/live/offer": ("application/json", SDP_TYPE), "/": ("application/json",),
        },
        key=settings.token, headers=LIVE_HEADERS, keyless_paths=KEYLESS_PATHS,
        origins=settings.origins, websocket_paths=("/live/ws",),
    )  # fmt: skip
    return app


def end_sessions(host: SessionHost) -> Callable[[], Awaitable[None]]:
    """Return what tells all clients that the server ends (``make_server``, ``ending``)."""

    async def end() -> None:
        host.close_all("The server is ending.")
        await asyncio.sleep(0.2)

    return end


def answer_error(status: int, sentence: str, retry_seconds: int | None = None) -> JSONResponse:
    """Return an error with one sentence, as all servers of this package do."""
    headers = None if retry_seconds is None else {"Retry-After": str(retry_seconds)}
    return JSONResponse({"detail": sentence}, status, headers)


async def _bad_input(request: Request, error: Exception) -> Response:
    return answer_error(400, strip_paths(str(error)))


async def _full(request: Request, error: Exception) -> Response:
    assert isinstance(error, ServerFull)
    return answer_error(503, str(error), error.retry_seconds)


async def _wrong_form(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0] if error.errors() else {}
    where = field_path(first.get("loc", ())[1:]) or "the request"
    return answer_error(422, f"{where} is not possible ({first.get('msg', 'wrong form')}).")


async def _failure(request: Request, error: Exception) -> Response:
    _LOG.error("A request to the live server failed", exc_info=error)
    return answer_error(500, f"That failed ({type(error).__name__}): the server's log has more.")


# --- Pages ---


def _add_files(app: FastAPI) -> None:
    package = Path(str(files("flowportrait") / "live"))
    fresh = {"Cache-Control": "no-cache"}

    def respond(folder: str, name: str, types: dict[str, str]) -> FileResponse:
        path = package / folder / name
        # The name is one part of a path, so it can only be a file of that folder.
        if path.suffix not in types or not path.is_file():
            raise HTTPException(404, f"There is no {name[:80]} here.")
        return FileResponse(path, media_type=types[path.suffix], headers=fresh)

    @app.get("/", include_in_schema=False)
    def index() -> FileResponse:
        return respond("page", "index.html", PAGE_TYPES)

    @app.get("/page/{name}", include_in_schema=False)
    def page_file(name: str) -> FileResponse:
        return respond("page", name, PAGE_TYPES)

    @app.get("/clients/{name}", include_in_schema=False)
    def client(name: str) -> FileResponse:
        return respond("clients", name, CLIENT_TYPES)

    @app.get("/asyncapi.json", include_in_schema=False)
    def asyncapi() -> dict[str, Any]:
        return asyncapi_document(__version__)


# --- Health, figures and what the page needs ---


def _add_information(app: FastAPI, host: SessionHost, settings: LiveServerSettings) -> None:
    @app.get("/healthz")
    def health() -> dict[str, Any]:
        """Return whether sessions can be opened or are running."""
        return host.describe()

    @app.get("/metrics", response_class=Response)
    def metrics() -> Response:
        """Return the figures in Prometheus' text format."""
        return Response(host.metrics.text(), media_type=METRICS_TYPE)

    @app.get("/live/config")
    def config() -> dict[str, Any]:
        """Return what a page needs before it opens a session."""
        return {
            "ice_servers": [ice_server_fields(server) for server in settings.ice_servers],
            "sizes": list(host.settings.sizes), "size": host.settings.size, "voices": installed_voices(),
            "notice": NOTICE, "letters": settings.limits.letters, "poster": "live/poster",
        }  # fmt: skip

    drawn: list[bytes] = []

    @app.get("/live/poster", response_class=Response)
    async def poster() -> Response:
        """Return the face at rest as a JPEG, which a page shows before a session begins."""
        if not drawn:
            portrait = await host.portrait(None, None)
            drawn.append(encode_jpeg(await asyncio.to_thread(portrait.draw, np.zeros(MOTION_DIM, np.float32))))
        return Response(drawn[0], media_type=JPEG_MIME)

    @app.put("/live/image")
    async def upload(request: Request, name: str = "photo") -> dict[str, str]:
        """Take a photo for one session; what is wrong with it is a sentence."""
        await asyncio.to_thread(
            delete_old_files, host.uploads.folder, settings.limits.photo_hours, settings.limits.kept_megabytes
        )
        token = await host.uploads.save(name, request.stream())
        try:
            await host.portrait(token, None)
        except BaseException:
            host.uploads.remove(token)
            raise
        return {"image": token}


def ice_server_fields(server: Any) -> dict[str, Any]:
    """Return an ``IceServer`` as the browser's ``RTCPeerConnection`` takes it."""
    fields: dict[str, Any] = {"urls": list(server.urls)}
    if server.username:
        fields |= {"username": server.username, "credential": server.credential}
    return fields


# --- Sessions ---


def _add_sessions(app: FastAPI, host: SessionHost) -> None:
    def find(session: str) -> LiveConnection:
        connection = host.find(session)
        if connection is not None:
            return connection
        reason = host.ended_reason(session)
        raise HTTPException(404, "There is no such session.") if reason is None else HTTPException(410, reason)

    @app.get("/live/sessions/{session}")
    async def describe(session: str) -> dict[str, Any]:
        """Return the state of a session."""
        return find(session).describe()

    @app.post("/live/sessions/{session}")
    async def command(session: str, message: dict[str, Any], request: Request) -> dict[str, Any]:
        """Apply one control message."""
        connection = find(session)
        size = len(await request.body())
        if size > MAX_OFFER_BYTES:
            raise HTTPException(413, f"A control message has at most {MAX_OFFER_BYTES // 1024} kB.")
        connection.on_message(message, size)
        return connection.describe()

    @app.delete("/live/sessions/{session}")
    async def end(session: str) -> dict[str, bool]:
        """End a session."""
        find(session).close("The session was ended over HTTP.")
        # Its place is free when this is answered: a client that changes its transport opens the next one at once.
        for _ in range(int(_END_SECONDS / 0.02)):
            if host.find(session) is None:
                break
            await asyncio.sleep(0.02)
        return {"closed": True}


# --- WebRTC ---


def _add_webrtc(app: FastAPI, host: SessionHost, settings: LiveServerSettings) -> None:
    running: set[asyncio.Task[None]] = set()

    @app.post("/live/offer", status_code=201, response_class=Response, openapi_extra=OFFER_BODY)
    async def offer(request: Request) -> Response:
        """Open a session over WebRTC (WHEP where the body is application/sdp)."""
        form, is_plain = await read_offer_request(request)
        check_version(form.start)
        if settings.token is not None and not is_authorised(request, form.start, settings.token):
            return answer_error(401, WRONG_TOKEN)
        address = request.client.host if request.client else ""
        try:
            connection = await host.open(form.start, address)
        except ServerFull as error:
            host.refuse(str(error))
            raise
        try:
            peer = await _answer_offer(form.sdp, connection, settings)
        except BaseException:
            host.abandon(connection, "The offer could not be answered.")
            raise
        task = asyncio.create_task(_carry_peer(host, connection, peer))
        running.add(task)
        task.add_done_callback(running.discard)
        headers = {"Location": f"/live/sessions/{connection.session}"}
        if is_plain:
            return Response(peer.answer_sdp, 201, headers, SDP_TYPE)
        answer = {"sdp": peer.answer_sdp, "type": "answer", "session": connection.session}
        return JSONResponse(answer, 201, headers)


async def read_offer_request(request: Request) -> tuple[OfferForm, bool]:
    """Return the offer in a request, and whether it was SDP alone.

    Raises:
        HTTPException: it is too large or no offer.
    """
    body = await request.body()
    if len(body) > MAX_OFFER_BYTES:
        raise HTTPException(413, f"An offer has at most {MAX_OFFER_BYTES // 1024} kB.")
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() == SDP_TYPE:
        return OfferForm(sdp=body.decode("utf-8", "replace")), True
    try:
        return OfferForm.model_validate_json(body), False
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = field_path(first["loc"]) or "the body"
        raise HTTPException(422, f"The offer is not possible ({where}: {first['msg']}).") from None


async def _answer_offer(sdp: str, connection: LiveConnection, settings: LiveServerSettings) -> Any:
    from flowportrait.live.webrtc import WebRTCPeer

    return await WebRTCPeer.answer(
        sdp, rate=connection.rate, ice_servers=settings.ice_servers, on_text=connection.on_text,
        on_binary=connection.on_binary, on_microphone=connection.on_microphone, on_camera=connection.on_camera,
        on_closed=connection.close,
    )  # fmt: skip


async def _carry_peer(host: SessionHost, connection: LiveConnection, peer: Any) -> None:
    try:
        await host.carry(connection, peer, "video/webrtc", "webrtc")
        # The message with the reason leaves before the connection is closed.
        await asyncio.sleep(_LAST_WORDS_SECONDS)
    finally:
        with suppress(Exception):
            await peer.close()


def describe_offer(app: FastAPI) -> None:
    """Add the types of an offer (``OFFER_BODY``) to the OpenAPI document of an application."""
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        document = generate()
        _, schemas = models_json_schema([(OfferForm, "validation")], ref_template="#/components/schemas/{model}")
        document.setdefault("components", {}).setdefault("schemas", {}).update(schemas["$defs"])
        return document

    app.openapi = openapi  # type: ignore[method-assign]
