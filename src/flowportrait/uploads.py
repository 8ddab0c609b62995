"""Uploaded files of a server: each in a folder of its own, found by an id, deleted when it is old.

    chunks of a request ─► Uploads.save ─► FOLDER/ID/NAME ─► Uploads.path(ID) ─► delete_old_files

A page can name only files that were uploaded, and those that the server offers to all. Old files are deleted because
they show people.
"""

from __future__ import annotations

import re
import shutil
import time
import uuid
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import suppress
from pathlib import Path

from flowportrait.errors import BadInput

_ID = re.compile(r"[0-9a-f]{32}")
_LONGEST_NAME = 80


class Uploads:
    """Uploaded files in a folder, each in a subfolder that is named by its id."""

    def __init__(self, folder: Path, shared: Mapping[str, Path] | None = None) -> None:
        """Use a folder, which is created if it is missing.

        Args:
            folder: where the files are.
            shared: files that everybody may use, by id.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self._shared = folder.resolve(), dict(shared or {})

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
        """Return the file with an id: an upload or a shared file.

        Raises:
            BadInput: there is no such file, or it was deleted because it is old.
        """
        if token in self._shared:
            return self._shared[token]
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
