"""Post-training from prompts on disk to a run folder: set-up, live progress, looks ahead, checkpoints, resume.

    recipe.json     the resolved recipe                    metrics.jsonl   one line per iteration
    run.json        versions, seed, hashes of all inputs   samples/        held-out videos every k iterations
    state/          to resume from                         checkpoint/     what to use: ``animate --checkpoint RUN``
    latest/         the last averaged weights, where the held-out evaluation chose an earlier ``checkpoint``
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from rich.console import Console
from rich.live import Live

from flowportrait.checkpoints import load_generator
from flowportrait.codec.motion_codec import MotionCodec
from flowportrait.config import override, save, to_dict
from flowportrait.corpus.motion_set import load_motion
from flowportrait.errors import BadInput
from flowportrait.interrupt import StopRequest
from flowportrait.media.audio import read_audio
from flowportrait.media.image import read_image
from flowportrait.media.portrait import Portrait
from flowportrait.posttrain.board import board
from flowportrait.posttrain.checkpoint import deliver, latest, read, write
from flowportrait.posttrain.doctor import examine
from flowportrait.posttrain.drawing import Drawing
from flowportrait.posttrain.items import Item, speech
from flowportrait.posttrain.manifest import manifest, write_or_compare
from flowportrait.posttrain.outlook import Outlook, liked_best, should_stop
from flowportrait.posttrain.recipe import Recipe
from flowportrait.posttrain.recipes import named, read_recipe
from flowportrait.posttrain.scale import processes
from flowportrait.posttrain.task import TalkingTask
from flowportrait.posttrain.trainer import Trainer
from flowportrait.prompts import Prompt, read_prompts
from flowportrait.reward.composite import Composite
from flowportrait.terminal import say

Report = Callable[[dict[str, float]], None]
TRAINING_SPLITS = ("reward", "evaluation")
TRACKERS = ("tensorboard", "wandb")


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
    """A prepared corpus: its clips are the speech, and their real motion stands in the groups."""
    track: str | None = None
    """``tensorboard`` or ``wandb``, through accelerate."""
    report: Report | None = None
    """Called with every iteration's record."""


def resolve(recipe: str, iterations: int | None, overrides: Sequence[str]) -> Recipe:
    """A recipe by name, or by the folder of a run that used it, with command-line changes applied.

    Raises:
        BadInput: unknown recipe, key or value.
    """
    path = Path(recipe)
    found = read_recipe(path / "recipe.json" if path.is_dir() else path) if path.exists() else named(recipe)
    return override(found, list(overrides) + ([f"iterations={iterations}"] if iterations is not None else []))


def posttrain(
    recipe: str, prompts: Path, job: Job, iterations: int | None = None, overrides: Sequence[str] = ()
) -> Path:
    """Post-train on the prompts of a folder; returns the checkpoint's folder.

    Raises:
        BadInput: bad prompts or settings, or a run already in the output folder that differs from what is asked.
    """
    return train(resolve(recipe, iterations, overrides), read_prompts(prompts), job)


def train(recipe: Recipe, prompts: Sequence[Prompt], job: Job) -> Path:
    """Run a resolved recipe on prompts; see ``posttrain``."""
    output, state = job.output, job.output / "state"
    if latest(state) and not job.resume:
        raise BadInput(f"{output} already holds a run: add --resume to continue it or choose another --output.")
    accelerator = tracking(job)
    policy = load_generator(job.start)
    items, codecs = stage(prompts, recipe, job.exemplars)

    def draw_for(rows: Sequence[int]) -> Drawing:
        return Drawing(codecs, rows, recipe.render_size)

    task = TalkingTask(items, recipe.frames, draw_for, policy.config.chunk)
    trainer = Trainer(policy, task, recipe, Composite.default(recipe.rewards), accelerator)
    output.mkdir(parents=True, exist_ok=True)
    for change in write_or_compare(output / "run.json", manifest(job.start, prompts, recipe.seed)):
        say(f"Warning: {change}; a resumed run may differ in its last bits.")
    if latest(state):
        read(trainer, state)
    save(recipe, output / "recipe.json")
    if job.track:
        accelerator.init_trackers("flowportrait", _flat(to_dict(recipe)))
    Loop(trainer, job).run()
    accelerator.end_training()
    return output / "checkpoint"


