"""What the command line says on standard error."""

from __future__ import annotations

import os
import sys
from collections.abc import Generator, Iterable
from typing import TypeVar

Item = TypeVar("Item")


def speaks() -> bool:
    """Whether this is the one among several processes (as torchrun and accelerate number them) that says things."""
    return os.environ.get("RANK", "0") == "0"


def say(sentence: str) -> None:
    """One line on standard error."""
    if speaks():
        print(" ".join(sentence.split()), file=sys.stderr)


def progress(items: Iterable[Item], total: int | None, doing: str = "drawing") -> Generator[Item, None, None]:
    """A bar with a time estimate on standard error while items are worked on; nothing where that is not a terminal."""
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    hidden = not console.is_terminal
    yield from track(items, doing, total, console=console, transient=True, disable=hidden)
