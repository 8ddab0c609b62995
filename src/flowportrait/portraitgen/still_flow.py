"""This module holds a small flow that generates portraits, and still pictures as judges and rewards see them.

    attributes ─► context        v(x_σ, σ | context): residual blocks, scale and shift from (σ, context)

The portrait flow is small enough to be trained on a laptop. It is a policy (``rl.plan``) with a single chunk, because
a picture has no past. The parts in order: the latent space (``PictureSpace``), the flow (``PortraitFlow``), and still
pictures (``Still``, ``StillBatch``).
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn

from flowportrait.config import from_dict
from flowportrait.devices import Device, place_network, read_weights
from flowportrait.errors import BadInput
from flowportrait.files import atomic_write, write_json
from flowportrait.flow.schedules import noise_schedule, solve_ode
from flowportrait.media.faces import N_BLENDSHAPES, FaceTracker
from flowportrait.media.mel import MELS_PER_FRAME, N_MELS
from flowportrait.portraitgen.detectors import ATTRIBUTES, FaceView, find_face, find_framed_face
from flowportrait.rendering.motion_basis import MOTION_DIM
from flowportrait.rewards.batch import Failure, RewardBatch
from flowportrait.rewards.face import frame_pair_indices

# --- The latent space

PICTURE_LATENTS = 192
"""Number of latents of a picture."""


class PictureSpace(nn.Module):
    """A linear latent space of small pictures: whitened principal components, learned from framed faces.

        z = Wᵀ (picture − mean) / scale         picture ≈ mean + W (scale · z)

    It is to the small flow what a variational autoencoder is to a large generator. It is linear, and its latents have
    unit variance in every direction, so that noise of unit variance covers the space. The buffers are mean ``[P]``,
    modes W ``[P, D]`` and scale ``[D]``, with P = 3 side².

    Args:
        side: pixels of the side of a picture.
        latents: number of latents D.
    """

    def __init__(self, side: int, latents: int = PICTURE_LATENTS) -> None:
        super().__init__()
        self.side = side
        self.register_buffer("mean", torch.zeros(3 * side * side))
        self.register_buffer("modes", torch.zeros(3 * side * side, latents))
        self.register_buffer("scale", torch.ones(latents))
        self.mean: torch.Tensor
        self.modes: torch.Tensor
        self.scale: torch.Tensor

    def encode(self, pictures: torch.Tensor) -> torch.Tensor:
        """Return the latents ``[N, D]`` of pictures ``[N, 3, S, S]`` in [0, 1]."""
        return (pictures.flatten(1) - self.mean) @ self.modes / self.scale

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Return the pictures ``[N, 3, S, S]`` in [0, 1] of latents ``[N, D]``."""
        pictures = self.mean + (latents * self.scale) @ self.modes.T
        return pictures.clamp(0, 1).unflatten(1, (3, self.side, self.side))

    @classmethod
    def fit(cls, pictures: torch.Tensor, latents: int = PICTURE_LATENTS) -> PictureSpace:
        """Return the space of principal components of pictures ``[N, 3, S, S]`` in [0, 1], N > D."""
        space = cls(pictures.shape[-1], latents)
        flat = pictures.flatten(1)
        space.mean.copy_(flat.mean(0))
        with torch.random.fork_rng():
            torch.manual_seed(0)
            _, values, modes = torch.svd_lowrank(flat - space.mean, q=latents, niter=3)
        space.modes.copy_(modes)
        space.scale.copy_((values / len(flat) ** 0.5).clamp_min(1e-5))
        return space


def frames_to_pictures(frames: np.ndarray) -> torch.Tensor:
    """Return frames ``[N, H, W, 3]`` uint8 as pictures ``[N, 3, H, W]`` float32 in [0, 1]."""
    return torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 255


