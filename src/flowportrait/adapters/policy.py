"""What a generator of your own has to have, and how it becomes a policy.

What a generator must be to be post-trained: a shape and three methods.

    encode(items) ─► known            velocity(x_σ, σ, known) ─► v            decode(x_0, known) ─► DecodedSamples

    x_σ = (1 − σ)·x_0 + σ·ε,   v = dx/dσ = ε − x_0,   σ from 1 (noise) to 0 (data)

``known`` is opaque to everybody else: a tuple (named or nested, if you like) of tensors with one row per item.

A generator of three methods as a policy: all of a sample is one chunk.

x [..., D]  ⇄  [B, *shape],    a context is what is known, with the leading sizes of x

Items for a generator, and what rewards see of its samples.

motion it made itself                  ─► rewards as they are
frames, and rewards look at a face     ─► tracked face, crop and landmarks (``rewards.batch``); the item's image
                                          is the portrait, where one compares with it
frames, and rewards look at pictures   ─► the whole frames
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn

from flowportrait.errors import BadInput
from flowportrait.files import complete
from flowportrait.flow.noise import seed_of
from flowportrait.media.audio import read_audio
from flowportrait.media.image import read_image
from flowportrait.media.mel import MELS_PER_FRAME, SAMPLES_PER_FRAME, level, log_mel
from flowportrait.media.portrait import Portrait
from flowportrait.media.video import FPS
from flowportrait.rendering.motion_basis import MOTION_DIM
from flowportrait.rewards.batch import RewardBatch
from flowportrait.rl.rollout import Trajectory, map_tensors


@dataclass(frozen=True)
class Item:
    """What is asked for: a text, a portrait, speech, or several of these; ``id`` tells items apart."""

    id: str
    text: str = ""
    image: Path | None = None
    audio: Path | None = None


class DecodedSamples(NamedTuple):
    """B samples as they would be delivered.

    frames: RGB ``[T, H, W, 3]`` uint8 per sample (T = 1: a picture) at ``fps``; or motion ``[B, T, 30]`` at 25 fps in
    the numbers of ``rendering.motion_basis``, for generators of motion.
    """

    frames: Sequence[np.ndarray] | None = None
    fps: float = 25.0
    motion: torch.Tensor | None = None


Shown = DecodedSamples
"""Its name in version 0.1."""


class Generator(Protocol):
    """A generator of one's own; as an ``nn.Module`` its parameters are what is trained.

    It may also have ``levels(sigmas)``, its own noise schedule for levels from 1 to 0, ``save_pretrained(folder)`` and
    ``recompute_activations()``.
    """

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the latents of one sample."""
        ...

    def encode(self, items: Sequence[Item]) -> Any:
        """What is known of each item, a row each; asked once per item and kept, so nothing here is trained."""
        ...

    def velocity(self, x: torch.Tensor, sigma: torch.Tensor, known: Any) -> torch.Tensor:
        """v ``[B, *shape]`` at x ``[B, *shape]`` float32 and noise levels ``[B]``, guidance included."""
        ...

    def decode(self, x: torch.Tensor, known: Any) -> DecodedSamples:
        """Clean latents ``[B, *shape]`` as they would be delivered."""
        ...


class Condition(NamedTuple):
    """What is known of each sample."""

    known: Any

    @property
    def chunks(self) -> int:
        """One: everything at once."""
        return 1

    def select(self, rows: torch.Tensor) -> Condition:
        """The samples at ``rows``."""
        return Condition(map_tensors(lambda part: part[rows.to(part.device)], self.known))

    def repeat(self, times: int) -> Condition:
        """Each sample ``times`` times in a row."""
        return Condition(map_tensors(lambda part: part.repeat_interleave(times, 0), self.known))


class SingleChunkSession:
    """A session of one chunk."""

    def __init__(self, condition: Condition) -> None:
        self.known = condition.known

    def context(self) -> Any:
        """What is known."""
        return self.known

    def append(self, latents: torch.Tensor) -> None:
        """Nothing comes after it."""


