"""Generators of other people in a run of post-training: which recipes fit, their prompts, their held-out samples."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch

from flowportrait.codec.motion_codec import MotionCodec
from flowportrait.errors import BadInput
from flowportrait.flow.noise import unit_noise
from flowportrait.flow.solver import solve
from flowportrait.media.image import read_image
from flowportrait.media.portrait import Portrait
from flowportrait.media.video import FPS
from flowportrait.media.write_video import write_video
from flowportrait.policies.interface import Generator, Item
from flowportrait.policies.loading import SPEECH_TEXT, read_items
from flowportrait.policies.policy import Condition, GeneratorPolicy
from flowportrait.policies.task import GeneratorTask
from flowportrait.posttrain.adapter import Prepared, TrainingData
from flowportrait.posttrain.manifest import network_start
from flowportrait.posttrain.recipe import Recipe
from flowportrait.posttrain.recipes import CARDS
from flowportrait.posttrain.trainer import Trainer
from flowportrait.prompts import Prompt
from flowportrait.reward.composite import Composite
from flowportrait.training.held_out import SIZE


@dataclass
class GeneratorAdapter:
    """A generator of three methods (``policies.interface``), such as a pipeline of diffusers.

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
