"""Map a function over items in this process, in several processes, or on the machines of a Ray cluster.

    for result in parallel_map(measure, files, Workers(processes=4)): ...
    for result in parallel_map(measure, files, Workers(ray="auto")): ...

Results come in the order of the items and do not depend on where they were computed. Nothing distributed is implemented
here: Ray runs the tasks, and repeats those of a machine that was lost. Functions and items are pickled; files are read
and written through a file system that all machines share.
"""

from __future__ import annotations

import importlib
import logging
import multiprocessing
import os
import socket
import sys
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self, TypeVar

from flowportrait import __version__
from flowportrait.errors import BadInput
from flowportrait.extras import require_extra
from flowportrait.terminal import log

Item = TypeVar("Item")
Result = TypeVar("Result")

ITEMS_PER_WORKER = 4
"""Items that are handed out per process, or per core of a cluster."""
RETRIES = 5
"""How often Ray repeats a task of which the process or the machine was lost."""
CONNECT_SECONDS = 10.0
"""Seconds within which a cluster must answer."""
WAIT_SECONDS = 30.0
"""Seconds without a result after which it is checked whether the cluster still has machines."""
SPAWN = multiprocessing.get_context("spawn")
"""How processes are started: the threads of torch and mediapipe do not survive a fork."""


@dataclass(frozen=True)
class Workers:
    """Where a function is mapped over items.

    Attributes:
        processes: number of processes; 0 for this process. Not used with ``ray``.
        ray: address of a Ray cluster: ``auto``, ``HOST:PORT``, or ``ray://HOST:PORT``.
        initialize: called once in every process of this machine.
        initialize_ray: called once in every process of a cluster.
        items_per_process: number of items after which a process of this machine is replaced.
        output: folder that the function writes into, which all machines of a cluster must see.
    """

    processes: int = 0
    ray: str | None = None
    initialize: Callable[[], None] | None = None
    initialize_ray: Callable[[], None] | None = None
    items_per_process: int | None = None
    output: Path | None = None


def parallel_map(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    workers: Workers,
    file_of: Callable[[Item], Path],
) -> Iterator[Result]:
    """Yield ``function(item)`` for every item, in order. Closing the iterator ends what is unfinished.

    Args:
        function: a function that can be pickled and may be called twice for an item.
        items: what it is called with.
        workers: where it is called.
        file_of: returns the file that an item is about, for messages.

    Raises:
        BadInput: a process was killed; or there is no such cluster, or one of its machines cannot do the work.
    """
    if workers.ray is not None:
        with RayTasks(workers.ray, workers.initialize_ray, workers.output) as tasks:
            yield from tasks.map(function, items, file_of)
    elif workers.processes:
        yield from _map_in_processes(function, items, workers, file_of)
    else:
        yield from map(function, items)


def _map_in_processes(
    function: Callable[[Item], Result], items: Sequence[Item], workers: Workers, file_of: Callable[[Item], Path]
) -> Iterator[Result]:
    pending: deque[tuple[Item, Future[Result]]] = deque()
    count = max(1, min(workers.processes, len(items)))
    others = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(
        count, SPAWN, workers.initialize, max_tasks_per_child=workers.items_per_process
    )  # fmt: skip
    try:
        for item in items:
            pending.append((item, pool.submit(function, item)))
            if len(pending) == ITEMS_PER_WORKER * count:
                yield pending[0][1].result()
                pending.popleft()
        while pending:
            yield pending[0][1].result()
            pending.popleft()
    except BrokenProcessPool as error:
        raise BadInput(
            f"A process was killed at {file_of(pending[0][0])} or a video after it, mostly for want of memory: run the "
            "command again with fewer --workers, or without that video; what is done is kept."
        ) from error
    finally:
        pool.shutdown(wait=not pending, cancel_futures=True)
        if pending:
            # Interrupted: unfinished items are repeated next time, so their processes can be stopped.
            for process in set(multiprocessing.active_children()) - others:
                process.terminate()


# --- Ray --------------------------------------------------------------------------------


class _TaskSetup(NamedTuple):
    """What a process of a cluster needs before its first task, and what it checks before each."""

    version: str
    folder: str
    marker: str | None
    initialize: Callable[[], None] | None


_initialized = False
"""In a process of a cluster: whether its initialization was called."""


def _run_task(setup: _TaskSetup, file: Path | None, function: Callable[..., Result], *arguments: Any) -> Result:
    """Call a function in a process of a cluster, in the folder that the command was started in.

    Raises:
        BadInput: this machine has another version of the package, or does not see the files.
    """
    global _initialized
    machine = socket.gethostname()
    if setup.version != __version__:
        raise BadInput(
            f"The machine {machine} of the cluster has FlowPortrait {__version__}, this one {setup.version}: install "
            "the same version on all."
        )
    if os.path.isdir(setup.folder):
        os.chdir(setup.folder)
        if setup.folder not in sys.path:
            sys.path.insert(0, setup.folder)
    for path in (setup.marker, file):
        if path is not None and not os.path.exists(path):
            wanted = os.path.dirname(path) if path == setup.marker else path
            raise BadInput(
                f"The machine {machine} of the cluster does not see {wanted}: inputs and outputs must be on a file "
                "system that all machines share, under the same path."
            )
    if setup.initialize is not None and not _initialized:
        setup.initialize()
        _initialized = True
    return function(*arguments)


