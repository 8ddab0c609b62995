"""Claims about WebRTC connections, each with a real client in the same process over the real network stack."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import threading
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("aiortc", reason="the extra live is not installed")

import aioice.ice
import av
import cv2
from aioice import stun
from aioice.turn import make_integrity_key
from aiortc import RTCDataChannel, RTCPeerConnection, RTCRtpReceiver, RTCSessionDescription
from aiortc.mediastreams import MediaStreamError, MediaStreamTrack
from aiortc.rtp import RtcpSrPacket

from flowportrait.errors import BadInput
from flowportrait.live import webrtc
from flowportrait.live.webrtc import MAX_MESSAGE, MAX_QUEUED_MESSAGES, IceServer, WebRTCPeer
from flowportrait.live.webrtc_offer import ice_configuration
from flowportrait.live.webrtc_rtcp import MAX_UNDECODED
from flowportrait.live.webrtc_tracks import MAX_WAITING_PICTURES
from tests.live.click_and_flash import FPS, ClickAndFlash

ENDED = "The client ended the connection, or cannot be reached any more."


@dataclass
class Client:
    """A client in Python, and what it received."""

    peer: WebRTCPeer
    connection: RTCPeerConnection
    channel: RTCDataChannel
    pictures: list[tuple[float, float, np.ndarray]] = field(default_factory=list)
    """Media time in seconds, arrival, picture."""
    sound: list[tuple[float, float, np.ndarray]] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    received: dict[str, list[Any]] = field(default_factory=dict)
    """What the callbacks of the peer were called with, by their name."""

    async def wait(self, condition: Callable[[], Any], seconds: float = 10.0) -> None:
        """Wait until a condition holds."""
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, "the condition did not come true"
            await asyncio.sleep(0.01)


async def consume(track: MediaStreamTrack, client: Client) -> None:
    with contextlib.suppress(MediaStreamError):
        while True:
            frame: Any = await track.recv()
            seconds = float(frame.pts * frame.time_base)
            if track.kind == "video":
                client.pictures.append((seconds, time.monotonic(), frame.to_ndarray(format="rgb24")))
            else:
                samples = frame.to_ndarray().reshape(-1, len(frame.layout.channels)).mean(1)
                client.sound.append((seconds, time.monotonic(), samples / 32768))


def callbacks(received: dict[str, list[Any]]) -> dict[str, Callable[..., None]]:
    """Callbacks for a peer that note what they are called with."""

    def note(name: str) -> Callable[..., None]:
        notes = received.setdefault(name, [])
        return lambda *arguments: notes.append(arguments[0] if len(arguments) == 1 else arguments)

    return {f"on_{name}": note(name) for name in ("text", "binary", "microphone", "camera", "closed")}


async def answered(
    connection: RTCPeerConnection,
    codec: str | None = None,
    tracks: tuple[MediaStreamTrack, ...] = (),
    change: Callable[[str], str] = lambda sdp: sdp,
    **settings: Any,
) -> tuple[WebRTCPeer, dict[str, list[Any]]]:
    """A peer that answered a client, and what its callbacks are called with, who knows only ``codec``."""
    kinds = {track.kind: track for track in tracks}
    for kind in ("video", "audio"):
        transceiver = connection.addTransceiver(kinds.get(kind, kind), "sendrecv" if kind in kinds else "recvonly")
        if kind == "video" and codec:
            possible = RTCRtpReceiver.getCapabilities("video").codecs
            transceiver.setCodecPreferences([one for one in possible if one.name in (codec, "rtx")])
    await connection.setLocalDescription(await connection.createOffer())
    received: dict[str, list[Any]] = {}
    settings = {"rate": 48_000, **callbacks(received), **settings}
    return await WebRTCPeer.answer(change(connection.localDescription.sdp), **settings), received


@contextlib.asynccontextmanager
async def connected(before: Callable[[WebRTCPeer], Any] = lambda _: None, **settings: Any) -> AsyncIterator[Client]:
    """A client that is connected to a peer."""
    connection = RTCPeerConnection()
    channel = connection.createDataChannel("flowportrait")
    peer, received = await answered(connection, **settings)
    before(peer)
    client = Client(peer, connection, channel, received=received)
    channel.on("message", client.texts.append)
    tasks = []
    connection.on("track", lambda track: tasks.append(asyncio.ensure_future(consume(track, client))))
    await connection.setRemoteDescription(RTCSessionDescription(peer.answer_sdp, "answer"))
    try:
        await client.wait(lambda: peer.connected and channel.readyState == "open")
        # Clients count from the first packet of each track, which is then that of the same frame.
        await client.wait(lambda: peer._pictures.started and peer._sound.started)  # type: ignore[union-attr]
        yield client
    finally:
        await connection.close()
        await peer.close()
        await asyncio.gather(*tasks)


def flash_times(client: Client) -> list[tuple[float, float]]:
    """Media time and arrival of every flash."""
    return [(pts, arrival) for pts, arrival, picture in client.pictures if picture.mean() > 128]


def click_times(client: Client) -> list[tuple[float, float]]:
    """Media time and arrival of the beginning of every click."""
    found: list[tuple[float, float]] = []
    for pts, arrival, samples in client.sound:
        loud = np.flatnonzero(np.abs(samples) > 0.2)
        if len(loud) and (not found or pts - found[-1][0] > 0.5):
            found.append((pts + loud[0] / 48_000, arrival))
    return found


def packet_times(connection: RTCPeerConnection) -> dict[str, list[tuple[int, float]]]:
    """Timestamp and arrival of every packet that a client will receive, by kind."""
    found: dict[str, list[tuple[int, float]]] = {"video": [], "audio": []}
    for transceiver in connection.getTransceivers():
        receiver, notes = transceiver.receiver, found[transceiver.kind]

        def note(
            packet: Any, arrival_time_ms: int, handle: Any = receiver._handle_rtp_packet, notes: Any = notes
        ) -> Any:
            notes.append((packet.timestamp, time.monotonic()))
            return handle(packet, arrival_time_ms)

        receiver._handle_rtp_packet = note  # type: ignore[method-assign]
    return found


def sender_reports(connection: RTCPeerConnection) -> dict[str, list[tuple[float, int]]]:
    """Wall time in seconds and timestamp of every sender report that a client will receive, by kind."""
    found: dict[str, list[tuple[float, int]]] = {"video": [], "audio": []}
    for transceiver in connection.getTransceivers():
        receiver, notes = transceiver.receiver, found[transceiver.kind]

        def note(packet: Any, handle: Any = receiver._handle_rtcp_packet, notes: Any = notes) -> Any:
            if isinstance(packet, RtcpSrPacket):
                notes.append((packet.sender_info.ntp_timestamp / 2**32, packet.sender_info.rtp_timestamp))
            return handle(packet)

        receiver._handle_rtcp_packet = note  # type: ignore[method-assign]
    return found


# --- Pictures and sound ---


@pytest.mark.parametrize("codec", ["H264", "VP8"])
def test_flash_and_click_arrive_together(codec: str) -> None:
    async def run() -> tuple[Client, dict[str, list[tuple[int, float]]]]:
        async with connected(codec=codec) as client:
            packets = packet_times(client.connection)
            await ClickAndFlash().play(client.peer.send_frame, 4 * FPS)
            await asyncio.sleep(0.3)
            assert client.peer.stats()["codec"] == codec
        return client, packets

    client, packets = asyncio.run(run())
    flashes, clicks = flash_times(client), click_times(client)
    assert len(clicks) == 4
    assert len(flashes) >= 3  # a busy machine may drop a picture
    for flash, _ in flashes:
        assert min(abs(flash - click) for click, _ in clicks) <= 0.04
    arrivals = []
    for kind, clock in (("video", 90_000), ("audio", 48_000)):
        first = packets[kind][0][0]
        arrivals.append({round((timestamp - first) / clock * FPS): arrival for timestamp, arrival in packets[kind]})
    pictures, sound = arrivals
    late = [pictures[index] - sound[index] for index in pictures if index in sound]
    assert len(late) > 3 * FPS
    assert np.median(np.abs(late)) <= 0.04


def test_sender_reports_put_pictures_and_sound_on_one_clock() -> None:
    async def run() -> tuple[dict[str, list[tuple[float, int]]], dict[str, list[tuple[int, float]]]]:
        async with connected() as client:
            reports, packets = sender_reports(client.connection), packet_times(client.connection)
            # A large picture takes long to encode, which must not show in the clock.
            await ClickAndFlash(1024).play(client.peer.send_frame, 5 * FPS)
        return reports, packets

    reports, packets = asyncio.run(run())
    origins = {}
    for kind, clock in (("video", 90_000), ("audio", 48_000)):
        assert len(reports[kind]) >= 3
        first = packets[kind][0][0]  # the timestamp of frame 0
        origins[kind] = [wall - (timestamp - first) / clock for wall, timestamp in reports[kind]]
        assert np.ptp(origins[kind]) < 0.001
    # The decoded sound of a packet is 6.5 ms late by the delay of Opus, and its timestamp says so.
    assert np.mean(origins["audio"]) + 312 / 48_000 == pytest.approx(np.mean(origins["video"]), abs=0.001)


@pytest.mark.parametrize("codec", ["H264", "VP8"])
@pytest.mark.parametrize("colour", [(200, 30, 40), (30, 160, 60), (40, 60, 210), (235, 235, 235), (190, 150, 126)])
def test_a_flat_colour_arrives_as_it_is(codec: str, colour: tuple[int, int, int]) -> None:
    async def run() -> np.ndarray:
        async with connected(codec=codec) as client:
            picture = np.full((128, 128, 3), colour, np.uint8)
            for index in range(12):
                client.peer.send_frame(index, picture, np.zeros((1, 1920), np.float32))
                await asyncio.sleep(0.04)
            await client.wait(lambda: client.pictures)
        return client.pictures[-1][2]

    received = asyncio.run(run())
    assert received.shape == (128, 128, 3)
    assert np.abs(received.astype(int) - colour).max() <= 5


@pytest.mark.slow
def test_25_frames_a_second_arrive_for_ten_seconds() -> None:
    async def run() -> tuple[Client, dict[str, Any]]:
        async with connected() as client:
            await ClickAndFlash(384).play(client.peer.send_frame, 10 * FPS)
            await asyncio.sleep(0.5)
            return client, client.peer.stats()

    client, stats = asyncio.run(run())
    assert 0 < stats["round_trip_seconds"] < 1
    assert stats["fraction_lost"] == stats["packets_lost"] == 0
    assert stats["sound_frames_dropped"] == 0
    assert stats["pictures_dropped"] <= 5, "a machine that is this busy cannot show it"
    assert stats["pictures_sent"] + stats["pictures_dropped"] >= 10 * FPS - 1
    # The last two pictures wait in the client for packets after them.
    assert len(client.pictures) >= stats["pictures_sent"] - 2
    steps = np.diff([pts for pts, _, _ in client.pictures]) * FPS
    assert np.allclose(steps, np.round(steps), atol=0.001)
    assert np.sum(np.round(steps) - 1) <= stats["pictures_dropped"]
    assert client.pictures[-1][0] == pytest.approx(9.9, abs=0.1)
    sound = np.array([pts for pts, _, _ in client.sound])
    assert np.allclose(np.diff(sound), 0.04, atol=1e-6)


def test_sound_of_another_rate_keeps_time() -> None:
    async def run() -> Client:
        async with connected(rate=24_000) as client:
            await ClickAndFlash(64, rate=24_000).play(client.peer.send_frame, 3 * FPS)
            await asyncio.sleep(0.3)
        return client

    client = asyncio.run(run())
    flashes, clicks = flash_times(client), click_times(client)
    assert len(clicks) == 3
    assert len(flashes) >= 2  # a busy machine may drop a picture
    for flash, _ in flashes:
        assert min(abs(flash - click) for click, _ in clicks) <= 0.04


def test_an_encoder_that_is_behind_drops_pictures_and_no_sound() -> None:
    async def run() -> tuple[Client, dict[str, Any]]:
        noise = np.random.default_rng(0).integers(0, 255, (2880, 2880, 3), np.uint8)
        async with connected() as client:
            for index in range(2 * FPS):
                client.peer.send_frame(index, np.roll(noise, 40 * index, axis=1), np.zeros((1, 1920), np.float32))
                assert len(client.peer._pictures._queued) <= MAX_WAITING_PICTURES  # type: ignore[union-attr]
                await asyncio.sleep(0.02)
            await asyncio.sleep(0.3)
            return client, client.peer.stats()

    client, stats = asyncio.run(run())
    assert stats["pictures_dropped"] > 5
    assert stats["pictures_sent"] > 2
    assert stats["sound_frames_dropped"] == 0
    assert len(client.sound) >= 2 * FPS - 6  # the client itself waits for four packets


def test_frames_for_a_client_that_does_not_connect_are_not_collected() -> None:
    async def run() -> None:
        connection = RTCPeerConnection()
        peer, _ = await answered(connection)
        for index in range(1000):
            peer.send_frame(index, np.zeros((64, 64, 3), np.uint8), np.zeros((1, 1920), np.float32))
            peer.send_text(str(index))
        assert len(peer._pictures._queued) == len(peer._sound._queued) == 1  # type: ignore[union-attr]
        assert peer.stats()["messages_dropped"] == 1000 - MAX_QUEUED_MESSAGES
        await peer.close()
        await connection.close()

    asyncio.run(run())


def test_a_client_that_lost_a_picture_gets_a_key_frame() -> None:
    async def run() -> list[bool]:
        keys: list[bool] = []
        async with connected(codec="H264") as client:
            encoder = client.peer._pictures._encoder  # type: ignore[union-attr]
            encode = encoder.encode

            def note(*arguments: Any) -> Any:
                packet = encode(*arguments)
                keys.append(bytes([0, 0, 1, 0x65]) in bytes(packet))  # a slice of an IDR picture
                return packet

            encoder.encode = note  # type: ignore[method-assign]
            source = ClickAndFlash(128)
            for index in range(30):
                client.peer.send_frame(index, *source.frame(index))
                if index == 20:
                    receiver = client.connection.getReceivers()[0]
                    await receiver._send_rtcp_pli(receiver.getSynchronizationSources()[0].source)
                await asyncio.sleep(0.04)
        return keys

    keys = asyncio.run(run())
    assert keys[0]
    assert sum(keys[1:20]) == 0
    assert sum(keys[20:]) == 1


class SlowNetwork(asyncio.DatagramProtocol):
    """Passes packets between a client and a peer; to the client at most ``bitrate``, with a queue of 0.3 s."""

    def __init__(self, peer: tuple[str, int], bitrate: int) -> None:
        self._peer, self._bitrate, self._free = peer, bitrate, 0.0
        self._client: tuple[str, int] | None = None

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, address: tuple[str, int]) -> None:
        if address != self._peer:
            self._client = address
            self.transport.sendto(data, self._peer)
            return
        now = time.monotonic()
        if self._free < now + 0.3:
            self._free = max(self._free, now) + len(data) * 8 / self._bitrate
            asyncio.get_running_loop().call_later(self._free - now, self.transport.sendto, data, self._client)


@pytest.mark.slow
def test_a_slow_network_gets_fewer_bits_until_all_of_them_arrive() -> None:
    async def run() -> tuple[Client, list[int], dict[str, list[tuple[int, float]]]]:
        connection, limits, texture = RTCPeerConnection(), [], np.random.default_rng(0)
        picture = cv2.resize(texture.integers(0, 255, (64, 64, 3), np.uint8), (384, 384), interpolation=cv2.INTER_CUBIC)
        peer, received = await answered(connection, change=lambda sdp: re.sub("a=candidate.*\r\n", "", sdp))
        client = Client(peer, connection, connection.createDataChannel("unused"), received=received)
        connection.on("track", lambda track: asyncio.ensure_future(consume(track, client)))
        # The client gets to know the address of the slow network alone; the peer sees it as that of the client.
        host, port = re.findall(r"a=candidate:\S+ 1 udp \d+ (\d+\.\d+\.\d+\.\d+) (\d+) typ host", peer.answer_sdp)[0]
        loop = asyncio.get_running_loop()
        transport, _ = await loop.create_datagram_endpoint(
            lambda: SlowNetwork((host, int(port)), 500_000), local_addr=(host, 0)
        )
        relay = transport.get_extra_info("sockname")[1]
        sdp = "\r\n".join(
            line.replace(f" {host} {port} ", f" {host} {relay} ")
            for line in peer.answer_sdp.splitlines()
            if not line.startswith("a=candidate") or f" {host} {port} " in line
        )
        await connection.setRemoteDescription(RTCSessionDescription(sdp + "\r\n", "answer"))
        packets = packet_times(connection)
        await client.wait(lambda: peer.connected)
        for index in range(15 * FPS):
            peer.send_frame(index, np.roll(picture, 3 * index, axis=1), np.zeros((1, 1920), np.float32))
            limits.append(peer.stats()["bitrate"])
            await asyncio.sleep(1 / FPS)
        await connection.close()
        await peer.close()
        transport.close()
        return client, limits, packets

    client, limits, packets = asyncio.run(run())
    assert limits[0] == webrtc.MAX_BITRATE
    assert min(limits) <= 600_000
    # After it fell, all arrives. Packets are counted, as the client of aiortc waits long for pictures that it lost.
    end = packets["video"][-1][1]
    pictures = {timestamp for timestamp, arrival in packets["video"] if arrival > end - 4}
    assert len(pictures) > 3.5 * FPS
    assert sum(arrival > end - 4 for _, arrival, _ in client.sound) > 3.5 * FPS


# --- Messages ---


def test_messages_go_both_ways_and_wait_until_the_channel_is_open() -> None:
    async def run() -> None:
        async with connected(before=lambda peer: [peer.send_text("one"), peer.send_text("two")]) as client:
            client.peer.send_text("three")
            client.channel.send('{"type":"ping","id":1}')
            client.channel.send(b"\x01\x00\x00")
            await client.wait(lambda: len(client.texts) == 3 and client.received["binary"])
            assert client.texts == ["one", "two", "three"]
            assert client.received["text"] == ['{"type":"ping","id":1}']
            assert client.received["binary"] == [b"\x01\x00\x00"]
            assert client.received["closed"] == []

    asyncio.run(run())


def test_channels_of_another_name_are_closed_and_too_long_messages_end_the_connection() -> None:
    async def run() -> None:
        async with connected() as client:
            other = client.connection.createDataChannel("other")
            await client.wait(lambda: other.readyState == "closed")
            client.channel.send("x" * MAX_MESSAGE)
            await client.wait(lambda: client.received["text"])
            assert len(client.received["text"][0]) == MAX_MESSAGE
            assert client.peer.connected
            # A browser refuses to send more than was agreed; a hostile client does not.
            client.connection.sctp._remote_max_message_size = 10 * MAX_MESSAGE  # type: ignore[union-attr]
            client.channel.send("x" * (MAX_MESSAGE + 1))
            await client.wait(lambda: client.received["closed"])
            assert f"{MAX_MESSAGE} are possible" in client.received["closed"][0]

    asyncio.run(run())


# --- Microphone and camera ---


class Tone(MediaStreamTrack):
    """A tone of 500 Hz in stereo, in pieces of 20 ms."""

    kind = "audio"

    def __init__(self) -> None:
        super().__init__()
        self._count = 0

    async def recv(self) -> av.AudioFrame:
        await asyncio.sleep(0.02)
        times = (self._count + np.arange(960)) / 48_000
        wave = np.round(8000 * np.sin(2 * np.pi * 500 * times)).astype(np.int16)
        frame = av.AudioFrame.from_ndarray(np.repeat(wave, 2)[None], format="s16", layout="stereo")
        frame.sample_rate, frame.pts, frame.time_base = 48_000, self._count, Fraction(1, 48_000)
        self._count += 960
        return frame


class Camera(MediaStreamTrack):
    """Blue pictures."""

    kind = "video"

    def __init__(self, width: int = 320, height: int = 240, pause: float = 0.033) -> None:
        super().__init__()
        self._picture, self._pause, self._count = np.full((height, width, 3), (30, 60, 200), np.uint8), pause, 0

    async def recv(self) -> av.VideoFrame:
        await asyncio.sleep(self._pause)
        frame = av.VideoFrame.from_ndarray(self._picture, format="rgb24").reformat(format="yuv420p")
        frame.pts, frame.time_base = 3000 * self._count, Fraction(1, 90_000)
        self._count += 1
        return frame


def test_microphone_and_camera_arrive_and_can_be_switched_off() -> None:
    async def run() -> None:
        async with connected(tracks=(Tone(), Camera(1280, 720))) as client:
            microphone, camera = client.received["microphone"], client.received["camera"]
            await client.wait(lambda: len(microphone) > 40 and len(camera) > 5)
            samples = np.concatenate([samples for samples, _ in microphone[20:40]])
            assert {rate for _, rate in microphone} == {48_000}
            assert samples.dtype == np.int16
            spectrum = np.abs(np.fft.rfft(samples))
            assert np.argmax(spectrum) * 48_000 / len(samples) == pytest.approx(500, abs=5)
            assert np.abs(samples).max() == pytest.approx(8000, rel=0.15)
            assert camera[-1].shape == (360, 640, 3)  # no larger than a tracker needs
            assert np.abs(camera[-1].astype(int) - (30, 60, 200)).max() <= 6
            client.peer.receive_camera(False)
            client.peer.receive_microphone(False)
            await asyncio.sleep(0.5)
            counts = len(microphone), len(camera)
            await asyncio.sleep(0.5)
            assert (len(microphone), len(camera)) == counts
            client.peer.receive_camera(True)
            await client.wait(lambda: len(camera) > counts[1] + 5)

    asyncio.run(run())


def test_a_camera_that_nobody_can_follow_fills_no_memory() -> None:
    async def run() -> None:
        slow: list[int] = []
        async with connected(tracks=(Camera(640, 480, pause=0.002),)) as client:
            client.peer._on_camera = lambda picture: (slow.append(1), time.sleep(0.05))  # type: ignore[assignment]
            await client.wait(lambda: len(slow) > 10, 20)
            waiting = client.peer._undecoded["video"].qsize()
            track = client.peer._connection.getReceivers()[0].track
            assert waiting <= MAX_UNDECODED
            assert track._queue.qsize() <= MAX_UNDECODED

    asyncio.run(run())


# --- Offers and servers ---


async def offer(change: Callable[[str], str] = lambda sdp: sdp) -> str:
    """The offer of a client, changed."""
    connection = RTCPeerConnection()
    connection.createDataChannel("flowportrait")
    connection.addTransceiver("video", "recvonly")
    connection.addTransceiver("audio", "recvonly")
    await connection.setLocalDescription(await connection.createOffer())
    sdp = connection.localDescription.sdp
    await connection.close()
    return change(sdp)


def section(sdp: str, kind: str) -> str:
    """The section of an offer of that kind."""
    start = sdp.index(f"m={kind}")
    end = sdp.find("\r\nm=", start)
    return sdp[start:] if end < 0 else sdp[start : end + 2]


CHANGES: dict[str, tuple[Callable[[str], str], str]] = {
    "empty": (lambda sdp: "", "no session description"),
    "words": (lambda sdp: "hello", "no session description"),
    "cut": (lambda sdp: sdp[: len(sdp) // 2], "offer"),
    "long": (lambda sdp: sdp + "a=x\r\n" * 20_000, "are possible"),
    "no video": (lambda sdp: sdp.replace(section(sdp, "video"), ""), "asks for no video"),
    "no audio": (lambda sdp: sdp.replace(section(sdp, "audio"), ""), "asks for no audio"),
    "sends only": (lambda sdp: sdp.replace("a=recvonly", "a=sendonly"), "asks for no video"),
    "two videos": (lambda sdp: sdp + section(sdp, "video"), "2 sections m=video"),
    "twenty": (lambda sdp: sdp + 20 * section(sdp, "audio"), "21 sections m=audio"),
    "unknown": (lambda sdp: sdp + "m=text 9 UDP/TLS/RTP/SAVPF 98\r\n", "m=text"),
    "codec": (lambda sdp: sdp.replace("VP8/", "AV1/").replace("H264/", "AV2/"), "no video codec"),
    "sound codec": (lambda sdp: sdp.replace("opus/", "other/"), "no audio codec"),
    "no fingerprint": (lambda sdp: re.sub("a=fingerprint.*\r\n", "", sdp), "a=fingerprint"),
    "no password": (lambda sdp: re.sub("a=ice-pwd.*\r\n", "", sdp), "cannot be answered"),
    "candidates": (
        lambda sdp: sdp + "".join(f"a=candidate:1 1 udp 1 10.0.0.1 {port} typ host\r\n" for port in range(1000, 1100)),
        "candidates",
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_an_offer_that_cannot_be_answered_is_refused_with_one_sentence(name: str) -> None:
    change, words = CHANGES[name]

    async def run() -> None:
        tasks = len(asyncio.all_tasks())
        with pytest.raises(BadInput, match=words) as raised:
            await WebRTCPeer.answer(await offer(change), rate=48_000, **callbacks({}))
        assert str(raised.value).endswith(".")
        assert "\n" not in str(raised.value)
        await asyncio.sleep(0.1)
        assert len(asyncio.all_tasks()) == tasks

    asyncio.run(run())


class StunAndTurn(asyncio.DatagramProtocol):
    """A STUN and TURN server that gives away two addresses, the second one for a name and a password."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, address: tuple[str, int]) -> None:
        request = stun.parse_message(data)
        answer = stun.Message(request.message_method, stun.Class.RESPONSE, request.transaction_id)
        if request.message_method == stun.Method.BINDING:
            answer.attributes["XOR-MAPPED-ADDRESS"] = ("203.0.113.7", 4000)
        elif "USERNAME" not in request.attributes:
            answer.message_class = stun.Class.ERROR
            answer.attributes.update({"ERROR-CODE": (401, "who?"), "REALM": "example", "NONCE": b"nonce"})
        else:
            self.names.append(request.attributes["USERNAME"])
            if not request.check_message_integrity(make_integrity_key("someone", "example", "a secret")):
                return
            answer.attributes["LIFETIME"] = request.attributes["LIFETIME"]
            if request.message_method == stun.Method.ALLOCATE:
                answer.attributes["XOR-MAPPED-ADDRESS"] = ("203.0.113.7", 4001)
                answer.attributes["XOR-RELAYED-ADDRESS"] = ("203.0.113.9", 5000)
            answer.add_message_integrity(make_integrity_key("someone", "example", "a secret"))
        self.transport.sendto(bytes(answer), address)


