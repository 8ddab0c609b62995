"""Clients that misbehave towards a live server, each in its own way, for as long as a measurement lasts.

    python -m benchmarks.live_clients http://127.0.0.1:7880 [--token T] [--count 20] [--seconds 20]

Every one begins again as soon as the server has ended it. Printed is how often, and what the server answered, as JSON.
They are meant for a server on this machine that was started for the measurement.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import socket
import struct
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

HUGE = 8 * 2**20
"""Bytes of a huge message."""
PAUSE = 0.05
"""Seconds before a client begins again."""
STEP_SECONDS = 20.0
"""Seconds after which a client that the server leaves alone begins again."""


@dataclass
class MisbehavingClient:
    """What one client knows of the server, and what it has seen.

    Attributes:
        host: name of the server.
        port: its port.
        token: its token; empty for none.
        seen: how often it began (``attempts``), and how the server answered.
    """

    host: str
    port: int
    token: str
    seen: Counter[str] = field(default_factory=Counter)

    @property
    def websocket_url(self) -> str:
        """Address of the WebSocket."""
        return f"ws://{self.host}:{self.port}/live/ws"

    def start(self, **fields: Any) -> str:
        """Return a correct start message."""
        return json.dumps({"type": "start", "version": 1, **({"token": self.token} if self.token else {}), **fields})

    async def socket(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Open a TCP connection."""
        return await asyncio.open_connection(self.host, self.port)

    def websocket(self, **settings: Any) -> Any:
        """Return a WebSocket to open."""
        import websockets

        return websockets.connect(self.websocket_url, max_size=None, open_timeout=STEP_SECONDS, **settings)

    async def post(self, path: str, body: bytes, kind: str = "application/json", token: str | None = None) -> int:
        """Send a request and return the status; 0 where the server closed the connection instead."""
        reader, writer = await self.socket()
        try:
            key = self.token if token is None else token
            head = f"POST {path} HTTP/1.1\r\nHost: {self.host}:{self.port}\r\nContent-Type: {kind}\r\n"
            head += f"Content-Length: {len(body)}\r\nConnection: close\r\n"
            head += f"Authorization: Bearer {key}\r\n\r\n" if key else "\r\n"
            writer.write(head.encode() + body)
            with suppress(ConnectionError):
                await writer.drain()
            line = await reader.readline()
            return int(line.split()[1]) if line.startswith(b"HTTP/") else 0
        finally:
            writer.close()


async def half_open(client: MisbehavingClient) -> None:
    """Connect and send nothing."""
    reader, writer = await client.socket()
    try:
        client.seen["closed by the server"] += await reader.read(1) == b""
    finally:
        writer.close()


async def slow_head(client: MisbehavingClient) -> None:
    """Send the head of a request a byte a second."""
    reader, writer = await client.socket()
    try:
        for byte in b"GET /live/ws HTTP/1.1\r\nHost: " + b"x" * 500:
            writer.write(bytes([byte]))
            await writer.drain()
            with suppress(TimeoutError):
                await asyncio.wait_for(reader.read(1), 1.0)
                client.seen["closed by the server"] += 1
                return
    finally:
        writer.close()


async def garbage(client: MisbehavingClient) -> None:
    """Send random bytes in place of HTTP."""
    reader, writer = await client.socket()
    try:
        writer.write(os.urandom(4096))
        await writer.drain()
        answer = await reader.read(16)
        client.seen[answer[9:12].decode() if answer.startswith(b"HTTP") else "closed by the server"] += 1
    finally:
        writer.close()


async def no_start(client: MisbehavingClient) -> None:
    """Open a WebSocket and send no start message."""
    async with client.websocket() as socket_:
        await _read_until_closed(client, socket_)


async def wrong_token(client: MisbehavingClient) -> None:
    """Start with a wrong token; without one, with a wrong version."""
    async with client.websocket() as socket_:
        await socket_.send(json.dumps({"type": "start", "version": 1 if client.token else 99, "token": "x" * 24}))
        await _read_until_closed(client, socket_)


async def binary_flood(client: MisbehavingClient) -> None:
    """Start correctly, then send random binary messages as fast as possible."""
    async with client.websocket() as socket_:
        await socket_.send(client.start())
        reading = asyncio.ensure_future(_read_until_closed(client, socket_))
        while not reading.done():
            await socket_.send(os.urandom(random.choice((1, 100, 20_000))))
            await asyncio.sleep(0)


async def text_flood(client: MisbehavingClient) -> None:
    """Start correctly, then send texts that are no JSON, and JSON that is no message."""
    async with client.websocket() as socket_:
        await socket_.send(client.start())
        reading = asyncio.ensure_future(_read_until_closed(client, socket_))
        while not reading.done():
            await socket_.send(random.choice(("{", '{"type":"dance"}', "[" * 5000, '{"type":"speak","text":7}', "\0")))
            await asyncio.sleep(0)


async def huge_message(client: MisbehavingClient) -> None:
    """Start correctly, then send one message of 8 MB."""
    async with client.websocket() as socket_:
        await socket_.send(client.start())
        await socket_.send(b"\x01" + bytes(HUGE))
        await _read_until_closed(client, socket_)


async def endless_speech(client: MisbehavingClient) -> None:
    """Start correctly, then push speech ten times as fast as it can be spoken, without an end."""
    async with client.websocket() as socket_:
        await socket_.send(client.start())
        reading = asyncio.ensure_future(_read_until_closed(client, socket_))
        while not reading.done():
            await socket_.send(b"\x01" + os.urandom(48_000))
            await asyncio.sleep(0.1)