class RayTasks:
    """A connection to a Ray cluster that runs functions as tasks; leaving it as a context manager closes it.

    Args:
        address: ``auto`` for the cluster of this machine, ``HOST:PORT``, or ``ray://HOST:PORT`` from outside of it.
        initialize: called once in every process.
        output: folder that all machines must see.

    Raises:
        BadInput: Ray is not installed, or no cluster answers.
    """

    def __init__(self, address: str, initialize: Callable[[], None] | None = None, output: Path | None = None) -> None:
        self._ray = check_cluster(address)
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        self._connected_here = not self._ray.is_initialized()
        _log_messages_of_ray()
        if self._connected_here:
            try:
                self._ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
            except Exception as error:
                raise BadInput(_no_cluster(address, f"{type(error).__name__}: {error}".splitlines()[0])) from error
        self._marker = None if output is None else output / f".shared-{uuid.uuid4().hex}"
        if self._marker is not None:
            self._marker.touch()
        marker = None if self._marker is None else str(self._marker.absolute())
        self._setup = _TaskSetup(__version__, os.getcwd(), marker, initialize)
        self._task = self._ray.remote(max_retries=RETRIES)(_run_task)
        self._warned = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._marker is not None:
            self._marker.unlink(missing_ok=True)
        if self._connected_here:
            self._ray.shutdown()

    @property
    def cores(self) -> int:
        """Return the number of cores of all machines now."""
        return int(self._ray.cluster_resources().get("CPU", 0))

    def put(self, value: Any) -> Any:
        """Store a value in the cluster and return a reference, which ``submit`` takes in its place."""
        return self._ray.put(value)

    def submit(self, function: Callable[..., Any], *arguments: Any, file: Path | None = None) -> Any:
        """Start a function and return a reference to its result."""
        return self._task.remote(self._setup, file, function, *arguments)

    def result(self, reference: Any, what: str) -> Any:
        """Wait for a result and return it.

        Args:
            reference: what ``submit`` returned.
            what: what the task is about, for messages.

        Raises:
            BadInput: the machines could not do it, or were lost too often.
        """
        errors = self._ray.exceptions
        while not self._ray.wait([reference], timeout=WAIT_SECONDS)[0]:
            if not self._warned and self.cores == 0:
                self._warned = True
                log("Warning: the Ray cluster has no machine left; waiting for one to join.")
        try:
            return self._ray.get(reference)
        except errors.RayTaskError as error:
            if isinstance(error.cause, BadInput):
                raise BadInput(str(error.cause)) from None
            raise error.cause from None
        except errors.RayError as error:
            raise BadInput(
                f"The cluster lost the work on {what} {RETRIES + 1} times ({type(error).__name__}), mostly for want of "
                "memory: run the command again with larger machines, or without it; what is done is kept."
            ) from error

    def map(
        self, function: Callable[[Item], Result], items: Sequence[Item], file_of: Callable[[Item], Path]
    ) -> Iterator[Result]:
        """Yield ``function(item)`` for every item, in order."""
        pending: deque[tuple[Path, Any]] = deque()
        ahead = ITEMS_PER_WORKER * max(1, self.cores)
        try:
            for item in items:
                file = file_of(item)
                pending.append((file, self.submit(function, item, file=file)))
                if len(pending) == ahead:
                    yield self.result(pending[0][1], str(pending[0][0]))
                    pending.popleft()
            while pending:
                yield self.result(pending[0][1], str(pending[0][0]))
                pending.popleft()
        finally:
            for _, reference in pending:
                self._ray.cancel(reference, force=True)


def check_cluster(address: str | None) -> Any:
    """Check that Ray is installed and that something listens at the address, for which Ray itself would wait minutes.

    Commands call it before work that would be lost. For ``None`` nothing is checked.

    Returns:
        The module ``ray``, or None.

    Raises:
        BadInput: it is no address, Ray is not installed, or nothing answers.
    """
    if address is None:
        return None
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if address != "auto" and not (colon and port.isdigit()):
        raise BadInput(f"--ray {address} is no address: give auto, HOST:PORT or ray://HOST:PORT.")
    module = require_extra("ray", "ray")
    if address != "auto":
        try:
            socket.create_connection((host, int(port)), CONNECT_SECONDS).close()
        except (OSError, OverflowError) as error:
            raise BadInput(_no_cluster(address, getattr(error, "strerror", None) or str(error))) from error
    return module


def _log_messages_of_ray() -> None:
    """Let Ray's messages, such as that of a lost machine, be one line each on standard error.

    Ray writes them to standard output, where the results of a command are, with twenty lines of its own logs.
    """
    worker: Any = importlib.import_module("ray._private.worker")

    def log_first_line(data: Mapping[str, Any], *_: Any, **__: Any) -> None:
        lines = "\n".join(map(str, data.get("lines", ()))).strip().splitlines()
        if lines:
            log(f"Ray: {lines[0].partition('. ')[0]}.")

    if hasattr(worker, "print_to_stdstream"):
        worker.print_to_stdstream = log_first_line


def _no_cluster(address: str, reason: str) -> str:
    return (
        f"No Ray cluster answers at {address} ({reason.rstrip('.')}): start one with 'ray start --head' on one machine "
        "and 'ray start --address=HOST:6379' on the others."
    )
