"""What happened to a run, one line each in ``events.jsonl``, and when going on makes no sense.

    {"time": "2026-11-21T10:00:00Z", "iteration": 12, "event": "not saved", "detail": "No space left on device"}

What an iteration is worth keeping for is in ``metrics.jsonl``; here is what a person asks about on Monday morning.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flowportrait.posttrain.doctor import SLOW, SLOW_FOR


class JsonLinesLog:
    """Lines added to a file. What a full disk does not take waits in memory and goes first the next time; a line is
    there whole or not at all."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.waiting: list[bytes] = []
        if path.exists():
            written = path.read_bytes()
            os.truncate(path, written.rfind(b"\n") + 1)  # a line that a crash cut off

    def add(self, record: Mapping[str, Any]) -> bool:
        """Append one record; returns whether everything is written now."""
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


class EventLog:
    """The run's ``events.jsonl``, and counts of what may happen now and then but not for ever.

    ``write``: whether this process writes; all count alike, so that all stop alike. ``limit``: how often in a row.
    """

    def __init__(self, path: Path, limit: int, write: bool = True) -> None:
        self.log = JsonLinesLog(path) if write else None
        self.limit = limit
        self.in_a_row = {"skipped": 0, "unsaved": 0, "slow": 0}

    def add(self, event: str, iteration: int, detail: str = "") -> None:
        """One line."""
        if self.log:
            now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
            self.log.add({"time": now, "iteration": iteration, "event": event, "detail": detail})

    def after_iteration(self, record: Mapping[str, float]) -> str | None:
        """Note what was unusual about an iteration; returns why the run should stop, if it should."""
        iteration = int(record["iteration"])
        invalid = {key.removeprefix("invalid/"): share for key, share in record.items() if key.startswith("invalid/")}
        for name, share in invalid.items():
            if share > 0:
                self.add("not scored", iteration, f"{name} could not score {share:.0%} of the samples")
        skipped, all_failed = record.get("skipped", 0.0) > 0, bool(invalid) and min(invalid.values()) == 1.0
        why = "no reward scored anything" if all_failed else "samples or gradients were not numbers"
        self.in_a_row["skipped"] = self.in_a_row["skipped"] + 1 if skipped else 0
        if skipped:
            self.add("skipped", iteration, why)
        self._check_pace(record, iteration)
        if self.in_a_row["skipped"] >= self.limit:
            return f"nothing was learned for {self.limit} iterations in a row, since {why}"
        return None

    def after_saving(self, iteration: int, where: Path, error: OSError | None) -> str | None:
        """Note how saving went; returns why the run should stop, if it should."""
        if error is None:
            if self.in_a_row["unsaved"]:
                self.add("saved again", iteration, str(where))
            self.in_a_row["unsaved"] = 0
            return None
        self.in_a_row["unsaved"] += 1
        self.add("not saved", iteration, str(error))
        if self.in_a_row["unsaved"] >= self.limit:
            return f"it could not be saved {self.limit} times in a row ({error.strerror or error})"
        return None

    def _check_pace(self, record: Mapping[str, float], iteration: int) -> None:
        self.in_a_row["slow"] = self.in_a_row["slow"] + 1 if record.get("slowest/times", 1.0) > SLOW else 0
        if self.in_a_row["slow"] == SLOW_FOR:
            process, times = int(record["slowest/process"]), record["slowest/times"]
            self.add("slow process", iteration, f"process {process} takes {times:.1f} times as long as the middle one")
