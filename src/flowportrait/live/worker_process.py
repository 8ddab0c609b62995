"""One worker: a process that draws sessions and serves ``live_app`` on a loopback port of its own.

    WorkerHandle.start ── spawn, a pipe ──► run_worker: loads, measures if it is the first, serves
    receive  ◄── capacity, ready, ended sessions, None once the process has ended ──┘
    request  ──► HTTP with a token that only the parent knows

The pipe joins both lives: a worker whose parent is gone reads its end and ends too.
"""

from __future__ import annotations

import http.client
import os
import queue
import secrets
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any, NamedTuple

from flowportrait.errors import BadInput
from flowportrait.live.limits import LiveLimits
from flowportrait.live.metrics import LiveLog, LogForm
from flowportrait.parallel import SPAWN

END_SECONDS = 5.0
"""Seconds in which a worker must end before it is killed."""
REQUEST_SECONDS = 60.0
"""Seconds that a request to a worker may take; a photo is prepared in some."""


@dataclass(frozen=True)
class WorkerSettings:
    """What a worker needs to know.

    Attributes:
        image: the photo of sessions that bring none.
        checkpoint: the generator.
        uploads: folder of uploaded photos, which all workers share.
        size: side of the picture in pixels; None where it is to be measured.
        sizes: sizes that clients may ask for; empty where they are to be measured.
        sessions: sessions that this worker carries at once.
        workers: number of workers, which share the processor.
        token: what the parent sends.
        voice: voice of texts that name none.
        seed: random seed of the motion.
        denoise: remove noise from pushed speech.
        ice_servers: STUN and TURN servers.
        limits: what a client may do.
        log: form of the log.
    """

    image: Path
    checkpoint: str
    uploads: Path
    workers: int
    size: int | None = None
    sizes: tuple[int, ...] = ()
    sessions: int = 1
    token: str = field(default_factory=lambda: secrets.token_urlsafe(32))
    voice: str | None = None
    seed: int = 0
    denoise: bool = False
    ice_servers: tuple[Any, ...] = ()
    limits: LiveLimits = field(default_factory=LiveLimits)
    log: LogForm = "text"


# --- In a worker ------------------------------------------------------------------------


def run_worker(number: int, settings: WorkerSettings, pipe: Connection) -> None:
    """Serve sessions until the parent says so or is gone; the entry of a worker process.

    Args:
        number: number of the worker.
        settings: what it serves.
        pipe: to the parent.
    """
    # Ctrl-C reaches all processes of a terminal; the parent tells the workers when to end.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    inbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
    threading.Thread(target=_read_pipe, args=(pipe, inbox), daemon=True, name="parent").start()
    code = 0
    try:
        _serve_sessions(number, settings, pipe, inbox)
    except BadInput as error:
        with suppress(OSError):
            pipe.send(("failed", str(error)))
        code = 2
    except OSError:
        code = 1  # The parent is gone.
    os._exit(code)


def _read_pipe(pipe: Connection, inbox: queue.SimpleQueue[Any]) -> None:
    """Pass on what the parent sends; once that is None, or the parent is gone, end the process within seconds."""
    message: Any = True
    while message is not None:
        try:
            message = pipe.recv()
        except (EOFError, OSError):
            message = None
        inbox.put(message)
    time.sleep(END_SECONDS)
    os._exit(1)


