"""Run the stages of a run file, each in a process of its own, and go on from where an earlier run stopped.

    record of the stage      its inputs        what happens
    none                     –                 it begins; its folder must be empty
    started                  unchanged         it continues, with --resume where its command has that option
    finished                 unchanged         it is skipped
    any                      changed           it is refused; --from STAGE makes it and those after it again

A stage is the same command that a person would type, so it shows its own progress, and a training stage may be started
by ``accelerate launch``. Ctrl-C reaches the stage, which saves; the next run continues.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any, Literal

from flowportrait.data.prompts import AUDIO_SUFFIXES, read_prompts
from flowportrait.errors import BadInput
from flowportrait.files import check_output_folder
from flowportrait.hub import is_hub_id
from flowportrait.models.checkpoints import checkpoint_folder
from flowportrait.terminal import log
from flowportrait.workflow.records import FileHashes, StageInputs, StageRecord, digest_difference
from flowportrait.workflow.run_file import PipelineStage, RunFile

Action = Literal["begin", "continue", "skip"]
RunCommand = Callable[[Sequence[str]], int]
"""Runs a command line and returns its exit code; a negative one is the signal that ended it."""

LOCK_FILE = ".lock"
PROGRAM = "flowportrait"
CHECKPOINT_OPTIONS = ("start", "checkpoint", "baseline")
"""Options that name a checkpoint, which exists before the run if no stage makes it."""
_INTERRUPTED = {130: signal.SIGINT, 143: signal.SIGTERM, -signal.SIGINT: signal.SIGINT, -signal.SIGTERM: signal.SIGTERM}


@dataclass(frozen=True)
class _Decision:
    """What is to be done with a stage, and the record with which it starts."""

    action: Action
    record: StageRecord


class PipelineRun:
    """The stages of a run file and their records.

    Args:
        file: the run file.
        run_command: runs the command line of a stage; by default in a process of its own.

    Raises:
        BadInput: the folder of the run cannot be written, or an input does not exist.
    """

    def __init__(self, file: RunFile, run_command: RunCommand | None = None) -> None:
        self.file = file
        check_output_folder(file.output)
        self._lock: int | None = None
        self._run_command = run_command or self._start_process
        self._hashes = FileHashes(file.output / "hashes.json", file.output)
        self._check_inputs()
        self._warn_of_trained_prompts()

    def preview(self, from_stage: str | None = None) -> dict[str, str]:
        """Return what ``run`` would do with every stage, in words.

        Raises:
            BadInput: as ``run`` does, for what can be known before the stages run.
        """
        again = self._stages_from(from_stage)
        words = {"begin": "begins", "continue": "continues", "skip": "is finished and skipped"}
        actions = {name: found.action for name, found in self._decide_all(again).items()}
        return {
            stage.name: words[actions[stage.name]]
            + (f": {shlex.join(self._command(stage, actions[stage.name]))}" if actions[stage.name] != "skip" else "")
            for stage in self.file.stages
        }

    def run(self, from_stage: str | None = None) -> dict[str, str]:
        """Run every stage that is not finished.

        Args:
            from_stage: name of the stage that is made again, with those after it.

        Returns:
            The folder of every stage.

        Raises:
            BadInput: a stage has other inputs than before, its folder holds something else, or it failed.
            KeyboardInterrupt: a stage was interrupted, and saved what it has.
        """
        again = self._stages_from(from_stage)
        self.file.output.mkdir(parents=True, exist_ok=True)
        with self._locked():
            self._decide_all(again)
            for stage in reversed(again):
                self._discard(stage)
            for number, stage in enumerate(self.file.stages, 1):
                decision = self._decide(stage, ())
                place = f"Stage {number} of {len(self.file.stages)}, {stage.name}"
                if decision.action == "skip":
                    log(f"{place}: finished before with the same inputs, skipped.")
                    continue
                log(f"{place}: {'continues' if decision.action == 'continue' else 'begins'} in {stage.output}.")
                self._work(stage, decision)
        return {stage.name: str(stage.output) for stage in self.file.stages}

    # --- What is to be done ---

    def _stages_from(self, name: str | None) -> list[PipelineStage]:
        names = [stage.name for stage in self.file.stages]
        if name is None:
            return []
        if name not in names:
            raise BadInput(f"--from {name} is no stage of {self.file.path}: choose one of {', '.join(names)}.")
        return list(self.file.stages[names.index(name) :])

    def _record_path(self, stage: PipelineStage) -> Path:
        return self.file.output / f"{stage.name}.json"

    def _decide_all(self, again: Sequence[PipelineStage]) -> dict[str, _Decision]:
        """Decide about every stage as far as its inputs exist: what changed is found before hours of work."""
        found: dict[str, _Decision] = {}
        pending: list[Path] = []
        for stage in self.file.stages:
            found[stage.name] = self._decide(stage, pending, stage in again)
            if found[stage.name].action != "skip":
                pending.append(stage.output)
        return found

    def _decide(self, stage: PipelineStage, pending: Sequence[Path], again: bool = False) -> _Decision:
        before = StageRecord.read(self._record_path(stage))
        inputs = StageInputs.of(stage.options, pending)
        now = StageRecord.of(inputs, stage.output, self._hashes)
        if before is not None and before.status == "discarded" and not again:
            self._discard(stage)
            before = None
        if again and before is not None:
            return _Decision("begin", now)
        if before is None:
            if _holds_files(stage.output):
                line = stage.lines["output"]
                self.file.refuse(line, f"the folder {stage.output} of {stage.name} holds files that this pipeline did "
                                       "not make: choose another output, or remove it.")  # fmt: skip
            return _Decision("begin", now)
        if Path(before.output).resolve() != stage.output.resolve():
            self._refuse_changed(stage, [f"output was {before.output} and is {stage.output}"])
        if changes := before.changes(now, inputs.waiting):
            self._refuse_changed(stage, changes)
        if before.status == "started":
            return _Decision("continue", now)
        delivered = self._hashes.digests({"output": stage.output})["output"]
        if difference := digest_difference(before.delivered, delivered):
            self._refuse_changed(stage, [f"its finished output {difference}"])
        return _Decision("skip", now)

    def _refuse_changed(self, stage: PipelineStage, changes: Sequence[str]) -> None:
        more = f" and {len(changes) - 1} more" if len(changes) > 1 else ""
        raise BadInput(
            f"The stage {stage.name} of {self.file.output} was made with other inputs: {changes[0]}{more}. Add --from "
            f"{stage.name} to make it and the stages after it again, or give the run another output."
        )

    def _check_inputs(self) -> None:
        """Check that every input that no stage makes exists."""
        made: list[Path] = []
        for stage in self.file.stages:
            inputs = StageInputs.of(stage.options, made)
            for name, path in inputs.paths.items():
                if not path.exists():
                    line = stage.lines.get(name.partition(" ")[0], stage.lines[""])
                    self.file.refuse(line, f"the input {path} of {stage.name} does not exist.")
            for name in CHECKPOINT_OPTIONS:
                value = inputs.plain.get(name)
                if isinstance(value, str) and not is_hub_id(value) and not getattr(stage.options, "policy", None):
                    try:
                        checkpoint_folder(value)
                    except BadInput as error:
                        self.file.refuse(stage.lines.get(name, stage.lines[""]), f"{stage.name}: {error}")
            made.append(stage.output)

    def _warn_of_trained_prompts(self) -> None:
        """Warn if the evaluation has recordings or speakers that a stage before it learns from."""
        learned: dict[str, str] = {}
        for stage in self.file.stages:
            folder = getattr(stage.options, "prompts", None)
            if folder is None or not folder.is_dir():
                continue
            speech = self._speech_of_prompts(folder)
            common = [(name, learned[key]) for key, name in speech.items() if key in learned]
            if stage.kind.trains:
                learned |= dict.fromkeys(speech, stage.name)
            elif common:
                name, trained = common[0]
                log(f"Warning: {stage.name} measures {name} of {folder}, which {trained} learns from: give prompts of "
                    "other people, or the figures say nothing about them.")  # fmt: skip

    def _speech_of_prompts(self, folder: Path) -> dict[str, str]:
        """Return what tells the speech of prompts apart, hashes and names of speakers, with its name in messages."""
        listing = self._hashes.digests({"": folder})[""].get("listing", {})
        found = {sha: name for name, sha in listing.items() if Path(name).suffix.lower() in AUDIO_SUFFIXES}
        with contextlib.suppress(BadInput):  # prompts of other generators, which have no speech
            found |= {f"speaker {p.speaker}": f"the speaker {p.speaker}" for p in read_prompts(folder) if p.speaker}
        return found

    # --- Doing it ---

    def _command(self, stage: PipelineStage, action: Action) -> list[str]:
        """Return the command line of a stage, with the launcher before it."""
        command, *words = stage.words
        resume = ["--resume"] if action == "continue" and stage.kind.resumes_by_option else []
        return [*(self.file.launch if stage.kind.trains else ()), PROGRAM, command, *resume, *words]

    def _work(self, stage: PipelineStage, decision: _Decision) -> None:
        record, path = decision.record, self._record_path(stage)
        record.write(path)
        started = time.monotonic()
        code = self._run_command(self._command(stage, decision.action))
        again = f"run 'flowportrait pipeline {self.file.path}' again to continue"
        if code in _INTERRUPTED:
            log(f"The stage {stage.name} was interrupted; {again}.")
            if _INTERRUPTED[code] == signal.SIGTERM:
                sys.exit(143)
            raise KeyboardInterrupt
        if code < 0:
            raise BadInput(f"The stage {stage.name} was killed by signal {-code}, often for want of memory; {again}.")
        if code:
            raise BadInput(f"The stage {stage.name} failed for the reason above (exit code {code}); {again}.")
        delivered = self._hashes.digests({"output": stage.output})["output"]
        replace(
            record, status="finished", delivered=delivered, seconds=round(time.monotonic() - started, 1)
        ).write(path)  # fmt: skip

    def _discard(self, stage: PipelineStage) -> None:
        """Remove what a stage made. Its record says so meanwhile, so that half of a folder never counts as finished."""
        path = self._record_path(stage)
        if (record := StageRecord.read(path)) is None:
            return
        replace(record, status="discarded").write(path)
        if Path(record.output).is_dir():
            shutil.rmtree(record.output)
        path.unlink()

    def _start_process(self, words: Sequence[str]) -> int:
        """Run the command of a stage in a process and return its exit code; signals to this process are passed on."""
        split = list(words).index(PROGRAM)
        program = list(words[:split]) or [sys.executable]
        kept = () if self._lock is None else (self._lock,)
        process: subprocess.Popen[bytes] | None = None
        received: list[int] = []

        def pass_on(number: int, frame: FrameType | None) -> None:
            received.append(number)
            # Ctrl-C in a terminal reaches the processes in its foreground, the stage among them.
            if process is not None and not (number == signal.SIGINT and _in_foreground()):
                process.send_signal(number)

        in_main_thread = threading.current_thread() is threading.main_thread()
        numbers = (signal.SIGINT, signal.SIGTERM) if in_main_thread else ()
        previous = {number: signal.signal(number, pass_on) for number in numbers}
        try:
            more: dict[str, Any] = {"pass_fds": kept} if os.name == "posix" else {}
            process = subprocess.Popen(
                [*program, "-m", "flowportrait.cli", *words[split + 1 :]], stdin=subprocess.DEVNULL, stdout=2, **more
            )
            if self._lock is not None:
                os.ftruncate(self._lock, 0)
                os.pwrite(self._lock, str(process.pid).encode(), 0)
            if received:
                process.send_signal(received[0])
            return process.wait()
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Keep other pipelines out of the run's folder; a stage that outlives this process keeps them out too.

        Windows has no such locks, and nor have some network file systems: there nothing is locked.
        """
        try:
            import fcntl
        except ImportError:
            yield
            return
        self._lock = os.open(self.file.output / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                process = os.pread(self._lock, 20, 0).decode(errors="replace") or "unknown"
                raise BadInput(
                    f"{self.file.output} is in use by another pipeline or by a stage that one left behind (process "
                    f"{process}): wait until it ends, or end it."
                ) from error
            except OSError:
                log(f"Warning: {self.file.output} cannot be locked: start no second pipeline there.")
            yield
        finally:
            os.close(self._lock)
            self._lock = None


def _holds_files(folder: Path) -> bool:
    return folder.is_dir() and any(folder.iterdir())


def _in_foreground() -> bool:
    """Return whether this process is in the foreground of a terminal, which sends Ctrl-C to all processes there."""
    try:
        terminal = os.open("/dev/tty", os.O_RDONLY)
    except OSError:
        return False
    try:
        return os.tcgetpgrp(terminal) == os.getpgrp()
    except OSError:
        return False
    finally:
        os.close(terminal)
