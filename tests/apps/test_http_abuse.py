"""Claims about every server of the package, over real sockets: what is refused, and that it goes on serving."""

from __future__ import annotations

import base64
import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import Any

import av
import httpx2
import numpy as np
import pytest

import flowportrait.web_server as web
from flowportrait.cli import main
from flowportrait.errors import BadInput
from flowportrait.human_study.server import study_app
from flowportrait.judges.client import ChatClient
from flowportrait.judges.messages import Endpoint
from flowportrait.judges.server import SERVED_MODEL, judge_app
from flowportrait.media.video import ClipLimits, check_clip_limits, iter_bounded_frames, read_clip
from flowportrait.media.write_video import write_video
from flowportrait.rewards.remote import MEDIA_TYPE, HttpReward
from flowportrait.rewards.sync import LipSyncReward
from flowportrait.speech.voices import SpeechServerVoice
from flowportrait.web_client import api_key_for, check_server_address
from flowportrait.web_server import allowed_host_names, bind_listener, make_server, strip_paths
from tests import ROOT
from tests.judges.test_judge_serve import Grey
from tests.memory import peak_mb
from tests.study_browser import small_study

HOST = b"Host: 127.0.0.1\r\n"
JSON = b"Content-Type: application/json\r\n"
CHAT = b"POST /v1/chat/completions HTTP/1.1\r\n" + HOST


@contextmanager
def running(app: Any) -> Iterator[int]:
    """The port of an application that is served as the commands serve it."""
    with bind_listener("127.0.0.1", 0) as listener:
        server = make_server(app)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.02)
        yield listener.getsockname()[1]
        server.should_exit = True
        server.force_exit = True
        thread.join(10)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_study(tmp_path_factory.mktemp("abuse"), clips=1, checks=0)


@pytest.fixture(params=["judge", "study", "studio"], scope="module")
def server(
    request: pytest.FixtureRequest, study: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, int, str]]:
    """Name, port and a path that takes a POST, of each server of the package."""
    app: Any
    if request.param == "judge":
        app, path = judge_app(Grey(), {"sync": LipSyncReward.load()}), "/v1/chat/completions"
    elif request.param == "study":
        app, path = study_app(study), "/api/participants"
    else:
        from flowportrait.studio.server import Studio, studio_app
        from flowportrait.studio.storage import StudioLimits

        app = studio_app(Studio(tmp_path_factory.mktemp("studio"), StudioLimits()))
        path = f"/api/sessions/{'a' * 32}/videos"
    with running(app) as port:
        yield request.param, port, path


def answer(
    port: int, *pieces: bytes | Iterator[bytes], pause: float = 0.0, patience: float = 30.0
) -> tuple[int, str]:  # fmt: skip
    """Status and text of the reply to raw bytes; 0 where the connection ends without one."""
    with closing(socket.create_connection(("127.0.0.1", port), patience)) as link:
        try:
            for piece in chain.from_iterable([one] if isinstance(one, bytes) else one for one in pieces):
                link.sendall(piece)
                time.sleep(pause)
        except ConnectionError:
            pass  # refused before everything was sent: the reply is there to be read
        received = b""
        try:
            while data := link.recv(65536):
                received += data
                head, _, body = received.partition(b"\r\n\r\n")
                length = [line[15:] for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
                if length and len(body) >= int(length[0]):
                    break
        except ConnectionError:
            pass
    return (int(received.split()[1]) if received else 0), received.decode("latin-1")


def is_alive(port: int) -> bool:
    return answer(port, b"GET / HTTP/1.1\r\n" + HOST + b"Connection: close\r\n\r\n")[0] in (200, 404)


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"Host: evil.example\r\n", 400),
        (b"Host: 127.0.0.1.evil.example\r\n", 400),
        (b"Host: user@127.0.0.1\r\n", 400),
        (HOST + b"Host: evil.example\r\n", 400),
        (HOST + b"Origin: http://evil.example\r\n", 403),
        (HOST + b"Origin: http://127.0.0.1:1\r\n", 403),
        (HOST + b"Origin: null\r\n", 403),
        (HOST + b"Sec-Fetch-Site: cross-site\r\nSec-Fetch-Mode: no-cors\r\n", 403),
        (HOST + b"Sec-Fetch-Site: same-site\r\nSec-Fetch-Mode: cors\r\n", 403),
        (HOST + b"Content-Type: text/plain\r\n", 415),
        (HOST + b"Content-Type: application/x-www-form-urlencoded\r\n", 415),
    ],
)
def test_a_page_of_another_site_and_another_name_are_refused_everywhere(
    server: tuple[str, int, str], head: bytes, status: int
) -> None:
    _, port, path = server
    request = b"POST " + path.encode() + b" HTTP/1.1\r\n" + head
    found, text = answer(port, request + b"Content-Length: 2\r\nConnection: close\r\n\r\n{}")
    assert found == status, text
    assert str(ROOT) not in text
    assert "access-control-allow-origin" not in text.lower()
    assert is_alive(port)


