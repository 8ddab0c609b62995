"""The WebSocket transport: control messages as text, picture and sound as binary, for any client.

    send_frame ─► waiting frames ─► a thread encodes ─► socket
                     └─ where the client reads too slowly: pictures are dropped, the newest stays; sound waits

Sound is never dropped: a frame whose picture was dropped still carries its 40 ms. If seconds of sound wait
(``LiveLimits.behind_seconds``), the client is as good as gone and its session ends. So the memory of a session is
bounded whatever its client does.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Protocol

import cv2
import numpy as np
from starlette.requests import HTTPConnection
from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from flowportrait.errors import BadInput
from flowportrait.live.admission import ServerFull
from flowportrait.live.connection import LiveConnection
from flowportrait.live.fragments import FragmentEncoder
from flowportrait.live.host import SessionHost
from flowportrait.live.limits import LiveLimits
from flowportrait.live.metrics import LiveMetrics
from flowportrait.live.protocol import ClosedMessage, ServerBinary, StartMessage, pack_picture, parse_message
from flowportrait.media.video import FPS
from flowportrait.web_server import has_bearer_key, strip_paths

JPEG_MIME = "image/jpeg"
JPEG_QUALITY = 85
MAX_WAITING_PICTURES = 2
"""Pictures that may wait for a slow client; more of them would only arrive later."""
MAX_WAITING_TEXTS = 100
"""Control messages that may wait for a slow client before its session ends."""
CLIENT_GONE = "The client is gone."
WRONG_TOKEN = (
    "This server asks for its token: open the address that it printed, or send the token in the start message."
)
LAST_WORDS_SECONDS = 2.0
"""Seconds in which the last messages must be sent."""


class FrameEncoder(Protocol):
    """What turns frames into binary messages; used by one thread at a time."""

    mime: str

    def begin(self) -> list[bytes]:
        """Return the messages before the first frame."""

    def encode(self, index: int, picture: np.ndarray | None, sound: np.ndarray) -> list[bytes]:
        """Return the messages of a frame, whose picture was dropped if it is None."""


class JpegEncoder:
    """A JPEG and PCM for each frame."""

    mime = JPEG_MIME

    def begin(self) -> list[bytes]:
        """Return nothing: every message is complete."""
        return []

    def encode(self, index: int, picture: np.ndarray | None, sound: np.ndarray) -> list[bytes]:
        """Return one message; without a picture it carries the sound alone."""
        return [pack_picture(index, b"" if picture is None else encode_jpeg(picture), sound)]


class Mp4Encoder:
    """Fragmented mp4; a dropped picture is encoded as the one before, which takes some bytes."""

    def __init__(self, size: int, rate: int) -> None:
        """Open the encoders; see ``FragmentEncoder``."""
        self._stream = FragmentEncoder(size, rate)
        self.mime = self._stream.mime
        self._last: np.ndarray = np.zeros((size, size, 3), np.uint8)

    def begin(self) -> list[bytes]:
        """Return the initial segment."""
        return [bytes([ServerBinary.INITIAL_SEGMENT]) + self._stream.initial_segment]

    def encode(self, index: int, picture: np.ndarray | None, sound: np.ndarray) -> list[bytes]:
        """Return the fragments that the frame completes."""
        self._last = self._last if picture is None else picture
        data = self._stream.write(self._last, sound)
        return [bytes([ServerBinary.MEDIA_SEGMENT]) + data] if data else []


def encode_jpeg(picture: np.ndarray) -> bytes:
    """Return a picture ``[H, W, 3]`` uint8 RGB as JPEG."""
    coded, data = cv2.imencode(
        ".jpg", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY]
    )
    assert coded
    return data.tobytes()


class WebSocketTransport:
    """Sends the frames and messages of one session; all methods are called in the event loop."""

    def __init__(
        self, websocket: WebSocket, encoder: FrameEncoder, limits: LiveLimits, metrics: LiveMetrics,
        on_behind: Callable[[str], None],
    ) -> None:  # fmt: skip
        """Prepare a transport; ``send_all`` does the work.

        Args:
            websocket: an accepted WebSocket.
            encoder: encodes the frames.
            limits: how much may wait.
            metrics: where pictures are counted.
            on_behind: called with a sentence once too much waits for the client.
        """
        self._websocket, self._encoder, self._metrics, self._on_behind = websocket, encoder, metrics, on_behind
        self._max_frames = int(limits.behind_seconds * FPS)
        self._frames: deque[tuple[int, np.ndarray | None, np.ndarray]] = deque()
        self._texts: deque[str] = deque()
        self._work, self._ended = asyncio.Event(), False
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="live encoder")

    def send_text(self, message: str) -> None:
        """Take one control message; it overtakes frames that wait."""
        if len(self._texts) > MAX_WAITING_TEXTS:
            self._on_behind("The client does not read its messages.")
        else:
            self._texts.append(message)
        self._work.set()

    def send_frame(self, index: int, picture: np.ndarray, sound: np.ndarray) -> None:
        """Take one frame."""
        waiting = [place for place, (_, one, _) in enumerate(self._frames) if one is not None]
        for place in waiting[: max(0, len(waiting) - MAX_WAITING_PICTURES + 1)]:
            number, _, piece = self._frames[place]
            self._frames[place] = (number, None, piece)
            self._metrics.dropped_pictures.inc()
        self._frames.append((index, picture, sound))
        if len(self._frames) > self._max_frames:
            self._on_behind(f"The connection is too slow: {self._max_frames / FPS:g} s of sound could not be sent.")
        self._work.set()

    def end(self) -> None:
        """Let ``send_all`` return once the waiting messages are sent; waiting frames are left."""
        self._ended = True
        self._work.set()

    async def send_all(self) -> None:
        """Send what comes until ``end``, or until the client is gone.

        Raises:
            WebSocketDisconnect: the client is gone.
        """
        loop = asyncio.get_running_loop()
        started = False
        try:
            while True:
                while self._texts:
                    await self._websocket.send_text(self._texts.popleft())
                    if not started:
                        # The first message is ``ready``; what follows may be media.
                        started = True
                        for data in await loop.run_in_executor(self._executor, self._encoder.begin):
                            await self._websocket.send_bytes(data)
                if self._ended:
                    return
                if self._frames and started:
                    frame = self._frames.popleft()
                    begun = time.perf_counter()
                    encoded = await loop.run_in_executor(self._executor, self._encoder.encode, *frame)
                    self._metrics.encode.observe(time.perf_counter() - begun)
                    for data in encoded:
                        await self._websocket.send_bytes(data)
                    continue
                self._work.clear()
                await self._work.wait()
        finally:
            self._executor.shutdown(wait=False, cancel_futures=True)


async def finish_sending(websocket: WebSocket, sending: asyncio.Task[None], code: int, reason: str) -> None:
    """Wait a moment for the last messages, and close the WebSocket.

    Args:
        websocket: the WebSocket.
        sending: the task of ``WebSocketTransport.send_all`` after ``end``.
        code: close code (RFC 6455).
        reason: one sentence, cut to what a close frame can hold.
    """
    with suppress(Exception):
        await asyncio.wait_for(sending, LAST_WORDS_SECONDS)
    with suppress(Exception):
        if websocket.application_state is not WebSocketState.DISCONNECTED:
            await asyncio.wait_for(websocket.close(code, reason.encode()[:120].decode(errors="ignore")), 1.0)


# --- One WebSocket from its first message to its last -----------------------------------

CODE_DONE, CODE_REFUSED, CODE_UNAUTHORISED, CODE_FULL = 1000, 4400, 4401, 4503
"""Close codes: the session ended; the first message cannot be used; the token is wrong; no session is free."""


async def serve_websocket(websocket: WebSocket, host: SessionHost, token: str | None) -> None:
    """Carry one session over a WebSocket.

    Args:
        websocket: the WebSocket, not yet accepted.
        host: where the session is opened.
        token: what the client must send; None for nothing.
    """
    await websocket.accept()
    requested_at = time.monotonic()
    address = websocket.client.host if websocket.client else ""
    try:
        start = await read_start(websocket, host.settings.limits)
        if token is not None and not is_authorised(websocket, start, token):
            await refuse_websocket(websocket, CODE_UNAUTHORISED, WRONG_TOKEN)
            return
        connection = await host.open(start, address, requested_at)
    except BadInput as error:
        await refuse_websocket(websocket, CODE_REFUSED, strip_paths(str(error)))
        return
    except ServerFull as error:
        host.refuse(str(error))
        await refuse_websocket(websocket, CODE_FULL, str(error))
        return
    except WebSocketDisconnect:
        return
    try:
        encoder: FrameEncoder = (
            await asyncio.to_thread(Mp4Encoder, connection.size, connection.rate)
            if start.video == "mp4"
            else JpegEncoder()
        )
    except BaseException:
        host.abandon(connection, "The video encoder could not be opened.")
        raise
    transport = WebSocketTransport(websocket, encoder, host.settings.limits, host.metrics, connection.close)
    sending = asyncio.create_task(transport.send_all())
    receiving = asyncio.create_task(_receive_all(websocket, connection))
    sending.add_done_callback(lambda _: connection.close(CLIENT_GONE))
    try:
        reason = await host.carry(connection, transport, encoder.mime, f"websocket {start.video}")
        transport.end()
        await finish_sending(websocket, sending, CODE_DONE, reason)
    finally:
        sending.cancel()
        receiving.cancel()
        await asyncio.gather(sending, receiving, return_exceptions=True)


async def read_start(websocket: WebSocket, limits: LiveLimits) -> StartMessage:
    """Return the first message of an accepted WebSocket.

    Raises:
        BadInput: it is no start, or does not come in time.
        WebSocketDisconnect: the client is gone.
    """
    try:
        message = await asyncio.wait_for(websocket.receive(), limits.start_seconds)
    except TimeoutError:
        raise BadInput(f"No start message came within {limits.start_seconds:g} s.") from None
    if message["type"] == "websocket.disconnect":
        raise WebSocketDisconnect(message.get("code", 1006))
    text = message.get("text")
    start = None if text is None else parse_message(text)
    if not isinstance(start, StartMessage):
        raise BadInput('The first message must be {"type": "start", "version": 1}.')
    return start


def is_authorised(request: HTTPConnection, start: StartMessage, token: str) -> bool:
    """Return whether a client sent the server's token in its start, or in the head of its request."""
    sent = f"Bearer {start.token}" if start.token else request.headers.get("authorization", "")
    return has_bearer_key(sent, token)


async def refuse_websocket(websocket: WebSocket, code: int, sentence: str) -> None:
    """Send the last message with the reason, and close the WebSocket with a code."""
    with suppress(Exception):
        await websocket.send_text(ClosedMessage(reason=sentence).to_json())
        await websocket.close(code, sentence.encode()[:120].decode(errors="ignore"))


async def _receive_all(websocket: WebSocket, connection: LiveConnection) -> None:
    """Give what comes to the connection until the client is gone."""
    while True:
        message = await websocket.receive()
        if message["type"] == "websocket.disconnect":
            connection.close(CLIENT_GONE)
            return
        if message.get("text") is not None:
            connection.on_text(message["text"])
        elif message.get("bytes") is not None:
            connection.on_binary(message["bytes"])
        # A client that sends without a pause must not keep the event loop from the others.
        await asyncio.sleep(0)