class Loop:
    """Iterations of a trainer, watched."""

    def __init__(self, trainer: Trainer, job: Job) -> None:
        self.trainer = trainer
        self.job = job
        self.recipe = trainer.recipe
        self.outlook = Outlook(job.held_out, job.output / "samples") if job.held_out else None
        self.metrics = job.output / "metrics.jsonl"
        self.records = _records_until(self.metrics, trainer.iteration)
        self.main = trainer.accelerator.is_main_process

    def run(self) -> None:
        """Until the recipe's last iteration, a stop rule, or Ctrl-C, which finishes the step under way.

        Raises:
            KeyboardInterrupt: after everything is saved.
        """
        recipe, trainer, reason = self.recipe, self.trainer, None
        with (
            StopRequest() as stop,
            self.metrics.open("a") as log,
            Live(console=Console(stderr=True, quiet=not self.main), refresh_per_second=2) as live,
        ):
            if self.outlook and not any("evaluation/sync" in record for record in self.records):
                self.note({"iteration": trainer.iteration, **self.outlook.look(trainer)}, log)
                self.keep()
            while trainer.iteration < recipe.iterations and not stop.asked and not reason:
                record = trainer.step()
                looked = self.outlook is not None and trainer.iteration % recipe.evaluate_every == 0
                if self.outlook and looked:
                    record |= self.outlook.look(trainer)
                self.note(record, log)
                findings = examine(self.records, to_dict(recipe))
                live.update(board(record, recipe.iterations, self.seconds_left(), findings))
                if looked:
                    reason = should_stop(self.records, recipe.patience)
                if trainer.iteration % recipe.checkpoint_every == 0 or looked:
                    self.keep(looked)
            self.keep()
        if reason:
            say(f"Stopped at iteration {trainer.iteration}: {reason.seen}; checkpoint/ is what evaluation liked best.")
        stop.obey()

    def note(self, record: dict[str, float], log: Any) -> None:
        """Write down, track and report a record."""
        self.records.append(record)
        if not self.main:
            return
        log.write(json.dumps(record) + "\n")
        log.flush()
        self.trainer.accelerator.log(record, step=int(record["iteration"]))
        if self.job.report and "grad_norm" in record:
            self.job.report(record)

    def keep(self, looked: bool = False) -> None:
        """Write what resuming needs and the averaged weights; as ``checkpoint`` if evaluation likes them best."""
        output, best = self.job.output, self.job.output / "checkpoint"
        write(self.trainer, output / "state")
        if self.outlook is None or not best.is_dir() or (looked and liked_best(self.records)):
            deliver(self.trainer, best)
        if self.outlook:
            deliver(self.trainer, output / "latest")

    def seconds_left(self) -> float:
        """By the last iterations."""
        recent = [sum(v for k, v in r.items() if k in SECONDS) for r in self.records[-10:] if "grad_norm" in r]
        return (self.recipe.iterations - self.trainer.iteration) * sum(recent) / max(1, len(recent))


SECONDS = ("seconds/rollout", "seconds/waiting", "seconds/update")
"""What an iteration's wall-clock is made of."""


def tracking(job: Job) -> Accelerator:
    """The device and the processes, and where curves go.

    Raises:
        BadInput: an unknown tracker, or one that is not installed.
    """
    if job.track is None:
        return processes()
    from accelerate.utils import is_tensorboard_available, is_wandb_available

    installed = {"tensorboard": is_tensorboard_available, "wandb": is_wandb_available}
    if job.track not in TRACKERS:
        raise BadInput(f"--track {job.track} is not known: choose {' or '.join(TRACKERS)}.")
    if not installed[job.track]():
        raise BadInput(f"--track {job.track} needs the package: run 'pip install {job.track}'.")
    return processes(log_with=job.track, project_dir=str(job.output))


def stage(
    prompts: Sequence[Prompt], recipe: Recipe, exemplars: Path | None = None
) -> tuple[list[Item], list[MotionCodec]]:
    """Load every portrait once and every recording once; with a corpus of exemplars, its clips are the recordings.

    Raises:
        BadInput: the recipe needs exemplars and there are none, or none long enough.
    """
    if recipe.exemplars and exemplars is None:
        raise BadInput(f"The recipe {recipe.name} needs real clips: give a prepared corpus with --exemplars.")
    images = sorted({prompt.image for prompt in prompts})
    codecs = [MotionCodec(Portrait.from_image(read_image(image)), recipe.render_size) for image in images]
    if exemplars is not None:
        clips = [c for c in load_motion(exemplars, TRAINING_SPLITS) if len(c.motion) > recipe.frames]
        if not clips:
            raise BadInput(f"{exemplars} has no clip of more than {recipe.frames} frames: lower --set frames.")
        return [Item(c.mel, number % len(images), c.motion) for number, c in enumerate(clips)], codecs
    sounds = {path: speech(read_audio(path), recipe.frames) for path in {prompt.audio for prompt in prompts}}
    return [Item(sounds[prompt.audio], images.index(prompt.image)) for prompt in prompts], codecs


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as trackers take them."""
    result: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            result |= _flat(value, f"{prefix}{key}.")
        else:
            result[prefix + key] = value if isinstance(value, (int, float, str, bool)) else str(value)
    return result


def _records_until(metrics: Path, iteration: int) -> list[dict[str, float]]:
    """What was logged up to ``iteration``; later lines, and one cut off by a crash, are dropped: they come again."""
    kept: list[dict[str, float]] = []
    if metrics.is_file():
        for line in metrics.read_text().splitlines():
            try:
                record = json.loads(line)
            except ValueError:
                break
            if record["iteration"] <= iteration:
                kept.append(record)
        partial = metrics.with_suffix(".partial")
        partial.write_text("".join(json.dumps(record) + "\n" for record in kept))
        partial.replace(metrics)
    return kept