def test_stun_and_turn_servers_are_asked_with_name_and_password() -> None:
    async def run() -> str:
        loop = asyncio.get_running_loop()
        transport, server = await loop.create_datagram_endpoint(StunAndTurn, local_addr=("0.0.0.0", 0))
        port = transport.get_extra_info("sockname")[1]
        connection = RTCPeerConnection()
        servers = [
            IceServer((f"stun:127.0.0.1:{port}",)),
            IceServer((f"turn:127.0.0.1:{port}?transport=udp",), "someone", "a secret"),
        ]
        peer, _ = await answered(connection, ice_servers=servers)
        await peer.close()
        await connection.close()
        transport.close()
        assert set(server.names) == {"someone"}
        return peer.answer_sdp

    sdp = asyncio.run(run())
    assert re.search(r"a=candidate:.* 203\.0\.113\.7 4000 typ srflx", sdp)
    assert re.search(r"a=candidate:.* 203\.0\.113\.9 5000 typ relay", sdp)


def test_without_servers_none_are_asked_and_a_wrong_address_is_refused() -> None:
    assert ice_configuration([]).iceServers == []
    with pytest.raises(BadInput, match=r"'http://example\.org' is no address"):
        ice_configuration([IceServer(("http://example.org",))])


# --- The end ---


