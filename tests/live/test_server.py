"""Claims about the HTTP side of the live server, with real requests to a real server."""

from __future__ import annotations

import asyncio
import http.client
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import httpx2
import numpy as np
import pytest
from aiortc import RTCPeerConnection, RTCSessionDescription
from prometheus_client.parser import text_string_to_metric_families
from websockets.exceptions import InvalidStatus

from flowportrait.live.avatar import LivePortrait
from flowportrait.live.limits import LiveLimits
from tests.live.live_server import PHOTO, SPEECH_24K, Client, LiveServer, live_server

TOKEN = "a-token-of-this-test"
OTHER = "https://example.org"


@pytest.fixture(scope="module")
def server(small_face: LivePortrait, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    limits = LiveLimits(photo_megabytes=2)
    with live_server(small_face, tmp_path_factory.mktemp("live"), sessions=1, limits=limits) as running:
        yield running


@pytest.fixture(scope="module")
def guarded(small_face: LivePortrait, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    with live_server(small_face, tmp_path_factory.mktemp("guarded"), token=TOKEN, origins=(OTHER,)) as running:
        yield running


@pytest.fixture
def web(server: LiveServer) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=server.url, timeout=60) as client:
        yield client
    server.wait_until_empty()


def sentence(response: httpx2.Response) -> str:
    detail = response.json()["detail"]
    assert detail.endswith((".", ")."))
    assert "Traceback" not in detail
    return str(detail)


def figures(web: httpx2.Client) -> dict[str, float]:
    families = text_string_to_metric_families(web.get("/metrics").text)
    return {one.name: one.value for family in families for one in family.samples if not one.labels}


# --- Guard and token ---


def test_other_names_and_sites_are_refused(server: LiveServer, web: httpx2.Client) -> None:
    assert web.get("/healthz", headers={"Host": "evil.example"}).status_code == 400
    for headers in ({"Origin": OTHER}, {"Sec-Fetch-Site": "cross-site"}, {"Origin": "null"}):
        assert web.get("/live/config", headers=headers).status_code == 403
    for path, origin in ((server.ws, OTHER), (server.ws.replace("/live/ws", "/live/other"), None)):
        with pytest.raises(InvalidStatus) as caught:
            Client(path, {}, origin=origin)
        assert caught.value.response.status_code == 403


def test_the_token_is_asked_for_everywhere_but_on_the_page(guarded: LiveServer) -> None:
    with httpx2.Client(base_url=guarded.url) as web:
        assert [web.get(path).status_code for path in ("/", "/healthz", "/openapi.json", "/asyncapi.json")] == [200] * 4
        for path in ("/metrics", "/live/config", "/live/poster", "/live/sessions/x"):
            assert web.get(path).status_code == 401
            assert web.get(path, headers={"Authorization": "Bearer wrong"}).status_code == 401
        assert web.get("/live/config", headers={"Authorization": f"Bearer {TOKEN}"}).status_code == 200
        assert web.post("/live/offer", json={"sdp": "v=0", "start": {"token": "wrong"}}).status_code == 401
        assert web.post("/live/offer", json={"sdp": "v=0", "start": {"token": TOKEN}}).status_code == 400
    guarded.wait_until_empty()
    for start, headers in (({"token": TOKEN}, {}), ({}, {"Authorization": f"Bearer {TOKEN}"})):
        with Client(guarded.ws, start, additional_headers=headers) as client:
            client.read_until("ready")
        guarded.wait_until_empty()
    with Client(guarded.ws, {"token": "wrong"}) as client:
        assert "token" in client.read_until("closed")["reason"]
    assert TOKEN not in json.dumps(guarded.events())


def test_a_page_of_an_allowed_origin_may_read_and_connect(guarded: LiveServer) -> None:
    with httpx2.Client(base_url=guarded.url) as web:
        asks = {"Origin": OTHER, "Access-Control-Request-Method": "POST"}
        answer = web.options("/live/offer", headers=asks)
        assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (204, OTHER)
        assert "authorization" in answer.headers["access-control-allow-headers"]
        refused = web.options("/live/offer", headers={**asks, "Origin": "https://example.com"})
        assert refused.status_code == 403
    with Client(guarded.ws, {"token": TOKEN}, origin=OTHER) as client:
        client.read_until("ready")
    guarded.wait_until_empty()


# --- Information ---


def test_health_figures_and_documents_are_what_they_claim(server: LiveServer, web: httpx2.Client) -> None:
    assert web.get("/healthz").json()["status"] == "ok"
    config = web.get("/live/config").json()
    assert (config["sizes"], config["size"], config["notice"]) == ([128], 128, "This face is generated.")
    poster = cv2.imdecode(np.frombuffer(web.get("/live/poster").content, np.uint8), 1)
    assert poster.shape == (128, 128, 3)
    document = web.get("/openapi.json").json()
    assert "/live/offer" in document["paths"]
    references = [word for word in json.dumps(document).split('"') if word.startswith("#/components/schemas/")]
    assert {one.rpartition("/")[2] for one in references} <= document["components"]["schemas"].keys()
    assert web.get("/asyncapi.json").json()["asyncapi"] == "3.0.0"
    for path in ("/page/..%2fserver.py", "/page/x.html", "/clients/..%2fpage%2findex.html", "/page/__init__.py"):
        assert web.get(path).status_code == 404


def test_a_full_server_refuses_both_transports_with_a_sentence(server: LiveServer, web: httpx2.Client) -> None:
    before = figures(web)
    with Client(server.ws, {}) as client:
        client.read_until("ready")
        assert web.get("/healthz").json()["status"] == "full"
        answer = web.post("/live/offer", json={"sdp": "v=0"})
        assert answer.status_code == 503
        assert int(answer.headers["retry-after"]) > 0
        assert "1 session" in sentence(answer)
        with Client(server.ws, {}) as other:
            assert "1 session" in other.read_until("closed")["reason"]
        after = figures(web)
    assert after["flowportrait_sessions"] == 1
    assert after["flowportrait_sessions_refused_total"] - before["flowportrait_sessions_refused_total"] == 2
    server.wait_until_empty()
    assert figures(web)["flowportrait_sessions"] == 0


# --- Photos ---


def test_a_photo_is_used_by_a_session_and_others_leave_nothing(server: LiveServer, web: httpx2.Client) -> None:
    folder = server.host.uploads.folder
    kind = {"Content-Type": "application/octet-stream"}
    flat = cv2.imencode(".png", np.full((200, 200, 3), 128, np.uint8))[1].tobytes()
    for body, status in ((b"no photo", 400), (flat, 400), (b"", 400)):
        answer = web.put("/live/image", content=body, headers=kind)
        assert answer.status_code == status, answer.text
        sentence(answer)
        assert not [path for path in Path(folder).rglob("*") if path.is_file()]
    # The answer comes before the body, which is never read.
    line = http.client.HTTPConnection("127.0.0.1", server.port)
    line.request("PUT", "/live/image", headers={**kind, "Content-Length": str(2**21 + 1)})
    assert line.getresponse().status == 413
    line.close()
    assert web.put("/live/image", content=b"x", headers={"Content-Type": "text/html"}).status_code == 415
    image = web.put("/live/image?name=me.png", content=Path(PHOTO).read_bytes(), headers=kind).json()["image"]
    with Client(server.ws, {"image": image}) as client:
        client.read_until("ready")
        client.read_frames(2)
    server.wait_until_empty()
    for unknown in ("x" * 22, "../../etc/passwd"):
        with Client(server.ws, {"image": unknown}) as client:
            assert "/etc" not in client.read_until("closed")["reason"]


# --- Sessions ---


def test_offers_that_cannot_be_used_open_nothing(server: LiveServer, web: httpx2.Client) -> None:
    opus = "v=0\r\no=- 1 1 IN IP4 0.0.0.0\r\ns=-\r\nt=0 0\r\nm=audio 9 UDP/TLS/RTP/SAVPF 111\r\na=mid:0\r\n"
    attempts: list[tuple[dict[str, Any], int]] = [
        ({"json": {"sdp": "garbage"}}, 400), ({"json": {"sdp": opus}}, 400), ({"json": {}}, 422), ({"json": []}, 422),
        ({"json": {"sdp": "x" * (2**18 + 1)}}, 413), ({"json": {"sdp": "x", "start": {"version": 2}}}, 400),
        ({"json": {"sdp": "x", "start": {"size": 100}}}, 400), ({"json": {"sdp": "x", "start": {"x" * 9999: 1}}}, 422),
        ({"content": b"\xff\xfe", "headers": {"Content-Type": "application/sdp"}}, 400),
    ]  # fmt: skip
    for request, status in attempts:
        answer = web.post("/live/offer", **request)
        assert answer.status_code == status, answer.text
        assert len(sentence(answer)) < 400
        assert server.host.admission.open == 0


def test_a_session_has_a_resource_until_it_ends(server: LiveServer, web: httpx2.Client) -> None:
    assert web.get("/live/sessions/nobody").status_code == 404
    with Client(server.ws, {}) as client:
        path = f"/live/sessions/{client.read_until('ready')['session']}"
        assert web.get(path).json()["size"] == 128
        assert web.post(path, json={"type": "finish"}).status_code == 200
        wrong = {"Content-Type": "application/json"}
        assert web.post(path, content=b'{"type": "finish", "\\ud800": 1}', headers=wrong).status_code == 400
        large = {"type": "response.created", "x": "x" * 2**18}
        assert web.post(path, json=large).status_code == 413
        assert web.delete(path).json() == {"closed": True}
        assert "over HTTP" in client.read_until("closed")["reason"]
    for answer in (web.get(path), web.post(path, json={"type": "finish"}), web.delete(path)):
        assert answer.status_code == 410
        assert "over HTTP" in sentence(answer)


@pytest.mark.parametrize("is_plain", [False, True], ids=["offer", "whep"])
def test_a_webrtc_client_receives_frames_and_states(server: LiveServer, web: httpx2.Client, is_plain: bool) -> None:
    async def visit() -> tuple[list[dict[str, Any]], tuple[int, int], str]:
        peer = RTCPeerConnection()
        peer.addTransceiver("video", "recvonly")
        peer.addTransceiver("audio", "recvonly")
        channel = peer.createDataChannel("flowportrait")
        messages: list[dict[str, Any]] = []
        came = asyncio.Event()

        @channel.on("message")
        def message(data: str) -> None:
            messages.append(json.loads(data))
            came.set()

        async def until(**fields: Any) -> None:
            while not any(fields.items() <= one.items() for one in messages):
                came.clear()
                await came.wait()

        tracks: asyncio.Queue[Any] = asyncio.Queue()
        peer.on("track", lambda track: tracks.put_nowait(track) if track.kind == "video" else None)
        await peer.setLocalDescription(await peer.createOffer())
        sdp = peer.localDescription.sdp
        body: dict[str, Any] = (
            {"content": sdp, "headers": {"Content-Type": "application/sdp"}} if is_plain else {"json": {"sdp": sdp}}
        )
        answer = await asyncio.to_thread(lambda: web.post("/live/offer", **body))
        assert answer.status_code == 201, answer.text
        text = answer.text if is_plain else answer.json()["sdp"]
        await peer.setRemoteDescription(RTCSessionDescription(text, "answer"))
        frame = await (await tracks.get()).recv()
        await until(type="ready")
        for begin in range(0, len(SPEECH_24K), 12_000):
            channel.send(b"\x01" + SPEECH_24K[begin : begin + 12_000])
        channel.send(json.dumps({"type": "finish"}))
        await until(type="state", state="speaking")
        path = answer.headers["location"]
        ended = await asyncio.to_thread(lambda: web.delete(path))
        assert ended.status_code == 200
        await peer.close()
        return messages, (frame.width, frame.height), path

    messages, size, path = asyncio.run(asyncio.wait_for(visit(), 60))
    assert size == (128, 128)
    assert messages[0]["type"] == "ready"
    assert web.get(path).status_code == 410
