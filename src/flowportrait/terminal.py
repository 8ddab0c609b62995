"""Log lines, progress bars and signals of the command line.

Messages and progress go to standard error, results to standard output. In a distributed run only the main process
prints. A signal during long work is put off until the current step is finished and saved:

    with StopRequest() as stop:
        while not done and not stop.requested:
            step()
        save()
    stop.raise_pending_signal()          # ends the program as the signal would have

Saving in the middle of a step would keep a state that no uninterrupted run ever has. A second signal stops at once.
"""

from __future__ import annotations

import contextlib
import gc
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any, TextIO, TypeVar, cast

if TYPE_CHECKING:
    from rich.console import Console, RenderableType


# --- Signals ----------------------------------------------------------------------------

SAME_REQUEST_SECONDS = 2.0
"""Seconds within which several signals count as one request: launchers of several processes pass on a signal that the
processes have already received.
"""


@contextmanager
def exit_on_signals() -> Iterator[None]:
    """Let SIGTERM and SIGHUP end the block as Ctrl-C does, so that half-written files are removed.

    They raise SystemExit(143) and SystemExit(129). The previous handlers are restored afterwards. A SIGHUP that is
    ignored (``nohup``) stays ignored; outside the main thread, where signals cannot be caught, nothing changes.
    """
    previous: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, getattr(signal, "SIGHUP", None)):
            if number is not None and signal.getsignal(number) != signal.SIG_IGN:
                previous[number] = signal.signal(number, lambda caught, _: sys.exit(128 + caught))
    try:
        yield
    finally:
        for number, handler in previous.items():
            # None means that the handler was not set by Python and cannot be restored.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


class StopRequest:
    """A context manager that turns the first SIGINT or SIGTERM into a flag; a second one ends the program.

    Outside the main thread, where signals cannot be caught, it does nothing.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._requested_at = 0.0
        self._previous_handlers: dict[int, Any] = {}

    @property
    def requested(self) -> bool:
        """Whether a signal asked to stop after this step."""
        return self.signal is not None

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous_handlers[number] = signal.signal(number, self._handle_signal)
        return self

    def __exit__(self, kind: type | None, value: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._previous_handlers.items():
            signal.signal(number, handler)

    def raise_pending_signal(self) -> None:
        """Raise the exception that was put off: KeyboardInterrupt, or SystemExit(143) for SIGTERM."""
        if self.signal is not None:
            _raise_for_signal(self.signal)

    def _handle_signal(self, number: int, frame: FrameType | None) -> None:
        if self.signal is None:
            self.signal, self._requested_at = number, time.monotonic()
            repeat = "Ctrl-C" if number == signal.SIGINT else "the same signal"
            print(f"Finishing this step and saving; {repeat} again stops at once.", file=sys.stderr)
        elif time.monotonic() - self._requested_at > SAME_REQUEST_SECONDS:
            _raise_for_signal(number)


def _raise_for_signal(number: int) -> None:
    if number == signal.SIGTERM:
        sys.exit(143)
    raise KeyboardInterrupt


# --- Log lines, progress and tables -----------------------------------------------------

Item = TypeVar("Item")

TABLE_WIDTH = 140
"""Width of tables in columns where standard output is not a terminal."""


def is_main_process() -> bool:
    """Return whether this is the process that logs.

    It is the only process, or rank 0 of those that torchrun or accelerate started.
    """
    return os.environ.get("RANK", "0") == "0"


def log(message: str) -> None:
    """Print one line on standard error, in the main process alone."""
    if is_main_process():
        # A closed terminal or a broken pipe must not end the work.
        with contextlib.suppress(OSError, ValueError):
            print(" ".join(message.split()), file=sys.stderr, flush=True)


def progress(items: Iterable[Item], total: int | None, doing: str = "drawing") -> Generator[Item, None, None]:
    """Yield ``items`` and show a bar with a time estimate on standard error; no bar where that is not a terminal.

    Args:
        items: what is worked on.
        total: their number, None where it is unknown.
        doing: what is being done, shown beside the bar.
    """
    console = error_console()
    if not console.is_terminal:
        yield from items
        return
    from rich.progress import track

    yield from track(items, doing, total, console=console, transient=True)


@contextlib.contextmanager
def waiting(doing: str) -> Iterator[None]:
    """Show what is being done while the block runs; nothing where standard error is not a terminal."""
    console = error_console()
    if not (console.is_terminal and is_main_process()):
        yield
        return
    with console.status(doing):
        yield


def error_console() -> Console:
    """Return a console on standard error, for output that changes while it is shown."""
    from rich.console import Console

    return Console(file=cast(TextIO, _ClosableStream(sys.stderr)), quiet=sys.stderr is None)


def print_table(table: RenderableType) -> None:
    """Print a table on standard output; in a file or a pipe it is not wrapped to the width of a terminal."""
    from rich.console import Console

    console = Console(width=None if Console().is_terminal else TABLE_WIDTH, highlight=False)
    with console.capture() as captured:
        console.print(table)
    print(captured.get(), end="")


# --- Start-up ---------------------------------------------------------------------------


@contextlib.contextmanager
def no_garbage_collection() -> Iterator[None]:
    """Collect no garbage in the block, for imports and loading: they make many objects and hardly any garbage.

    The collector would look at all of them again and again, a tenth of the time that importing torch takes.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


# --- Standard streams that are closed or broken -----------------------------------------


@contextlib.contextmanager
def repair_standard_streams() -> Iterator[None]:
    """Replace closed standard streams by the null device, and let output take every file name in the block.

    A file that is opened while descriptor 2 is closed becomes standard error: libraries would write messages into it.
    """
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, mode, closefd=False))
    # File names may hold bytes that are not text, and terminals may support few characters.
    stream = sys.stdout
    previous_errors = getattr(stream, "errors", None)
    if previous_errors is not None and hasattr(stream, "reconfigure"):
        stream.reconfigure(errors="backslashreplace")
    try:
        yield
    finally:
        if previous_errors is not None and hasattr(stream, "reconfigure"):
            with contextlib.suppress(OSError, ValueError):
                stream.reconfigure(errors=previous_errors)


def discard_broken_output() -> bool:
    """Send the rest of standard output to the null device if its reader has gone.

    Returns:
        Whether the reader has gone.
    """
    try:
        output = sys.stdout.fileno()
        if hasattr(select, "poll"):
            poller = select.poll()
            poller.register(output, 0)
            if not any(event & select.POLLERR for _, event in poller.poll(0)):
                return False
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, output)
        os.close(null)
    except (OSError, ValueError):
        return False
    return True


class _ClosableStream:
    """A text stream that ignores errors of writing, since a terminal may be closed while the program runs."""

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError, ValueError):
            if self._stream is not None:
                self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            if self._stream is not None:
                self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
