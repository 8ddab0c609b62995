"""The interface of third-party generators, and how one becomes a policy with a task for post-training.

A generator has a shape and three methods:

    encode(items) ─► known            velocity(x_σ, σ, known) ─► v            decode(x_0, known) ─► DecodedSamples

    x_σ = (1 − σ)·x_0 + σ·ε,   v = dx/dσ = ε − x_0,   σ from 1 (noise) to 0 (data)

``known`` is the encoding of the items: a tuple of tensors with one row per item, which may be named or nested. Only the
generator's own methods read it.

The parts in order: ``Item``, ``DecodedSamples`` and ``Generator``, the interface; ``GeneratorPolicy``, a generator as a
policy; ``GeneratorTask``, which draws items and turns samples into reward batches.
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
from flowportrait.files import atomic_write
from flowportrait.flow.noise import mix_seed
from flowportrait.media.audio import SAMPLES_PER_FRAME, read_audio
from flowportrait.media.image import read_image
from flowportrait.media.mel import MELS_PER_FRAME, log_mel, normalize_loudness
from flowportrait.media.portrait import Portrait
from flowportrait.media.video import FPS
from flowportrait.rendering.motion_basis import MOTION_DIM
from flowportrait.rewards.batch import RewardBatch
from flowportrait.rl.rollout import Trajectory, map_tensors

# --- The interface -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Item:
    """A prompt: a text, a portrait, speech, or several of these; ``id`` is unique."""

    id: str
    text: str = ""
    image: Path | None = None
    audio: Path | None = None


class DecodedSamples(NamedTuple):
    """B samples as they would be delivered: frames, motion of a face, or data of any other kind.

    Attributes:
        frames: RGB ``[T, H, W, 3]`` uint8 per sample; a picture has T = 1.
        fps: frame rate of ``frames`` and ``data``.
        motion: ``[B, T, 30]`` at 25 fps, in the numbers of ``rendering.motion_basis``.
        data: samples that are no talking face ``[B, T, ...]``, such as paths or measured images, with T = 1 if they do
            not change over time; rewards read them as ``batch.data``.
    """

    frames: Sequence[np.ndarray] | None = None
    fps: float = 25.0
    motion: torch.Tensor | None = None
    data: torch.Tensor | None = None


Shown = DecodedSamples
"""The name of ``DecodedSamples`` in version 0.1."""


class Generator(Protocol):
    """A third-party generator. If it is an ``nn.Module``, its parameters are trained.

    It may also have ``networks`` (the trained networks), ``levels(sigmas)`` (its own noise schedule for levels from
    1 to 0), ``save_pretrained(folder)`` and ``recompute_activations()``.
    """

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the latents of one sample."""
        ...

    def encode(self, items: Sequence[Item]) -> Any:
        """Encode items as a tuple of tensors with a row each; called once per item, so it must not be trained."""
        ...

    def velocity(self, x: torch.Tensor, sigma: torch.Tensor, known: Any) -> torch.Tensor:
        """Return the velocity ``[B, *shape]`` at x ``[B, *shape]`` float32 and noise levels ``[B]``, with guidance."""
        ...

    def decode(self, x: torch.Tensor, known: Any) -> DecodedSamples:
        """Decode clean latents ``[B, *shape]`` as they would be delivered."""
        ...


# --- A generator as a policy -------------------------------------------------------------------------------------


class ItemCondition(NamedTuple):
    """The encoding of each sample's item."""

    known: Any

    @property
    def chunks(self) -> int:
        """Number of chunks to generate: one, the whole sample."""
        return 1

    def select(self, rows: torch.Tensor) -> ItemCondition:
        """Return the samples at these indices."""
        return ItemCondition(map_tensors(lambda part: part[rows.to(part.device)], self.known))

    def repeat(self, times: int) -> ItemCondition:
        """Return each sample ``times`` times in a row."""
        return ItemCondition(map_tensors(lambda part: part.repeat_interleave(times, 0), self.known))


