"""Iterations, callbacks, events, held-out evaluation and the rule that stops a run.

What happened to a run, one line each in ``events.jsonl``, and when going on makes no sense.

    {"time": "2026-11-21T10:00:00Z", "iteration": 12, "event": "not saved", "detail": "No space left on device"}

What an iteration is worth keeping for is in ``metrics.jsonl``; here is what a person asks about on Monday morning.

Code of one's own that runs while a run trains.

class Patience(Callback):
    def on_evaluate(self, metrics):
        if metrics["evaluation/sync"] < 0.1:
            self.stop("lip sync is gone")

PostTrainer(..., callbacks=[Patience()])

Evaluation on held-out prompts while a run trains: which checkpoint is the best, and when to stop.

The checkpoint that is delivered is the one that the evaluation's experts rate best. A run whose rewards rise while the
evaluation falls is stopped.

The iterations of a run: train, evaluate, write down, save, and stop when there is a reason.

    step ─► evaluate on held-out prompts ─► record ─► examine ─► save       again, until done, asked, hacked or hopeless

All processes do the same work, since evaluating and saving need everybody's weights; the main one reports.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from flowportrait.config import to_dict
from flowportrait.errors import BadInput
from flowportrait.files import write_text
from flowportrait.rl.doctor import SLOW, SLOW_FOR, Finding, examine, is_worse, reward_hacking
from flowportrait.rl.trainer import Trainer
from flowportrait.terminal import StopRequest, say
from flowportrait.training.distributed import gathered, on_main, roll_call
from flowportrait.training.held_out import measure_samples
from flowportrait.training.state import latest_state, write_checkpoint, write_state


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


class Callback:
    """Override what you need; every method does nothing here.

    Of several processes the main one calls them. What a callback raises ends the run; the last saved state is kept.
    """

    stop_reason: str | None = None
    """Why the run should end after this iteration, set by ``stop``."""

    def stop(self, reason: str) -> None:
        """Ask the run to end after this iteration; it is saved first and can be resumed."""
        self.stop_reason = reason

    def on_train_begin(self, trainer: Trainer) -> None:
        """Before the first iteration; ``trainer`` has ``recipe``, ``policy`` and ``iteration``."""

    def on_step_end(self, metrics: Mapping[str, float]) -> None:
        """After every iteration, with its line of ``metrics.jsonl``."""

    def on_evaluate(self, metrics: Mapping[str, float]) -> None:
        """After every evaluation on held-out prompts, with its ``evaluation/…``."""

    def on_save(self, folder: Path) -> None:
        """After a state was written; ``folder`` is the run's, with ``checkpoint`` in it."""

    def on_train_end(self, reason: str) -> None:
        """After the last iteration; ``reason`` says why a run ended early, and is empty where it did not."""


SYNC, FACES = "evaluation/sync", "evaluation/faces"


@dataclass(frozen=True)
class HeldOutEvaluation:
    """Prompts that a run never trains on.

    Attributes:
        prompts: what to draw, of the kind that ``write_sample`` takes.
        folder: where the videos go, in one folder for each evaluation.
        write_sample: draws a prompt with the weights that are in the trainer's policy, and writes the video.
    """

    prompts: Sequence[Any]
    folder: Path
    write_sample: Callable[[Trainer, Any, Path], None]

    def run(self, trainer: Trainer) -> dict[str, float]:
        """Draw and measure all prompts with the averaged weights; all processes together.

        Raises:
            BadInput: nothing can be measured before training has begun.
        """
        policy, folder = trainer.roles.policy, self.folder / f"{trainer.iteration:05d}"

        def measured() -> dict[str, float]:
            return measure_samples(self.prompts, folder, lambda prompt, path: self.write_sample(trainer, prompt, path))

        policy.eval()
        try:
            with trainer.roles.use("ema"), gathered(trainer.replay):
                found = on_main(trainer.accelerator, measured)
        finally:
            policy.train()
        if not found.keys() - {FACES} and trainer.iteration == 0:
            raise BadInput(
                "Nothing can be measured of the held-out prompts, since no sample shows a face: choose other prompts, "
                f"or leave out --held-out; the samples are in {folder}."
            )
        return found


def is_best_checkpoint(records: Sequence[Mapping[str, float]]) -> bool:
    """Whether the last evaluation is the best so far.

    The measure is lip sync. An evaluation is never the best in which lips move or the face trembles more than twice as
    much as at the start, which sync alone would reward, or in which faces are missing that were there at the start.
    Where lip sync cannot be measured the last checkpoint counts as the best.
    """
    evaluations = [record for record in records if _has_evaluation(record)]
    first, last = evaluations[0], evaluations[-1]
    for key in ("evaluation/amplitude", "evaluation/trembling"):
        if key in first and last.get(key, 0.0) > 2 * first[key]:
            return False
    if last.get(FACES, 1.0) < first.get(FACES, 1.0):
        return False
    if SYNC not in first:
        return True
    return SYNC in last and all(last[SYNC] >= record[SYNC] for record in evaluations if SYNC in record)


def should_stop(records: Sequence[Mapping[str, float]], patience: int) -> Finding | None:
    """The finding that ends a run: for ``patience`` evaluations in a row rewards rose while lip sync fell, or faces
    that were there at the start were missing."""
    evaluations = [record for record in records if _has_evaluation(record)]
    if len(evaluations) <= patience:
        return None
    first, recent = evaluations[0], evaluations[-patience:]
    faces = [record.get(FACES, 1.0) for record in (first, *recent)]
    if SYNC not in recent[-1] and max(faces[1:]) < faces[0] / 2:
        return Finding(
            "faces lost",
            f"held-out samples with a face fell from {faces[0]:.0%} to {faces[-1]:.0%}",
            "take the best checkpoint, and lower learning_rate or raise kl_weight.",
        )
    if SYNC not in first or not all(SYNC in record and is_worse(first[SYNC], record[SYNC]) for record in recent):
        return None
    return reward_hacking(records, {})


def _has_evaluation(record: Mapping[str, float]) -> bool:
    return any(key.startswith("evaluation/") for key in record)


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
