"""Worker processes that draw: one generator and one Python interpreter each, because threads wait for each other.

    parent ── spawn, a pipe ──► worker 0: measures the machine ─► serves ``live_app`` on a loopback port of its own
       │                    ──► worker 1 …                        with a token that only the parent knows
       ◄─ ready, ended sessions ┘   the pipe closes: the worker has died; its sessions end, and it is started again
       ─ the pipe closes ────────►  the parent has died: the worker ends

``WorkerPool`` knows which worker (``worker_process``) carries which session, and how many each may carry. ``relay``
passes requests and WebSockets on to them; media of WebRTC go from the worker to the browser directly.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import OrderedDict
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from flowportrait import __version__
from flowportrait.errors import BadInput
from flowportrait.live.admission import Admission, ServerFull
from flowportrait.live.metrics import LiveLog
from flowportrait.live.worker_process import END_SECONDS, WorkerAnswer, WorkerHandle, WorkerSettings

if TYPE_CHECKING:
    from flowportrait.live.capacity import Capacity

WORKER_ENDED = "The process that drew this session has ended: connect again."
"""What the clients of a worker that died are told."""
MAX_REMEMBERED = 1000
"""Ended sessions whose reason is remembered."""
FIRST_DELAY, LONGEST_DELAY = 0.5, 30.0
"""Seconds before a worker that died is started again; doubled each time that it dies early."""
STABLE_SECONDS = 60.0
"""Seconds after which a worker that dies did not die early."""


@dataclass(eq=False)
class SessionPlace:
    """The place of a session in a worker: taken before it is opened, and left when it has ended."""

    worker: WorkerHandle
    address: str
    ended: asyncio.Event
    session: str | None = None


def choose_worker(sessions: Mapping[int, int], most: Mapping[int, int]) -> int | None:
    """Return the worker that gets the next session: the one with the fewest, of those with room; None without any.

    Args:
        sessions: open sessions by number of the worker.
        most: how many each may carry.
    """
    free = [number for number in sorted(sessions) if sessions[number] < most[number]]
    return min(free, key=lambda number: sessions[number], default=None)


def divide_sessions(sessions: int, workers: int) -> list[int]:
    """Return how many sessions each worker carries; fewer sessions than workers leave workers out."""
    count = min(sessions, workers)
    return [sessions // count + (number < sessions % count) for number in range(count)]


class WorkerPool:
    """The workers of a server, and which sessions they carry; ``attach`` and what follows run in one event loop."""

    def __init__(self, settings: WorkerSettings, sessions: int | None, log: LiveLog) -> None:
        """Prepare a pool; ``start`` starts the processes.

        Args:
            settings: what all workers serve.
            sessions: sessions at once, of all together; None for as many as are measured.
            log: where the ends of workers are written.
        """
        self.settings, self.log, self._wanted = settings, log, sessions
        self.admission = Admission(0, settings.limits.sessions_per_address)
        self.workers: list[WorkerHandle] = []
        self._places: dict[str, SessionPlace] = {}
        self._open: set[SessionPlace] = set()
        self._ended: OrderedDict[str, str] = OrderedDict()
        self._requests = ThreadPoolExecutor(16, "worker requests")
        self._restarts: set[asyncio.Task[None]] = set()
        self._loop: asyncio.AbstractEventLoop
        self._is_ending = False

    # --- Beginning and end ---

    def start(self) -> Capacity:
        """Let the first worker measure the machine, then start the others; returns when all of them serve.

        Raises:
            BadInput: a worker cannot start.
        """
        first = self._start_worker(0, self.settings)
        capacity: Capacity = self._await_message(first, "capacity")
        total = self._wanted or min(capacity.sessions, capacity.sessions_per_process * self.settings.workers)
        settings = replace(self.settings, size=capacity.size, sizes=capacity.sizes)
        for number, sessions in enumerate(divide_sessions(total, self.settings.workers)):
            if number:
                self._start_worker(number, replace(settings, sessions=sessions))
            else:
                first.settings = replace(settings, sessions=sessions)
                first.pipe.send(first.settings)
        self.settings = settings
        for worker in self.workers:
            worker.port = self._await_message(worker, "ready")
        self.admission.sessions = total
        return capacity

    def _start_worker(self, number: int, settings: WorkerSettings) -> WorkerHandle:
        worker = WorkerHandle(number, settings)
        worker.start()
        self.workers.append(worker)
        return worker

    def _await_message(self, worker: WorkerHandle, kind: str) -> Any:
        message = worker.receive()
        if message is None:
            worker.process.join(1.0)
            raise BadInput(
                f"A process that draws ended while it was starting (exit code {worker.process.exitcode}): "
                "try fewer --workers."
            )
        if message[0] == "failed":
            raise BadInput(message[1])
        assert message[0] == kind
        return message[1]

    def attach(self) -> None:
        """Watch the workers from the running event loop."""
        self._loop = asyncio.get_running_loop()
        for worker in self.workers:
            self._watch(worker)

    def _watch(self, worker: WorkerHandle) -> None:
        def listen() -> None:
            message: Any = True
            while message is not None:
                message = worker.receive()
                with suppress(RuntimeError):  # The event loop has ended.
                    self._loop.call_soon_threadsafe(self._on_message, worker, message)

        threading.Thread(target=listen, daemon=True, name=f"worker {worker.number}").start()

    async def end(self) -> None:
        """Ask all workers to end, and wait a moment for the last messages of their sessions."""
        self._is_ending = True
        for task in self._restarts:
            task.cancel()
        for worker in self.workers:
            worker.request_end()
        with suppress(TimeoutError):
            async with asyncio.timeout(END_SECONDS / 2):
                while self._open:
                    await asyncio.sleep(0.02)

    def close(self) -> None:
        """End all processes."""
        for worker in self.workers:
            worker.request_end()
        deadline = time.monotonic() + END_SECONDS
        for worker in self.workers:
            if worker.is_up:
                worker.process.join(max(0.0, deadline - time.monotonic()))
            worker.process.kill()
            worker.process.join(END_SECONDS)
        self._requests.shutdown(wait=False, cancel_futures=True)

    # --- What workers report ---

    def _on_message(self, worker: WorkerHandle, message: Any) -> None:
        match message:
            case None:
                self._on_end(worker)
            case ("ready", port):
                worker.port = port
                self._count_room()
                self.log.write("worker_started", worker=worker.number)
            case ("closed", session, reason):
                self._remember(session, reason)
                if (place := self._places.get(session)) is not None:
                    self._release(place)
            case ("failed", reason):
                self.log.write("worker_failed", worker=worker.number, reason=reason)

    def _on_end(self, worker: WorkerHandle) -> None:
        worker.port = None
        self._count_room()
        for place in [one for one in self._open if one.worker is worker]:
            if place.session is not None and not self._is_ending:
                self._remember(place.session, WORKER_ENDED)
            self._release(place)
        worker.process.join(1.0)
        if self._is_ending:
            return
        self.log.write("worker_ended", worker=worker.number, code=worker.process.exitcode)
        task = self._loop.create_task(self._restart(worker))
        self._restarts.add(task)
        task.add_done_callback(self._restarts.discard)

    async def _restart(self, worker: WorkerHandle) -> None:
        stable = time.monotonic() - worker.started_at > STABLE_SECONDS
        worker.early_ends = 0 if stable else worker.early_ends + 1
        await asyncio.sleep(min(LONGEST_DELAY, FIRST_DELAY * 2 ** min(10, max(0, worker.early_ends - 1))))
        if not self._is_ending:
            worker.start()
            self._watch(worker)

    def _count_room(self) -> None:
        self.admission.sessions = sum(worker.settings.sessions for worker in self.workers if worker.is_up)

    # --- Sessions ---

    def calmest_worker(self) -> WorkerHandle:
        """Return the worker with the fewest sessions.

        Raises:
            ServerFull: no worker is up.
        """
        up = [worker for worker in self.workers if worker.is_up]
        if not up:
            raise ServerFull("The processes that draw are being started again: try again in some seconds.")
        return min(up, key=lambda worker: worker.sessions)

    def take(self, address: str) -> SessionPlace:
        """Take a place for a session of a client; ``leave`` must follow.

        Raises:
            ServerFull: all places are in use, or no worker is up.
        """
        self.calmest_worker()
        self.admission.enter(address)
        up = [worker for worker in self.workers if worker.is_up]
        number = choose_worker(
            {worker.number: worker.sessions for worker in up},
            {worker.number: worker.settings.sessions for worker in up},
        )
        assert number is not None
        place = SessionPlace(self.workers[number], address, asyncio.Event())
        place.worker.sessions += 1
        self._open.add(place)
        return place

    def assign(self, place: SessionPlace, session: str) -> None:
        """Remember which session has a place."""
        place.session = session
        if place in self._open and session not in self._ended:
            self._places[session] = place
        else:
            # It has ended before its id was known here.
            self._ended.setdefault(session, WORKER_ENDED)
            self._release(place)

    async def leave(self, place: SessionPlace) -> None:
        """Leave a place; one of a session is free when the worker has ended it."""
        if place.session is not None:
            with suppress(TimeoutError):
                await asyncio.wait_for(place.ended.wait(), END_SECONDS)
        self._release(place)

    def _release(self, place: SessionPlace) -> None:
        if place not in self._open:
            return
        self._open.remove(place)
        self._places.pop(place.session or "", None)
        place.worker.sessions -= 1
        self.admission.leave(place.address)
        place.ended.set()

    def _remember(self, session: str, reason: str) -> None:
        self._ended[session] = reason
        while len(self._ended) > MAX_REMEMBERED:
            self._ended.popitem(last=False)

    def find(self, session: str) -> SessionPlace | None:
        """Return the place of an open session, or None."""
        return self._places.get(session)

    def ended_reason(self, session: str) -> str | None:
        """Return why a session ended; None for one that is open or unknown."""
        return self._ended.get(session)

    def describe(self) -> dict[str, Any]:
        """Return the health of the server."""
        up = sum(worker.is_up for worker in self.workers)
        status = "ok" if self.admission.has_room else "full" if up else "starting"
        return {
            "status": status, "sessions": self.admission.open, "capacity": self.admission.sessions,
            "size": self.settings.size, "sizes": list(self.settings.sizes), "workers": len(self.workers),
            "workers_up": up, "version": __version__,
        }  # fmt: skip

    # --- Requests ---

    async def request(
        self, worker: WorkerHandle, method: str, path: str, body: bytes | None = None, content_type: str = ""
    ) -> WorkerAnswer:
        """Send a request to a worker and return its answer; see ``WorkerHandle.request``."""
        return await asyncio.get_running_loop().run_in_executor(
            self._requests, worker.request, method, path, body, content_type
        )