def test_the_own_page_is_served(server: tuple[str, int, str]) -> None:
    _, port, _ = server
    own = f"Host: 127.0.0.1:{port}\r\nOrigin: http://127.0.0.1:{port}\r\nSec-Fetch-Site: same-origin\r\n".encode()
    link = HOST + b"Sec-Fetch-Site: cross-site\r\nSec-Fetch-Mode: navigate\r\nSec-Fetch-Dest: document\r\n"
    for head in (own, link, b"Host: localhost\r\n", b"Host: [::1]:80\r\n"):
        assert answer(port, b"GET / HTTP/1.1\r\n" + head + b"Connection: close\r\n\r\n")[0] in (200, 404)


def test_a_body_is_bounded_with_and_without_a_length(server: tuple[str, int, str]) -> None:
    _, port, path = server
    head = b"POST " + path.encode() + b" HTTP/1.1\r\n" + HOST + JSON
    for length in (b"99999999999", b"9" * 400, b"-1", b"1e3"):
        assert answer(port, head + b"Content-Length: " + length + b"\r\n\r\n")[0] in (400, 413)
    chunk = b"100000\r\n" + b" " * 2**20 + b"\r\n"
    before = peak_mb()
    sent = 0

    def chunks() -> Iterator[bytes]:
        nonlocal sent
        yield head + b"Transfer-Encoding: chunked\r\n\r\n"
        for _ in range(300):
            sent += len(chunk)
            yield chunk

    status, _ = answer(port, chunks())
    # The study begins a session without a body, and closes the connection on whoever sends one all the same.
    assert status in (0, 413) or (server[0], status) == ("study", 200)
    assert sent < 300 * len(chunk), "chunks without end are cut off"
    # All servers but the judge allow less than 32 MB; the judge 256 MiB.
    assert peak_mb() - before < 900
    assert is_alive(port)


def test_chunks_that_exceed_the_bound_get_the_answer_that_a_length_would(study: Path) -> None:
    with running(study_app(study)) as port:
        head = b"PUT /api/participants/x/trials/0 HTTP/1.1\r\n" + HOST + JSON + b"Transfer-Encoding: chunked\r\n\r\n"
        status, text = answer(port, head, b"2000\r\n" + b" " * 0x2000 + b"\r\n")
    assert status == 413
    assert "larger than" in text


def test_paths_lead_nowhere(server: tuple[str, int, str], study: Path) -> None:
    _, port, _ = server
    for path in (
        "/media/../study.json", "/media/..%2fstudy.json", "/media/%2e%2e/study.json", "/page/..%2fserver.py",
        "//etc/passwd", "/..%5c..%5cstudy.json", "/live/..%2f..%2fx.mp4", "/signed/..%2fx.mp4", "/score/..%2f..%2fx",
        "/page/..%2f..%2fserver.py", "/samples/..%2f__init__.py", "/samples/__init__.py", "/signed/..%2f..%2fx",
        "/api/files/..%2f..%2fx/picture.jpg", f"/api/files/{'0' * 32}/picture.jpg", "/api/sessions/..%2fx/videos",
        "/gradio_api/file=/etc/passwd", f"/gradio_api/file={study / 'study.json'}", "/gradio_api/file=pyproject.toml",
        "/gradio_api/file=http://example.org/", "/gradio_api/file=file:///etc/passwd", "/gradio_api/proxy=http://127.0.0.1/",
    ):  # fmt: skip
        status, text = answer(port, f"GET {path} HTTP/1.1\r\n".encode() + HOST + b"Connection: close\r\n\r\n")
        assert status in (400, 403, 404, 405), (path, text)
        assert "root:" not in text
        assert "FlowPortrait study" not in text


