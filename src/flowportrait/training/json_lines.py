"""Logs of training runs as files with one JSON object per line.

A run that is resumed writes the lines after its last saved state again, so ``read_until`` removes them first.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flowportrait.files import write_text


class JsonLinesLog:
    """A file of JSON lines that is only appended to.

    A line is written completely or not at all. Lines that cannot be written, as on a full disk, are kept in memory and
    written first the next time.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.waiting: list[bytes] = []
        if path.exists():
            written = path.read_bytes()
            os.truncate(path, written.rfind(b"\n") + 1)  # a line that a crash cut off

    def add(self, record: Mapping[str, Any]) -> bool:
        """Append one record and return whether all records are written now."""
        self.waiting.append(json.dumps(record).encode() + b"\n")
        before = self.path.stat().st_size if self.path.exists() else 0
        try:
            with self.path.open("ab") as file:
                file.write(b"".join(self.waiting))
        except OSError:
            if self.path.exists():
                os.truncate(self.path, before)
            return False
        self.waiting.clear()
        return True


def read_until(path: Path, key: str, last: int) -> list[dict[str, Any]]:
    """Return the records of a log whose ``key`` is at most ``last``, and remove all others from the file.

    The others are lines that a resumed run writes again, and a line that a crash cut off.

    Args:
        path: the log; it may be missing.
        key: what records are numbered by, such as ``iteration`` or ``step``.
        last: the number of the saved state that the run continues from.
    """
    records: list[dict[str, Any]] = []
    if path.is_file():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                record = json.loads(line)
            except ValueError:
                break
            if record[key] <= last:
                records.append(record)
        write_text(path, "".join(json.dumps(record) + "\n" for record in records))
    return records
