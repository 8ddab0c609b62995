"""Third-party generators by name, their prompts, and their part in a run of post-training.

A generator is named by a hub name or folder of a diffusers pipeline, by ``MODULE:NAME``, or by an entry point:

    Wan-AI/Wan2.1-I2V-14B-480P-Diffusers     models/my-pipeline     my_package.generators:Mine     my-entry-point

Prompts are the lines of a ``prompts.jsonl``, or a folder of portraits and speech:

    {"text": "a woman speaks to the camera", "image": "a.png", "audio": "b.wav", "id": "optional"}

The parts in order: loading a generator; reading prompts; ``GeneratorAdapter``, which checks the recipe, prepares the
run and writes held-out samples.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from flowportrait.adapters.policy import Generator, GeneratorPolicy, GeneratorTask, Item, ItemCondition
from flowportrait.config import parse_setting
from flowportrait.data.prompts import Prompt, read_prompts
from flowportrait.errors import BadInput
from flowportrait.flow.noise import keyed_noise
from flowportrait.flow.schedules import solve_ode
from flowportrait.media.image import read_image
from flowportrait.media.portrait import Portrait
from flowportrait.media.video import FPS
from flowportrait.media.write_video import write_video
from flowportrait.plugins import is_reference, load_plugin, plugin_names
from flowportrait.rendering.renderer import MotionCodec
from flowportrait.rewards.registry import CompositeReward
from flowportrait.rl.config import Recipe
from flowportrait.rl.manifest import describe_network
from flowportrait.rl.policy_adapter import TrainingData, TrainingSetup
from flowportrait.rl.recipes import CARDS
from flowportrait.rl.trainer import Trainer
from flowportrait.training.held_out import SAMPLE_SIZE

# --- Generators by name ------------------------------------------------------------------------------------------

GENERATOR_METHODS = ("encode", "velocity", "decode")
"""The methods that a generator must have."""


def load_policy_generator(name: str, settings: Sequence[str] | Mapping[str, Any] = (), half: bool = False) -> Generator:
    """Load a generator by name.

    Args:
        name: a pipeline's folder or hub name, ``MODULE:NAME``, or an entry point of the group ``policies``.
        settings: arguments of the pipeline's calls or of the class, by name or as ``key=value`` each.
        half: whether to load a pipeline's weights in bfloat16.

    Raises:
        BadInput: there is nothing of that name, or it is not a generator; the message says what is missing.
    """
    arguments = dict(settings if isinstance(settings, Mapping) else map(parse_setting, settings))
    if is_reference(name) or name in plugin_names("policies"):
        return as_generator(load_plugin("policies", name), arguments, name)
    return _load_pipeline(name, arguments, half)


def as_generator(policy: Any, arguments: Mapping[str, Any] | None = None, name: str = "") -> Generator:
    """Return a generator from an object: a generator, a class or function that makes one, or a diffusers pipeline.

    Args:
        policy: the object.
        arguments: of the class, or of the pipeline's calls.
        name: of the object in messages.

    Raises:
        BadInput: the object is not a generator; the message says what is missing.
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
    for method in GENERATOR_METHODS:
        if not callable(getattr(policy, method, None)):
            raise BadInput(
                f"{name} has no method {method}: it takes {', '.join(GENERATOR_METHODS)} (docs/guides/generators.md)."
            )
    # The shape of a pipeline is known after an item was encoded: asking for it now would fail.
    if not hasattr(type(policy), "shape") and not hasattr(policy, "shape"):
        raise BadInput(f"{name} has no shape: say the shape of one sample's latents (docs/guides/generators.md).")
    return policy


def _is_pipeline(policy: Any) -> bool:
    """Return whether an object is a diffusers pipeline, without importing diffusers."""
    return all(hasattr(policy, name) for name in ("transformer", "vae", "scheduler", "components"))


