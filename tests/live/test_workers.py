"""Claims about several worker processes behind one address, with the real command, processes and clients."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

pytest.importorskip("aiortc", reason="the extra live is not installed")

import itertools

from aiortc import RTCPeerConnection, RTCSessionDescription
from websockets.exceptions import ConnectionClosed

from flowportrait.live.relay import CODE_WORKER_ENDED
from flowportrait.live.worker_process import WorkerSettings
from flowportrait.live.workers import WORKER_ENDED, WorkerPool, choose_worker, divide_sessions
from tests.live.live_server import PHOTO, SPEECH_24K, Client

TOKEN = "a-token-of-the-test"


def test_a_session_goes_to_the_worker_with_the_fewest_of_those_with_room() -> None:
    assert choose_worker({0: 0, 1: 0}, {0: 1, 1: 1}) == 0
    assert choose_worker({0: 2, 1: 1, 2: 1}, {0: 4, 1: 4, 2: 4}) == 1
    assert choose_worker({0: 1, 1: 3}, {0: 1, 1: 4}) == 1
    assert choose_worker({0: 1, 2: 1}, {0: 1, 2: 1}) is None
    assert choose_worker({}, {}) is None


def test_sessions_are_divided_evenly_and_no_worker_is_without() -> None:
    assert divide_sessions(5, 2) == [3, 2]
    assert divide_sessions(2, 4) == [1, 1]
    for total in range(1, 20):
        for workers in range(1, 8):
            parts = divide_sessions(total, workers)
            assert sum(parts) == total
            assert max(parts) - min(parts) <= 1
            assert len(parts) == min(total, workers)


class ServeProcess:
    """``flowportrait serve`` in a process of its own, with everything that it writes."""

    def __init__(self, *options: str) -> None:
        command = [sys.executable, "-m", "flowportrait", "serve", "--port", "0", *options]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        self.lines: list[str] = []
        threading.Thread(target=self._read, daemon=True).start()
        wait_until(lambda: any("avatar is at" in line for line in self.lines) or self.process.poll() is not None, 180)
        assert self.process.poll() is None, self.lines
        self.url = next(line for line in self.lines if "avatar is at" in line).split()[5].partition("/#")[0]
        self.ws = self.url.replace("http", "ws") + "/live/ws"

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line)

    def workers(self) -> list[psutil.Process]:
        """The processes that draw."""
        found = []
        for one in psutil.Process(self.process.pid).children():
            with contextlib.suppress(psutil.Error):
                if "spawn_main" in " ".join(one.cmdline()):
                    found.append(one)
        return found

    def ask(self, path: str, method: str = "GET", body: Any = None) -> tuple[int, Any]:
        """Status and body of an answer."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, method=method)
        request.add_header("Authorization", f"Bearer {TOKEN}")
        if data is not None:
            request.add_header("Content-Type", "application/json")
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()

    def health(self) -> dict[str, Any]:
        """What /healthz answers."""
        return json.loads(self.ask("/healthz")[1])


