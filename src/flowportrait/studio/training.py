"""Training in the studio: one post-training run in a process of its own.

``Training`` starts the process, asks it to stop with the same signal as Ctrl-C, and reads its metrics and its log. A
run of the same name is resumed.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flowportrait.errors import BadInput
from flowportrait.rl.doctor import diagnose_run
from flowportrait.web_server import strip_paths

if sys.platform == "win32":
    _GROUP, _INTERRUPT = subprocess.CREATE_NEW_PROCESS_GROUP, signal.CTRL_BREAK_EVENT
else:
    _GROUP, _INTERRUPT = 0, signal.SIGINT

_LAST_LINES = 4
"""Lines of the log that are shown."""
_LOG_TAIL_BYTES = 16 * 2**10
"""Bytes at the end of the log that are read for its last lines."""


class Training:
    """The training run of a studio, if it started one; ``folder`` holds all runs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.run: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def running(self) -> bool:
        """Whether a run is in progress."""
        return self._process is not None and self._process.poll() is None

    def start(
        self, name: str, prompts: str, recipe: str, start: str, iterations: int, changes: Sequence[str] = ()
    ) -> Path:
        """Start a run, or resume the one of this name, and return its folder.

        Args:
            name: name of the run and of its folder.
            prompts: folder of prompts.
            recipe: name of the recipe.
            start: checkpoint to start from.
            iterations: number of iterations.
            changes: changed settings of the recipe, as ``NAME=VALUE``.

        Raises:
            BadInput: a run is in progress, the name is impossible, or the prompts are no folder.
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
        """Ask the run to finish its iteration and save; a second call stops it at once."""
        if self._process is not None and self.running:
            self._process.send_signal(_INTERRUPT)

    def wait(self, seconds: float | None = None) -> int | None:
        """Wait for the end of the run and return its exit code; None if no run was started.

        Raises:
            subprocess.TimeoutExpired: the run takes longer than ``seconds``.
        """
        return None if self._process is None else self._process.wait(seconds)

    def records(self) -> list[dict[str, Any]]:
        """Return the logged metrics of every iteration."""
        metrics = None if self.run is None else self.run / "metrics.jsonl"
        if metrics is None or not metrics.is_file():
            return []
        lines = metrics.read_text(encoding="utf-8").splitlines(keepends=True)
        return [json.loads(line) for line in lines if line.endswith("\n")]

    def status_text(self) -> str:
        """Return the state of the run: iterations, findings of the doctor, and the last lines of the log."""
        if self.run is None:
            return "No run was started here."
        code = None if self._process is None else self._process.poll()
        state = "under way" if self.running else "ended" if code == 0 else f"stopped ({code})"
        recipe = self.run / "recipe.json"
        records = self.records()
        can_examine = bool(records) and recipe.is_file()
        findings = diagnose_run(records, json.loads(recipe.read_text(encoding="utf-8"))) if can_examine else []
        lines = [f"{self.run.name}: {state}, {len(records)} iterations."]
        lines += [f"{finding.kind}: {finding.seen}; {finding.advice}" for finding in findings]
        return "\n\n".join(lines + self._last_lines(self.run / "log.txt"))

    @staticmethod
    def _last_lines(log: Path) -> list[str]:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - _LOG_TAIL_BYTES))
            lines = file.read().decode(errors="replace").strip().splitlines()[-_LAST_LINES:]
        return [strip_paths(line) for line in lines]
