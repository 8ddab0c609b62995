"""Files of the studio: what was uploaded, the examples, limits, and the deletion of old files.

    PUT /api/files ─► uploads/ID/NAME ─► a form names files by ID ─► the path

A page can name only files that were uploaded and the examples that ship with the package. Old files are deleted because
they show people.
"""

from __future__ import annotations

import re
import shutil
import time
import uuid
from collections.abc import AsyncIterator, Collection
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from flowportrait import samples
from flowportrait.config import at_least
from flowportrait.errors import BadInput


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
_ID = re.compile(r"[0-9a-f]{32}")
_LONGEST_NAME = 80


class Uploads:
    """Uploaded files in a folder, each in a subfolder that is named by its id."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder.resolve()

    async def save(self, name: str, chunks: AsyncIterator[bytes]) -> str:
        """Write a file as it arrives and return its id; a file that does not arrive completely is removed.

        Args:
            name: the file's name on the user's computer; its folders are dropped.
            chunks: the bytes.

        Raises:
            BadInput: the file is empty.
        """
        token = uuid.uuid4().hex
        folder = self.folder / token
        folder.mkdir()
        path = folder / _safe_name(name)
        try:
            with path.open("wb") as file:
                async for chunk in chunks:
                    file.write(chunk)
            if not path.stat().st_size:
                raise BadInput(f"{path.name} is empty: choose another file.")
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        return token

    def path(self, token: str) -> Path:
        """Return the file with an id: an upload or an example.

        Raises:
            BadInput: there is no such file, or it was deleted because it is old.
        """
        if token in EXAMPLES:
            return EXAMPLES[token]
        folder = self.folder / token
        if _ID.fullmatch(token) and folder.is_dir():
            for path in folder.iterdir():
                return path
        raise BadInput("This file is no longer here: choose it again.")

    def remove(self, token: str) -> None:
        """Delete an upload."""
        if _ID.fullmatch(token):
            shutil.rmtree(self.folder / token, ignore_errors=True)


def _safe_name(name: str) -> str:
    """Return the last part of a file name with nothing but letters, digits, blanks and ``._-()``."""
    last = re.split(r"[\\/]", name)[-1]
    stem, dot, suffix = last.rpartition(".")
    kept = [re.sub(r"[^\w .()-]", "_", part).strip(" .") for part in (stem if dot else last, suffix if dot else "")]
    return (kept[0][:_LONGEST_NAME] or "file") + (f".{kept[1][:8]}" if kept[1] else "")


# --- Deleting old files ---

_GRACE = 60.0
"""Seconds for which a new file is always kept, because somebody may be about to use it."""


def delete_old_files(folder: Path, hours: float, megabytes: float, in_use: Collection[Path] = ()) -> list[Path]:
    """Delete files that are too old, and then the oldest ones until the rest is small enough.

    Files that cannot be deleted are kept.

    Args:
        folder: the folder; files in its subfolders count too.
        hours: largest age.
        megabytes: largest total size.
        in_use: files that are always kept.

    Returns:
        The deleted files.
    """
    now, files = time.time(), []
    for path in folder.rglob("*"):
        try:
            if path.is_file() and not path.is_symlink():
                status = path.stat()
                files.append((status.st_mtime, status.st_size, path))
        except OSError:
            continue
    protected, deleted = {path.resolve() for path in in_use}, []
    total = sum(size for _, size, _ in files)
    for changed, size, path in sorted(files):
        too_old, too_much = now - changed > 3600 * hours, total > megabytes * 2**20
        if not (too_old or too_much) or now - changed < _GRACE or path.resolve() in protected:
            continue
        try:
            path.unlink()
        except OSError:
            continue
        deleted.append(path)
        total -= size
        if path.parent != folder:
            with suppress(OSError):  # the folder is not empty
                path.parent.rmdir()
    return deleted