class GeneratorPolicy(nn.Module):
    """See the module. ``networks`` are what is trained: the generator itself, or what it names."""

    generator: Generator

    def __init__(self, generator: Generator) -> None:
        super().__init__()
        named = getattr(generator, "networks", None)
        if named is None and not isinstance(generator, nn.Module):
            raise BadInput(f"{type(generator).__name__} has nothing to train: make it a torch.nn.Module.")
        self.generator = generator
        self.networks = nn.ModuleDict(named or {})
        self.keeps_adapters = named is not None
        """Whether adapters are saved by themselves instead of merged into the weights."""
        # One piece of a rollout is decoded in a thread of its own while the next is encoded, and autoencoders of video
        # (Wan's) keep what they work on in themselves.
        self.lock = Lock()
        blocks = [getattr(part, "_no_split_modules", None) or getattr(part, "_repeated_blocks", None) or ()
                  for part in self.networks.values()]  # fmt: skip
        self._no_split_modules = [name for names in blocks for name in names]

    def __deepcopy__(self, memo: dict[int, Any]) -> GeneratorPolicy:
        # Encoders and autoencoders of a pipeline are frozen: copies share them.
        memo[id(self.lock)] = self.lock
        if self.networks:
            memo[id(self.generator)] = self.generator
        result = self.__class__.__new__(self.__class__)
        memo[id(self)] = result
        result.__dict__ = {name: copy.deepcopy(value, memo) for name, value in self.__dict__.items()}
        return result

    @property
    def latent_dim(self) -> int:
        """D, numbers per sample."""
        return int(torch.Size(self.generator.shape).numel())

    @property
    def device(self) -> torch.device:
        """Where the trained network is."""
        return next(self.parameters()).device

    @torch.no_grad()
    def encode(self, items: Sequence[Item]) -> Any:
        """``known`` of items, detached.

        Raises:
            BadInput: it is no tuple.
        """
        with self.lock:
            known = self.generator.encode(items)
        if not isinstance(known, tuple):
            raise BadInput(f"encode returns a {type(known).__name__}: return a tuple of tensors.")
        return map_tensors(lambda part: part.detach(), known)

    @torch.no_grad()
    def decode(self, latents: torch.Tensor, condition: Condition) -> DecodedSamples:
        """Latents ``[B, 1, D]`` as rewards see them."""
        with self.lock:
            return self.generator.decode(latents.reshape(-1, *self.generator.shape), condition.known)

    def session(self, condition: Condition) -> SingleChunkSession:
        """Start generating."""
        return SingleChunkSession(condition)

    def contexts(self, condition: Condition, latents: torch.Tensor) -> Any:
        """What is known, for the one chunk ``[B, 1, …]``."""
        return map_tensors(lambda part: part[:, None], condition.known)

    def velocity(self, x: torch.Tensor, sigma: torch.Tensor, context: Any) -> torch.Tensor:
        """v ``[..., D]`` at x ``[..., D]``; sigma and context broadcast to its leading sizes."""
        lead = x.shape[:-1]
        count = int(torch.Size(lead).numel())
        known = map_tensors(
            lambda part: part.expand(*lead, *part.shape[len(lead) :]).flatten(0, len(lead) - 1), context
        )
        level = sigma.expand(lead).reshape(count)
        return self.generator.velocity(x.reshape(count, *self.generator.shape), level, known).reshape(x.shape)

    def levels(self, sigmas: torch.Tensor) -> torch.Tensor:
        """The generator's own schedule for levels ``[K + 1]`` from 1 to 0."""
        own = getattr(self.generator, "levels", None)
        return own(sigmas) if own else sigmas

    def recompute_activations(self) -> None:
        """Trade activations for a second forward pass.

        Raises:
            BadInput: the generator cannot.
        """
        for network in self.networks.values():
            network.enable_gradient_checkpointing()  # type: ignore[operator]
        if not self.networks:
            own = getattr(self.generator, "recompute_activations", None)
            if own is None:
                name = type(self.generator).__name__
                raise BadInput(f"checkpointing=true needs a method recompute_activations of {name}: leave it false.")
            own()

    def save_pretrained(self, folder: Path) -> None:
        """What was trained, in the way of the generator, else as ``model.safetensors``."""
        folder.mkdir(parents=True, exist_ok=True)
        if self.networks:
            pipeline: Any = self.generator
            pipeline.save(folder, dict(self.networks))
        elif hasattr(self.generator, "save_pretrained"):
            self.generator.save_pretrained(folder)
        else:
            assert isinstance(self.generator, nn.Module), "what names no networks is one"
            weights = {name: value.contiguous() for name, value in self.generator.state_dict().items()}
            with complete(folder / "model.safetensors") as partial:
                save_file(weights, partial)


WITHOUT_FACE = frozenset({"frames", "fps", "audio", "transcript", "group", "policy"})
"""Needs that can be met without looking for a face."""


class ItemBatch(NamedTuple):
    """One item per row."""

    items: list[Item]

    def select(self, rows: torch.Tensor) -> ItemBatch:
        """The rows at these indices."""
        return ItemBatch([self.items[int(row)] for row in rows])