async def gone_mid_word(client: MisbehavingClient) -> None:
    """Start correctly, push half a second of speech, and vanish without a goodbye."""
    async with client.websocket() as socket_:
        await socket_.send(client.start())
        await socket_.send(b"\x01" + os.urandom(24_000))
        with suppress(TimeoutError):
            await asyncio.wait_for(socket_.recv(), 1.0)
        raw = socket_.transport.get_extra_info("socket")
        # Closing sends RST in place of FIN.
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        socket_.transport.abort()
        client.seen["vanished"] += 1


async def reads_nothing(client: MisbehavingClient) -> None:
    """Start correctly, and read nothing of what comes."""
    async with client.websocket(max_queue=1) as socket_:
        await socket_.send(client.start())
        socket_.transport.pause_reading()
        await asyncio.sleep(STEP_SECONDS)
        client.seen["left alone"] += 1
        socket_.transport.abort()


async def never_connects(client: MisbehavingClient) -> None:
    """Send a correct offer of WebRTC, and never connect."""
    from aiortc import RTCPeerConnection

    connection = RTCPeerConnection()
    try:
        connection.createDataChannel("flowportrait")
        for kind in ("audio", "video"):
            connection.addTransceiver(kind, "recvonly")
        await connection.setLocalDescription(await connection.createOffer())
        lines = [line for line in connection.localDescription.sdp.splitlines() if "candidate" not in line]
        offer = {"sdp": "\r\n".join(lines) + "\r\n", "type": "offer", "start": {"token": client.token or None}}
        client.seen[str(await client.post("/live/offer", json.dumps(offer).encode()))] += 1
        await asyncio.sleep(1.0)
    finally:
        await connection.close()


async def broken_offer(client: MisbehavingClient) -> None:
    """Send offers that are none, and one of 8 MB."""
    for sdp in ("", "v=0", "m=video " * 1000, "v=0\r\nm=video 9 UDP/TLS/RTP/SAVPF 96\r\n", "x" * HUGE):
        body = json.dumps({"sdp": sdp, "type": "offer", "start": {}}).encode()
        client.seen[str(await client.post("/live/offer", body))] += 1
        await asyncio.sleep(PAUSE)


async def deep_json(client: MisbehavingClient) -> None:
    """Send JSON of 20 000 levels, and bodies of a wrong kind."""
    client.seen[str(await client.post("/live/offer", b"[" * 20_000))] += 1
    client.seen[str(await client.post("/live/offer", os.urandom(2000), "image/png"))] += 1
    client.seen[str(await client.post("/live/sessions/none", b"{}"))] += 1


KINDS: tuple[Callable[[MisbehavingClient], Awaitable[None]], ...] = (
    half_open, slow_head, garbage, no_start, wrong_token, binary_flood, text_flood, huge_message, endless_speech,
    gone_mid_word, reads_nothing, never_connects, broken_offer, deep_json,
)  # fmt: skip
"""All ways to misbehave; twenty clients take them in turn."""


async def _read_until_closed(client: MisbehavingClient, socket_: Any) -> None:
    import websockets

    try:
        while True:
            await socket_.recv()
    except websockets.ConnectionClosed as ended:
        code = ended.rcvd.code if ended.rcvd else "without a word"
        client.seen[f"closed with {code}"] += 1


async def _misbehave(
    kind: Callable[[MisbehavingClient], Awaitable[None]], client: MisbehavingClient, ended: asyncio.Event
) -> None:
    import websockets

    while not ended.is_set():  # a cancellation alone can be lost inside a library that is closing a connection
        client.seen["attempts"] += 1
        try:
            await asyncio.wait_for(kind(client), STEP_SECONDS)
        except TimeoutError:
            client.seen["left alone"] += 1
        except (OSError, EOFError, websockets.WebSocketException) as error:
            client.seen[f"refused ({type(error).__name__})"] += 1
        await asyncio.sleep(PAUSE)


async def misbehave(address: str, token: str, count: int, seconds: float) -> dict[str, dict[str, int]]:
    """Let clients misbehave, and return for every kind what they have seen.

    Args:
        address: ``http://HOST:PORT`` of the server.
        token: its token; empty for none.
        count: number of clients.
        seconds: how long.
    """
    place = urlsplit(address)
    assert place.hostname is not None
    assert place.port is not None
    seen: dict[str, Counter[str]] = {}
    tasks, ended = [], asyncio.Event()
    for number in range(count):
        kind = KINDS[number % len(KINDS)]
        tally = seen.setdefault(kind.__name__.replace("_", " "), Counter())
        client = MisbehavingClient(place.hostname, place.port, token, tally)
        tasks.append(asyncio.create_task(_misbehave(kind, client, ended)))
    await asyncio.wait(tasks, timeout=seconds)
    broken = [task.exception() for task in tasks if task.done() and task.exception()]
    ended.set()
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks, timeout=STEP_SECONDS)
    if broken:
        raise RuntimeError(f"a client of the measurement failed: {broken[0]!r}") from broken[0]
    return {kind: dict(tally) for kind, tally in seen.items()}


def main() -> None:
    """Run the clients and print what they have seen."""
    parser = argparse.ArgumentParser(description="Misbehave towards a live server on this machine.")
    parser.add_argument("address", help="address of the server, such as http://127.0.0.1:7880")
    parser.add_argument("--token", default="", help="the server's token")
    parser.add_argument("--count", type=int, default=20, help="number of clients")
    parser.add_argument("--seconds", type=float, default=20, help="how long")
    options = parser.parse_args()
    found = asyncio.run(misbehave(options.address.rstrip("/"), options.token, options.count, options.seconds))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