def pictures_to_frames(pictures: torch.Tensor) -> np.ndarray:
    """Return pictures ``[N, 3, H, W]`` in [0, 1] as frames ``[N, H, W, 3]`` uint8, rounded."""
    return (pictures.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()


# --- The flow


@dataclass(frozen=True)
class PortraitFlowConfig:
    """The sizes of a portrait flow."""

    side: int = 48
    """Pixels of the side of a picture."""
    latents: int = PICTURE_LATENTS
    width: int = 256
    blocks: int = 3
    """Number of residual blocks."""
    frequencies: int = 16
    """Frequencies of the noise level's embedding."""


class AttributeCondition(NamedTuple):
    """The condition of a portrait flow: attributes ``[B, 5]``, standardised by ``PortraitFlow.standardise``."""

    attributes: torch.Tensor

    @property
    def chunks(self) -> int:
        """The number of chunks: a picture is one chunk."""
        return 1

    def select(self, rows: torch.Tensor) -> AttributeCondition:
        """Return the condition of the rows at these indices."""
        return AttributeCondition(self.attributes[rows])

    def repeat(self, times: int) -> AttributeCondition:
        """Return the condition with each row repeated ``times`` times, repetitions next to each other."""
        return AttributeCondition(self.attributes.repeat_interleave(times, 0))


class _Session:
    """The generation of the only chunk of a picture; see ``rl.plan``."""

    def __init__(self, context: torch.Tensor) -> None:
        self._context = context

    def context(self) -> torch.Tensor:
        return self._context

    def append(self, latents: torch.Tensor) -> None:
        """Do nothing, because a picture has no second chunk."""


class _Block(nn.Module):
    """A residual block: x + MLP(norm(x) · (1 + scale) + shift), with scale and shift from the condition.

    It is the identity before training.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.modulation = nn.Linear(width, 2 * width)
        first, last = nn.Linear(width, width), nn.Linear(width, width)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.mlp = nn.Sequential(first, nn.SiLU(), last)

    def forward(self, x: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        scale, shift = self.modulation(condition).chunk(2, -1)
        return x + self.mlp(self.norm(x) * (1 + scale) + shift)


def _current_weight_name(name: str) -> str:
    """Return the name of a weight today, for its name today or in version 0.1."""
    if name == "usual":
        return "attribute_statistics"
    if name.startswith("told."):
        return "attributes_in." + name.removeprefix("told.")
    return name.replace(".told.", ".modulation.")


class PortraitFlow(nn.Module):
    """A ``Policy`` that generates a portrait with given attributes by flow matching in a ``PictureSpace``.

    The buffer ``attribute_statistics`` ``[2, 5]`` is the mean and the standard deviation of the attributes in training.
    """

    attribute_statistics: torch.Tensor

    def __init__(self, config: PortraitFlowConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or PortraitFlowConfig()
        self.space = PictureSpace(config.side, config.latents)
        self.register_buffer("attribute_statistics", torch.zeros(2, len(ATTRIBUTES)))
        self.attributes_in = nn.Sequential(nn.Linear(len(ATTRIBUTES), config.width), nn.SiLU())
        self.level = nn.Linear(2 * config.frequencies, config.width)
        self.enter = nn.Linear(config.latents, config.width)
        self.blocks = nn.ModuleList(_Block(config.width) for _ in range(config.blocks))
        self.leave = nn.Linear(config.width, config.latents)

    @property
    def latent_dim(self) -> int:
        """The number of latents D of a picture."""
        return self.config.latents

    def standardise(self, attributes: torch.Tensor) -> torch.Tensor:
        """Return measured attributes ``[B, 5]`` as standard deviations from the mean of the training portraits."""
        return (attributes - self.attribute_statistics[0]) / self.attribute_statistics[1]

    def session(self, condition: AttributeCondition) -> _Session:
        """See ``Policy``."""
        return _Session(self.attributes_in(condition.attributes))

    def contexts(self, condition: AttributeCondition, latents: torch.Tensor) -> torch.Tensor:
        """See ``Policy``; the contexts are ``[B, 1, W]``."""
        return self.attributes_in(condition.attributes)[:, None]

    def velocity(self, x: torch.Tensor, sigma: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        """See ``Policy``."""
        octaves = torch.arange(self.config.frequencies, device=x.device) / 2
        angles = sigma.to(x.device)[..., None] * math.pi * 2**octaves
        block_condition = context + self.level(torch.cat([angles.sin(), angles.cos()], -1))
        hidden = self.enter(x)
        for block in self.blocks:
            hidden = block(hidden, block_condition)
        return self.leave(hidden)

    def recompute_activations(self) -> None:
        """See ``Policy``; the network is small, so all activations are kept."""

    @torch.no_grad()
    def draw(self, attributes: torch.Tensor, seed: int = 0, steps: int = 20) -> torch.Tensor:
        """Return pictures ``[B, 3, S, S]`` in [0, 1] with the given attributes.

        Args:
            attributes: ``[B, 5]`` as measured, not standardised.
            seed: seed of the noise.
            steps: number of Euler steps.
        """
        context = self.attributes_in(self.standardise(attributes.to(self.attribute_statistics.device)))
        noise = torch.randn(len(attributes), self.latent_dim, generator=torch.Generator().manual_seed(seed))
        noise = noise.to(context)
        return self.space.decode(solve_ode(lambda x, s: self.velocity(x, s, context), noise, noise_schedule(steps)))

    def save_pretrained(self, folder: Path) -> None:
        """Write ``config.json`` and ``model.safetensors`` into a folder."""
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "config.json", asdict(self.config), indent=2)
        with atomic_write(folder / "model.safetensors") as partial:
            save_file({name: value.contiguous() for name, value in self.state_dict().items()}, str(partial))

    @classmethod
    def from_pretrained(
        cls, folder: Path, device: Device | None = None, dtype: torch.dtype | None = None
    ) -> PortraitFlow:
        """Return the flow that ``save_pretrained`` wrote, in evaluation mode.

        Args:
            folder: folder with ``config.json`` and ``model.safetensors``.
            device: see ``devices.place_network``.
            dtype: see ``devices.place_network``.

        Raises:
            BadInput: the folder does not hold a portrait flow.
        """
        try:
            flow = cls(from_dict(PortraitFlowConfig, json.loads((folder / "config.json").read_text(encoding="utf-8"))))
            weights = read_weights(folder / "model.safetensors")
            flow.load_state_dict({_current_weight_name(name): value for name, value in weights.items()})
        except (OSError, ValueError, RuntimeError, BadInput) as error:
            reason = str(error).splitlines()[0]
            raise BadInput(
                f"{folder} is no portrait flow ({reason}): train one with tools/train_portrait_flow.py."
            ) from error
        return place_network(flow.eval(), device, dtype)


# --- Still pictures

STILL_ASPECTS = ("omni_reward", "ai_portrait")
"""The aspects of a still that are graded: the quality of the picture, and how real the person in it looks."""


@dataclass(frozen=True)
class Still:
    """A still picture to be judged.

    Args:
        picture: ``[H, W, 3]`` uint8 RGB.
        prompt: the prompt that the picture was generated for; empty if it is unknown.
        name: the picture's name in reports.
        generator: what made the picture, for reports.
    """

    picture: np.ndarray
    prompt: str = ""
    name: str = "picture"
    generator: str = ""

    @cached_property
    def face(self) -> FaceView:
        """The largest face in the picture; it is searched for only once."""
        return find_face(self.picture)

    @cached_property
    def digest(self) -> str:
        """The SHA-256 hash of the picture, in hexadecimal."""
        return hashlib.sha256(self.picture.tobytes() + repr(self.picture.shape).encode()).hexdigest()

    def validation_error(self) -> Failure | None:
        """Return None, because every picture can be judged, with a face or without."""
        return None


@dataclass
class StillBatch(RewardBatch):
    """A batch of rewards over still pictures: clips of one frame without sound.

    Args:
        prompts: the prompt of each picture, if known.
        framed: landmarks ``[478, 3]`` px of the face in each picture, for a generator of framed faces; they are used
            as they are, and the pictures are not searched for faces.
    """

    prompts: Sequence[str] = ()
    framed: Sequence[np.ndarray] = ()

    @cached_property
    def faces(self) -> list[FaceView]:
        """The face in each picture; it is searched for only once, for all rewards together."""
        pictures = self.frames((0,))[:, 0]
        if not self.framed:
            return find_framed_faces(pictures)
        framed = zip(pictures_to_frames(pictures), self.framed, strict=True)
        return [FaceView.at(picture, [(points, np.zeros(N_BLENDSHAPES, np.float32))]) for picture, points in framed]


def still_batch(
    pictures: torch.Tensor, prompts: Sequence[str] = (), framed: Sequence[np.ndarray] = (), **known: Any
) -> StillBatch:
    """Return a batch of still pictures.

    Args:
        pictures: ``[B, 3, H, W]`` in [0, 1].
        prompts: see ``StillBatch``.
        framed: see ``StillBatch``.
        **known: further fields of ``RewardBatch`` (group, latents, policy, …).
    """

    def draw(_: torch.Tensor, indices: tuple[int, ...]) -> torch.Tensor:
        return pictures[:, None].expand(-1, len(indices), -1, -1, -1)

    motion = torch.zeros(len(pictures), 1, MOTION_DIM)
    mel = torch.zeros(len(pictures), MELS_PER_FRAME, N_MELS)
    return StillBatch(motion, mel, draw, prompts=prompts, framed=framed, **known)


def find_framed_faces(pictures: torch.Tensor) -> list[FaceView]:
    """Return the face in each of the pictures ``[B, 3, H, W]`` in [0, 1], by one quick search in each."""
    with FaceTracker(still=True) as tracker:
        return [find_framed_face(np.ascontiguousarray(frame), tracker) for frame in pictures_to_frames(pictures)]


def find_batch_faces(batch: RewardBatch) -> list[list[FaceView]]:
    """Return the faces in every sample of a batch: one for a still, those of two frames for a clip."""
    if isinstance(batch, StillBatch):
        return [[view] for view in batch.faces]
    frames = batch.frames(frame_pair_indices(batch.motion.shape[1])[1::2])
    looks = find_framed_faces(frames.flatten(0, 1))
    return [looks[start : start + frames.shape[1]] for start in range(0, len(looks), frames.shape[1])]
