"""The live server in front of several worker processes: who may come in, and to which worker a session goes.

    client ── page, token, admission ──► relay ── offers, sessions, WebSockets ──► the worker that has the session
       └◄──────── sound and picture of WebRTC (UDP) ◄───────────────────────────────────┘

The relay draws nothing. It reads the first message of a client, checks its token, puts that of the workers in its
place, and passes on all others as they are. At most some messages wait in it: where a client reads too slowly, the
worker notices as it would without a relay.
"""

from __future__ import annotations

import asyncio
import json
import socket
from contextlib import suppress
from typing import Any
from urllib.parse import quote

from fastapi import FastAPI, HTTPException, Request, Response, WebSocket
from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest
from starlette.websockets import WebSocketDisconnect, WebSocketState
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, WebSocketException

from flowportrait.errors import BadInput
from flowportrait.live.admission import ServerFull
from flowportrait.live.metrics import METRICS_TYPE, merge_worker_metrics
from flowportrait.live.protocol import ClosedMessage, StartMessage
from flowportrait.live.server import (
    OFFER_BODY,
    SDP_TYPE,
    LiveServerSettings,
    answer_error,
    describe_offer,
    pages_app,
    read_offer_request,
)
from flowportrait.live.websocket import (
    CODE_FULL,
    CODE_REFUSED,
    CODE_UNAUTHORISED,
    LAST_WORDS_SECONDS,
    WRONG_TOKEN,
    is_authorised,
    read_start,
    refuse_websocket,
)
from flowportrait.live.worker_process import WorkerGone, WorkerHandle
from flowportrait.live.workers import WORKER_ENDED, SessionPlace, WorkerPool
from flowportrait.web_server import strip_paths

CODE_WORKER_ENDED = 1012
"""Close code of a WebSocket whose worker has died: the service restarts, and the client may connect again."""
MAX_WAITING_MESSAGES = 4
"""Messages of a worker that wait in the relay for one client."""
RECEIVE_BUFFER = 2**16
"""Bytes that the system holds of what a worker sends."""
BUFFERED_SECONDS = 10.0
"""Seconds of sound without pictures that all buffers between a worker and its client hold, generously."""
_QUERY = "%=&+/:;,()!*'~"
_PASSED_HEADERS = ("content-type", "location", "retry-after")


