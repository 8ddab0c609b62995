"""The loop of a post-training run: train, evaluate, log, save, and stop.

    step ─► evaluate on held-out prompts ─► record ─► examine ─► save

The loop ends at the last iteration, when a signal or a callback asks it to stop, when the held-out evaluation falls
while rewards rise, or when nothing can be learned or saved any more. All processes run it together, since evaluating
and saving need the weights of all; only the main process writes and prints.

The parts, in order: the log of events, ``Callback``, held-out evaluation, ``TrainingLoop``, and the table in the
terminal.
"""

from __future__ import annotations

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
from flowportrait.rl.doctor import (
    SLOW_FACTOR,
    SLOW_ITERATIONS,
    RunFinding,
    diagnose_run,
    fell_beyond_tolerance,
    reward_hacking,
)
from flowportrait.rl.trainer import Trainer
from flowportrait.terminal import StopRequest, log
from flowportrait.training.distributed import all_gather_object, full_weights, run_on_main
from flowportrait.training.held_out import measure_samples
from flowportrait.training.json_lines import JsonLinesLog, read_until
from flowportrait.training.state import latest_state, write_checkpoint, write_state

# --- The log of events ---
#
# ``metrics.jsonl`` has the metrics of every iteration, ``events.jsonl`` what was unusual about the run:
#
#     {"time": "2026-11-21T10:00:00Z", "iteration": 12, "event": "not saved", "detail": "No space left on device"}


class EventLog:
    """The ``events.jsonl`` of a run, with counts of failures in a row.

    Args:
        path: the file.
        limit: failures of one kind in a row after which the run should stop.
        write: whether this process writes. All processes count, so that all of them stop at the same iteration.
    """

    def __init__(self, path: Path, limit: int, write: bool = True) -> None:
        self.log = JsonLinesLog(path) if write else None
        self.limit = limit
        self.consecutive_failures = {"skipped": 0, "unsaved": 0, "slow": 0}

    def add(self, event: str, iteration: int, detail: str = "") -> None:
        """Write one event."""
        if self.log:
            now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
            self.log.add({"time": now, "iteration": iteration, "event": event, "detail": detail})

    def after_iteration(self, record: Mapping[str, float]) -> str | None:
        """Write what was unusual about an iteration, and return why the run should stop, if it should."""
        iteration = int(record["iteration"])
        invalid = {key.removeprefix("invalid/"): share for key, share in record.items() if key.startswith("invalid/")}
        for name, share in invalid.items():
            if share > 0:
                self.add("not scored", iteration, f"{name} could not score {share:.0%} of the samples")
        skipped, all_failed = record.get("skipped", 0.0) > 0, bool(invalid) and min(invalid.values()) == 1.0
        why = "no reward scored anything" if all_failed else "samples or gradients were not numbers"
        self.consecutive_failures["skipped"] = self.consecutive_failures["skipped"] + 1 if skipped else 0
        if skipped:
            self.add("skipped", iteration, why)
        self._check_pace(record, iteration)
        if self.consecutive_failures["skipped"] >= self.limit:
            return f"nothing was learned for {self.limit} iterations in a row, since {why}"
        return None

    def after_saving(self, iteration: int, where: Path, error: OSError | None) -> str | None:
        """Write whether saving failed, and return why the run should stop, if it should."""
        if error is None:
            if self.consecutive_failures["unsaved"]:
                self.add("saved again", iteration, str(where))
            self.consecutive_failures["unsaved"] = 0
            return None
        self.consecutive_failures["unsaved"] += 1
        self.add("not saved", iteration, str(error))
        if self.consecutive_failures["unsaved"] >= self.limit:
            return f"it could not be saved {self.limit} times in a row ({error.strerror or error})"
        return None

    def _check_pace(self, record: Mapping[str, float], iteration: int) -> None:
        """Write an event when one process has been slow for ``SLOW_ITERATIONS`` iterations."""
        self.consecutive_failures["slow"] = (
            self.consecutive_failures["slow"] + 1 if record.get("slowest/times", 1.0) > SLOW_FACTOR else 0
        )
        if self.consecutive_failures["slow"] == SLOW_ITERATIONS:
            process, times = int(record["slowest/process"]), record["slowest/times"]
            self.add("slow process", iteration, f"process {process} takes {times:.1f} times as long as the median")


