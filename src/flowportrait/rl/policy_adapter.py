"""This module defines what differs between kinds of generators in post-training, and adapts the built-in generator.

    PolicyAdapter: check(recipe) ─► prepare: policy, task, rewards ─► (training) ─► write_sample of held-out prompts

The run itself (``rl.post_trainer``) is the same for every kind of generator. Third-party generators are adapted in
``adapters.loading``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from flowportrait.data.motion_dataset import TRAINING_SPLITS, load_motion_clips
from flowportrait.data.prompts import Prompt, read_prompts
from flowportrait.errors import BadInput
from flowportrait.media.audio import read_audio
from flowportrait.media.image import read_image
from flowportrait.media.portrait import Portrait
from flowportrait.models.arflow import ARFlow, load_generator
from flowportrait.models.conditioning import encode_portraits
from flowportrait.rendering.renderer import MotionCodec
from flowportrait.rewards.registry import CompositeReward
from flowportrait.rl.config import Recipe
from flowportrait.rl.manifest import describe_checkpoint, describe_network
from flowportrait.rl.offline_data import load_offline_task
from flowportrait.rl.task import PortraitRenderer, SpeechItem, TalkingTask, speech_mel, speech_waveform
from flowportrait.rl.trainer import Trainer
from flowportrait.training.held_out import write_portrait_sample


@dataclass(frozen=True)
class TrainingData:
    """The data that a run learns from."""

    prompts: Sequence[Any] | None = None
    """Prompts of the type that the adapter reads."""
    pairs: Sequence[Path] = ()
    """Files of preference pairs or rated clips."""
    exemplars: Path | None = None
    """A prepared corpus of real clips. It provides the speech, and its motion is added to groups or damaged."""


class TrainingSetup(NamedTuple):
    """A policy and everything that it learns from.

    Attributes:
        policy: the policy to train.
        task: its prompts and how they are scored.
        rewards: rewards of data that have scores of their own; None otherwise.
        files: files that were read.
    """

    policy: Any
    task: Any
    rewards: CompositeReward | None = None
    files: Sequence[Path] = ()


class PolicyAdapter(Protocol):
    """The operations of post-training that depend on the kind of generator."""

    @property
    def name(self) -> str:
        """Return the name of the generator in ``run.json``."""
        ...

    def check(self, recipe: Recipe, data: TrainingData) -> None:
        """Check that recipe and data fit this kind of generator, before anything is loaded.

        Raises:
            BadInput: they do not fit. The message names recipes that do.
        """
        ...

    def read_prompts(self, path: Path) -> Sequence[Any]:
        """Read the prompts at a path.

        Raises:
            BadInput: there are none.
        """
        ...

    def prepare(self, recipe: Recipe, data: TrainingData, rewards: CompositeReward | None) -> TrainingSetup:
        """Load the generator and everything that it learns from."""
        ...

    def start(self, policy: Any, recipe: Recipe) -> dict[str, str]:
        """Return the name and hash of the weights that a run starts from, for its manifest."""
        ...

    def write_sample(self, trainer: Trainer, prompt: Any, path: Path) -> None:
        """Sample a held-out prompt with the current weights of the trainer's policy, and write the video."""
        ...


@dataclass
class ARFlowAdapter:
    """The adapter of the built-in generator, which learns from portraits and recordings or from existing clips."""

    policy: str | Path | ARFlow = "sft"
    """The name of a shipped checkpoint, a folder, or the generator itself."""
    name: str = field(init=False)

    def __post_init__(self) -> None:
        self.name = "ARFlow" if isinstance(self.policy, ARFlow) else str(self.policy)

    def check(self, recipe: Recipe, data: TrainingData) -> None:
        if not recipe.offline_data and data.prompts is None:
            raise BadInput(f"The recipe {recipe.name} needs prompts: give a folder of images and audio with --prompts.")

    def read_prompts(self, path: Path) -> list[Prompt]:
        return read_prompts(path)

    def prepare(self, recipe: Recipe, data: TrainingData, rewards: CompositeReward | None) -> TrainingSetup:
        policy = self.policy if isinstance(self.policy, ARFlow) else load_generator(self.policy)
        if recipe.offline_data:
            task, files = load_offline_task(
                recipe.offline_data, recipe.frames, data.pairs, data.exemplars, policy.config.chunk
            )
            return TrainingSetup(policy, task, CompositeReward((), recipe.offline_data.weights), files)
        items, codecs = load_speech_items(data.prompts or (), recipe, data.exemplars)

        def renderer_for(rows: Sequence[int]) -> PortraitRenderer:
            return PortraitRenderer(codecs, rows, recipe.render_size)

        portraits = encode_portraits(policy, [codec.portrait for codec in codecs])
        return TrainingSetup(policy, TalkingTask(items, recipe.frames, renderer_for, policy.config.chunk, portraits))

    def start(self, policy: ARFlow, recipe: Recipe) -> dict[str, str]:
        return (
            describe_network(self.name, policy) if isinstance(self.policy, ARFlow) else describe_checkpoint(self.name)
        )

    def write_sample(self, trainer: Trainer, prompt: Prompt, path: Path) -> None:
        write_portrait_sample(trainer.policy, prompt, path)


def load_speech_items(
    prompts: Sequence[Prompt], recipe: Recipe, exemplars: Path | None = None
) -> tuple[list[SpeechItem], list[MotionCodec]]:
    """Load every portrait and every recording of the prompts once.

    Args:
        prompts: portraits and recordings.
        recipe: the recipe.
        exemplars: a prepared corpus of real clips, which replace the recordings.

    Returns:
        The speech items, and the renderers of the portraits to which their indices refer.

    Raises:
        BadInput: the recipe needs exemplars and there are none, or none is long enough, or the recipe has a
            disturbance, which does not go with exemplars.
    """
    if recipe.exemplars and exemplars is None:
        raise BadInput(f"The recipe {recipe.name} needs real clips: give a prepared corpus with --exemplars.")
    images = sorted({prompt.image for prompt in prompts})
    # Rewards measure the effect of motion, so the retouching network, five times as slow as rendering, is left out.
    portraits = [Portrait.from_image(read_image(image), name=str(image)) for image in images]
    codecs = [MotionCodec(portrait, recipe.render_size, retouch=False) for portrait in portraits]
    if exemplars is not None:
        if recipe.disturbance:
            raise BadInput("A disturbance is of the speech of prompts: leave out --exemplars.")
        clips = [c for c in load_motion_clips(exemplars, TRAINING_SPLITS) if len(c.motion) > recipe.frames]
        if not clips:
            raise BadInput(f"{exemplars} has no clip of more than {recipe.frames} frames: lower --set frames.")
        return [SpeechItem(c.mel, number % len(images), c.motion) for number, c in enumerate(clips)], codecs
    waves = {path: read_audio(path) for path in sorted({prompt.audio for prompt in prompts})}
    recordings = {
        path: (speech_mel(wave, recipe.frames), speech_waveform(wave, recipe.frames)) for path, wave in waves.items()
    }
    disturbed = dict(recipe.disturbance.disturbed_mels(waves, recipe.frames, recipe.seed)) if recipe.disturbance else {}
    return [
        SpeechItem(mel, images.index(prompt.image), audio=wave, disturbed_mels=disturbed.get(prompt.audio, ()))
        for prompt in prompts
        for mel, wave in (recordings[prompt.audio],)
    ], codecs