def relay_app(pool: WorkerPool, settings: LiveServerSettings) -> FastAPI:
    """Return the application of the process in front of the workers.

    Args:
        pool: the workers; ``attach`` must be called in the loop of the application.
        settings: who may use it.
    """
    app = pages_app(settings)
    figures = CollectorRegistry()
    refused = Counter("flowportrait_sessions_refused", "Sessions that were refused because the server was full.",
                      registry=figures)  # fmt: skip
    running = Gauge("flowportrait_workers_up", "Worker processes that take sessions.", registry=figures)

    def refuse(error: ServerFull) -> None:
        refused.inc()
        pool.log.write("session_refused", reason=str(error), sessions=pool.admission.open)

    @app.get("/healthz")
    def health() -> dict[str, Any]:
        """Return whether sessions can be opened or are running, and how many workers are up."""
        return pool.describe()

    @app.get("/metrics", response_class=Response)
    async def metrics() -> Response:
        """Return the figures of all workers in Prometheus' text format, with the label ``worker``."""
        workers = [worker for worker in pool.workers if worker.is_up]
        running.set(len(workers))
        answers = await asyncio.gather(
            *(pool.request(worker, "GET", "/metrics") for worker in workers), return_exceptions=True
        )
        texts = {
            str(worker.number): answer[2].decode()
            for worker, answer in zip(workers, answers, strict=True)
            if not isinstance(answer, BaseException)
        }
        texts["relay"] = generate_latest(figures).decode()
        return Response(merge_worker_metrics(texts), media_type=METRICS_TYPE)

    async def from_any(request: Request) -> Response:
        return await _pass_request(pool, pool.calmest_worker(), request)

    @app.get("/live/config")
    async def config(request: Request) -> Response:
        """Return what a page needs before it opens a session."""
        return await from_any(request)

    @app.get("/live/poster", response_class=Response)
    async def poster(request: Request) -> Response:
        """Return the face at rest as a JPEG, which a page shows before a session begins."""
        return await from_any(request)

    @app.put("/live/image")
    async def upload(request: Request, name: str = "photo") -> Response:
        """Take a photo for one session; what is wrong with it is a sentence."""
        return await from_any(request)

    async def to_session(request: Request, session: str) -> Response:
        place = pool.find(session)
        if place is not None:
            try:
                return await _pass_request(pool, place.worker, request)
            except ServerFull:
                return answer_error(410, WORKER_ENDED)
        reason = pool.ended_reason(session)
        raise HTTPException(404, "There is no such session.") if reason is None else HTTPException(410, reason)

    @app.get("/live/sessions/{session}")
    async def describe(request: Request, session: str) -> Response:
        """Return the state of a session."""
        return await to_session(request, session)

    @app.post("/live/sessions/{session}")
    async def command(request: Request, session: str) -> Response:
        """Apply one control message."""
        return await to_session(request, session)

    @app.delete("/live/sessions/{session}")
    async def end(request: Request, session: str) -> Response:
        """End a session."""
        place = pool.find(session)
        answer = await to_session(request, session)
        if place is not None and answer.status_code == 200:
            # Its place is free when this is answered: a client that changes its transport opens the next one at once.
            await pool.leave(place)
        return answer

    @app.post("/live/offer", status_code=201, response_class=Response, openapi_extra=OFFER_BODY)
    async def offer(request: Request) -> Response:
        """Open a session over WebRTC (WHEP where the body is application/sdp)."""
        form, is_plain = await read_offer_request(request)
        if settings.token is not None and not is_authorised(request, form.start, settings.token):
            return answer_error(401, WRONG_TOKEN)
        try:
            place = pool.take(request.client.host if request.client else "")
        except ServerFull as error:
            refuse(error)
            raise
        try:
            body = form.model_copy(update={"start": with_token(form.start, pool.settings.token)}).model_dump_json()
            status, headers, data = await pool.request(
                place.worker, "POST", "/live/offer", body.encode(), "application/json"
            )
            if status == 201:
                answer = json.loads(data)
                pool.assign(place, answer["session"])
        except WorkerGone:
            return answer_error(503, WORKER_ENDED, 1)
        finally:
            # Once the session has an id, the worker reports its end.
            if place.session is None:
                await pool.leave(place)
        if status == 201 and is_plain:
            return Response(answer["sdp"], 201, {"Location": headers["location"]}, SDP_TYPE)
        return Response(data, status, passed_headers(headers))

    @app.websocket("/live/ws")
    async def websocket(websocket: WebSocket) -> None:
        await websocket.accept()
        try:
            start = await read_start(websocket, settings.limits)
            if settings.token is not None and not is_authorised(websocket, start, settings.token):
                await refuse_websocket(websocket, CODE_UNAUTHORISED, WRONG_TOKEN)
                return
            place = pool.take(websocket.client.host if websocket.client else "")
        except BadInput as error:
            await refuse_websocket(websocket, CODE_REFUSED, strip_paths(str(error)))
            return
        except ServerFull as error:
            refuse(error)
            await refuse_websocket(websocket, CODE_FULL, str(error))
            return
        except WebSocketDisconnect:
            return
        try:
            relayed = _RelayedSocket(websocket, pool, place, settings)
            await relayed.run(with_token(start, pool.settings.token))
        finally:
            await pool.leave(place)

    describe_offer(app)
    return app


def with_token(start: StartMessage, token: str) -> StartMessage:
    """Return a start message with another token."""
    return start.model_copy(update={"token": token})


def passed_headers(headers: Any) -> dict[str, str]:
    """Return the headers of a worker's answer that its client gets."""
    return {name: headers[name] for name in _PASSED_HEADERS if headers.get(name)}


