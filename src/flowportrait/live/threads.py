"""Threads of the live avatar that end before the interpreter does.

A thread inside native code while Python shuts down aborts the whole program ("terminate called without an active
exception"). So every such thread is stopped and awaited when the program exits, whether its owner was closed or not.
"""

from __future__ import annotations

import atexit
import time
from collections.abc import Callable
from threading import Thread

EXIT_SECONDS = 2.0
"""Seconds for which the end of the program waits for all threads together."""
_stops: dict[Thread, Callable[[], None]] = {}


def start_thread(work: Callable[[], None], stop: Callable[[], None], name: str) -> Thread:
    """Start a thread that the end of the program stops and awaits.

    Args:
        work: what the thread does.
        stop: makes ``work`` return soon; called at the end of the program if the thread runs then.
        name: its name.
    """

    def run() -> None:
        try:
            work()
        finally:
            del _stops[thread]

    # Python waits for other threads before it calls what ``atexit`` registered, and would wait for ever for one that
    # nobody has stopped.
    thread = Thread(target=run, daemon=True, name=name)
    _stops[thread] = stop
    thread.start()
    return thread


@atexit.register
def _end_threads() -> None:
    running = list(_stops.items())
    for _, stop in running:
        stop()
    deadline = time.monotonic() + EXIT_SECONDS
    for thread, _ in running:
        thread.join(max(0.0, deadline - time.monotonic()))
