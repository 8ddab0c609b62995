"""Post-training of a generator by name, from prompts to a run folder: the recipes, trainer and loop of ``posttrain``.

recipe.json · run.json · metrics.jsonl · events.jsonl · state/ · checkpoint/ (adapters as diffusers loads them)
"""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from flowportrait.config import save
from flowportrait.errors import BadInput
from flowportrait.policies.interface import Generator, Item
from flowportrait.policies.policy import GeneratorPolicy
from flowportrait.policies.task import GeneratorTask
from flowportrait.posttrain.checkpoint import latest, read
from flowportrait.posttrain.loop import Job, Loop
from flowportrait.posttrain.manifest import FORMAT, PACKAGES, hashes, relative_names, write_or_compare
from flowportrait.posttrain.recipe import Recipe
from flowportrait.posttrain.recipes import CARDS
from flowportrait.posttrain.trainer import Trainer
from flowportrait.reward.composite import Composite
from flowportrait.training.processes import on_main, one_voice, roll_call, tracking

LOOKED_AT = 4096
"""Numbers of a tensor that ``fingerprint`` looks at."""


def train_generator(
    generator: Generator, recipe: Recipe, items: Sequence[Item], job: Job, rewards: Composite | None = None
) -> Path:
    """Run a recipe on a generator; ``job.start`` is what it is called. Returns the checkpoint's folder.

    Raises:
        BadInput: bad settings, a recipe for our own generator alone, or a run already in the output folder that differs
            from what is asked.
    """
    check_fits(recipe)
    accelerator = tracking(job.track, job.output)
    with one_voice(accelerator, job.output):
        _train(generator, recipe, items, job, rewards or Composite.default(recipe.rewards), accelerator)
    return job.output / "checkpoint"


def check_fits(recipe: Recipe) -> None:
    """That a generator of three methods has what a recipe asks for; known without the generator.

    Raises:
        BadInput: it has not, with the recipes that fit.
    """
    if needed := ours_alone(recipe):
        able = [name for name, card in CARDS.items() if not ours_alone(card.recipe)]
        raise BadInput(
            f"The recipe {recipe.name} needs {needed}, which another generator does not have: choose one of "
            f"{', '.join(able)}."
        )


def ours_alone(recipe: Recipe) -> str:
    """What a recipe asks that a generator of three methods cannot give; empty where there is nothing."""
    asked = {
        "a history of chunks to explore": recipe.explore,
        "real clips in our own latents": recipe.exemplars or recipe.given,
        "a teacher's own number of steps": recipe.teacher,
        "latents with named regions": recipe.allocation.regions,
        "our own hearing of disturbed speech": recipe.disturbance,
    }
    return next((what for what, part in asked.items() if part), "")


def _train(
    generator: Generator, recipe: Recipe, items: Sequence[Item], job: Job, rewards: Composite, accelerator: Accelerator
) -> None:
    state = job.output / "state"
    if any(roll_call(accelerator, latest(state) is not None)) and not job.resume:
        raise BadInput(f"{job.output} already holds a run: add --resume to continue it or choose another --output.")
    policy = GeneratorPolicy(generator)
    start = {"name": job.start, "fingerprint": on_main(accelerator, lambda: fingerprint(policy, bool(recipe.lora)))}
    trainer = Trainer(policy, GeneratorTask(items, rewards.needs), recipe, rewards, accelerator)
    on_main(accelerator, lambda: _open(job, recipe, items, start))
    if latest(state):
        read(trainer, state)
    on_main(accelerator, lambda: save(trainer.recipe, job.output / "recipe.json"))
    if job.track:
        accelerator.init_trackers("flowportrait")
    Loop(trainer, job).run()
    accelerator.end_training()


def _open(job: Job, recipe: Recipe, items: Sequence[Item], start: dict[str, str]) -> None:
    job.output.mkdir(parents=True, exist_ok=True)
    write_or_compare(job.output / "run.json", _manifest(start, recipe.seed, items))


def fingerprint(policy: GeneratorPolicy, adapted: bool) -> str:
    """What tells the weights that a run leaves as they are (all of them where adapters are trained) from others; those
    that it trains are in its state. A hash of every tensor's name, shape and up to twice ``LOOKED_AT`` evenly spaced
    numbers, so that 14 billion take no longer to know than a million."""
    found = hashlib.sha256()
    for name, weights in policy.named_parameters():
        if adapted or not weights.requires_grad:
            flat = weights.detach().flatten()
            chosen = flat[:: max(1, len(flat) // LOOKED_AT)].cpu().contiguous()
            found.update(f"{name} {tuple(weights.shape)}".encode() + chosen.view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def _manifest(start: dict[str, str], seed: int, items: Sequence[Item]) -> dict[str, Any]:
    names = relative_names(path for item in items for path in (item.image, item.audio) if path is not None)
    return {
        "manifest": FORMAT,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "packages": {name: version(name) for name in PACKAGES},
        "seed": seed,
        "start": start,
        "prompts": {
            item.id: {
                "text": item.text,
                "image": item.image and names[item.image],
                "audio": item.audio and names[item.audio],
            }
            for item in items
        },
        "files": hashes(names),
    }
