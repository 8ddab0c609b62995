"""Post-training from prompts on disk to a run folder: set-up, live progress, checkpoints, resume.

A run folder holds ``recipe.json`` (resolved), ``metrics.jsonl`` (one line per iteration), ``state.pt`` (to resume
from) and ``checkpoint/`` (the averaged weights, ready for ``animate --checkpoint``).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.live import Live
from rich.table import Table

from flowportrait.checkpoints import load_generator
from flowportrait.codec.motion_codec import MotionCodec
from flowportrait.config import override, save
from flowportrait.errors import BadInput
from flowportrait.interrupt import StopRequest
from flowportrait.media.audio import read_audio
from flowportrait.media.image import read_image
from flowportrait.media.portrait import Portrait
from flowportrait.posttrain.checkpoint import deliver, read, write
from flowportrait.posttrain.items import Item, speech
from flowportrait.posttrain.recipe import Recipe
from flowportrait.posttrain.recipes import named
from flowportrait.posttrain.task import TalkingTask
from flowportrait.posttrain.trainer import Trainer
from flowportrait.prompts import Prompt, read_prompts
from flowportrait.reward.composite import Composite
from flowportrait.reward.interface import Draw

Report = Callable[[dict[str, float]], None]


def resolve(recipe: str, iterations: int | None, overrides: Sequence[str]) -> Recipe:
    """A recipe by name with command-line changes applied.

    Raises:
        BadInput: unknown recipe, key or value.
    """
    changes = list(overrides) + ([f"iterations={iterations}"] if iterations is not None else [])
    return override(named(recipe), changes)


def posttrain(
    recipe: str,
    prompts: Path,
    output: Path,
    iterations: int | None = None,
    resume: bool = False,
    overrides: Sequence[str] = (),
    start: str = "sft",
    report: Report | None = None,
) -> Path:
    """Post-train ``start`` on the prompts of a folder; returns the checkpoint's folder.

    Raises:
        BadInput: bad prompts or settings, or a run already in ``output`` that differs from what is asked.
    """
    chosen = resolve(recipe, iterations, overrides)
    return train(chosen, read_prompts(prompts), output, resume, start, report)


def train(
    recipe: Recipe,
    prompts: Sequence[Prompt],
    output: Path,
    resume: bool = False,
    start: str = "sft",
    report: Report | None = None,
) -> Path:
    """Run a resolved recipe on prompts; see ``posttrain``."""
    state, metrics = output / "state.pt", output / "metrics.jsonl"
    if state.is_file() and not resume:
        raise BadInput(f"{output} already holds a run: add --resume to continue it or choose another --output.")
    policy = load_generator(start)
    items, codecs = stage(prompts, recipe)
    task = TalkingTask(items, recipe.frames, small_drawing(codecs), policy.config.chunk)
    trainer = Trainer(policy, task, recipe, Composite.default(recipe.rewards))
    output.mkdir(parents=True, exist_ok=True)
    if state.is_file():
        read(trainer, state)
        _forget_after(metrics, trainer.iteration)
        if json.loads((output / "recipe.json").read_text())["seed"] != recipe.seed:
            raise BadInput(f"{output} was started with another seed: resume with the seed in its recipe.json.")
    save(recipe, output / "recipe.json")
    with (
        StopRequest() as stop,
        metrics.open("a") as log,
        Live(console=Console(stderr=True), refresh_per_second=2) as live,
    ):
        seconds: list[float] = []
        while trainer.iteration < recipe.iterations and not stop.asked:
            record = trainer.step()
            seconds.append(sum(v for k, v in record.items() if k.startswith("seconds/")))
            log.write(json.dumps(record) + "\n")
            log.flush()
            left = (recipe.iterations - trainer.iteration) * sum(seconds[-10:]) / len(seconds[-10:])
            live.update(progress_table(record, recipe.iterations, left))
            if report:
                report(record)
            if trainer.iteration % recipe.checkpoint_every == 0:
                keep(trainer, output)
        keep(trainer, output)
    stop.obey()
    return output / "checkpoint"


def keep(trainer: Trainer, output: Path) -> None:
    """Write what resuming needs and the averaged weights as a checkpoint to use."""
    write(trainer, output / "state.pt")
    deliver(trainer, output / "checkpoint")


def stage(prompts: Sequence[Prompt], recipe: Recipe) -> tuple[list[Item], list[MotionCodec]]:
    """Load every portrait once and every recording once."""
    images = sorted({prompt.image for prompt in prompts})
    codecs = [MotionCodec(Portrait.from_image(read_image(image)), recipe.render_size) for image in images]
    sounds = {path: speech(read_audio(path), recipe.frames) for path in {prompt.audio for prompt in prompts}}
    return [Item(sounds[prompt.audio], images.index(prompt.image)) for prompt in prompts], codecs


def small_drawing(codecs: Sequence[MotionCodec]) -> Callable[[Sequence[int]], Draw]:
    """Rendering for rewards: each row of a batch on its own portrait."""

    def draw_for(portraits: Sequence[int]) -> Draw:
        def draw(motion: torch.Tensor, indices: tuple[int, ...]) -> torch.Tensor:
            clips = []
            for row, portrait in zip(motion, portraits, strict=True):
                frames = [torch.from_numpy(frame.copy()) for frame in codecs[portrait].decode(row[list(indices)])]
                clips.append(torch.stack(frames))
            return torch.stack(clips).permute(0, 1, 4, 2, 3).float() / 255

        return draw

    return draw_for


def progress_table(record: dict[str, float], iterations: int, seconds_left: float) -> Table:
    """What the terminal shows: place, time left, and every reward apart."""
    title = f"iteration {record['iteration']:.0f}/{iterations} · {seconds_left / 60:.1f} min left"
    table = Table(title=title, title_justify="left")
    for column in ("reward", "mean", "spread in groups"):
        table.add_column(column, justify="left" if column == "reward" else "right")
    for key, value in record.items():
        if key.startswith("reward/"):
            name = key.removeprefix("reward/")
            table.add_row(name, f"{value:.4f}", f"{record[f'spread/{name}']:.4f}")
    for key in ("ratio/mean", "ratio/std", "kl", "grad_norm", "noise_gap"):
        if key in record:
            table.add_row(f"[dim]{key}", f"[dim]{record[key]:.4g}", "")
    return table


def _forget_after(metrics: Path, iteration: int) -> None:
    """Drop logged iterations that the saved state does not contain; they will be run again."""
    if metrics.is_file():
        lines = metrics.read_text().splitlines(keepends=True)
        metrics.write_text("".join(line for line in lines if json.loads(line)["iteration"] <= iteration))
