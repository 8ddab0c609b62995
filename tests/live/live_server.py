"""A live server as the command serves it, with a small face, for tests."""

from __future__ import annotations

import contextlib
import io
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from websockets.sync.client import ClientConnection, connect

from flowportrait.live.avatar import LivePortrait
from flowportrait.live.host import HostSettings, SessionHost
from flowportrait.live.limits import LiveLimits
from flowportrait.live.metrics import LiveLog, LiveMetrics
from flowportrait.live.protocol import unpack_picture
from flowportrait.live.server import LiveServerSettings, end_sessions, live_app
from flowportrait.media.audio import read_audio
from flowportrait.samples import SPEECH, portrait_path
from flowportrait.web_server import bind_listener, make_server
from flowportrait.web_sockets import websocket_settings

PHOTO = portrait_path("hair-tied")
SPEECH_24K = (np.repeat(read_audio(SPEECH)[16_000:64_000], 3)[::2] * 32767).astype("<i2").tobytes()
"""Three seconds of speech, 16-bit mono at 24 kHz."""


class LiveServer:
    """A running server: its port, its host of sessions, and its log."""

    def __init__(self, port: int, host: SessionHost, log: io.StringIO) -> None:
        self.port, self.host, self._log = port, host, log
        self.url, self.ws = f"http://127.0.0.1:{port}", f"ws://127.0.0.1:{port}/live/ws"

    def events(self) -> list[dict[str, Any]]:
        """The lines of the log so far."""
        return [json.loads(line) for line in self._log.getvalue().splitlines()]

    def wait_until_empty(self, seconds: float = 10.0) -> None:
        """Wait until no session is open."""
        deadline = time.monotonic() + seconds
        while self.host.admission.open and time.monotonic() < deadline:
            time.sleep(0.02)
        assert self.host.admission.open == 0


@contextlib.contextmanager
def live_server(
    portrait: LivePortrait, folder: Path, *, sessions: int = 2, limits: LiveLimits | None = None, **settings: Any
) -> Iterator[LiveServer]:
    """Serve sessions of a prepared portrait."""
    limits = limits or LiveLimits()
    log = io.StringIO()
    host = SessionHost(
        portrait.pipeline,
        HostSettings(PHOTO, (portrait.size,), portrait.size, sessions, folder / "uploads", limits=limits),
        LiveMetrics(),
        LiveLog("json", log),
    )
    host.keep_portrait(portrait)
    app = live_app(host, LiveServerSettings(limits=limits, **settings))
    with bind_listener("127.0.0.1", 0) as listener:
        server = make_server(app, ending=end_sessions(host), **websocket_settings(limits.message_kilobytes * 1000))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.02)
        yield LiveServer(listener.getsockname()[1], host, log)
        server.should_exit = True
        thread.join(15)
        assert not thread.is_alive()


class Client:
    """A client of the WebSocket that reads what the server sends."""

    def __init__(self, address: str, start: dict[str, Any] | None = None, **options: Any) -> None:
        self.socket: ClientConnection = connect(address, max_size=2**22, compression=None, **options)
        self.messages: list[dict[str, Any]] = []
        self.frames: list[tuple[int, bytes, np.ndarray]] = []
        self.segments: list[bytes] = []
        if start is not None:
            self.send(type="start", version=1, **start)

    def send(self, **fields: Any) -> None:
        """Send a control message."""
        self.socket.send(json.dumps(fields))

    def read(self, timeout: float = 20.0) -> dict[str, Any] | bytes:
        """Read one message and remember it."""
        data = self.socket.recv(timeout)
        if isinstance(data, str):
            self.messages.append(json.loads(data))
            return self.messages[-1]
        if data[0] == 1:
            self.frames.append(unpack_picture(data))
        else:
            self.segments.append(data)
        return data

    def read_until(self, kind: str, seconds: float = 20.0, **fields: Any) -> dict[str, Any]:
        """Read until a control message of this type with these fields has come, and return it."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            message = self.read(max(0.1, deadline - time.monotonic()))
            if isinstance(message, dict) and message["type"] == kind and fields.items() <= message.items():
                return message
        raise AssertionError(f"no {kind} {fields} within {seconds} s; last: {self.messages[-3:]}")

    def read_frames(self, count: int, seconds: float = 30.0) -> None:
        """Read until so many more frames have come."""
        end, deadline = len(self.frames) + count, time.monotonic() + seconds
        while len(self.frames) < end:
            assert time.monotonic() < deadline
            self.read()

    def close(self) -> None:
        """Leave without a word."""
        self.socket.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
