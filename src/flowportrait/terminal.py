"""What is said on the terminal, progress, and interruption.

Signals that end a command, and Ctrl-C or SIGTERM in long work: the step under way is finished and saved; asked
again, it stops at once.

    with StopRequest() as stop:
        while not done and not stop.asked:
            step()
        save()
    stop.obey()          # ends the program as the signal would have

Saving in the middle of a step would keep a state that no uninterrupted run ever has.

What the command line prints: messages and progress on standard error, results on standard output.
"""

from __future__ import annotations

import contextlib
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


Item = TypeVar("Item")

PLAIN_WIDTH = 140
"""Columns of tables where standard output is not a terminal."""


def speaks() -> bool:
    """Whether this is the one among several processes (as torchrun and accelerate number them) that says things."""
    return os.environ.get("RANK", "0") == "0"


def say(sentence: str) -> None:
    """One line on standard error."""
    if speaks():
        # A terminal that was closed, or a pipe whose reader has gone, is no reason to lose the work.
        with contextlib.suppress(OSError, ValueError):
            print(" ".join(sentence.split()), file=sys.stderr, flush=True)


def progress(items: Iterable[Item], total: int | None, doing: str = "drawing") -> Generator[Item, None, None]:
    """A bar with a time estimate on standard error while items are worked on; nothing where that is not a terminal."""
    from rich.progress import track

    console = error_console()
    yield from track(items, doing, total, console=console, transient=True, disable=not console.is_terminal)


@contextlib.contextmanager
def waiting(doing: str) -> Iterator[None]:
    """Show what is being done while the block takes its time; nothing where standard error is not a terminal."""
    console = error_console()
    if not (console.is_terminal and speaks()):
        yield
        return
    with console.status(doing):
        yield


def error_console() -> Console:
    """Standard error for what changes while it is shown."""
    from rich.console import Console

    return Console(file=cast(TextIO, _Tolerant(sys.stderr)), quiet=sys.stderr is None)


def print_table(table: RenderableType) -> None:
    """A table on standard output, not wrapped to a narrow page where that is a file or a pipe."""
    from rich.console import Console

    console = Console(width=None if Console().is_terminal else PLAIN_WIDTH, highlight=False)
    with console.capture() as captured:
        console.print(table)
    print(captured.get(), end="")


@contextlib.contextmanager
def standard_streams() -> Iterator[None]:
    """Give closed standard streams the null device, and let output take every file name in the block.

    A file that is opened while descriptor 2 is closed becomes standard error: libraries would write messages into it.
    """
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, mode, closefd=False))
    # File names may hold bytes that are no text, and terminals may know few characters.
    stream = sys.stdout
    before = getattr(stream, "errors", None)
    if before is not None and hasattr(stream, "reconfigure"):
        stream.reconfigure(errors="backslashreplace")
    try:
        yield
    finally:
        if before is not None and hasattr(stream, "reconfigure"):
            with contextlib.suppress(OSError, ValueError):
                stream.reconfigure(errors=before)


def discard_broken_output() -> bool:
    """Send what is still to come on standard output nowhere if its reader has gone; returns whether it has."""
    try:
        output = sys.stdout.fileno()
        if hasattr(select, "poll"):
            watched = select.poll()
            watched.register(output, 0)
            if not any(event & select.POLLERR for _, event in watched.poll(0)):
                return False
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, output)
        os.close(null)
    except (OSError, ValueError):
        return False
    return True


class _Tolerant:
    """A text stream that may be closed from outside, as a terminal is."""

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
