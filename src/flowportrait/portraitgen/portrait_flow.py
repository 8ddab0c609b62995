"""A small flow that draws portraits, and stills as rewards see them.

A portrait flow small enough to be trained on a laptop: noise to face, given what the portrait should be like.

    attributes ─► context        v(x_σ, σ | context): residual blocks, scale and shift from (σ, context)

A policy like any other (``rl.plan``), with one chunk: nothing comes before a picture. Its latents are
principal components of small framed faces, a few hundred whitened numbers, learned from footage:

    z = Wᵀ (picture − mean) / scale         picture ≈ mean + W (scale · z)

What a variational autoencoder is to a large generator: linear, exact to invert, and unit variance in every direction,
so that noise of unit variance reaches all of it.

Still pictures: as a judge sees them, and as rewards see samples (a clip of one frame without sound).
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
from flowportrait.devices import Device, place, read_weights
from flowportrait.errors import BadInput
from flowportrait.files import complete, write_json
from flowportrait.flow.paths import shifted, solve
from flowportrait.media.faces import N_BLENDSHAPES, FaceTracker
from flowportrait.media.mel import MELS_PER_FRAME, N_MELS
from flowportrait.portraitgen.detectors import ATTRIBUTES, Look, glance, look
from flowportrait.rendering.motion_basis import MOTION_DIM
from flowportrait.rewards.batch import Failure, RewardBatch
from flowportrait.rewards.face import pair_indices

LATENTS = 192


class PictureSpace(nn.Module):
    """Buffers mean ``[P]``, modes ``[P, D]``, scale ``[D]`` for pictures of ``side`` pixels, P = 3 side²."""

    def __init__(self, side: int, latents: int = LATENTS) -> None:
        super().__init__()
        self.side = side
        self.register_buffer("mean", torch.zeros(3 * side * side))
        self.register_buffer("modes", torch.zeros(3 * side * side, latents))
        self.register_buffer("scale", torch.ones(latents))
        self.mean: torch.Tensor
        self.modes: torch.Tensor
        self.scale: torch.Tensor

    def encode(self, pictures: torch.Tensor) -> torch.Tensor:
        """Latents ``[N, D]`` of pictures ``[N, 3, S, S]`` in [0, 1]."""
        return (pictures.flatten(1) - self.mean) @ self.modes / self.scale

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Pictures ``[N, 3, S, S]`` in [0, 1] of latents ``[N, D]``."""
        pictures = self.mean + (latents * self.scale) @ self.modes.T
        return pictures.clamp(0, 1).unflatten(1, (3, self.side, self.side))

    @classmethod
    def fit(cls, pictures: torch.Tensor, latents: int = LATENTS) -> PictureSpace:
        """From pictures ``[N, 3, S, S]`` in [0, 1], N > D."""
        found = cls(pictures.shape[-1], latents)
        flat = pictures.flatten(1)
        found.mean.copy_(flat.mean(0))
        with torch.random.fork_rng():
            torch.manual_seed(0)
            _, values, modes = torch.svd_lowrank(flat - found.mean, q=latents, niter=3)
        found.modes.copy_(modes)
        found.scale.copy_((values / len(flat) ** 0.5).clamp_min(1e-5))
        return found


def as_pictures(frames: np.ndarray) -> torch.Tensor:
    """``[N, H, W, 3]`` uint8 as ``[N, 3, H, W]`` in [0, 1]."""
    return torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 255