# --- Callbacks ---


class Callback:
    """User code that is called while a run trains. Override the methods that you need; by default they do nothing.

    For example:

        class Patience(Callback):
            def on_evaluate(self, metrics):
                if metrics["evaluation/sync"] < 0.1:
                    self.stop("lip sync is gone")

        PostTrainer(..., callbacks=[Patience()])

    Of several processes only the main one calls them. An exception in a callback ends the run; the last saved state is
    kept.
    """

    stop_reason: str | None = None
    """Why the run should end after this iteration, set by ``stop``."""

    def stop(self, reason: str) -> None:
        """Ask the run to end after this iteration. It is saved first and can be resumed."""
        self.stop_reason = reason

    def on_train_begin(self, trainer: Trainer) -> None:
        """Called before the first iteration. ``trainer`` has ``recipe``, ``policy`` and ``iteration``."""

    def on_step_end(self, metrics: Mapping[str, float]) -> None:
        """Called after every iteration, with its line of ``metrics.jsonl``."""

    def on_evaluate(self, metrics: Mapping[str, float]) -> None:
        """Called after every evaluation on held-out prompts, with its metrics ``evaluation/…``."""

    def on_save(self, folder: Path) -> None:
        """Called after a state was written. ``folder`` is that of the run and has ``checkpoint`` in it."""

    def on_train_end(self, reason: str) -> None:
        """Called after the last iteration. ``reason`` is why the run ended early, or empty if it did not."""


# --- Evaluation on held-out prompts ---
#
# The evaluation uses experts other than the rewards'. It selects the best checkpoint, and it stops a run in which the
# rewards rise while the evaluation falls.

SYNC, FACES = "evaluation/sync", "evaluation/faces"
"""Metrics that select the best checkpoint: lip sync, and the share of samples with a face."""


@dataclass(frozen=True)
class HeldOutEvaluation:
    """An evaluation on prompts that a run never trains on.

    Attributes:
        prompts: the prompts, of the type that ``write_sample`` takes.
        folder: where the videos are written, in one folder per evaluation.
        write_sample: samples a prompt with the current weights of the trainer's policy and writes the video.
    """

    prompts: Sequence[Any]
    folder: Path
    write_sample: Callable[[Trainer, Any, Path], None]

    def run(self, trainer: Trainer) -> dict[str, float]:
        """Sample and measure all prompts with the averaged weights. All processes call it together.

        Raises:
            BadInput: nothing can be measured before training has begun.
        """
        policy, folder = trainer.roles.policy, self.folder / f"{trainer.iteration:05d}"

        def measure() -> dict[str, float]:
            return measure_samples(self.prompts, folder, lambda prompt, path: self.write_sample(trainer, prompt, path))

        policy.eval()
        try:
            with trainer.roles.use("ema"), full_weights(trainer.replay):
                metrics = run_on_main(trainer.accelerator, measure)
        finally:
            policy.train()
        if not metrics.keys() - {FACES} and trainer.iteration == 0:
            raise BadInput(
                "Nothing can be measured of the held-out prompts, since no sample shows a face: choose other prompts, "
                f"or leave out --held-out; the samples are in {folder}."
            )
        return metrics