async def _pass_request(pool: WorkerPool, worker: WorkerHandle, request: Request) -> Response:
    """Return the answer of a worker to a request.

    Raises:
        ServerFull: the worker has just ended.
    """
    body = await request.body() if request.method in ("POST", "PUT") else None
    path = quote(request.url.path) + (f"?{quote(request.url.query, safe=_QUERY)}" if request.url.query else "")
    try:
        status, headers, data = await pool.request(
            worker, request.method, path, body, request.headers.get("content-type", "")
        )
    except WorkerGone:
        raise ServerFull("The process that would answer has just ended: try again.", 1) from None
    return Response(data, status, passed_headers(headers))


class _RelayedSocket:
    """The two directions of one WebSocket between a client and the worker of its session."""

    def __init__(
        self, websocket: WebSocket, pool: WorkerPool, place: SessionPlace, settings: LiveServerSettings
    ) -> None:
        self._websocket, self._pool, self._place = websocket, pool, place
        # The worker gives up a slow client sooner, and knows the reason.
        self._send_seconds = settings.limits.behind_seconds + BUFFERED_SECONDS
        self._has_closed = False

    async def run(self, start: StartMessage) -> None:
        """Pass on messages until one side closes, then close the other one in the same way."""
        try:
            upstream = await self._connect()
            await upstream.send(start.to_json())
        except (OSError, WebSocketException):
            await refuse_websocket(self._websocket, CODE_WORKER_ENDED, WORKER_ENDED)
            return
        to_worker = asyncio.create_task(self._pass_to_worker(upstream))
        try:
            await self._pass_to_client(upstream)
        finally:
            to_worker.cancel()
            await asyncio.gather(to_worker, return_exceptions=True)
            await upstream.close()
        await self._close_client(upstream)

    async def _connect(self) -> ClientConnection:
        line = socket.socket()
        try:
            line.setblocking(False)
            line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
            address = ("127.0.0.1", self._place.worker.port or 0)
            await asyncio.get_running_loop().sock_connect(line, address)
            return await connect(
                f"ws://{address[0]}:{address[1]}/live/ws", sock=line, max_size=None, compression=None, proxy=None,
                max_queue=MAX_WAITING_MESSAGES, ping_interval=None, close_timeout=LAST_WORDS_SECONDS,
            )  # fmt: skip
        except BaseException:
            line.close()
            raise

    async def _pass_to_client(self, upstream: ClientConnection) -> None:
        # A client that is gone or reads nothing ends the session, as without a relay.
        with suppress(ConnectionClosed, WebSocketDisconnect, RuntimeError, TimeoutError):
            async for message in upstream:
                if isinstance(message, str):
                    self._note(message)
                async with asyncio.timeout(self._send_seconds):
                    if isinstance(message, str):
                        await self._websocket.send_text(message)
                    else:
                        await self._websocket.send_bytes(message)

    def _note(self, message: str) -> None:
        """Remember the session's id, and whether the client was told of the end."""
        fields = json.loads(message)
        if fields["type"] == "ready":
            self._pool.assign(self._place, fields["session"])
        self._has_closed = self._has_closed or fields["type"] == "closed"

    async def _pass_to_worker(self, upstream: ClientConnection) -> None:
        with suppress(ConnectionClosed):
            while True:
                message = await self._websocket.receive()
                if message["type"] == "websocket.disconnect":
                    await upstream.close()
                    return
                text = message.get("text")
                await upstream.send(text if text is not None else message.get("bytes") or b"")

    async def _close_client(self, upstream: ClientConnection) -> None:
        websocket, code = self._websocket, upstream.close_code or 1006
        if WebSocketState.DISCONNECTED in (websocket.client_state, websocket.application_state):
            return
        with suppress(Exception):
            async with asyncio.timeout(LAST_WORDS_SECONDS):
                if code == 1006 and not self._has_closed:
                    await websocket.send_text(ClosedMessage(reason=WORKER_ENDED).to_json())
                if code == 1006:
                    await websocket.close(CODE_WORKER_ENDED, WORKER_ENDED)
                else:
                    await websocket.close(1000 if code == 1005 else code, upstream.close_reason or None)