def test_slow_heads_slow_bodies_and_idle_connections_end(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "HEADER_TIMEOUT", 0.5)
    monkeypatch.setattr(web, "BODY_TIMEOUT", 0.5)
    with running(study_app(study)) as port:
        began = time.monotonic()
        assert answer(port)[0] == 0
        assert answer(port, *[b"GET / HTTP/1.1\r\n" + HOST, *[b"X: y\r\n"] * 30], pause=0.05)[0] == 0
        head = b"PUT /api/participants/x/trials/0 HTTP/1.1\r\n" + HOST + JSON + b"Content-Length: 900\r\n\r\n"
        assert answer(port, head, *[b" "] * 30, pause=0.05)[0] == 408
        assert time.monotonic() - began < 15
        assert is_alive(port)


def test_many_connections_are_answered_or_closed_and_the_server_goes_on(
    study: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(web, "HEADER_TIMEOUT", 1.0)
    monkeypatch.setattr(web, "MAX_CONNECTIONS", 16)
    with running(study_app(study)) as port:
        idle = [socket.create_connection(("127.0.0.1", port), 5) for _ in range(80)]
        time.sleep(0.2)
        status, _ = answer(port, b"GET / HTTP/1.1\r\n" + HOST + b"Connection: close\r\n\r\n")
        assert status in (0, 503)
        time.sleep(1.5)
        assert is_alive(port)
        assert answer(port, b"GET /api/study HTTP/1.1\r\n" + HOST + b"Connection: close\r\n\r\n")[0] == 200
        for link in idle:
            link.close()


def test_large_bodies_at_once_share_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "MAX_BODIES_HELD", 1)
    app = judge_app(Grey(), {})
    app.user_middleware[0].kwargs["largest_body"] = 2**16
    head = CHAT + JSON + b"Content-Length: 65000\r\n\r\n"
    with running(app) as port, closing(socket.create_connection(("127.0.0.1", port), 5)) as first:
        first.sendall(head + b" " * 60_000)
        time.sleep(0.3)
        status, text = answer(port, head, b" " * 64_999)
        assert status == 503
        assert "retry-after" in text.lower()
    assert status == 503


def completion(port: int, url: Any) -> httpx2.Response:
    part = {"type": "video_url", "video_url": {"url": url}}
    body = {"model": SERVED_MODEL, "messages": [{"role": "user", "content": [part]}]}
    return httpx2.post(f"http://127.0.0.1:{port}/v1/chat/completions", json=body, timeout=120)


def data_url(data: bytes) -> str:
    return "data:video/mp4;base64," + base64.b64encode(data).decode()


