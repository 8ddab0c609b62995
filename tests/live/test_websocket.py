"""Claims about the WebSocket transport, with a real client over a real socket."""

from __future__ import annotations

import base64
import io
import socket
import time
from collections.abc import Iterator

import av
import cv2
import numpy as np
import pytest

from flowportrait.live.avatar import LivePortrait
from flowportrait.live.limits import LiveLimits
from flowportrait.live.protocol import NOTICE
from tests.live.live_server import SPEECH_24K, Client, LiveServer, live_server


@pytest.fixture(scope="module")
def server(small_face: LivePortrait, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    with live_server(small_face, tmp_path_factory.mktemp("live")) as running:
        yield running


@pytest.fixture(autouse=True)
def empty(server: LiveServer) -> Iterator[None]:
    yield
    server.wait_until_empty()


def test_a_client_sees_the_face_idle_speak_and_rest_again(server: LiveServer) -> None:
    with Client(server.ws, {}) as client:
        ready = client.read_until("ready")
        assert ready == {
            "type": "ready", "version": 1, "session": ready["session"], "size": 128, "fps": 25, "rate": 48_000,
            "mime": "image/jpeg", "notice": NOTICE,
        }  # fmt: skip
        client.read_frames(5)
        assert not np.any(client.frames[-1][2])
        client.socket.send(b"\x01" + SPEECH_24K)
        client.send(type="finish")
        begun = client.read_until("state", state="speaking")
        ended = client.read_until("state", state="idle")
        client.send(type="close")
        assert "client closed" in client.read_until("closed")["reason"]
    numbers = [number for number, _, _ in client.frames]
    assert numbers == list(range(len(numbers)))
    # Three seconds; on a machine that is busy with other things the motion may pause in between.
    assert 67 <= ended["frame"] - begun["frame"] <= 125
    sound = np.concatenate([samples for _, _, samples in client.frames])
    assert len(sound) == 1920 * len(numbers)
    # What was pushed comes back: the same energy, once.
    pushed = np.frombuffer(SPEECH_24K, "<i2").astype(float)
    assert (sound.astype(float) ** 2).sum() / 48_000 == pytest.approx((pushed**2).sum() / 24_000, rel=0.05)
    pictures = [cv2.imdecode(np.frombuffer(jpeg, np.uint8), 1) for _, jpeg, _ in client.frames if jpeg]
    assert all(picture.shape == (128, 128, 3) for picture in pictures)


def test_realtime_events_of_openai_go_straight_in(server: LiveServer) -> None:
    with Client(server.ws, {}) as client:
        client.read_until("ready")
        client.send(type="response.created", response={"id": "resp_1"})
        delta = base64.b64encode(SPEECH_24K[:48_000]).decode()
        client.send(type="response.output_audio.delta", delta=delta, item_id="item_1", content_index=0)
        client.send(type="response.output_audio.done", item_id="item_1")
        client.read_until("state", state="speaking")
        client.send(type="input_audio_buffer.speech_started", audio_start_ms=1)
        client.read_until("state", state="interrupted")
    assert not [message for message in client.messages if message["type"] == "error"]


def test_mp4_is_h264_without_b_frames_and_aac_that_plays_from_its_first_fragment(server: LiveServer) -> None:
    with Client(server.ws, {"video": "mp4"}) as client:
        ready = client.read_until("ready")
        arrivals = []
        while len(client.segments) < 26:
            client.read()
            if client.segments and (not arrivals or len(client.segments) > len(arrivals)):
                arrivals.append(time.monotonic())
        client.send(type="close")
        client.read_until("closed")
    assert client.segments[0][0] == 2
    assert {segment[0] for segment in client.segments[1:]} == {3}
    assert ready["mime"].startswith('video/mp4; codecs="avc1.')
    data = b"".join(segment[1:] for segment in client.segments)
    with av.open(io.BytesIO(data)) as container:
        assert [stream.codec_context.name for stream in container.streams] == ["h264", "aac"]
        pictures, stamps = 0, []
        for packet in container.demux():
            if packet.stream.type == "video" and packet.dts is not None:
                assert packet.pts == packet.dts
                stamps.append(float(packet.pts * packet.time_base))
                pictures += len(packet.decode())
    assert pictures >= 25 * 0.12 * 20
    assert np.allclose(np.diff(stamps), 0.04)
    # Every segment holds at most 200 ms.
    assert len(stamps) / 25 / (len(client.segments) - 1) <= 0.2


def test_a_first_message_that_is_no_start_or_never_comes_ends_the_connection(
    server: LiveServer, small_face: LivePortrait, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with Client(server.ws) as client:
        client.send(type="finish")
        assert "first message" in client.read_until("closed")["reason"]
    with Client(server.ws, {"size": 4096}) as client:
        assert "size 4096" in client.read_until("closed")["reason"]
    with (
        live_server(small_face, tmp_path_factory.mktemp("patient"), limits=LiveLimits(start_seconds=0.3)) as other,
        Client(other.ws) as client,
    ):
        assert "0.3 s" in client.read_until("closed")["reason"]


def test_wrong_messages_are_answered_and_change_nothing(server: LiveServer) -> None:
    with Client(server.ws, {}) as client:
        client.read_until("ready")
        for wrong in (
            "{", "[]", '{"type": "dance"}', '{"type": "speak"}', "[" * 100_000, '{"type": "camera", "use": 1}',
            '{"type": "speak", "text": "x", "voice": "os:system"}',
        ):  # fmt: skip
            client.socket.send(wrong)
            assert client.read_until("error")["message"].endswith(".")
        for binary in (b"", b"\x09abc", b"\x01abc", b"\x01" + bytes(24_000 * 2 * 15)):
            client.socket.send(binary)
        client.socket.send(b"\x01" + SPEECH_24K[:4800])
        client.send(type="ping", id=7)
        assert client.read_until("pong") == {"type": "pong", "id": 7}


def test_one_session_too_many_is_refused_with_a_sentence(server: LiveServer) -> None:
    with Client(server.ws, {}) as one, Client(server.ws, {}) as two:
        one.read_until("ready")
        two.read_until("ready")
        with Client(server.ws, {}) as three:
            assert "2 sessions at once" in three.read_until("closed")["reason"]
        one.read_frames(5)
    server.wait_until_empty()
    with Client(server.ws, {}) as again:
        again.read_until("ready")


def test_a_client_that_does_not_read_loses_pictures_then_its_session_and_harms_nobody(
    small_face: LivePortrait, tmp_path_factory: pytest.TempPathFactory
) -> None:
    limits = LiveLimits(behind_seconds=1.0)
    with live_server(small_face, tmp_path_factory.mktemp("slow"), limits=limits) as server:
        with Client(server.ws, {}) as good:
            good.read_until("ready")
            line = socket.socket()
            line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            line.connect(("127.0.0.1", server.port))
            slow = Client(server.ws, {}, max_queue=1, sock=line)
            slow.read_until("ready")
            deadline = time.monotonic() + 60
            while server.host.admission.open == 2 and time.monotonic() < deadline:
                good.read_frames(5)
            assert server.host.admission.open == 1
            numbers = [number for number, _, _ in good.frames]
            assert numbers == list(range(len(numbers)))
        reasons = [event["reason"] for event in server.events() if event["event"] == "session_closed"]
        assert "too slow" in reasons[0]
        assert server.host.metrics.dropped_pictures._value.get() > 10
        slow.close()