class SingleChunkSession:
    """A generation of one chunk, the whole sample."""

    def __init__(self, condition: ItemCondition) -> None:
        self.known = condition.known

    def context(self) -> Any:
        """Return the context of the chunk, which is the encoding."""
        return self.known

    def append(self, latents: torch.Tensor) -> None:
        """Do nothing, since no chunk follows."""


class GeneratorPolicy(nn.Module):
    """A third-party generator as a policy, for which a whole sample is one chunk.

        x [..., D]  ⇄  [B, *shape],    a context is the encoding, with the leading sizes of x

    Trained are the generator's ``networks``, or the generator itself if it names none.
    """

    generator: Generator

    def __init__(self, generator: Generator) -> None:
        """Wrap a generator.

        Raises:
            BadInput: the generator has nothing to train.
        """
        super().__init__()
        networks = getattr(generator, "networks", None)
        if networks is None and not isinstance(generator, nn.Module):
            raise BadInput(f"{type(generator).__name__} has nothing to train: make it a torch.nn.Module.")
        self.generator = generator
        self.networks = nn.ModuleDict(networks or {})
        self.keeps_adapters = networks is not None
        """Whether adapters are saved by themselves instead of merged into the weights."""
        # A rollout is decoded in another thread while the next one is encoded, and autoencoders of video (Wan's) keep
        # intermediate results as attributes.
        self.lock = Lock()
        blocks = [getattr(part, "_no_split_modules", None) or getattr(part, "_repeated_blocks", None) or ()
                  for part in self.networks.values()]  # fmt: skip
        self._no_split_modules = [name for names in blocks for name in names]

    def __deepcopy__(self, memo: dict[int, Any]) -> GeneratorPolicy:
        # Encoders and autoencoders of a pipeline are frozen, so that copies share them.
        memo[id(self.lock)] = self.lock
        if self.networks:
            memo[id(self.generator)] = self.generator
        result = self.__class__.__new__(self.__class__)
        memo[id(self)] = result
        result.__dict__ = {name: copy.deepcopy(value, memo) for name, value in self.__dict__.items()}
        return result

    @property
    def latent_dim(self) -> int:
        """D, the number of latents per sample."""
        return int(torch.Size(self.generator.shape).numel())

    @property
    def device(self) -> torch.device:
        """The device of the trained network."""
        return next(self.parameters()).device

    @torch.no_grad()
    def encode(self, items: Sequence[Item]) -> Any:
        """Encode items with the generator, without gradients.

        Raises:
            BadInput: the generator returns something else than a tuple.
        """
        with self.lock:
            known = self.generator.encode(items)
        if not isinstance(known, tuple):
            raise BadInput(f"encode returns a {type(known).__name__}: return a tuple of tensors.")
        return map_tensors(lambda part: part.detach(), known)

    @torch.no_grad()
    def decode(self, latents: torch.Tensor, condition: ItemCondition) -> DecodedSamples:
        """Decode latents ``[B, 1, D]`` with the generator, without gradients."""
        with self.lock:
            return self.generator.decode(latents.reshape(-1, *self.generator.shape), condition.known)

    def session(self, condition: ItemCondition) -> SingleChunkSession:
        """Start generating a sample."""
        return SingleChunkSession(condition)

    def contexts(self, condition: ItemCondition, latents: torch.Tensor) -> Any:
        """Return the contexts of the one chunk, the encoding as ``[B, 1, …]``."""
        return map_tensors(lambda part: part[:, None], condition.known)

    def velocity(self, x: torch.Tensor, sigma: torch.Tensor, context: Any) -> torch.Tensor:
        """Return the velocity ``[..., D]`` at x ``[..., D]``; sigma and context broadcast to its leading sizes."""
        lead = x.shape[:-1]
        count = int(torch.Size(lead).numel())
        known = map_tensors(
            lambda part: part.expand(*lead, *part.shape[len(lead) :]).flatten(0, len(lead) - 1), context
        )
        level = sigma.expand(lead).reshape(count)
        return self.generator.velocity(x.reshape(count, *self.generator.shape), level, known).reshape(x.shape)

    def levels(self, sigmas: torch.Tensor) -> torch.Tensor:
        """Return the generator's own schedule for levels ``[K + 1]`` from 1 to 0, or these if it has none."""
        schedule = getattr(self.generator, "levels", None)
        return schedule(sigmas) if schedule else sigmas

    def recompute_activations(self) -> None:
        """Recompute activations in the backward pass instead of keeping them.

        Raises:
            BadInput: the generator has no such method.
        """
        for network in self.networks.values():
            network.enable_gradient_checkpointing()  # type: ignore[operator]
        if not self.networks:
            recompute = getattr(self.generator, "recompute_activations", None)
            if recompute is None:
                name = type(self.generator).__name__
                raise BadInput(f"checkpointing=true needs a method recompute_activations of {name}: leave it false.")
            recompute()

    def save_pretrained(self, folder: Path) -> None:
        """Write what was trained with the generator's own method, or else as ``model.safetensors``."""
        folder.mkdir(parents=True, exist_ok=True)
        if self.networks:
            pipeline: Any = self.generator
            pipeline.save(folder, dict(self.networks))
        elif hasattr(self.generator, "save_pretrained"):
            self.generator.save_pretrained(folder)
        else:
            assert isinstance(self.generator, nn.Module), "a generator without networks is a module"
            weights = {name: value.contiguous() for name, value in self.generator.state_dict().items()}
            with atomic_write(folder / "model.safetensors") as partial:
                save_file(weights, partial)