def test_the_end_is_told_once() -> None:
    async def run() -> None:
        async with connected() as client:
            await client.connection.close()
            await client.wait(lambda: client.received["closed"])
            await asyncio.sleep(0.2)
            assert client.received["closed"] == [ENDED]
            client.peer.send_frame(0, np.zeros((64, 64, 3), np.uint8), np.zeros(1920, np.float32))
            client.peer.send_text("too late")
        async with connected() as client:
            await client.peer.close()
            await client.peer.close()
            assert client.received["closed"] == []

    asyncio.run(run())


def test_a_client_that_never_connects_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webrtc, "CONNECT_SECONDS", 0.5)

    async def run() -> None:
        received: dict[str, list[Any]] = {}
        sdp = await offer(lambda sdp: re.sub("a=candidate.*\r\n", "", sdp))
        await WebRTCPeer.answer(sdp, rate=48_000, **callbacks(received))
        await asyncio.sleep(1.5)
        assert received["closed"] == ["The client did not connect within 0.5 s."]
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(run())


def test_a_client_that_vanishes_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aioice.ice, "CONSENT_INTERVAL", 0.2)
    monkeypatch.setattr(aioice.ice, "CONSENT_FAILURES", 2)

    async def run() -> None:
        async with connected() as client:
            for transport in client.connection._RTCPeerConnection__iceTransports:  # type: ignore[attr-defined]
                for protocol in transport._connection._protocols:
                    protocol.transport.close()
            await client.wait(lambda: client.received["closed"], 20)
            assert client.received["closed"] == [ENDED]

    asyncio.run(run())


def test_twenty_connections_leave_nothing_behind() -> None:
    def sockets() -> int:
        return sum("socket" in os.readlink(link) for link in Path("/proc/self/fd").iterdir() if link.is_symlink())

    async def run() -> None:
        async def once() -> None:
            async with connected(tracks=(Tone(), Camera())) as client:
                client.peer.send_frame(0, np.zeros((64, 64, 3), np.uint8), np.zeros(1920, np.float32))
                await client.wait(lambda: client.received["microphone"])

        await once()
        await asyncio.sleep(0.3)
        before = len(asyncio.all_tasks()), threading.active_count(), sockets()
        for _ in range(20):
            await once()
        await asyncio.sleep(0.5)
        assert len(asyncio.all_tasks()) == before[0]
        # The event loop has a pool of its own, which grows to its fixed size.
        assert not [
            thread.name for thread in threading.enumerate() if "webrtc" in thread.name or "decoder" in thread.name
        ]
        assert sockets() == before[2]

    asyncio.run(run())
