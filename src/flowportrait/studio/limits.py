"""How much one page may ask for."""

from __future__ import annotations

from dataclasses import dataclass

from flowportrait.config import at_least


@dataclass(frozen=True)
class Limits:
    seconds: float = 60.0
    """Of speech in a video; the rest is cut off, which the page says."""
    letters: int = 1500
    """Of text."""
    megabytes: int = 25
    """Of an uploaded file."""
    minutes: float = 10.0
    """That one video may be drawn for."""
    waiting: int = 4
    """Videos asked for and not begun."""
    hours: float = 24.0
    """That uploads and videos are kept; they show people."""
    kept_megabytes: int = 2000
    """Of uploads, and of videos; the oldest go first."""

    def __post_init__(self) -> None:
        at_least(self, seconds=1, letters=1, megabytes=1, minutes=0.1, waiting=1, hours=0.1,
                 kept_megabytes=1)  # fmt: skip