# --- The task of a generator -------------------------------------------------------------------------------------

NEEDS_WITHOUT_FACE = frozenset({"frames", "data", "fps", "audio", "transcript", "group", "policy"})
"""Needs of rewards that can be met without tracking a face."""


class ItemBatch(NamedTuple):
    """A batch of prompts, one item per row."""

    items: list[Item]

    def select(self, rows: torch.Tensor) -> ItemBatch:
        """Return the rows at these indices."""
        return ItemBatch([self.items[int(row)] for row in rows])


class GeneratorTask:
    """The items that a generator is trained on, and what rewards see of its samples.

        motion or data that it generated       ─► rewards, unchanged
        frames, and rewards look at a face     ─► tracked face, crop and landmarks (``rewards.batch``); the item's image
                                                  is the portrait that rewards compare with
        frames, and rewards look at pictures   ─► the whole frames

    Items are drawn in a keyed order and encoded once in a run.
    """

    regions: Mapping[str, torch.Tensor] = {}

    def __init__(self, items: Sequence[Item], needs: frozenset[str]) -> None:
        """Take the items, and the needs of all rewards together."""
        self.items = list(items)
        self.tracks_faces = not needs <= NEEDS_WITHOUT_FACE
        self.compares_portraits = "portrait" in needs
        self.known: dict[str, Any] = {}
        self.sounds: dict[str, np.ndarray] = {}
        self.faces: dict[Path, Portrait] = {}

    def draw(self, groups: int, seed: int, iteration: int) -> ItemBatch:
        """Draw items for a number of groups; the result depends on the arguments alone."""
        generator = torch.Generator().manual_seed(mix_seed(seed, iteration, 0))
        order = torch.randperm(len(self.items), generator=generator).tolist()
        return ItemBatch([self.items[order[i % len(order)]] for i in range(groups)])

    def condition(self, policy: GeneratorPolicy, prompts: ItemBatch) -> ItemCondition:
        """Return the encoding of items; each is encoded once in a run."""
        for item in prompts.items:
            if item.id not in self.known:
                self.known[item.id] = map_tensors(lambda part: part.cpu(), policy.encode([item]))
        rows = [self.known[item.id] for item in prompts.items]
        return ItemCondition(map_tensors(lambda *parts: torch.cat(parts).to(policy.device), *rows))

    def real(self, policy: GeneratorPolicy, prompts: ItemBatch) -> torch.Tensor | None:
        """Return None, since items have no real clips."""
        return None

    def batch(self, policy: GeneratorPolicy, trajectory: Trajectory, prompts: ItemBatch) -> RewardBatch:
        """Decode the samples of a trajectory, and return them as rewards see them."""
        latents = trajectory.latents.to(policy.device)
        condition = ItemCondition(map_tensors(lambda part: part.to(policy.device), trajectory.condition.known))
        batch = self.reward_batch(policy.decode(latents, condition), prompts.items)
        batch.group, batch.policy = trajectory.group, policy
        batch.condition, batch.latents = condition, latents
        return batch

    def reward_batch(self, decoded: DecodedSamples, items: Sequence[Item]) -> RewardBatch:
        """Return decoded samples with the texts, speech and portraits of their items, as rewards see them."""
        texts = [item.text for item in items]
        if decoded.motion is not None:
            sound = self.sound(items, decoded.motion.shape[1])
            return RewardBatch(decoded.motion.detach().float().cpu(), _log_mels(sound), _frame_source(decoded, None),
                               audio=torch.from_numpy(sound), transcript=texts)  # fmt: skip
        length = len(decoded.frames[0]) if decoded.frames is not None else _length(decoded)
        count = max(1, round(length / decoded.fps * FPS))
        sound = self.sound(items, count)
        if decoded.data is None and decoded.frames is not None and self.tracks_faces:
            return RewardBatch.from_frames(decoded.frames, list(sound), decoded.fps, self.portraits(items), texts)
        still = torch.zeros(len(items), count, MOTION_DIM)
        return RewardBatch(
            still, _log_mels(sound), _frame_source(decoded, count), audio=torch.from_numpy(sound), transcript=texts,
            data=None if decoded.data is None else decoded.data.detach().float().cpu(),
        )  # fmt: skip

    def portraits(self, items: Sequence[Item]) -> list[Portrait] | None:
        """Return the portraits of items, if a reward compares with them and every item has an image; else None.

        Raises:
            BadInput: an image has no face.
        """
        images = [item.image for item in items if item.image is not None]
        if not self.compares_portraits or len(images) < len(items):
            return None
        for image in images:
            if image not in self.faces:
                self.faces[image] = Portrait.from_image(read_image(image), name=str(image))
        return [self.faces[image] for image in images]

    def sound(self, items: Sequence[Item], frames: int) -> np.ndarray:
        """Return the speech of each item ``[B, 640 T]``, cut or padded with silence; silence for items without it."""
        result = np.zeros((len(items), frames * SAMPLES_PER_FRAME), np.float32)
        for row, item in zip(result, items, strict=True):
            if item.audio is not None:
                if item.id not in self.sounds:
                    self.sounds[item.id] = read_audio(item.audio)
                wave = self.sounds[item.id][: len(row)]
                row[: len(wave)] = wave
        return result