def _serve_sessions(number: int, settings: WorkerSettings, pipe: Connection, inbox: queue.SimpleQueue[Any]) -> None:
    import torch

    from flowportrait.live.avatar import LivePortrait
    from flowportrait.live.capacity import available_cores, measure_capacity
    from flowportrait.live.host import HostSettings, SessionHost
    from flowportrait.live.metrics import LiveMetrics
    from flowportrait.live.server import LiveServerSettings, end_sessions, live_app
    from flowportrait.pipelines.animate import AnimatePipeline
    from flowportrait.pipelines.inputs import read_photo
    from flowportrait.web_server import bind_listener, make_server
    from flowportrait.web_sockets import websocket_settings

    torch.set_num_threads(max(1, int(available_cores() / settings.workers)))
    pipeline = AnimatePipeline.from_pretrained(settings.checkpoint, denoise=settings.denoise)
    if not settings.sizes:
        capacity, portrait = measure_capacity(settings.image, pipeline, settings.size)
        pipe.send(("capacity", capacity))
        answer = inbox.get()
        if answer is None:
            return
        settings = answer
    else:
        portrait = LivePortrait(read_photo(settings.image), checkpoint=pipeline, size=settings.size or 0)
    limits = settings.limits
    host = SessionHost(
        pipeline,
        HostSettings(
            settings.image, settings.sizes, portrait.size, settings.sessions, settings.uploads, settings.voice,
            settings.seed, settings.denoise, limits,
        ),
        LiveMetrics(),
        _WorkerLog(number, pipe, settings.log),
    )  # fmt: skip
    host.keep_portrait(portrait)
    host.load_voice()
    with bind_listener("127.0.0.1", 0) as listener:
        server = make_server(
            live_app(host, LiveServerSettings(token=settings.token, ice_servers=settings.ice_servers, limits=limits)),
            lambda: pipe.send(("ready", listener.getsockname()[1])), ending=end_sessions(host),
            **websocket_settings(limits.message_kilobytes * 1000),
        )  # fmt: skip

        def serve() -> None:
            try:
                server.run(sockets=[listener])
            finally:
                inbox.put(None)

        # In another thread than the main one, uvicorn leaves signals alone.
        thread = threading.Thread(target=serve, name="server")
        thread.start()
        while inbox.get() is not None:
            pass
        server.should_exit = True
        thread.join(END_SECONDS)


class _WorkerLog(LiveLog):
    """The log of a worker, which also tells the parent of sessions that have ended."""

    def __init__(self, number: int, pipe: Connection, form: LogForm) -> None:
        super().__init__(form)
        self._number, self._pipe = number, pipe

    def write(self, event: str, **fields: Any) -> None:
        super().write(event, **fields, worker=self._number)
        if event == "session_closed":
            with suppress(OSError):
                self._pipe.send(("closed", fields["session"], fields["reason"]))


# --- In the parent ----------------------------------------------------------------------


class WorkerGone(Exception):
    """A worker that does not answer because it has ended."""


class WorkerAnswer(NamedTuple):
    """The answer of a worker to a request; names of headers are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class WorkerHandle:
    """One worker as the parent sees it, through all its processes."""

    def __init__(self, number: int, settings: WorkerSettings) -> None:
        """Prepare a worker; ``start`` starts its process."""
        self.number, self.settings = number, settings
        self.process: SpawnProcess
        self.pipe: Connection
        self.port: int | None = None
        self.sessions, self.early_ends, self.started_at = 0, 0, 0.0

    @property
    def is_up(self) -> bool:
        """Whether it takes sessions."""
        return self.port is not None

    def start(self) -> None:
        """Start its process."""
        self.started_at = time.monotonic()
        self.pipe, other = SPAWN.Pipe()
        self.process = SPAWN.Process(target=run_worker, args=(self.number, self.settings, other), daemon=True)
        with _interrupts_ignored():
            self.process.start()
        # The pipe closes with the process only if nobody else holds its other end.
        other.close()

    def receive(self) -> Any:
        """Wait for the next message of this process; None once it has ended."""
        pipe = self.pipe
        if pipe in wait([pipe, self.process.sentinel]):
            with suppress(EOFError, OSError):
                return pipe.recv()
        return None

    def request_end(self) -> None:
        """Ask it to end its sessions and itself."""
        with suppress(OSError, ValueError):
            self.pipe.send(None)

    def request(self, method: str, path: str, body: bytes | None, content_type: str) -> WorkerAnswer:
        """Send a request and wait for the answer.

        Args:
            method: HTTP method.
            path: path and query, percent-encoded.
            body: its body, or None.
            content_type: media type of the body.

        Raises:
            WorkerGone: it has ended.
        """
        if self.port is None:
            raise WorkerGone
        headers = {"Authorization": f"Bearer {self.settings.token}"}
        if content_type:
            headers["Content-Type"] = content_type
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=REQUEST_SECONDS)
        try:
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            return WorkerAnswer(
                answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
            )
        except (OSError, http.client.HTTPException) as error:
            raise WorkerGone from error
        finally:
            connection.close()


@contextmanager
def _interrupts_ignored() -> Iterator[None]:
    """Start a process that ignores Ctrl-C from its first instruction."""
    previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
