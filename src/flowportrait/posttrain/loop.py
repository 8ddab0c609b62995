"""The iterations of a run: train, evaluate, write down, save, and stop when there is a reason.

    step ─► evaluate on held-out prompts ─► record ─► examine ─► save       again, until done, asked, hacked or hopeless

All processes do the same work, since evaluating and saving need everybody's weights; the main one reports.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from flowportrait.config import to_dict
from flowportrait.errors import BadInput
from flowportrait.interrupt import StopRequest
from flowportrait.posttrain.callbacks import Callback
from flowportrait.posttrain.doctor import Finding, examine
from flowportrait.posttrain.events import EventLog, JsonLinesLog
from flowportrait.posttrain.held_out import HeldOutEvaluation, is_best_checkpoint, should_stop
from flowportrait.posttrain.trainer import Trainer
from flowportrait.terminal import say
from flowportrait.training.processes import on_main, roll_call
from flowportrait.training.state import latest_state, write_checkpoint, write_state
from flowportrait.written import write_text

SECONDS = ("seconds/rollout", "seconds/waiting", "seconds/update")
"""Metrics that add up to the wall-clock time of an iteration."""

SAFEGUARDS = ("ratio/mean", "ratio/std", "clip/positive", "clip/negative", "delta_v", "kl", "dead_groups", "grad_norm",
              "noise_gap")  # fmt: skip
"""Metrics that the terminal shows below the rewards."""


class Loop:
    """Trains to the recipe's last iteration, into the folder of a run."""

    def __init__(
        self,
        trainer: Trainer,
        output: Path,
        evaluation: HeldOutEvaluation | None = None,
        callbacks: Sequence[Callback] = (),
    ) -> None:
        self.trainer = trainer
        self.output = output
        self.recipe = trainer.recipe
        self.accelerator = trainer.accelerator
        self.main = self.accelerator.is_main_process
        self.evaluation = evaluation
        self.callbacks = list(callbacks) if self.main else []
        self.metrics = JsonLinesLog(output / "metrics.jsonl")
        self.records = on_main(self.accelerator, lambda: _records_until(self.metrics.path, trainer.iteration))
        self.events = EventLog(output / "events.jsonl", self.recipe.give_up, self.main)
        self.state = output / "state"
        self.unsaved: OSError | None = None

    def run(self) -> None:
        """Train until the recipe's last iteration, a stop rule, a callback that asks to stop, or Ctrl-C, which finishes
        the iteration under way.

        Raises:
            BadInput: going on made no sense, or what was learned could not be saved; says why and what is kept.
            KeyboardInterrupt: after everything is saved.
        """
        recipe, trainer = self.recipe, self.trainer
        hacked, hopeless = None, None
        before = f"from iteration {trainer.iteration}, " if trainer.iteration else ""
        self.events.add("started", trainer.iteration, f"{before}processes: {self.accelerator.num_processes}")
        for callback in self.callbacks:
            callback.stop_reason = None
            callback.on_train_begin(trainer)
        with (
            StopRequest() as stop,
            Live(console=Console(stderr=True, quiet=not self.main), refresh_per_second=2) as live,
        ):
            if self.evaluation and not any(_evaluation_of(record) for record in self.records):
                self.record({"iteration": trainer.iteration, **self.evaluation.run(trainer)})
                self.save()
            while trainer.iteration < recipe.iterations and not (hacked or hopeless or self.asked_to_stop(stop)):
                record = trainer.step()
                evaluated = self.evaluation is not None and trainer.iteration % recipe.evaluate_every == 0
                if self.evaluation and evaluated:
                    record |= self.evaluation.run(trainer)
                self.record(record)
                hopeless = self.events.after_iteration(record)
                if self.main:
                    findings = examine(self.records, to_dict(recipe))
                    live.update(status_table(record, recipe.iterations, self.seconds_left(), findings))
                for callback in self.callbacks:
                    callback.on_step_end(record)
                if evaluated:
                    hacked = should_stop(self.records, recipe.patience)
                if trainer.iteration % recipe.checkpoint_every == 0 or evaluated or self.unsaved:
                    hopeless = self.save(evaluated) or hopeless
            self.save()
        reason = hopeless or (hacked.seen if hacked else "") or self.callback_reason()
        self.events.add("ended", trainer.iteration, reason)
        for callback in self.callbacks:
            callback.on_train_end(reason)
        if hopeless or self.unsaved:
            raise BadInput(self.failure_sentence(hopeless))
        if reason and self.main:
            best = "; checkpoint/ is the one that the evaluation rated best" if self.evaluation else ""
            say(f"Stopped at iteration {trainer.iteration}: {reason}{best}.")
        stop.obey()

    def callback_reason(self) -> str:
        """Why a callback asked to stop; empty where none did."""
        return next((callback.stop_reason for callback in self.callbacks if callback.stop_reason), "")

    def asked_to_stop(self, stop: StopRequest) -> bool:
        """Whether a signal or a callback asked any process to stop: then all do, at the same iteration."""
        return any(roll_call(self.accelerator, stop.asked or bool(self.callback_reason())))

    def record(self, record: dict[str, float]) -> None:
        """Keep a record, write it down, and send it to the tracker."""
        self.records.append(record)
        if not self.main:
            return
        self.metrics.add(record)
        self.accelerator.log(record, step=int(record["iteration"]))
        if evaluation := _evaluation_of(record):
            for callback in self.callbacks:
                callback.on_evaluate(evaluation)

    def save(self, evaluated: bool = False) -> str | None:
        """Write what resuming needs and the averaged weights, as ``checkpoint`` if they are the best so far. What
        cannot be written is tried again after the next iteration; returns a reason to give up, if there is one."""
        best, self.unsaved = self.output / "checkpoint", None
        try:
            write_state(self.trainer, self.state)
            wanted = self.evaluation is None or (evaluated and is_best_checkpoint(self.records)) or not best.is_dir()
            if any(roll_call(self.accelerator, wanted)):
                write_checkpoint(self.trainer, best)
            if self.evaluation:
                write_checkpoint(self.trainer, self.output / "latest")
        except OSError as error:
            self.unsaved = error
        else:
            for callback in self.callbacks:
                callback.on_save(self.output)
        return self.events.after_saving(self.trainer.iteration, self.state, self.unsaved)

    def failure_sentence(self, hopeless: str | None) -> str:
        """Why the run ended before its time, what was saved, and what to do."""
        iteration, saved = self.trainer.iteration, latest_state(self.state)
        why = hopeless or f"it could not be saved ({self.unsaved and (self.unsaved.strerror or self.unsaved)})"
        kept = f"the state of iteration {int(saved.name)} is complete in {saved}" if saved else "no state was saved"
        return f"The run ended at iteration {iteration}: {why}; {kept}: see events.jsonl, then go on with --resume."

    def seconds_left(self) -> float:
        """Estimate of the remaining time, from the last ten iterations."""
        recent = [sum(v for k, v in r.items() if k in SECONDS) for r in self.records[-10:] if "grad_norm" in r]
        return (self.recipe.iterations - self.trainer.iteration) * sum(recent) / max(1, len(recent))