def still(path: Path, seconds: float = 1.0, side: int = 64, last: float | None = None, codec: str = "libx264") -> Path:
    """A video of one colour; ``last``: the moment of its last frame in seconds."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25, options={"preset": "ultrafast"} if codec == "libx264" else {})
        stream.width = stream.height = side
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = Fraction(1, 25)
        count = max(2, round(25 * seconds))
        for index in range(count):
            frame = av.VideoFrame.from_ndarray(np.full((side, side, 3), 90, np.uint8))
            frame.pts = round(25 * last) if last is not None and index == count - 1 else index
            frame.time_base = Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def test_a_small_clip_that_would_become_gigabytes_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    bombs = {
        "long": still(tmp_path / "long.mp4", last=1e5),
        "large": still(tmp_path / "large.mp4", 0.1, 4096),
        "both": still(tmp_path / "both.mp4", 3.6, 2048),
    }
    assert all(path.stat().st_size < 200_000 for path in bombs.values())
    with running(judge_app(Grey(), {})) as port:
        assert completion(port, data_url(still(tmp_path / "good.mp4").read_bytes())).status_code == 200
        before = peak_mb()
        for name, said in (("long", "lasts more than 120 s"), ("large", "megapixels"), ("both", "1 GiB")):
            began = time.monotonic()
            found = completion(port, data_url(bombs[name].read_bytes()))
            assert found.status_code == 400, name
            assert said in found.json()["error"]["message"]
            assert time.monotonic() - began < 60
        # One GiB of pictures is the bound; the rest is what decoding takes.
        assert peak_mb() - before < 1536
        assert is_alive(port)


def test_no_message_says_where_files_are_and_nothing_but_videos_is_opened(tmp_path: Path) -> None:
    secret = tmp_path / "secret.ts"
    secret.write_bytes(b"G" * 188)
    playlist = f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile://{secret}\n#EXT-X-ENDLIST\n".encode()
    broken = still(tmp_path / "a.mp4").read_bytes()[:-300]
    with running(judge_app(Grey(), {})) as port:
        for given, said in (
            (data_url(playlist), "no mp4"),
            (data_url(b"ffconcat version 1.0\nfile /etc/passwd\n"), "no mp4"),
            (data_url(b"0000ftypisom" + b"\0" * 64), "clip.mp4"),
            (data_url(broken), "clip.mp4"),
            ("data:video/mp4;base64,!!!", "no base64"),
            ("data:video/mp4;base64,é", "no base64"),
            ("file:///etc/passwd", "not fetched"),
            (5, "not a chat completion"),
            (["x"], "not a chat completion"),
        ):
            found = completion(port, given)
            assert found.status_code == 400, given
            assert said in found.json()["error"]["message"]
            assert "/tmp" not in found.text
            assert str(tmp_path) not in found.text
        for body in (b"[" * 100_000, b"{}", b"[]", b"null", b'{"messages": []}', b'{"messages": [5]}', b"\xff"):
            assert httpx2.post(f"http://127.0.0.1:{port}/v1/chat/completions", content=body,
                               headers={"Content-Type": "application/json"}).status_code == 400  # fmt: skip


def test_a_failure_inside_is_one_sentence_without_its_details() -> None:
    class Broken(Grey):
        def judge(self, exhibits: list[Any]) -> Any:
            raise RuntimeError("secret at /srv/private/model.bin")

    with running(judge_app(Broken(), {})) as port:
        url = "data:video/mp4;base64,"
        found = completion(port, url + base64.b64encode(small_mp4()).decode())
    assert found.status_code == 500
    assert found.json()["error"]["message"] == "the server failed (RuntimeError)"


def small_mp4() -> bytes:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.mp4"
        write_video(path, iter(np.zeros((12, 64, 64, 3), np.uint8)), np.zeros(16_000, np.float32))
        return path.read_bytes()


def test_clips_of_other_people_are_bounded_wherever_they_are_read(tmp_path: Path) -> None:
    limits = ClipLimits(seconds=2.0, pixels=128 * 128, decoded=30 * 64 * 64 * 3)
    frames, sound = read_clip(still(tmp_path / "good.mp4"), limits)
    assert frames.shape == (25, 64, 64, 3)
    assert sound is None
    for path, said in (
        (still(tmp_path / "long.mp4", 4.0), "more than 2 s"),
        (still(tmp_path / "late.mp4", last=1e5), "more than 2 s"),
        (still(tmp_path / "large.mp4", side=256), "megapixels"),
        (still(tmp_path / "heavy.mp4", 1.8), "GiB"),
        (still(tmp_path / "avi.avi", 4.0, codec="mpeg4"), "more than 2 s"),
    ):
        with pytest.raises(BadInput, match=said):
            read_clip(path, limits)
    # An hour of silence is a few kilobytes of flac.
    hour = tmp_path / "hour.mkv"
    with av.open(str(hour), "w") as container:
        video = container.add_stream("mpeg4", rate=25)
        video.width = video.height = 64
        video.pix_fmt = "yuv420p"
        voice = container.add_stream("flac", rate=8000, layout="mono")
        for index in range(25):
            shown = av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8))
            shown.pts = index
            container.mux(video.encode(shown))
        container.mux(video.encode())
        for start in range(0, 600 * 8000, 48_000):
            block = av.AudioFrame.from_ndarray(np.zeros((1, 48_000), np.int16), format="s16", layout="mono")
            block.sample_rate, block.pts = 8000, start
            container.mux(voice.encode(block))
        container.mux(voice.encode())
    with pytest.raises(BadInput, match="more than 2 s"):
        read_clip(hour, limits)
    assert check_clip_limits(tmp_path / "good.mp4", limits) == pytest.approx(1.0, abs=0.1)
    assert sum(1 for _ in iter_bounded_frames(tmp_path / "good.mp4", limits)) == 25


def test_the_decoder_itself_refuses_pictures_that_grow_on_the_way(tmp_path: Path) -> None:
    small, large = (still(tmp_path / f"{side}.h264", 0.2, side).read_bytes() for side in (64, 1024))
    (tmp_path / "grows.h264").write_bytes(small + large)
    limits = ClipLimits(seconds=9.0, pixels=128 * 128, decoded=2**30)
    with pytest.raises(BadInput):
        read_clip(tmp_path / "grows.h264", limits)


@pytest.mark.parametrize(
    ("sentence", "told"),
    [
        ("/tmp/x y/clip.mp4 cannot be opened: give an mp4.", "clip.mp4 cannot be opened: give an mp4."),
        (r"C:\Users\me\a.mp4 is damaged", "a.mp4 is damaged"),
        ("No file at '~/.cache/flow/model.bin'.", "No file at 'model.bin'."),
        ("[Errno 2] No such file: 'file:///etc/passwd'", "[Errno 2] No such file: 'passwd'"),
        ("see http://127.0.0.1:80/v1 and/or application/json", "see http://127.0.0.1:80/v1 and/or application/json"),
    ],
)
def test_paths_are_cut_from_sentences_and_nothing_else_is(sentence: str, told: str) -> None:
    assert strip_paths(sentence) == told
    assert strip_paths("/a b's/c.mp4 is bad", Path("/a b's/c.mp4")) == "c.mp4 is bad"


def test_keys_go_where_the_environment_says_and_nowhere_else(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_BASE_URL", "FLOWPORTRAIT_JUDGE_HOST", "FLOWPORTRAIT_PLAIN_HTTP"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OPENAI_API_KEY", "open")
    monkeypatch.setenv("FLOWPORTRAIT_JUDGE_KEY", "own")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "cloud")
    assert api_key_for("https://api.openai.com/v1", "") == "open"
    assert api_key_for("https://api.openai.com/v1", "OPENAI_API_KEY") == "open"
    assert api_key_for("http://127.0.0.1:8000/v1", "OPENAI_API_KEY") is None
    assert api_key_for("http://127.0.0.1:8000/v1", "FLOWPORTRAIT_JUDGE_KEY") == "own"
    assert api_key_for("https://evil.example/v1", "") is None
    for url, variable, said in (
        ("https://evil.example/v1", "AWS_SECRET_ACCESS_KEY", "names no key of FlowPortrait"),
        ("https://api.openai.com/v1", "AWS_SECRET_ACCESS_KEY", "names no key of FlowPortrait"),
        ("http://127.0.0.1:8000/v1", "HOME", "names no key of FlowPortrait"),
        ("https://evil.example/v1", "OPENAI_API_KEY", "FLOWPORTRAIT_JUDGE_HOST=evil.example"),
        ("https://api.openai.com.evil.example/v1", "OPENAI_API_KEY", "sent to api.openai.com alone"),
        ("https://api.openai.com:8443/v1", "OPENAI_API_KEY", "sent to api.openai.com alone"),
        ("http://api.openai.com/v1", "OPENAI_API_KEY", "sent to api.openai.com alone"),
        ("https://evil.example/v1", "FLOWPORTRAIT_JUDGE_KEY", "not meant for evil.example"),
        ("https://api.openai.com@evil.example/v1", "OPENAI_API_KEY", "is no address"),
        (r"https://api.openai.com\@evil.example/v1", "OPENAI_API_KEY", "is no address"),
        ("ftp://api.openai.com/v1", "OPENAI_API_KEY", "is no address"),
    ):
        with pytest.raises(BadInput, match=said):
            api_key_for(url, variable)
    monkeypatch.setenv("FLOWPORTRAIT_JUDGE_HOST", "judge.example, other.example:8443")
    assert api_key_for("https://judge.example/v1", "FLOWPORTRAIT_JUDGE_KEY") == "own"
    assert api_key_for("https://other.example:8443/v1", "FLOWPORTRAIT_JUDGE_KEY") == "own"
    for url in ("https://other.example/v1", "https://judge.example.evil/v1"):
        with pytest.raises(BadInput, match="not meant for"):
            api_key_for(url, "FLOWPORTRAIT_JUDGE_KEY")
    with pytest.raises(BadInput, match="unencrypted"):
        api_key_for("http://judge.example/v1", "FLOWPORTRAIT_JUDGE_KEY")
    monkeypatch.setenv("OPENAI_BASE_URL", "https://router.example/api/v1")
    assert api_key_for("https://router.example/api/v1", "OPENAI_API_KEY") == "open"


def test_settings_from_somebody_else_send_no_variable_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "cloud")
    monkeypatch.setenv("OPENAI_API_KEY", "open")
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    video, file = still(tmp_path / "a.mp4"), tmp_path / "judge.json"
    for variable, said in (
        ("AWS_SECRET_ACCESS_KEY", "names no key of FlowPortrait"),
        ("OPENAI_API_KEY", "FLOWPORTRAIT_JUDGE_HOST=evil.example"),
    ):
        end = {"url": "https://evil.example/v1", "model": "m", "key_env": variable}
        file.write_text(json.dumps({"by": "server", "endpoint": end}))
        command = ["judge", "score", str(video), "--output", str(tmp_path / "report.json"), "--judge", str(file)]
        assert main(command) == 2
        error = capsys.readouterr().err
        assert said in error
        assert error.count("\n") == 1


def test_nothing_is_sent_unencrypted_to_another_computer_unless_its_owner_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("FLOWPORTRAIT_PLAIN_HTTP", raising=False)
    for url in ("http://127.0.0.1:1/v1", "http://localhost/v1", "http://[::1]:8/v1", "https://far.example/v1"):
        check_server_address(url, "endpoint.url")
    ends: list[Callable[[], Any]] = [
        lambda: ChatClient(Endpoint(url="http://far.example/v1", model="m")),
        lambda: HttpReward.at("http://far.example", "sync"),
    ]
    for end in ends:
        with pytest.raises(BadInput, match=r"FLOWPORTRAIT_PLAIN_HTTP=far\.example"):
            end()
    monkeypatch.setenv("OPENAI_BASE_URL", "http://far.example/v1")
    with pytest.raises(BadInput, match=r"FLOWPORTRAIT_PLAIN_HTTP=far\.example"):
        SpeechServerVoice("alloy")
    monkeypatch.setenv("FLOWPORTRAIT_PLAIN_HTTP", "far.example")
    ChatClient(Endpoint(url="http://far.example/v1", model="m"))
    monkeypatch.setenv("OPENAI_API_KEY", "open")
    with pytest.raises(BadInput, match="unencrypted"):
        SpeechServerVoice("alloy")


@contextmanager
def redirecting(port: int) -> Iterator[int]:
    """A server that sends every request on to another port."""
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(307)
            self.send_header("Location", f"http://localhost:{port}{self.path}")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self.do_GET()

        def log_message(self, *_: object) -> None:
            pass

    found = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=found.serve_forever, args=(0.02,), daemon=True).start()
    yield found.server_address[1]
    found.shutdown()
    found.server_close()


def test_redirects_are_not_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    from flowportrait.judges.panel import Panel, PanelSettings
    from tests.judges.test_judge_client import clip

    monkeypatch.setenv("FLOWPORTRAIT_JUDGE_KEY", "own")
    heard: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as thief:
        thief.settimeout(0.2)
        with redirecting(thief.getsockname()[1]) as port:
            end = Endpoint(url=f"http://127.0.0.1:{port}/v1", model="m", key_env="FLOWPORTRAIT_JUDGE_KEY", attempts=1)
            with pytest.raises(BadInput, match="sends requests on to"):
                Panel(ChatClient(end), PanelSettings(samples=1)).judge([clip()])
            with pytest.raises(BadInput, match="No scorers are served"):
                HttpReward.at(f"http://127.0.0.1:{port}", "sync")
            monkeypatch.setenv("OPENAI_BASE_URL", f"http://127.0.0.1:{port}/v1")
            with pytest.raises(BadInput, match="did not speak"):
                SpeechServerVoice("alloy").synthesize("Hello.")
        with pytest.raises(TimeoutError):
            heard.append(thief.accept()[0].recv(10))
    assert heard == []


def test_an_answer_without_end_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    import flowportrait.web_client as client

    monkeypatch.setattr(client, "MAX_RESPONSE_BYTES", 2**20)

    async def endless(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]})
        for _ in range(200):
            await send({"type": "http.response.body", "body": b" " * 2**16, "more_body": True})
        await send({"type": "http.response.body", "body": b"{}"})

    with running(endless) as port, pytest.raises(BadInput, match="larger than 1 MiB"):
        HttpReward.at(f"http://127.0.0.1:{port}", "sync", timeout=20)


def test_a_server_for_others_goes_by_its_own_names_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "Desk")
    assert set(allowed_host_names("0.0.0.0", ["study.example"])) == {
        *web.LOOPBACK,
        "desk",
        "desk.local",
        "study.example",
    }
    assert set(allowed_host_names("127.0.0.1", [])) == set(web.LOOPBACK)
    for wrong in ("https://a.example", "a.example:80", "a b", "*"):
        with pytest.raises(BadInput, match="no host name"):
            allowed_host_names("0.0.0.0", [wrong])


def test_a_study_for_others_refuses_unknown_names(study: Path) -> None:
    served = subprocess.Popen(
        [sys.executable, "-m", "flowportrait.cli", "preferences", "study", "serve", str(study), "--host", "0.0.0.0",
         "--port", "0",
         "--public-name", "study.example"], stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert served.stderr is not None
        port = int(served.stderr.readline().split(" (")[0].rstrip("/").rpartition(":")[2])
        assert "study.example" in served.stderr.readline()
        asked = {"evil.example": 400, "study.example": 200, f"127.0.0.1:{port}": 200, "10.1.2.3": 400}
        for host, status in asked.items():
            request = f"GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode()
            assert answer(port, request)[0] == status, host
    finally:
        served.terminate()
        served.wait(20)


def test_a_judge_for_others_needs_a_key_and_what_belongs_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("FLOWPORTRAIT_SERVE_KEY", raising=False)
    assert main(["judge", "serve", "--host", "0.0.0.0"]) == 2
    assert "FLOWPORTRAIT_SERVE_KEY" in capsys.readouterr().err
    (tmp_path / "c.pem").write_text("")
    assert main(["judge", "serve", "--certificate", str(tmp_path / "c.pem")]) == 2
    assert "belong together" in capsys.readouterr().err
    for path in (tmp_path / "c.pem", tmp_path / "gone.pem"):
        assert main(["judge", "serve", "--certificate", str(path), "--private-key", str(path)]) == 2
        assert "in PEM format" in capsys.readouterr().err


def test_a_wrong_batch_is_one_sentence_and_the_next_is_scored() -> None:
    with running(judge_app(Grey(), {"sync": LipSyncReward.load()})) as port:
        address, kind = f"http://127.0.0.1:{port}/score/sync", {"Content-Type": MEDIA_TYPE}
        long = (2**40).to_bytes(8, "little")
        for body in (b"", b"\0" * 8, b"\xff" * 8, b"\x10" + b"\0" * 7 + b"{" * 16, long + b"{}"):
            found = httpx2.post(address, content=body, headers=kind)
            assert found.status_code == 400
            assert "no batch of samples" in found.text or "larger than" in found.text
        assert HttpReward.at(f"http://127.0.0.1:{port}", "sync").name == "sync"


@pytest.mark.slow
def test_the_judge_is_served_from_the_command_line_and_ends_well() -> None:
    command = [sys.executable, "-m", "flowportrait.cli", "judge", "serve", "--port", "0", "--scorers", "sync"]
    served = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        assert served.stderr is not None
        address = served.stderr.readline().split(" at ")[1].split("/v1")[0]
        assert httpx2.get(f"{address}/health").json()["scorers"] == ["sync"]
        assert httpx2.get(f"{address}/health", headers={"Host": "evil.example"}).status_code == 400
    finally:
        served.send_signal(signal.SIGINT)
        assert served.wait(30) in (0, 130)
    assert "Traceback" not in served.stderr.read()