def _load_pipeline(name: str, arguments: dict[str, Any], half: bool) -> Generator:
    try:
        from diffusers import DiffusionPipeline
    except ImportError as error:
        raise BadInput("Pipelines need diffusers: run pip install 'flowportrait[vae]'.") from error
    from flowportrait.adapters.pipeline import PipelineGenerator

    try:
        with _silent_libraries():
            pipeline = DiffusionPipeline.from_pretrained(name, torch_dtype=torch.bfloat16 if half else torch.float32)
    except (OSError, ValueError, AttributeError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise BadInput(f"No pipeline could be loaded from {name} ({reason}): check the name and its files.") from error
    return PipelineGenerator(pipeline, arguments)


@contextmanager
def _silent_libraries() -> Iterator[None]:
    """Hide the progress bars and messages of the libraries; errors are reported once, by this package."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    before = diffusers_logging.get_verbosity()
    diffusers_logging.set_verbosity(diffusers_logging.FATAL)
    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        diffusers_logging.set_verbosity(before)
        diffusers_logging.enable_progress_bar()
        transformers_logging.enable_progress_bar()


# --- Prompts -----------------------------------------------------------------------------------------------------

PROMPT_KEYS = frozenset({"id", "text", "image", "audio"})
SPEECH_TEXT = "A person speaks to the camera."
"""The text of prompts from a folder of portraits and speech."""


def read_items(path: Path) -> list[Item]:
    """Read prompts: a ``.jsonl`` file, a folder with a ``prompts.jsonl``, or every portrait with every recording.

    Raises:
        BadInput: there are no prompts, or a line cannot be used; the message has its number.
    """
    listing = path / "prompts.jsonl" if path.is_dir() else path
    if not listing.is_file():
        return [Item(prompt.id, SPEECH_TEXT, prompt.image, prompt.audio) for prompt in read_prompts(path)]
    try:
        lines = listing.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{listing} cannot be read as text ({error}): write one JSON object per line.") from error
    items = [
        _parse_item(line, f"{listing} line {number}", number, listing.parent)
        for number, line in enumerate(lines, 1)
        if line.strip()
    ]
    if not items:
        raise BadInput(f"{listing} lists no prompts: write one JSON object per line.")
    ids = [item.id for item in items]
    if duplicate := next((name for name in ids if ids.count(name) > 1), None):
        raise BadInput(f"{listing} has two prompts with the id {duplicate!r}: give each its own.")
    return items


def _parse_item(line: str, where: str, number: int, folder: Path) -> Item:
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


# --- Post-training -----------------------------------------------------------------------------------------------


@dataclass
class GeneratorAdapter:
    """A third-party generator (``adapters.policy.Generator``) as the policy of a run of post-training.

    Attributes:
        name: of the generator in ``run.json``.
        load: returns the generator.
    """

    name: str
    load: Callable[[], Generator]
    codecs: dict[Path, MotionCodec] = field(default_factory=dict)
    """Codecs of the portraits of held-out prompts, by path, for generators of motion."""

    def check(self, recipe: Recipe, data: TrainingData) -> None:
        """Check that a recipe and its data fit such a generator.

        Raises:
            BadInput: the recipe needs an ability that the generator does not have, or the data is of another kind.
        """
        if missing := missing_ability(recipe):
            able = [name for name, card in CARDS.items() if not missing_ability(card.recipe)]
            raise BadInput(
                f"The recipe {recipe.name} needs {missing}, which another generator does not have: choose one of "
                f"{', '.join(able)}."
            )
        if data.prompts is None or data.pairs or data.exemplars:
            raise BadInput("--policy needs --prompts and goes without --pairs and --exemplars.")

    def read_prompts(self, path: Path) -> list[Item]:
        """Read prompts as ``read_items`` does."""
        return read_items(path)

    def prepare(self, recipe: Recipe, data: TrainingData, rewards: CompositeReward | None) -> TrainingSetup:
        """Load the generator, and return it with its task and rewards."""
        rewards = rewards or CompositeReward.default(recipe.rewards)
        items = [item_from_prompt(prompt) for prompt in data.prompts or ()]
        return TrainingSetup(GeneratorPolicy(self.load()), GeneratorTask(items, rewards.needs), rewards)

    def start(self, policy: GeneratorPolicy, recipe: Recipe) -> dict[str, str]:
        """Return the name of the generator and a digest of its initial weights, for ``run.json``."""
        # With adapters all weights stay as they are; trained weights are in the state of the run.
        return describe_network(self.name, policy, frozen_only=not recipe.lora)

    @torch.no_grad()
    def write_sample(self, trainer: Trainer, prompt: Prompt | Item, path: Path) -> None:
        """Write a video of a held-out prompt.

        It is sampled deterministically, with the recipe's number of steps and the generator's own noise levels.

        Raises:
            BadInput: the generator makes motion, and the prompt has no portrait to render it with; or it makes neither
                frames nor motion.
        """
        policy, item = trainer.policy, item_from_prompt(prompt)
        assert isinstance(policy, GeneratorPolicy), "prepare returned it"
        with trainer.precision():
            condition = ItemCondition(policy.encode([item]))
            levels = policy.levels(trainer.recipe.plan(trainer.recipe.seed, 0, 1, 1).sigmas)
            noise = keyed_noise((policy.latent_dim,), 0)[None].to(policy.device)
            x = solve_ode(lambda x, sigma: policy.velocity(x, sigma.to(x), condition.known).float(), noise, levels)
            decoded = policy.decode(x[:, None], condition)
        if decoded.frames is not None:
            frames, fps = list(decoded.frames[0]), decoded.fps
        else:
            if decoded.motion is None:
                raise BadInput(
                    f"Held-out prompts are evaluated as videos, and {self.name} makes data that is none: leave out "
                    "--held-out (eval_prompts), and measure with PostTrainer.score_prompts."
                )
            frames, fps = list(self._codec(item).decode(decoded.motion[0].float().cpu())), float(FPS)
        task = trainer.task
        assert isinstance(task, GeneratorTask), "prepare returned it"
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
            self.codecs[item.image] = MotionCodec(portrait, SAMPLE_SIZE)
        return self.codecs[item.image]


def missing_ability(recipe: Recipe) -> str:
    """Return the ability that a recipe needs and a third-party generator does not have; empty if there is none."""
    needed = {
        "a history of chunks to explore": recipe.exploration,
        "real clips as latents of the package's generator": recipe.exemplars or recipe.offline_data,
        "a teacher with its own number of steps": any(stage.distils for stage in recipe.active_stages),
        "latents with named regions": recipe.allocation.regions,
        "the package's features of disturbed speech": recipe.disturbance,
    }
    return next((ability for ability, part in needed.items() if part), "")


def item_from_prompt(prompt: Prompt | Item) -> Item:
    """Return a prompt as an ``Item``; a portrait and a recording get the text ``SPEECH_TEXT``."""
    return prompt if isinstance(prompt, Item) else Item(prompt.id, SPEECH_TEXT, prompt.image, prompt.audio)
