"""Files of the studio: its limits, and the files that a page can name.

    PUT /api/files ─► uploads/ID/NAME ─► a form names files by ID ─► the path

A page can name only files that were uploaded (``uploads``) and the examples that ship with the package.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from flowportrait import samples
from flowportrait.config import at_least
from flowportrait.uploads import Uploads


@dataclass(frozen=True)
class StudioLimits:
    """Limits of the studio."""

    seconds: float = 60.0
    """Seconds of speech per video; the rest is cut off, with a notice."""
    letters: int = 1500
    """Characters of text per video."""
    megabytes: int = 25
    """Size of an uploaded file in MB."""
    minutes: float = 10.0
    """Minutes that drawing one video may take."""
    waiting: int = 4
    """Videos that may wait in the queue."""
    hours: float = 24.0
    """Hours after which uploads and videos are deleted."""
    kept_megabytes: int = 2000
    """Total size in MB of uploads, and of videos; the oldest are deleted first."""

    def __post_init__(self) -> None:
        at_least(self, seconds=1, letters=1, megabytes=1, minutes=0.1, waiting=1, hours=0.1,
                 kept_megabytes=1)  # fmt: skip


# --- Files by id ---

EXAMPLES = {f"example-{name}": samples.portrait_path(name) for name in samples.PORTRAITS} | {
    "example-speech": samples.SPEECH
}
"""Files that every page may use, by id."""


def open_uploads(folder: Path) -> Uploads:
    """Return the uploads in a folder, with the examples beside them."""
    return Uploads(folder, EXAMPLES)
