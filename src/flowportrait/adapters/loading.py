"""Generators by name, and their prompts and samples in post-training.

Generators of other people and their prompts, by name.

Wan-AI/Wan2.1-I2V-14B-480P-Diffusers     models/my-pipeline     my_package.generators:Mine     an entry point's name

Prompts are a ``prompts.jsonl``, a line each, or a folder of portraits and speech:

    {"text": "a woman speaks to the camera", "image": "a.png", "audio": "b.wav", "id": "optional"}

Generators of other people in a run of post-training: which recipes fit, their prompts, their held-out samples.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from flowportrait.adapters.policy import Condition, Generator, GeneratorPolicy, GeneratorTask, Item
from flowportrait.config import parse_setting
from flowportrait.data.prompts import Prompt, read_prompts
from flowportrait.errors import BadInput
from flowportrait.flow.noise import unit_noise
from flowportrait.flow.paths import solve
from flowportrait.media.image import read_image
from flowportrait.media.portrait import Portrait
from flowportrait.media.video import FPS
from flowportrait.media.write_video import write_video
from flowportrait.plugins import is_reference, load_plugin, plugin_names
from flowportrait.rendering.renderer import MotionCodec
from flowportrait.rewards.registry import Composite
from flowportrait.rl.config import Recipe
from flowportrait.rl.manifest import network_start
from flowportrait.rl.policy_adapter import Prepared, TrainingData
from flowportrait.rl.recipes import CARDS
from flowportrait.rl.trainer import Trainer
from flowportrait.training.held_out import SIZE

METHODS = ("encode", "velocity", "decode")
PROMPT_KEYS = frozenset({"id", "text", "image", "audio"})
SPEECH_TEXT = "A person speaks to the camera."
"""What is said of a folder's pairs, which come without a text."""


def load_policy_generator(name: str, settings: Sequence[str] | Mapping[str, Any] = (), half: bool = False) -> Generator:
    """The generator of a name.

    Args:
        name: a pipeline's folder or hub name, ``MODULE:NAME``, or an entry point of the group ``policies``.
        settings: arguments of the pipeline's calls or of the class, by name or as ``key=value`` each.
        half: load a pipeline's weights in bfloat16.

    Raises:
        BadInput: nothing of that name, or it is not what it must be; says what is missing.
    """
    arguments = dict(settings if isinstance(settings, Mapping) else map(parse_setting, settings))
    if is_reference(name) or name in plugin_names("policies"):
        return as_generator(load_plugin("policies", name), arguments, name)
    return _pipeline(name, arguments, half)


def as_generator(policy: Any, arguments: Mapping[str, Any] | None = None, name: str = "") -> Generator:
    """A generator from an object: itself, a class or function that makes one, or a pipeline of diffusers.

    Args:
        policy: the object.
        arguments: of the class, or of the pipeline's calls.
        name: what the object is called in messages.

    Raises:
        BadInput: it is not what it must be; says what is missing.
    """
    name = name or (policy.__name__ if isinstance(policy, type) else type(policy).__name__)
    arguments = dict(arguments or {})
    if isinstance(policy, type) or (callable(policy) and not _is_pipeline(policy) and not hasattr(policy, "velocity")):
        try:
            policy = policy(**arguments)
        except (TypeError, AttributeError) as error:
            raise BadInput(f"{name} cannot be made with {arguments or 'no settings'} ({error}).") from error
    if _is_pipeline(policy):
        from flowportrait.adapters.pipeline import PipelineGenerator

        return PipelineGenerator(policy, arguments)
    for method in METHODS:
        if not callable(getattr(policy, method, None)):
            raise BadInput(f"{name} has no method {method}: it takes {', '.join(METHODS)} (docs/own_generator.md).")
    if not hasattr(policy, "shape"):
        raise BadInput(f"{name} has no shape: say the shape of one sample's latents (docs/own_generator.md).")
    return policy


def _is_pipeline(policy: Any) -> bool:
    """Whether it is a pipeline of diffusers, without importing diffusers."""
    return all(hasattr(policy, name) for name in ("transformer", "vae", "scheduler", "components"))