class GeneratorTask:
    """Items drawn in a keyed order, each encoded once in a run. ``needs``: those of all rewards together."""

    regions: Mapping[str, torch.Tensor] = {}

    def __init__(self, items: Sequence[Item], needs: frozenset[str]) -> None:
        self.items = list(items)
        self.tracked = not needs <= WITHOUT_FACE
        self.compared = "portrait" in needs
        self.known: dict[str, Any] = {}
        self.sounds: dict[str, np.ndarray] = {}
        self.faces: dict[Path, Portrait] = {}

    def draw(self, groups: int, seed: int, iteration: int) -> ItemBatch:
        """A function of its arguments alone."""
        generator = torch.Generator().manual_seed(seed_of(seed, iteration, 0))
        order = torch.randperm(len(self.items), generator=generator).tolist()
        return ItemBatch([self.items[order[i % len(order)]] for i in range(groups)])

    def condition(self, policy: GeneratorPolicy, prompts: ItemBatch) -> Condition:
        """What is known of the items; encoders see each item once."""
        for item in prompts.items:
            if item.id not in self.known:
                self.known[item.id] = map_tensors(lambda part: part.cpu(), policy.encode([item]))
        rows = [self.known[item.id] for item in prompts.items]
        return Condition(map_tensors(lambda *parts: torch.cat(parts).to(policy.device), *rows))

    def real(self, policy: GeneratorPolicy, prompts: ItemBatch) -> torch.Tensor | None:
        """None: items come without real clips."""
        return None

    def batch(self, policy: GeneratorPolicy, trajectory: Trajectory, prompts: ItemBatch) -> RewardBatch:
        """Finished samples as rewards see them."""
        latents = trajectory.latents.to(policy.device)
        condition = Condition(map_tensors(lambda part: part.to(policy.device), trajectory.condition.known))
        made = self.reward_batch(policy.decode(latents, condition), prompts.items)
        made.group, made.policy = trajectory.group, policy
        made.condition, made.latents = condition, latents
        return made

    def reward_batch(self, decoded: DecodedSamples, items: Sequence[Item]) -> RewardBatch:
        """Decoded samples with what is known of their items."""
        texts = [item.text for item in items]
        if decoded.motion is not None:
            sound = self.sound(items, decoded.motion.shape[1])
            return RewardBatch(decoded.motion.detach().float().cpu(), _log_mels(sound), _frame_source(decoded, None),
                               audio=torch.from_numpy(sound), transcript=texts)  # fmt: skip
        assert decoded.frames is not None, "decode returns frames or motion"
        count = max(1, round(len(decoded.frames[0]) / decoded.fps * FPS))
        sound = self.sound(items, count)
        if self.tracked:
            return RewardBatch.from_frames(decoded.frames, list(sound), decoded.fps, self.portraits(items), texts)
        still = torch.zeros(len(items), count, MOTION_DIM)
        return RewardBatch(
            still, _log_mels(sound), _frame_source(decoded, count), audio=torch.from_numpy(sound), transcript=texts
        )

    def portraits(self, items: Sequence[Item]) -> list[Portrait] | None:
        """Whose face each item is to be, where a reward compares with it and every item has an image.

        Raises:
            BadInput: an image without a face.
        """
        images = [item.image for item in items if item.image is not None]
        if not self.compared or len(images) < len(items):
            return None
        for image in images:
            if image not in self.faces:
                self.faces[image] = Portrait.from_image(read_image(image), name=str(image))
        return [self.faces[image] for image in images]

    def sound(self, items: Sequence[Item], frames: int) -> np.ndarray:
        """The speech of each item ``[B, 640 T]``, cut or followed by silence; silence where there is none."""
        result = np.zeros((len(items), frames * SAMPLES_PER_FRAME), np.float32)
        for row, item in zip(result, items, strict=True):
            if item.audio is not None:
                if item.id not in self.sounds:
                    self.sounds[item.id] = read_audio(item.audio)
                wave = self.sounds[item.id][: len(row)]
                row[: len(wave)] = wave
        return result


class FrameSource:
    """Frames that exist ``[B, T, H, W, 3]`` uint8, as a drawing; landmarks are not known."""

    def __init__(self, frames: np.ndarray) -> None:
        self._frames = frames

    def __call__(self, _: torch.Tensor, indices: tuple[int, ...]) -> torch.Tensor:
        """Frames ``[B, F, 3, H, W]`` in [0, 1]."""
        return torch.from_numpy(self._frames[:, list(indices)]).permute(0, 1, 4, 2, 3).float() / 255


def _frame_source(decoded: DecodedSamples, count: int | None) -> FrameSource | None:
    """Its frames at 25 fps, ``count`` of them."""
    if decoded.frames is None:
        return None
    clips = np.stack(list(decoded.frames))
    if count is not None:
        at = (np.arange(count) * decoded.fps / FPS + 1e-6).astype(int)
        clips = clips[:, np.minimum(at, clips.shape[1] - 1)]
    return FrameSource(clips)


def _log_mels(sound: np.ndarray) -> torch.Tensor:
    columns = sound.shape[1] // SAMPLES_PER_FRAME * MELS_PER_FRAME
    return torch.stack([log_mel(level(wave))[:columns] for wave in sound])
