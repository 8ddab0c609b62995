"""Old files go: a folder is bounded by age and by size."""

from __future__ import annotations

import time
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

_GRACE = 60.0
"""Seconds for which a new file stays whatever else holds: somebody may be about to use it."""


def prune(folder: Path, hours: float, megabytes: float, in_use: Collection[Path] = ()) -> list[Path]:
    """Delete files below ``folder`` that are older than ``hours``, and then the oldest until ``megabytes`` are left.

    ``in_use`` stay, and so do files that cannot be deleted. Returns what was deleted.
    """
    now, found = time.time(), []
    for path in folder.rglob("*"):
        try:
            if path.is_file() and not path.is_symlink():
                status = path.stat()
                found.append((status.st_mtime, status.st_size, path))
        except OSError:
            continue
    kept, deleted = {path.resolve() for path in in_use}, []
    total = sum(size for _, size, _ in found)
    for changed, size, path in sorted(found):
        too_old, too_much = now - changed > 3600 * hours, total > megabytes * 2**20
        if not (too_old or too_much) or now - changed < _GRACE or path.resolve() in kept:
            continue
        try:
            path.unlink()
        except OSError:
            continue
        deleted.append(path)
        total -= size
        if path.parent != folder:
            with suppress(OSError):  # it holds more
                path.parent.rmdir()
    return deleted
