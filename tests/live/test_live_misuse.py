"""Claims about clients that misuse the live server: each loses at most its own session, and a good one sees nothing."""

from __future__ import annotations

import contextlib
import json
import struct
from collections.abc import Iterator

import cv2
import numpy as np
import pytest
from websockets.exceptions import ConnectionClosed

from flowportrait.live.avatar import LivePortrait
from tests.live.live_server import SPEECH_24K, Client, LiveServer, live_server

JPEG = cv2.imencode(".jpg", np.zeros((64, 64, 3), np.uint8))[1].tobytes()
_AT = JPEG.index(b"\xff\xc0") + 5
BOMB = JPEG[:_AT] + struct.pack(">HH", 65_500, 65_500) + JPEG[_AT + 4 :]
"""A small file whose header states four gigapixels."""
TWICE = JPEG[: _AT - 5] + JPEG[_AT - 5 : _AT + 12] + BOMB[_AT - 5 :]
"""A second header, a bomb, behind a harmless first one."""
MISUSES: dict[str, list[str | bytes]] = {
    "no JSON": ["{"] * 20,
    "deep JSON": ["[" * 200_000] * 3,
    "a huge number": ['{"type": "ping", "id": ' + "9" * 100_000 + "}"],
    "a field without UTF-8": ['{"type": "finish", "\\ud800": 1}'] * 5,
    "a text too long": [json.dumps({"type": "speak", "text": "a" * 3000})],
    "a text far too long": [json.dumps({"type": "speak", "text": "a" * 900_000})],
    "too many texts": [json.dumps({"type": "speak", "text": "So."})] * 30,
    "a voice that loads a module": [json.dumps({"type": "speak", "text": "x", "voice": "os:system"})],
    "a second start": ['{"type": "start", "version": 1}'] * 5,
    "errors without end": ['{"type": "dance"}'] * 150,
    "a flood of messages": ['{"type": "ping"}'] * 3000,
    "a flood of bytes": [b"\x02" + bytes(900_000)] * 12,
    "a message too large": [b"\x01" + bytes(2_000_000)],
    "a text message too large": ["x" * 2_000_000],
    "empty and unknown binary": [b"", b"\x00", b"\xffabc"] * 5,
    "half samples": [b"\x01abc"] * 20,
    "hours of speech": [b"\x01" + bytes(960_000)] * 5,
    "no JPEG": ['{"type": "camera", "use": "drive"}', b"\x03nothing", b"\x03\xff\xd8\xff", b"\x03"],
    "a JPEG bomb": ['{"type": "camera", "use": "drive"}', *[b"\x03" + BOMB] * 5],
    "a JPEG bomb behind a header": ['{"type": "camera", "use": "drive"}', *[b"\x03" + TWICE] * 5],
}


@pytest.fixture(scope="module")
def server(small_face: LivePortrait, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    with live_server(small_face, tmp_path_factory.mktemp("misused")) as running:
        yield running


@pytest.fixture(scope="module")
def good(server: LiveServer) -> Iterator[Client]:
    with Client(server.ws, {}) as client:
        client.read_until("ready")
        yield client


@pytest.mark.slow
@pytest.mark.parametrize("name", MISUSES)
def test_a_misuse_is_answered_and_a_session_beside_it_goes_on(server: LiveServer, good: Client, name: str) -> None:
    with contextlib.suppress(ConnectionClosed), Client(server.ws, {}) as bad:
        bad.read_until("ready")
        for message in MISUSES[name]:
            bad.socket.send(message)
        # It still hears and answers, or its session was ended.
        bad.send(type="ping", id="after")
        while not any(one["type"] == "closed" or one.get("id") == "after" for one in bad.messages):
            bad.read()
        assert all(len(json.dumps(one)) < 1000 for one in bad.messages)
    good.send(type="ping", id=name)
    good.read_until("pong", id=name)
    good.socket.send(b"\x01" + SPEECH_24K[:9600])
    good.send(type="finish")
    good.read_until("state", state="speaking")
    good.read_until("state", state="idle")
    numbers = [number for number, _, _ in good.frames]
    assert numbers == list(range(len(numbers)))
    assert not [one for one in good.messages if one["type"] in ("error", "closed")]
