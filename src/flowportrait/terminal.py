"""What the command line says on standard error."""

from __future__ import annotations

import sys
from collections.abc import Generator, Iterable
from typing import TypeVar

Item = TypeVar("Item")


def say(sentence: str) -> None:
    """One line on standard error."""
    print(" ".join(sentence.split()), file=sys.stderr)


def progress(items: Iterable[Item], total: int | None) -> Generator[Item, None, None]:
    """A bar with a time estimate on standard error while frames are drawn; nothing where that is not a terminal."""
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    hidden = not console.is_terminal
    yield from track(items, "drawing", total, console=console, transient=True, disable=hidden)
