"""The built-in generator as a policy of post-training.

    PolicyAdapter: check(recipe) ─► load ─► task, rewards ─► (training) ─► write_sample of held-out prompts

The run itself (``post_trainer``) is the same for every kind of generator. Generators of other people are in
``adapters.loading``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from flowportrait.data.motion_dataset import TRAINING_SPLITS, load_motion
from flowportrait.data.prompts import Prompt, read_prompts
from flowportrait.errors import BadInput
from flowportrait.media.audio import read_audio
from flowportrait.media.image import read_image
from flowportrait.media.portrait import Portrait
from flowportrait.models.arflow import ARFlow, load_generator
from flowportrait.models.conditioning import encode_portraits
from flowportrait.rendering.renderer import MotionCodec
from flowportrait.rewards.registry import Composite
from flowportrait.rl.config import Recipe
from flowportrait.rl.manifest import checkpoint_start, network_start
from flowportrait.rl.offline_data import load_offline_task
from flowportrait.rl.task import Drawing, SpeechItem, TalkingTask, speech_mel, speech_waveform
from flowportrait.rl.trainer import Trainer
from flowportrait.training.held_out import write_portrait_sample


@dataclass(frozen=True)
class TrainingData:
    """What a run learns from."""

    prompts: Sequence[Any] | None = None
    """Prompts of the kind that the adapter reads."""
    pairs: Sequence[Path] = ()
    """Files of stated preference pairs or rated clips."""
    exemplars: Path | None = None
    """A prepared corpus: its clips are the speech, and their real motion joins the groups, or is damaged."""


class Prepared(NamedTuple):
    """A policy with its task; rewards where the data come with their own; files that were read."""

    policy: Any
    task: Any
    rewards: Composite | None = None
    files: Sequence[Path] = ()


class PolicyAdapter(Protocol):
    """What differs between kinds of generators."""

    @property
    def name(self) -> str:
        """What the generator is called in ``run.json``."""
        ...

    def check(self, recipe: Recipe, data: TrainingData) -> None:
        """See that recipe and data fit this kind of generator, before anything is loaded.

        Raises:
            BadInput: they do not; names the recipes that do.
        """
        ...

    def read_prompts(self, path: Path) -> Sequence[Any]:
        """The prompts at a path.

        Raises:
            BadInput: there are none.
        """
        ...

    def prepare(self, recipe: Recipe, data: TrainingData, rewards: Composite | None) -> Prepared:
        """Load the generator and everything that it learns from."""
        ...

    def start(self, policy: Any, recipe: Recipe) -> dict[str, str]:
        """Name and hash of the weights that a run starts from, for its manifest."""
        ...

    def write_sample(self, trainer: Trainer, prompt: Any, path: Path) -> None:
        """Draw a held-out prompt with the weights that are in the trainer's policy now, and write the video."""
        ...


@dataclass
class ARFlowAdapter:
    """Our own generator: portraits that speak recordings, or clips that are there already."""

    policy: str | Path | ARFlow = "sft"
    """A shipped checkpoint, a folder, or the generator itself."""
    name: str = field(init=False)

    def __post_init__(self) -> None:
        self.name = "ARFlow" if isinstance(self.policy, ARFlow) else str(self.policy)

    def check(self, recipe: Recipe, data: TrainingData) -> None:
        if not recipe.offline_data and data.prompts is None:
            raise BadInput(f"The recipe {recipe.name} needs prompts: give a folder of images and audio with --prompts.")

    def read_prompts(self, path: Path) -> list[Prompt]:
        return read_prompts(path)

    def prepare(self, recipe: Recipe, data: TrainingData, rewards: Composite | None) -> Prepared:
        policy = self.policy if isinstance(self.policy, ARFlow) else load_generator(self.policy)
        if recipe.offline_data:
            task, files = load_offline_task(
                recipe.offline_data, recipe.frames, data.pairs, data.exemplars, policy.config.chunk
            )
            return Prepared(policy, task, Composite((), recipe.offline_data.weights), files)
        items, codecs = load_prompts(data.prompts or (), recipe, data.exemplars)

        def draw_for(rows: Sequence[int]) -> Drawing:
            return Drawing(codecs, rows, recipe.render_size)

        portraits = encode_portraits(policy, [codec.portrait for codec in codecs])
        return Prepared(policy, TalkingTask(items, recipe.frames, draw_for, policy.config.chunk, portraits))

    def start(self, policy: ARFlow, recipe: Recipe) -> dict[str, str]:
        return network_start(self.name, policy) if isinstance(self.policy, ARFlow) else checkpoint_start(self.name)

    def write_sample(self, trainer: Trainer, prompt: Prompt, path: Path) -> None:
        write_portrait_sample(trainer.policy, prompt, path)


def load_prompts(
    prompts: Sequence[Prompt], recipe: Recipe, exemplars: Path | None = None
) -> tuple[list[SpeechItem], list[MotionCodec]]:
    """Load every portrait once and every recording once; with a corpus of exemplars, its clips are the recordings.

    Raises:
        BadInput: the recipe needs exemplars and there are none, or none long enough; or clips are to be disturbed.
    """
    if recipe.exemplars and exemplars is None:
        raise BadInput(f"The recipe {recipe.name} needs real clips: give a prepared corpus with --exemplars.")
    images = sorted({prompt.image for prompt in prompts})
    # Rewards ask what the motion does to a face; a network's touch-up costs five times the drawing itself.
    portraits = [Portrait.from_image(read_image(image), name=str(image)) for image in images]
    codecs = [MotionCodec(portrait, recipe.render_size, retouch=False) for portrait in portraits]
    if exemplars is not None:
        if recipe.disturbance:
            raise BadInput("A disturbance is of the speech of prompts: leave out --exemplars.")
        clips = [c for c in load_motion(exemplars, TRAINING_SPLITS) if len(c.motion) > recipe.frames]
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
