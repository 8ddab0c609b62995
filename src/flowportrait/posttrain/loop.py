"""Iterations of a trainer, watched, saved, and stopped when there is a reason.

    step ─► look at held-out prompts ─► note ─► examine ─► save        again, until done, asked, hacked or hopeless

All processes go through the same motions, since looking and saving need everybody's weights; the main one speaks.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.live import Live

from flowportrait.config import to_dict
from flowportrait.errors import BadInput
from flowportrait.interrupt import StopRequest
from flowportrait.posttrain.board import board
from flowportrait.posttrain.checkpoint import deliver, latest, write
from flowportrait.posttrain.doctor import examine
from flowportrait.posttrain.events import Events, Journal
from flowportrait.posttrain.outlook import Outlook, liked_best, should_stop
from flowportrait.posttrain.trainer import Trainer
from flowportrait.prompts import Prompt
from flowportrait.terminal import say
from flowportrait.training.processes import on_main, roll_call
from flowportrait.written import write_text

Report = Callable[[dict[str, float]], None]

SECONDS = ("seconds/rollout", "seconds/waiting", "seconds/update")
"""What an iteration's wall-clock is made of."""


@dataclass(frozen=True)
class Job:
    """Everything that is said about a run beside its recipe."""

    output: Path
    start: str = "sft"
    """Checkpoint to start from."""
    resume: bool = False
    held_out: Sequence[Prompt] = ()
    """Prompts to look at and never train on."""
    exemplars: Path | None = None
    """A prepared corpus: its clips are the speech, and their real motion stands in the groups, or is damaged."""
    pairs: Sequence[Path] = ()
    """Stated pairs to learn from."""
    track: str | None = None
    """``tensorboard`` or ``wandb``, through accelerate."""
    report: Report | None = None
    """Called with every iteration's record."""


class Loop:
    """See the module."""

    def __init__(self, trainer: Trainer, job: Job) -> None:
        self.trainer = trainer
        self.job = job
        self.recipe = trainer.recipe
        self.everyone = trainer.accelerator
        self.main = self.everyone.is_main_process
        self.outlook = Outlook(job.held_out, job.output / "samples") if job.held_out else None
        self.metrics = Journal(job.output / "metrics.jsonl")
        self.records = on_main(self.everyone, lambda: _records_until(self.metrics.path, trainer.iteration))
        self.events = Events(job.output / "events.jsonl", self.recipe.give_up, self.main)
        self.state = job.output / "state"
        self.unsaved: OSError | None = None

    def run(self) -> None:
        """Until the recipe's last iteration, a stop rule, or Ctrl-C, which finishes the step under way.

        Raises:
            BadInput: going on made no sense, or what was learned could not be saved; says why and what is kept.
            KeyboardInterrupt: after everything is saved.
        """
        recipe, trainer = self.recipe, self.trainer
        hacked, hopeless = None, None
        before = f"from iteration {trainer.iteration}, " if trainer.iteration else ""
        self.events.note("started", trainer.iteration, f"{before}processes: {self.everyone.num_processes}")
        with (
            StopRequest() as stop,
            Live(console=Console(stderr=True, quiet=not self.main), refresh_per_second=2) as live,
        ):
            if self.outlook and not any("evaluation/sync" in record for record in self.records):
                self.note({"iteration": trainer.iteration, **self.outlook.look(trainer)})
                self.keep()
            while trainer.iteration < recipe.iterations and not (hacked or hopeless or self.asked(stop)):
                record = trainer.step()
                looked = self.outlook is not None and trainer.iteration % recipe.evaluate_every == 0
                if self.outlook and looked:
                    record |= self.outlook.look(trainer)
                self.note(record)
                hopeless = self.events.after_iteration(record)
                if self.main:
                    findings = examine(self.records, to_dict(recipe))
                    live.update(board(record, recipe.iterations, self.seconds_left(), findings))
                if looked:
                    hacked = should_stop(self.records, recipe.patience)
                if trainer.iteration % recipe.checkpoint_every == 0 or looked or self.unsaved:
                    hopeless = self.keep(looked) or hopeless
            self.keep()
        self.events.note("ended", trainer.iteration, hopeless or (hacked.seen if hacked else ""))
        if hopeless or self.unsaved:
            raise BadInput(self.sentence(hopeless))
        if hacked and self.main:
            say(f"Stopped at iteration {trainer.iteration}: {hacked.seen}; checkpoint/ is what evaluation liked best.")
        stop.obey()

    def asked(self, stop: StopRequest) -> bool:
        """Whether any process was asked to stop: then all do, at the same iteration."""
        return any(roll_call(self.everyone, stop.asked))

    def note(self, record: dict[str, float]) -> None:
        """Write down, track and report a record."""
        self.records.append(record)
        if not self.main:
            return
        self.metrics.add(record)
        self.everyone.log(record, step=int(record["iteration"]))
        if self.job.report and "grad_norm" in record:
            self.job.report(record)

    def keep(self, looked: bool = False) -> str | None:
        """Write what resuming needs and the averaged weights, as ``checkpoint`` if evaluation likes them best. What
        cannot be written is tried again after the next iteration; returns a reason to give up, if there is one."""
        best, self.unsaved = self.job.output / "checkpoint", None
        try:
            write(self.trainer, self.state)
            wanted = self.outlook is None or (looked and liked_best(self.records)) or not best.is_dir()
            if any(roll_call(self.everyone, wanted)):
                deliver(self.trainer, best)
            if self.outlook:
                deliver(self.trainer, self.job.output / "latest")
        except OSError as error:
            self.unsaved = error
        return self.events.after_saving(self.trainer.iteration, self.state, self.unsaved)

    def sentence(self, hopeless: str | None) -> str:
        """Why the run ended before its time, what there is, what to do."""
        iteration, saved = self.trainer.iteration, latest(self.state)
        why = hopeless or f"it could not be saved ({self.unsaved and (self.unsaved.strerror or self.unsaved)})"
        kept = f"the state of iteration {int(saved.name)} is complete in {saved}" if saved else "no state was saved"
        return f"The run ended at iteration {iteration}: {why}; {kept}: see events.jsonl, then go on with --resume."

    def seconds_left(self) -> float:
        """By the last iterations."""
        recent = [sum(v for k, v in r.items() if k in SECONDS) for r in self.records[-10:] if "grad_norm" in r]
        return (self.recipe.iterations - self.trainer.iteration) * sum(recent) / max(1, len(recent))


def _records_until(metrics: Path, iteration: int) -> list[dict[str, float]]:
    """What was logged up to ``iteration``; later lines, and one cut off by a crash, are dropped: they come again."""
    kept: list[dict[str, float]] = []
    if metrics.is_file():
        for line in metrics.read_text(encoding="utf-8").splitlines():
            try:
                record = json.loads(line)
            except ValueError:
                break
            if record["iteration"] <= iteration:
                kept.append(record)
        write_text(metrics, "".join(json.dumps(record) + "\n" for record in kept))
    return kept