class FrameSource:
    """Frames ``[B, T, H, W, 3]`` uint8 as the frame source of a reward batch; landmarks are ignored."""

    def __init__(self, frames: np.ndarray) -> None:
        self._frames = frames

    def __call__(self, _: torch.Tensor, indices: tuple[int, ...]) -> torch.Tensor:
        """Return the frames at some indices ``[B, F, 3, H, W]`` in [0, 1]."""
        return torch.from_numpy(self._frames[:, list(indices)]).permute(0, 1, 4, 2, 3).float() / 255


def _length(decoded: DecodedSamples) -> int:
    """Return T of samples without frames and motion.

    Raises:
        BadInput: they have no data either.
    """
    if decoded.data is None:
        raise BadInput("decode returns neither frames nor motion nor data: return one of them.")
    return decoded.data.shape[1]


def _frame_source(decoded: DecodedSamples, count: int | None) -> FrameSource | None:
    """Return the decoded frames, or ``count`` of them at 25 fps; None if there are none."""
    if decoded.frames is None:
        return None
    clips = np.stack(list(decoded.frames))
    if count is not None:
        at = (np.arange(count) * decoded.fps / FPS + 1e-6).astype(int)
        clips = clips[:, np.minimum(at, clips.shape[1] - 1)]
    return FrameSource(clips)


def _log_mels(sound: np.ndarray) -> torch.Tensor:
    columns = sound.shape[1] // SAMPLES_PER_FRAME * MELS_PER_FRAME
    return torch.stack([log_mel(normalize_loudness(wave))[:columns] for wave in sound])
