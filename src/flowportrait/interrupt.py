"""Signals that end a command, and Ctrl-C or SIGTERM in long work: the step under way is finished and saved; asked
again, it stops at once.

    with StopRequest() as stop:
        while not done and not stop.asked:
            step()
        save()
    stop.obey()          # ends the program as the signal would have

Saving in the middle of a step would keep a state that no uninterrupted run ever has.
"""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

SAME_REQUEST = 2.0
"""Seconds within which signals are one request: launchers of several processes pass on what these got already."""


@contextmanager
def exit_on_signals() -> Iterator[None]:
    """Let SIGTERM and SIGHUP end the block as Ctrl-C does, so that half-written files are removed: SystemExit(143) and
    (129). Handlers are those of before again afterwards. A SIGHUP that is ignored (``nohup``) stays so; outside the
    main thread, where signals cannot be caught, nothing changes."""
    before: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, getattr(signal, "SIGHUP", None)):
            if number is not None and signal.getsignal(number) != signal.SIG_IGN:
                before[number] = signal.signal(number, lambda caught, _: sys.exit(128 + caught))
    try:
        yield
    finally:
        for number, handler in before.items():
            # None: set by something that is not Python; it cannot be put back.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


class StopRequest:
    """Turns the first SIGINT or SIGTERM into a flag. Outside the main thread, where signals cannot be caught, it does
    nothing."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self._since = 0.0
        self._before: dict[int, Any] = {}

    @property
    def asked(self) -> bool:
        """Whether to stop after this step."""
        return self.signal is not None

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._ask) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, kind: type | None, value: BaseException | None, trace: TracebackType | None) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)

    def obey(self) -> None:
        """Raise what was put off: KeyboardInterrupt, or SystemExit(143) for SIGTERM."""
        if self.signal is not None:
            _end(self.signal)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.signal is None:
            self.signal, self._since = number, time.monotonic()
            again = "Ctrl-C" if number == signal.SIGINT else "the same signal"
            print(f"Finishing this step and saving; {again} again stops at once.", file=sys.stderr)
        elif time.monotonic() - self._since > SAME_REQUEST:
            _end(number)


def _end(number: int) -> None:
    if number == signal.SIGTERM:
        sys.exit(143)
    raise KeyboardInterrupt
