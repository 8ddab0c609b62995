"""What was asked and what it cost: one line per request that left this machine, written when its outcome is known.

    {"address": …, "try": 2, "outcome": "answered", "status": 200, "tokens_in": 1840, "tokens_out": 96, "dollars": …}

Totals are sums of lines, so they are exact whatever failed. A request that was cut off may have been billed without
telling: those are counted as ``untold`` and never guessed.
"""

from __future__ import annotations

import json
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

Outcome = Literal[
    "answered", "malformed", "refused", "timed_out", "rate_limited", "server_error", "cut_off", "rejected",
    "unfinished",
]  # fmt: skip
"""How a request ended. ``rejected``: the server would not take it (4xx); ``unfinished``: this side was stopped."""


@dataclass(frozen=True)
class Entry:
    """One request. tokens are None where no usage came back."""

    address: str
    attempt: int
    outcome: Outcome
    status: int | None
    tokens_in: int | None
    tokens_out: int | None
    dollars: float
    seconds: float
    detail: str = ""


class Ledger:
    """Entries in memory and, with a path, in a JSON-lines file that later runs add to."""

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._lock = threading.Lock()
        self.entries: list[Entry] = [] if path is None else read_ledger(path)
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)

    def add(self, entry: Entry) -> None:
        """Write one line; a process that dies later has still told of this request."""
        with self._lock:
            self.entries.append(entry)
            if self._path is not None:
                with self._path.open("ab") as file:
                    line = json.dumps({"at": round(time.time(), 3), **asdict(entry)}) + "\n"
                    # A torn line of a process that died is ended first, so that this one stands alone.
                    torn = file.tell() > 0 and _last_byte(self._path) != b"\n"
                    file.write(("\n" + line if torn else line).encode())

    def totals(self) -> dict[str, Any]:
        """Requests, by outcome, tokens, dollars, and how many requests did not say what they cost."""
        outcomes: dict[str, int] = {}
        for entry in self.entries:
            outcomes[entry.outcome] = outcomes.get(entry.outcome, 0) + 1
        return {
            "requests": len(self.entries),
            "outcomes": outcomes,
            "tokens_in": sum(entry.tokens_in or 0 for entry in self.entries),
            "tokens_out": sum(entry.tokens_out or 0 for entry in self.entries),
            "untold": sum(entry.tokens_in is None for entry in self.entries),
            "dollars": round(sum(entry.dollars for entry in self.entries), 6),
            "seconds": round(sum(entry.seconds for entry in self.entries), 3),
        }


def read_ledger(path: Path) -> list[Entry]:
    """Entries of a file that may end in a torn line."""
    if not path.is_file():
        return []
    entries = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            data = json.loads(line)
            data.pop("at")
            entries.append(Entry(**data))
        except (ValueError, KeyError, TypeError):
            continue
    return entries


def _last_byte(path: Path) -> bytes:
    with path.open("rb") as file:
        file.seek(-1, 2)
        return file.read(1)