def as_frames(pictures: torch.Tensor) -> np.ndarray:
    """Inverse of ``as_pictures``, rounded."""
    return (pictures.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()


@dataclass(frozen=True)
class PortraitFlowConfig:
    side: int = 48
    latents: int = LATENTS
    width: int = 256
    blocks: int = 3
    frequencies: int = 16
    """Of the noise level's embedding."""


class Wanted(NamedTuple):
    """Attributes ``[B, 5]``, standardised by ``PortraitFlow.standardise``."""

    attributes: torch.Tensor

    @property
    def chunks(self) -> int:
        """A picture is one chunk."""
        return 1

    def select(self, rows: torch.Tensor) -> Wanted:
        """The rows at these indices."""
        return Wanted(self.attributes[rows])

    def repeat(self, times: int) -> Wanted:
        """Each row ``times`` times in a row."""
        return Wanted(self.attributes.repeat_interleave(times, 0))


class _Session:
    """Generation of the one chunk."""

    def __init__(self, context: torch.Tensor) -> None:
        self._context = context

    def context(self) -> torch.Tensor:
        return self._context

    def append(self, latents: torch.Tensor) -> None:
        """Nothing comes after a picture."""


class _Block(nn.Module):
    """x + gate · MLP(norm(x) · (1 + scale) + shift), the three from the condition; the identity at first."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.told = nn.Linear(width, 2 * width)
        first, last = nn.Linear(width, width), nn.Linear(width, width)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.mlp = nn.Sequential(first, nn.SiLU(), last)

    def forward(self, x: torch.Tensor, told: torch.Tensor) -> torch.Tensor:
        scale, shift = self.told(told).chunk(2, -1)
        return x + self.mlp(self.norm(x) * (1 + scale) + shift)


class PortraitFlow(nn.Module):
    """A ``Policy``; see the module."""

    def __init__(self, config: PortraitFlowConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or PortraitFlowConfig()
        self.space = PictureSpace(config.side, config.latents)
        self.register_buffer("usual", torch.zeros(2, len(ATTRIBUTES)))
        self.usual: torch.Tensor
        self.told = nn.Sequential(nn.Linear(len(ATTRIBUTES), config.width), nn.SiLU())
        self.level = nn.Linear(2 * config.frequencies, config.width)
        self.enter = nn.Linear(config.latents, config.width)
        self.blocks = nn.ModuleList(_Block(config.width) for _ in range(config.blocks))
        self.leave = nn.Linear(config.width, config.latents)

    @property
    def latent_dim(self) -> int:
        """D."""
        return self.config.latents

    def standardise(self, attributes: torch.Tensor) -> torch.Tensor:
        """Attributes ``[B, 5]`` as measured to deviations from what training portraits had."""
        return (attributes - self.usual[0]) / self.usual[1]

    def session(self, condition: Wanted) -> _Session:
        """See ``Policy``."""
        return _Session(self.told(condition.attributes))

    def contexts(self, condition: Wanted, latents: torch.Tensor) -> torch.Tensor:
        """See ``Policy``: ``[B, 1, W]``."""
        return self.told(condition.attributes)[:, None]

    def velocity(self, x: torch.Tensor, sigma: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        """See ``Policy``."""
        octaves = torch.arange(self.config.frequencies, device=x.device) / 2
        angles = sigma.to(x.device)[..., None] * math.pi * 2**octaves
        told = context + self.level(torch.cat([angles.sin(), angles.cos()], -1))
        hidden = self.enter(x)
        for block in self.blocks:
            hidden = block(hidden, told)
        return self.leave(hidden)

    def recompute_activations(self) -> None:
        """See ``Policy``: there are few, all are kept."""

    @torch.no_grad()
    def draw(self, attributes: torch.Tensor, seed: int = 0, steps: int = 20) -> torch.Tensor:
        """Pictures ``[B, 3, S, S]`` in [0, 1] for attributes ``[B, 5]`` as measured, by Euler's steps."""
        context = self.told(self.standardise(attributes.to(self.usual.device)))
        noise = torch.randn(len(attributes), self.latent_dim, generator=torch.Generator().manual_seed(seed))
        noise = noise.to(context)
        return self.space.decode(solve(lambda x, s: self.velocity(x, s, context), noise, shifted(steps)))

    def save_pretrained(self, folder: Path) -> None:
        """Write config.json and model.safetensors."""
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "config.json", asdict(self.config), indent=2)
        with complete(folder / "model.safetensors") as partial:
            save_file({name: value.contiguous() for name, value in self.state_dict().items()}, str(partial))

    @classmethod
    def from_pretrained(
        cls, folder: Path, device: Device | None = None, dtype: torch.dtype | None = None
    ) -> PortraitFlow:
        """Load what ``save_pretrained`` wrote, in evaluation mode, placed as ``devices.place`` does.

        Raises:
            BadInput: it is not there, or another kind of model.
        """
        try:
            found = cls(from_dict(PortraitFlowConfig, json.loads((folder / "config.json").read_text(encoding="utf-8"))))
            found.load_state_dict(read_weights(folder / "model.safetensors"))
        except (OSError, ValueError, RuntimeError, BadInput) as error:
            why = str(error).splitlines()[0]
            raise BadInput(f"{folder} is no portrait flow ({why}): train one with portraitgen.train_flow.") from error
        return place(found.eval(), device, dtype)


