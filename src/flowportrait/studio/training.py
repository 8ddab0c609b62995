"""One post-training run as a process of its own."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flowportrait.errors import BadInput
from flowportrait.rl.doctor import examine
from flowportrait.web_server import without_paths

if sys.platform == "win32":
    _GROUP, _INTERRUPT = subprocess.CREATE_NEW_PROCESS_GROUP, signal.CTRL_BREAK_EVENT
else:
    _GROUP, _INTERRUPT = 0, signal.SIGINT

_LAST_LINES = 4
_LOG_END = 16 * 2**10
"""Bytes of a run's log that are read for its last lines."""


class Training:
    """The run that this studio started, if any; ``folder`` holds the runs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.run: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def running(self) -> bool:
        """Whether a run is under way."""
        return self._process is not None and self._process.poll() is None

    def start(
        self, name: str, prompts: str, recipe: str, start: str, iterations: int, changes: Sequence[str] = ()
    ) -> Path:
        """Begin a run, or go on with the one of this name; returns its folder.

        Raises:
            BadInput: one is running, the name is no name, or the prompts are no folder.
        """
        if self.running:
            raise BadInput(f"The run {self.run and self.run.name!r} is under way: stop it first.")
        if not name or name != Path(name).name or name.startswith("."):
            raise BadInput(f"{name!r} is no name for a run: use letters, digits, - and _.")
        if not prompts or not Path(prompts).is_dir():
            raise BadInput(f"There is no folder of prompts at {prompts!r}: give one that holds images and audio files.")
        run = self.folder / name
        run.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "flowportrait.studio.training_process", "posttrain", "--recipe", recipe,
                   "--prompts", prompts, "--start", start, "--iterations", str(int(iterations)),
                   "--output", str(run)]  # fmt: skip
        if (run / "state").is_dir():
            command.append("--resume")
        if changes:
            command += ["--set", *changes]
        with (run / "log.txt").open("ab") as log:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, creationflags=_GROUP
            )
        self.run = run
        return run

    def stop(self) -> None:
        """Ask the run to finish its iteration and save; asked twice, it stops at once."""
        if self._process is not None and self.running:
            self._process.send_signal(_INTERRUPT)

    def wait(self, seconds: float | None = None) -> int | None:
        """The exit code of the run, once it has ended; None before it was started.

        Raises:
            subprocess.TimeoutExpired: it goes on.
        """
        return None if self._process is None else self._process.wait(seconds)

    def records(self) -> list[dict[str, Any]]:
        """What was noted of every iteration."""
        metrics = None if self.run is None else self.run / "metrics.jsonl"
        if metrics is None or not metrics.is_file():
            return []
        lines = metrics.read_text(encoding="utf-8").splitlines(keepends=True)
        return [json.loads(line) for line in lines if line.endswith("\n")]

    def status_text(self) -> str:
        """How the run stands: iterations, what the doctor finds, and the last lines it said."""
        if self.run is None:
            return "No run was started here."
        code = None if self._process is None else self._process.poll()
        state = "under way" if self.running else "ended" if code == 0 else f"stopped ({code})"
        recipe = self.run / "recipe.json"
        records = self.records()
        judged = bool(records) and recipe.is_file()
        findings = examine(records, json.loads(recipe.read_text(encoding="utf-8"))) if judged else []
        lines = [f"{self.run.name}: {state}, {len(records)} iterations."]
        lines += [f"{finding.kind}: {finding.seen}; {finding.advice}" for finding in findings]
        return "\n\n".join(lines + self._last_lines(self.run / "log.txt"))

    @staticmethod
    def _last_lines(log: Path) -> list[str]:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - _LOG_END))
            lines = file.read().decode(errors="replace").strip().splitlines()[-_LAST_LINES:]
        return [without_paths(line) for line in lines]