def _pipeline(name: str, arguments: dict[str, Any], half: bool) -> Generator:
    try:
        from diffusers import DiffusionPipeline
    except ImportError as error:
        raise BadInput("Pipelines need diffusers: run pip install 'flowportrait[vae]'.") from error
    from flowportrait.adapters.pipeline import PipelineGenerator

    try:
        with _quiet():
            pipeline = DiffusionPipeline.from_pretrained(name, torch_dtype=torch.bfloat16 if half else torch.float32)
    except (OSError, ValueError, AttributeError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise BadInput(f"No pipeline could be loaded from {name} ({reason}): check the name and its files.") from error
    return PipelineGenerator(pipeline, arguments)


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide the progress bars and messages of the libraries; what is wrong is reported once, by us."""
    from diffusers.utils import logging as diffusers_notes
    from transformers.utils import logging as transformers_notes

    before = diffusers_notes.get_verbosity()
    diffusers_notes.set_verbosity(diffusers_notes.FATAL)
    diffusers_notes.disable_progress_bar()
    transformers_notes.disable_progress_bar()
    try:
        yield
    finally:
        diffusers_notes.set_verbosity(before)
        diffusers_notes.enable_progress_bar()
        transformers_notes.enable_progress_bar()


def read_items(path: Path) -> list[Item]:
    """Items of a ``.jsonl`` file, of a folder with a ``prompts.jsonl``, or every portrait with every recording.

    Raises:
        BadInput: nothing there, or a line that cannot be used, with its number.
    """
    listing = path / "prompts.jsonl" if path.is_dir() else path
    if not listing.is_file():
        return [Item(prompt.id, SPEECH_TEXT, prompt.image, prompt.audio) for prompt in read_prompts(path)]
    try:
        lines = listing.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{listing} cannot be read as text ({error}): write one JSON object per line.") from error
    items = [
        _item(line, f"{listing} line {number}", number, listing.parent)
        for number, line in enumerate(lines, 1)
        if line.strip()
    ]
    if not items:
        raise BadInput(f"{listing} lists no prompts: write one JSON object per line.")
    ids = [item.id for item in items]
    if twice := next((name for name in ids if ids.count(name) > 1), None):
        raise BadInput(f"{listing} has two prompts with the id {twice!r}: give each its own.")
    return items


def _item(line: str, where: str, number: int, folder: Path) -> Item:
    try:
        record: Any = json.loads(line)
    except json.JSONDecodeError as error:
        raise BadInput(f"{where} is not JSON ({error.msg}): write one object per line.") from error
    if not isinstance(record, dict) or not record or not set(record) <= PROMPT_KEYS:
        raise BadInput(f"{where} may have the keys text, image, audio and id, and no others.")
    if not all(isinstance(value, str) and value for value in record.values()):
        raise BadInput(f"{where} has a value that is not a text: write text, paths and id in quotes.")
    paths = {key: folder / record[key] for key in ("image", "audio") if key in record}
    for path in paths.values():
        if not path.is_file():
            raise BadInput(f"{where} names {path}, which does not exist.")
    return Item(record.get("id", f"{number:05d}"), record.get("text", ""), paths.get("image"), paths.get("audio"))


@dataclass
class GeneratorAdapter:
    """A generator of three methods (``adapters.policy``), such as a pipeline of diffusers.

    Attributes:
        name: what it is called in ``run.json``.
        load: returns the generator.
    """

    name: str
    load: Callable[[], Generator]
    codecs: dict[Path, MotionCodec] = field(default_factory=dict)
    """Of the portraits that motion of held-out prompts was drawn with."""

    def check(self, recipe: Recipe, data: TrainingData) -> None:
        if missing := missing_ability(recipe):
            able = [name for name, card in CARDS.items() if not missing_ability(card.recipe)]
            raise BadInput(
                f"The recipe {recipe.name} needs {missing}, which another generator does not have: choose one of "
                f"{', '.join(able)}."
            )
        if data.prompts is None or data.pairs or data.exemplars:
            raise BadInput("--policy needs --prompts and goes without --pairs and --exemplars.")

    def read_prompts(self, path: Path) -> list[Item]:
        return read_items(path)

    def prepare(self, recipe: Recipe, data: TrainingData, rewards: Composite | None) -> Prepared:
        rewards = rewards or Composite.default(recipe.rewards)
        items = [as_item(prompt) for prompt in data.prompts or ()]
        return Prepared(GeneratorPolicy(self.load()), GeneratorTask(items, rewards.needs), rewards)

    def start(self, policy: GeneratorPolicy, recipe: Recipe) -> dict[str, str]:
        # Where adapters are trained all weights stay as they are; the state of a run has those that do not.
        return network_start(self.name, policy, frozen_only=not recipe.lora)

    @torch.no_grad()
    def write_sample(self, trainer: Trainer, prompt: Prompt | Item, path: Path) -> None:
        """Draw without noise, in the recipe's number of steps at the generator's own noise levels.

        Raises:
            BadInput: the generator makes motion, and the prompt has no portrait to draw it with.
        """
        policy, item = trainer.policy, as_item(prompt)
        assert isinstance(policy, GeneratorPolicy), "what the trainer got from prepare"
        with trainer.precision():
            condition = Condition(policy.encode([item]))
            levels = policy.levels(trainer.recipe.plan(trainer.recipe.seed, 0, 1, 1).sigmas)
            noise = unit_noise((policy.latent_dim,), 0)[None].to(policy.device)
            x = solve(lambda x, sigma: policy.velocity(x, sigma.to(x), condition.known).float(), noise, levels)
            made = policy.decode(x[:, None], condition)
        if made.frames is not None:
            frames, fps = list(made.frames[0]), made.fps
        else:
            assert made.motion is not None, "decode returns frames or motion"
            frames, fps = list(self._codec(item).decode(made.motion[0].float().cpu())), float(FPS)
        task = trainer.task
        assert isinstance(task, GeneratorTask), "what the trainer got from prepare"
        sound = task.sound([item], max(1, round(len(frames) / fps * FPS)))[0] if item.audio else None
        write_video(path, frames, sound, fps=fps)

    def _codec(self, item: Item) -> MotionCodec:
        if item.image is None:
            raise BadInput(
                f"The held-out prompt {item.id!r} has no image, which the motion of {self.name} is drawn with: give "
                "each held-out prompt a portrait."
            )
        if item.image not in self.codecs:
            portrait = Portrait.from_image(read_image(item.image), name=str(item.image))
            self.codecs[item.image] = MotionCodec(portrait, SIZE)
        return self.codecs[item.image]


def missing_ability(recipe: Recipe) -> str:
    """What a recipe asks that a generator of three methods does not have; empty where there is nothing."""
    asked = {
        "a history of chunks to explore": recipe.exploration,
        "real clips in our own latents": recipe.exemplars or recipe.offline_data,
        "a teacher's own number of steps": recipe.teacher,
        "latents with named regions": recipe.allocation.regions,
        "our own hearing of disturbed speech": recipe.disturbance,
    }
    return next((ability for ability, part in asked.items() if part), "")


def as_item(prompt: Prompt | Item) -> Item:
    """A prompt as other generators take it; of a portrait and a recording the text says that somebody speaks."""
    return prompt if isinstance(prompt, Item) else Item(prompt.id, SPEECH_TEXT, prompt.image, prompt.audio)