def is_best_checkpoint(records: Sequence[Mapping[str, float]]) -> bool:
    """Return whether the last evaluation is the best so far, by lip sync.

    An evaluation is never the best if lips move or the face trembles more than twice as much as at the start, which
    lip sync alone would reward, or if fewer samples show a face than at the start. If lip sync cannot be measured, the
    last checkpoint counts as the best.
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


def find_stop_reason(records: Sequence[Mapping[str, float]], patience: int) -> RunFinding | None:
    """Return the finding that ends a run, or None.

    A run ends if for ``patience`` evaluations in a row the rewards rose while lip sync fell, or if fewer than half as
    many samples show a face as at the start.
    """
    evaluations = [record for record in records if _has_evaluation(record)]
    if len(evaluations) <= patience:
        return None
    first, recent = evaluations[0], evaluations[-patience:]
    faces = [record.get(FACES, 1.0) for record in (first, *recent)]
    if SYNC not in recent[-1] and max(faces[1:]) < faces[0] / 2:
        return RunFinding(
            "faces lost",
            f"held-out samples with a face fell from {faces[0]:.0%} to {faces[-1]:.0%}",
            "take the best checkpoint, and lower learning_rate or raise kl_weight.",
        )
    if SYNC not in first or not all(
        SYNC in record and fell_beyond_tolerance(first[SYNC], record[SYNC]) for record in recent
    ):
        return None
    return reward_hacking(records, {})


def _has_evaluation(record: Mapping[str, float]) -> bool:
    return any(key.startswith("evaluation/") for key in record)


# --- The loop ---

TIME_METRICS = ("seconds/rollout", "seconds/waiting", "seconds/update")
"""Metrics that add up to the wall-clock time of an iteration."""


class TrainingLoop:
    """The training loop of a run, which writes to the run's folder."""

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
        self.records = run_on_main(
            self.accelerator, lambda: read_until(self.metrics.path, "iteration", trainer.iteration)
        )
        self.events = EventLog(output / "events.jsonl", self.recipe.give_up, self.main)
        self.state = output / "state"
        self.unsaved: OSError | None = None

    def run(self) -> None:
        """Train until the recipe's last iteration, a stop rule, a callback that asks to stop, or Ctrl-C.

        Ctrl-C finishes the current iteration.

        Raises:
            BadInput: nothing could be learned, or what was learned could not be saved. The message says why, and which
                state is kept.
            KeyboardInterrupt: after everything is saved.
        """
        recipe, trainer = self.recipe, self.trainer
        hacking, failure = None, None
        resumed = f"from iteration {trainer.iteration}, " if trainer.iteration else ""
        self.events.add("started", trainer.iteration, f"{resumed}processes: {self.accelerator.num_processes}")
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
            while trainer.iteration < recipe.iterations and not (hacking or failure or self.stop_requested(stop)):
                record = trainer.step()
                evaluated = self.evaluation is not None and trainer.iteration % recipe.evaluate_every == 0
                if self.evaluation and evaluated:
                    record |= self.evaluation.run(trainer)
                self.record(record)
                failure = self.events.after_iteration(record)
                if self.main:
                    needs = {reward.name: reward.needs for reward in trainer.rewards.rewards}
                    findings = diagnose_run(self.records, to_dict(recipe), needs)
                    live.update(status_table(record, recipe.iterations, self.seconds_left(), findings))
                for callback in self.callbacks:
                    callback.on_step_end(record)
                if evaluated:
                    hacking = find_stop_reason(self.records, recipe.patience)
                if trainer.iteration % recipe.checkpoint_every == 0 or evaluated or self.unsaved:
                    failure = self.save(evaluated) or failure
            self.save()
        reason = failure or (hacking.seen if hacking else "") or self.callback_reason()
        self.events.add("ended", trainer.iteration, reason)
        for callback in self.callbacks:
            callback.on_train_end(reason)
        if failure or self.unsaved:
            raise BadInput(self.failure_sentence(failure))
        if reason and self.main:
            best = "; checkpoint/ is the one that the evaluation rated best" if self.evaluation else ""
            log(f"Stopped at iteration {trainer.iteration}: {reason}{best}.")
        if stop.requested:
            log(f"Saved after {trainer.iteration} iterations in {self.output}; --resume goes on from there.")
        stop.raise_pending_signal()

    def callback_reason(self) -> str:
        """Return why a callback asked to stop, or an empty string."""
        return next((callback.stop_reason for callback in self.callbacks if callback.stop_reason), "")

    def stop_requested(self, stop: StopRequest) -> bool:
        """Return whether a signal or a callback asked any process to stop. Then all stop at the same iteration."""
        return any(all_gather_object(self.accelerator, stop.requested or bool(self.callback_reason())))

    def record(self, record: dict[str, float]) -> None:
        """Keep a record in memory, write it to ``metrics.jsonl``, and send it to the tracker and the callbacks."""
        self.records.append(record)
        if not self.main:
            return
        self.metrics.add(record)
        self.accelerator.log(record, step=int(record["iteration"]))
        if evaluation := _evaluation_of(record):
            for callback in self.callbacks:
                callback.on_evaluate(evaluation)

    def save(self, evaluated: bool = False) -> str | None:
        """Write the state to resume from and the averaged weights, as ``checkpoint`` if they are the best so far.

        If writing fails it is tried again after the next iteration.

        Returns:
            Why the run should stop, if it should.
        """
        best, self.unsaved = self.output / "checkpoint", None
        try:
            write_state(self.trainer, self.state)
            is_best = self.evaluation is None or (evaluated and is_best_checkpoint(self.records)) or not best.is_dir()
            if any(all_gather_object(self.accelerator, is_best)):
                write_checkpoint(self.trainer, best)
            if self.evaluation:
                write_checkpoint(self.trainer, self.output / "latest")
        except OSError as error:
            self.unsaved = error
        else:
            for callback in self.callbacks:
                callback.on_save(self.output)
        return self.events.after_saving(self.trainer.iteration, self.state, self.unsaved)

    def failure_sentence(self, failure: str | None) -> str:
        """Return why the run ended early, what was saved, and what to do."""
        iteration, saved = self.trainer.iteration, latest_state(self.state)
        why = failure or f"it could not be saved ({self.unsaved and (self.unsaved.strerror or self.unsaved)})"
        saved_state = (
            f"the state of iteration {int(saved.name)} is complete in {saved}" if saved else "no state was saved"
        )
        return (
            f"The run ended at iteration {iteration}: {why}; {saved_state}: see events.jsonl, then go on with --resume."
        )

    def seconds_left(self) -> float:
        """Return an estimate of the remaining time, from the last ten iterations."""
        recent = [sum(v for k, v in r.items() if k in TIME_METRICS) for r in self.records[-10:] if "grad_norm" in r]
        return (self.recipe.iterations - self.trainer.iteration) * sum(recent) / max(1, len(recent))