STILL_ASPECTS = ("omni_reward", "ai_portrait")
"""What is graded of a still: the picture, and the person in it."""


@dataclass(frozen=True)
class Still:
    """A picture ``[H, W, 3]`` uint8 RGB, the prompt it was made for (empty: unknown) and a name for reports."""

    picture: np.ndarray
    prompt: str = ""
    name: str = "picture"
    generator: str = ""

    @cached_property
    def look(self) -> Look:
        """The face in the picture, looked for once."""
        return look(self.picture)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the picture, in hexadecimal."""
        return hashlib.sha256(self.picture.tobytes() + repr(self.picture.shape).encode()).hexdigest()

    def validation_error(self) -> Failure | None:
        """Return None: every picture is judged, with a face or without."""
        return None


@dataclass
class StillBatch(RewardBatch):
    """prompts: what each picture was made for, where that is known; framed: the landmarks ``[478, 3]`` px that each
    picture's face should have, where a generator draws framed faces: they are then believed and not looked for."""

    prompts: Sequence[str] = ()
    framed: Sequence[np.ndarray] = ()

    @cached_property
    def looks(self) -> list[Look]:
        """Each picture looked at once, however many rewards ask."""
        pictures = self.frames((0,))[:, 0]
        if not self.framed:
            return looks_at(pictures)
        framed = zip(as_frames(pictures), self.framed, strict=True)
        return [Look.at(picture, [(points, np.zeros(N_BLENDSHAPES, np.float32))]) for picture, points in framed]


def still_batch(
    pictures: torch.Tensor, prompts: Sequence[str] = (), framed: Sequence[np.ndarray] = (), **known: Any
) -> StillBatch:
    """Pictures ``[B, 3, H, W]`` in [0, 1]; ``known``: what else a batch may have (group, latents, policy, …)."""

    def draw(_: torch.Tensor, indices: tuple[int, ...]) -> torch.Tensor:
        return pictures[:, None].expand(-1, len(indices), -1, -1, -1)

    rest = torch.zeros(len(pictures), 1, MOTION_DIM)
    sound = torch.zeros(len(pictures), MELS_PER_FRAME, N_MELS)
    return StillBatch(rest, sound, draw, prompts=prompts, framed=framed, **known)


def looks_at(pictures: torch.Tensor) -> list[Look]:
    """A quick look at each of ``[B, 3, H, W]`` in [0, 1]."""
    with FaceTracker(still=True) as tracker:
        return [glance(np.ascontiguousarray(frame), tracker) for frame in as_frames(pictures)]


def looks_of(batch: RewardBatch) -> list[list[Look]]:
    """Looks at every sample: the one of a still, two of a clip's frames."""
    if isinstance(batch, StillBatch):
        return [[look] for look in batch.looks]
    frames = batch.frames(pair_indices(batch.motion.shape[1])[1::2])
    looks = looks_at(frames.flatten(0, 1))
    return [looks[start : start + frames.shape[1]] for start in range(0, len(looks), frames.shape[1])]