def wait_until(condition: Callable[[], Any], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "the condition did not come true"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def server() -> Iterator[ServeProcess]:
    running = ServeProcess("--workers", "2", "--size", "128", "--sessions", "2", "--token", TOKEN,
                           "--set", "behind_seconds=2")  # fmt: skip
    yield running
    running.process.kill()


class Watched:
    """A client that reads in a thread, and when each frame came."""

    def __init__(self, server: ServeProcess) -> None:
        self.client = Client(server.ws, {"token": TOKEN})
        self.session = self.client.read_until("ready")["session"]
        self.client.read_frames(5)
        self.arrivals: list[float] = []
        self.closed_at: float | None = None
        self.code: int | None = None
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        try:
            while True:
                if isinstance(self.client.read(30), bytes):
                    self.arrivals.append(time.monotonic())
                elif self.client.messages[-1]["type"] == "closed":
                    self.closed_at = time.monotonic()
        except ConnectionClosed:
            self.code = self.client.socket.close_code

    def longest_gap(self, begin: float, end: float) -> float:
        """Seconds without a frame."""
        times = [begin, *(one for one in self.arrivals if begin < one < end), end]
        return max(after - before for before, after in itertools.pairwise(times))


@pytest.mark.slow
def test_the_token_of_the_server_is_asked_for_and_that_of_the_workers_stays_inside(server: ServeProcess) -> None:
    with Client(server.ws, {}) as stranger:
        assert "token" in stranger.read_until("closed")["reason"]
        with pytest.raises(ConnectionClosed):
            stranger.read()
        assert stranger.socket.close_code == 4401
    with urllib.request.urlopen(server.url + "/healthz") as answer:
        assert json.loads(answer.read())["workers_up"] == 2
    status, config = server.ask("/live/config")
    assert (status, json.loads(config)["size"]) == (200, 128)
    assert server.ask("/live/poster")[1].startswith(b"\xff\xd8")
    assert server.ask("/live/sessions/unknown")[0] == 404


@pytest.mark.slow
def test_a_session_speaks_through_the_relay_and_both_http_and_figures_know_it(server: ServeProcess) -> None:
    with Client(server.ws, {"token": TOKEN}) as client:
        session = client.read_until("ready")["session"]
        client.socket.send(b"\x01" + SPEECH_24K[:48_000])
        client.send(type="finish")
        client.read_until("state", state="speaking")
        client.read_until("state", state="idle")
        numbers = [number for number, _, _ in client.frames]
        assert numbers == list(range(len(numbers)))
        status, state = server.ask(f"/live/sessions/{session}")
        assert (status, json.loads(state)["session"]) == (200, session)
        status, reason = server.ask(f"/live/sessions/{session}", "POST", {"type": "dance"})
        assert status == 400
        assert b"dance" in reason
        figures = server.ask("/metrics")[1].decode()
        open_sessions = [line for line in figures.splitlines() if line.startswith("flowportrait_sessions{")]
        assert sum(float(line.split()[-1]) for line in open_sessions) == 1
        assert server.ask(f"/live/sessions/{session}", "DELETE") == (200, b'{"closed":true}')
        assert "over HTTP" in client.read_until("closed")["reason"]
    status, reason = server.ask(f"/live/sessions/{session}")
    assert (status, json.loads(reason)["detail"]) == (410, "The session was ended over HTTP.")
    assert server.health()["sessions"] == 0


@pytest.mark.slow
def test_an_uploaded_photo_is_shown_whichever_worker_took_it(server: ServeProcess) -> None:
    request = urllib.request.Request(f"{server.url}/live/image?name=a%20face.jpg", PHOTO.read_bytes(), method="PUT")
    request.add_header("Authorization", f"Bearer {TOKEN}")
    request.add_header("Content-Type", "image/jpeg")
    with urllib.request.urlopen(request, timeout=60) as answer:
        image = json.loads(answer.read())["image"]
    with Client(server.ws, {"token": TOKEN, "image": image}) as one:
        one.read_until("ready")
        with Client(server.ws, {"token": TOKEN, "image": image}) as other:
            other.read_until("ready")
            with Client(server.ws, {"token": TOKEN}) as third:
                assert "2 sessions at once" in third.read_until("closed")["reason"]
    wait_until(lambda: server.health()["sessions"] == 0, 10)


@pytest.mark.slow
def test_behind_the_relay_too_a_client_that_does_not_read_loses_its_session_and_harms_nobody(
    server: ServeProcess,
) -> None:
    with Client(server.ws, {"token": TOKEN}) as good:
        good.read_until("ready")
        line = socket.socket()
        line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        line.connect(("127.0.0.1", int(server.url.rpartition(":")[2])))
        slow = Client(server.ws, {"token": TOKEN}, max_queue=1, sock=line)
        slow.read_until("ready")
        assert server.health()["sessions"] == 2
        end = time.monotonic() + 60
        while server.health()["sessions"] == 2:
            assert time.monotonic() < end
            good.read_frames(5)
        numbers = [number for number, _, _ in good.frames]
        assert numbers == list(range(len(numbers)))
    assert any("session closed" in line and "too slow" in line for line in server.lines)
    slow.close()
    wait_until(lambda: server.health()["sessions"] == 0, 10)


@pytest.mark.slow
def test_an_offer_is_answered_by_a_worker_and_media_come_from_it(server: ServeProcess) -> None:
    async def watch() -> tuple[str, list[Any]]:
        connection = RTCPeerConnection()
        channel = connection.createDataChannel("flowportrait")
        texts: list[dict[str, Any]] = []
        channel.on("message", lambda text: texts.append(json.loads(text)))
        connection.addTransceiver("video", "recvonly")
        connection.addTransceiver("audio", "recvonly")
        tracks: list[Any] = []
        connection.on("track", tracks.append)
        await connection.setLocalDescription(await connection.createOffer())
        offer = {"sdp": connection.localDescription.sdp, "type": "offer", "start": {"token": TOKEN}}
        status, body = await asyncio.to_thread(server.ask, "/live/offer", "POST", offer)
        assert status == 201
        answer = json.loads(body)
        await connection.setRemoteDescription(RTCSessionDescription(answer["sdp"], "answer"))
        video = next(track for track in tracks if track.kind == "video")
        frames = [await asyncio.wait_for(video.recv(), 30) for _ in range(10)]
        assert server.health()["sessions"] == 1
        assert (await asyncio.to_thread(server.ask, f"/live/sessions/{answer['session']}", "DELETE"))[0] == 200
        assert server.health()["sessions"] == 0
        await connection.close()
        return answer["session"], [(frame.width, frame.height) for frame in frames] + texts[:1]

    session, (*sizes, ready) = asyncio.run(watch())
    assert set(sizes) == {(128, 128)}
    assert (ready["type"], ready["session"]) == ("ready", session)
    assert server.ask(f"/live/sessions/{session}")[0] == 410


@pytest.mark.slow
def test_a_killed_worker_ends_its_own_session_and_no_other_and_comes_back(server: ServeProcess) -> None:
    clients = [Watched(server), Watched(server)]
    time.sleep(3)
    gaps_before = [client.longest_gap(client.arrivals[0], time.monotonic()) for client in clients]
    workers = server.workers()
    assert len(workers) == 2
    killed_at = time.monotonic()
    workers[0].kill()
    # One client each: that of the worker is told, and the other one is not.
    wait_until(lambda: any(client.closed_at for client in clients), 2)
    wait_until(lambda: any(client.code for client in clients), 2)
    ended = next(client for client in clients if client.closed_at)
    other = clients[1 - clients.index(ended)]
    assert ended.client.messages[-1] == {"type": "closed", "reason": WORKER_ENDED}
    assert ended.code == CODE_WORKER_ENDED
    status, reason = server.ask(f"/live/sessions/{ended.session}")
    assert (status, json.loads(reason)["detail"]) == (410, WORKER_ENDED)
    assert server.health()["workers_up"] == 1
    with Client(server.ws, {"token": TOKEN}) as refused:
        assert "1 session at once" in refused.read_until("closed")["reason"]
    time.sleep(3)
    now = time.monotonic()
    # On a busy machine frames come late without any death; twice what came before is allowed for.
    assert other.longest_gap(killed_at, now) < 0.5 + 2 * gaps_before[clients.index(other)]
    wait_until(lambda: server.health()["workers_up"] == 2, 120)
    again = Watched(server)
    assert other.code is None
    numbers = [number for number, _, _ in other.client.frames]
    assert numbers == list(range(len(numbers)))
    for client in (again, other):
        client.client.close()
    wait_until(lambda: server.health()["sessions"] == 0, 10)


@pytest.mark.slow
def test_ctrl_c_tells_the_clients_and_leaves_no_process(server: ServeProcess) -> None:
    processes = [psutil.Process(server.process.pid), *psutil.Process(server.process.pid).children(recursive=True)]
    watched = Watched(server)
    for one in processes:  # as a terminal does
        with contextlib.suppress(psutil.Error):
            one.send_signal(signal.SIGINT)
    assert server.process.wait(15) in (0, 130)
    wait_until(lambda: watched.code is not None, 5)
    assert watched.client.messages[-1] == {"type": "closed", "reason": "The server is ending."}
    _, alive = psutil.wait_procs(processes, 5)
    assert alive == []
    assert not any("Traceback" in line for line in server.lines)


@pytest.mark.slow
def test_no_worker_outlives_a_killed_parent() -> None:
    server = ServeProcess("--workers", "2", "--size", "128", "--sessions", "2")
    workers = server.workers()
    assert len(workers) == 2
    server.process.kill()
    _, alive = psutil.wait_procs(workers, 15)
    assert alive == []


@pytest.mark.slow
def test_a_worker_that_cannot_start_is_one_sentence(tmp_path: Path) -> None:
    photo = tmp_path / "photo.jpg"
    photo.write_bytes(b"no picture")
    command = [sys.executable, "-m", "flowportrait", "serve", "--port", "0", "--workers", "2", "--image", str(photo)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert "photo.jpg" in done.stderr


def test_a_worker_that_dies_at_once_again_and_again_is_started_more_and_more_rarely(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flowportrait.live import worker_process, workers
    from flowportrait.live.metrics import LiveLog

    class DyingProcess(workers.WorkerHandle):
        """A worker whose process is gone as soon as it is started."""

        def start(self) -> None:
            self.started_at = time.monotonic()
            starts.append(self.started_at)
            self.pipe, other = worker_process.SPAWN.Pipe()
            self.process = worker_process.SPAWN.Process(target=print)
            self.process.start()
            other.close()

    starts: list[float] = []
    monkeypatch.setattr(workers, "FIRST_DELAY", 0.2)

    async def watch() -> None:
        pool = WorkerPool(WorkerSettings(PHOTO, "rl", tmp_path, 1), 1, LiveLog())
        pool._start_worker(0, pool.settings)
        pool.attach()
        while len(starts) < 4:
            await asyncio.sleep(0.05)
        await pool.end()
        pool.close()

    monkeypatch.setattr(workers, "WorkerHandle", DyingProcess)
    asyncio.run(asyncio.wait_for(watch(), 60))
    waits = [after - before for before, after in itertools.pairwise(starts)]
    assert waits[0] >= 0.2
    assert waits[1] >= 0.4
    assert waits[2] >= 0.8