def _evaluation_of(record: Mapping[str, float]) -> dict[str, float]:
    """Return the metrics of a held-out evaluation in a record."""
    return {key: value for key, value in record.items() if key.startswith("evaluation/")}


# --- The table in the terminal ---

SAFEGUARD_METRICS = ("ratio/mean", "ratio/std", "clip/positive", "clip/negative", "delta_v", "kl", "dead_groups",
              "grad_norm", "noise_gap")  # fmt: skip
"""Metrics that the terminal shows below the rewards."""


def status_table(
    record: Mapping[str, float], iterations: int, seconds_left: float, findings: Sequence[RunFinding]
) -> Group:
    """Return what the terminal shows: progress, every reward, the safeguard metrics, the evaluation, and findings."""
    title = f"iteration {record['iteration']:.0f}/{iterations} · {seconds_left / 60:.1f} min left"
    table = Table(title=title, title_justify="left")
    for column in ("reward", "mean", "spread in groups", "share"):
        table.add_column(column, justify="left" if column == "reward" else "right")
    for key, value in record.items():
        if key.startswith("reward/"):
            name = key.removeprefix("reward/")
            spread, share = record[f"spread/{name}"], record.get(f"share/{name}", 0.0)
            table.add_row(name, f"{value:.4f}", f"{spread:.4f}", f"{share:.0%}")
    for key in SAFEGUARD_METRICS:
        if key in record:
            table.add_row(f"[dim]{key}", f"[dim]{record[key]:.4g}", "", "")
    for key, value in record.items():
        if key.startswith("evaluation/"):
            table.add_row(f"[cyan]{key}", f"[cyan]{value:.4f}", "", "")
    lines = [Text(f"{finding.kind}: {finding.seen}", style="yellow") for finding in findings]
    return Group(table, *lines)