def _evaluation_of(record: Mapping[str, float]) -> dict[str, float]:
    return {key: value for key, value in record.items() if key.startswith("evaluation/")}


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


def status_table(
    record: Mapping[str, float], iterations: int, seconds_left: float, findings: Sequence[Finding]
) -> Group:
    """What the terminal shows: progress, every reward by itself, the safeguards, and the doctor's findings."""
    title = f"iteration {record['iteration']:.0f}/{iterations} · {seconds_left / 60:.1f} min left"
    table = Table(title=title, title_justify="left")
    for column in ("reward", "mean", "spread in groups", "share"):
        table.add_column(column, justify="left" if column == "reward" else "right")
    for key, value in record.items():
        if key.startswith("reward/"):
            name = key.removeprefix("reward/")
            spread, share = record[f"spread/{name}"], record.get(f"share/{name}", 0.0)
            table.add_row(name, f"{value:.4f}", f"{spread:.4f}", f"{share:.0%}")
    for key in SAFEGUARDS:
        if key in record:
            table.add_row(f"[dim]{key}", f"[dim]{record[key]:.4g}", "", "")
    for key, value in record.items():
        if key.startswith("evaluation/"):
            table.add_row(f"[cyan]{key}", f"[cyan]{value:.4f}", "", "")
    lines = [Text(f"{finding.kind}: {finding.seen}", style="yellow") for finding in findings]
    return Group(table, *lines)
