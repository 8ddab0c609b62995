"""What the command line prints: messages and progress on standard error, results on standard output."""

from __future__ import annotations

import contextlib
import os
import select
import sys
from collections.abc import Generator, Iterable, Iterator
from typing import TYPE_CHECKING, Any, TextIO, TypeVar, cast

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

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
