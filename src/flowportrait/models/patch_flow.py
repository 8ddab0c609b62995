"""A generator that draws pictures, patch by patch.

The head that draws a frame's patches together: patches mix, then numbers mix, shifted and scaled by h and σ.

    y ← y + mix over patches (norm y)        y ← y + mix over numbers (norm y)

A face crop is aligned, so a patch knows by its place what it shows, and mixing needs no attention (MLP-Mixer,
2105.01601; adaptive layer norm as in ``flow_head``).

AR-Flow over the latents of an image autoencoder: a frame is a chunk, its patches are drawn together.

    token_i = sound of frame i  +  patches of frame i−1  +  portrait        h_i = backbone(token_1 … token_i)
    ẑ       = head(x_σ, σ | h_i, patches of frame i−1, patches of the portrait)
    v       = (x_σ − ẑ) / max(σ, 0.1)                                       σ: 1 → 0, then the next frame

The same policy as ``ARFlow`` to whoever trains it, but what it draws is free: nothing keeps the face this person's, the
lips sharp, or the tenth second like the first. It is where perceptual rewards and failures are studied. The sound comes
as the (frozen) audio features of a motion generator.

Footage as a picture generator learns from it: framed faces as autoencoder latents, and audio features with them.

The frame stands still while the head moves in it: one crop per clip, from the landmarks' median.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from flowportrait.data.corpus import Clip
from flowportrait.devices import Device, place, read_weights
from flowportrait.errors import BadInput
from flowportrait.files import write_json, write_weights
from flowportrait.media.crop import sample_crop, to_canonical
from flowportrait.media.mel import level, log_mel
from flowportrait.media.video import iter_frames
from flowportrait.models.arflow import ARFlow
from flowportrait.models.backbone import FREQUENCIES, Backbone, GeneratorConfig, fourier
from flowportrait.models.speech_encoder import N_LIPS
from flowportrait.rendering.vae_codec import VaeCodec, VideoLatents


class PatchHead(nn.Module):
    """Change of every patch ``[..., P, depth]`` from what is known of it ``[..., P, 3·depth]``."""

    def __init__(self, patches: int, depth: int, context_dim: int, width: int, blocks: int) -> None:
        super().__init__()
        self.read = nn.Linear(3 * depth, width)
        self.place = nn.Parameter(0.02 * torch.randn(patches, width))
        self.context = nn.Linear(context_dim, width)
        self.level = nn.Sequential(nn.Linear(2 * FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width))
        self.blocks = nn.ModuleList(_Block(patches, width) for _ in range(blocks))
        self.norm = nn.LayerNorm(width)
        self.write = nn.Linear(width, depth)
        nn.init.zeros_(self.write.weight)
        nn.init.zeros_(self.write.bias)

    def forward(self, cells: torch.Tensor, sigma: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        """cells ``[..., P, 3·depth]``, sigma ``[...]``, context ``[..., context_dim]``."""
        condition = nn.functional.silu(self.context(context) + self.level(fourier(sigma)))[..., None, :]
        y = self.read(cells) + self.place
        for block in self.blocks:
            y = block(y, condition)
        return self.write(self.norm(y))


class _Block(nn.Module):
    def __init__(self, patches: int, width: int) -> None:
        super().__init__()
        self.norm_patches = nn.LayerNorm(width, elementwise_affine=False)
        self.norm_numbers = nn.LayerNorm(width, elementwise_affine=False)
        self.modulate = nn.Linear(width, 4 * width)
        self.over_patches = nn.Sequential(nn.Linear(patches, 2 * patches), nn.SiLU(), nn.Linear(2 * patches, patches))
        self.over_numbers = nn.Sequential(nn.Linear(width, 2 * width), nn.SiLU(), nn.Linear(2 * width, width))
        nn.init.zeros_(self.modulate.weight)
        nn.init.zeros_(self.modulate.bias)

    def forward(self, y: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        scale, shift, scale_numbers, shift_numbers = self.modulate(condition).chunk(4, -1)
        y = y + self.over_patches((self.norm_patches(y) * (1 + scale) + shift).mT).mT
        return y + self.over_numbers(self.norm_numbers(y) * (1 + scale_numbers) + shift_numbers)


SHARPEST = 0.1
"""σ below which the velocity no longer magnifies the error of ẑ."""


@dataclass(frozen=True)
class PatchFlowConfig:
    grid: int = 6
    """Patches along a side."""
    depth: int = 128
    """Numbers per patch."""
    hidden: int = 128
    layers: int = 2
    heads: int = 4
    window: int = 16
    """Frames that attention looks back on."""
    audio_width: int = 128
    """Width of the motion generator's audio features, before those of the lips."""
    head_width: int = 192
    head_depth: int = 5
    steps: int = 4
    shift: float = 1.0

    @property
    def latent_dim(self) -> int:
        """Numbers per frame."""
        return self.grid**2 * self.depth


class PatchCondition(NamedTuple):
    """Sound ``[B, N, hidden]`` and portrait ``[B, hidden]`` embedded, and the portrait itself ``[B, D]``."""

    audio: torch.Tensor
    style: torch.Tensor
    portrait: torch.Tensor

    def repeat(self, times: int) -> PatchCondition:
        """Each item ``times`` times in a row."""
        return PatchCondition(*(part.repeat_interleave(times, 0) for part in self))

    def select(self, rows: torch.Tensor) -> PatchCondition:
        """The items at ``rows``."""
        return PatchCondition(*(part[rows] for part in self))

    @property
    def chunks(self) -> int:
        """N, how many frames there are to generate."""
        return self.audio.shape[1]


class PatchFlow(nn.Module):
    """The networks. A policy: ``condition``, ``contexts`` or ``session``, ``velocity``."""

    def __init__(self, config: PatchFlowConfig) -> None:
        super().__init__()
        self.config = config
        size = config.latent_dim
        self.audio_in = nn.Linear(config.audio_width + N_LIPS, config.hidden)
        self.frame_in = nn.Linear(size, config.hidden)
        self.portrait_in = nn.Linear(size, config.hidden)
        self.backbone = Backbone(
            GeneratorConfig(hidden=config.hidden, layers=config.layers, heads=config.heads, window=config.window)
        )
        self.head = PatchHead(config.grid**2, config.depth, config.hidden, config.head_width, config.head_depth)

    @property
    def latent_dim(self) -> int:
        """D, numbers per frame."""
        return self.config.latent_dim

    def condition(self, features: torch.Tensor, portrait: torch.Tensor) -> PatchCondition:
        """From what ``hear`` returned ``[B, N, 144]`` and the portrait's latents ``[B, D]``."""
        return PatchCondition(self.audio_in(features), self.portrait_in(portrait), portrait)

    def contexts(self, condition: PatchCondition, latents: torch.Tensor) -> torch.Tensor:
        """What ``velocity`` needs at every frame ``[B, N, hidden + 2 D]``, given the clean latents ``[B, N, D]``."""
        return self.contexts_after(condition, torch.cat([condition.portrait[:, None], latents[:, :-1]], 1))

    def contexts_after(self, condition: PatchCondition, before: torch.Tensor) -> torch.Tensor:
        """Contexts, given the frame ``[B, N, D]`` that each follows."""
        state = self.backbone(self.frame_in(before) + condition.audio + condition.style[:, None])
        return torch.cat([state, before, condition.portrait[:, None].expand_as(before)], -1)

    def velocity(self, x: torch.Tensor, sigma: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        """v ``[..., D]`` at x and noise level sigma (scalar or ``[...]``)."""
        level = sigma.to(x.device).expand(x.shape[:-1])
        return (x - self.frame(x, level, context)) / level.clamp_min(SHARPEST)[..., None]

    def frame(self, x: torch.Tensor, sigma: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        """ẑ ``[..., D]``: the frame that x is taken for; the frame before plus what the head says has changed."""
        state, before, portrait = context.split([self.config.hidden, self.latent_dim, self.latent_dim], -1)
        parts = torch.broadcast_tensors(x, before, portrait)
        cells = [part.unflatten(-1, (-1, self.config.depth)) for part in parts]
        return before + self.head(torch.cat(cells, -1), sigma, state).flatten(-2)

    def session(self, condition: PatchCondition) -> PatchSession:
        """Start generating from the portrait."""
        return PatchSession(self, condition)

    def recompute_activations(self) -> None:
        """Trade the memory of the backbone's activations for a second forward pass, in training mode only."""
        self.backbone.recompute_activations()

    def save_pretrained(self, folder: Path) -> None:
        """Write ``config.json`` and float16 ``model.safetensors``."""
        folder.mkdir(parents=True, exist_ok=True)
        write_weights(folder / "model.safetensors", self.state_dict())
        write_json(folder / "config.json", asdict(self.config), indent=2)

    @classmethod
    def from_pretrained(cls, folder: Path, device: Device | None = None, dtype: torch.dtype | None = None) -> PatchFlow:
        """Load what ``save_pretrained`` wrote, placed as ``devices.place`` does.

        Raises:
            BadInput: the folder holds no such checkpoint.
        """
        try:
            model = cls(PatchFlowConfig(**json.loads((folder / "config.json").read_text(encoding="utf-8"))))
            model.load_state_dict(read_weights(folder / "model.safetensors"))
        except (OSError, TypeError, ValueError, RuntimeError) as error:
            reason = str(error).splitlines()[0]
            raise BadInput(f"No picture generator in {folder} ({reason}): train one with train_patches.") from error
        return place(model.eval(), device, dtype)


class PatchSession:
    """Generation under way: ``context`` of the next frame, then ``append`` its latents; repeat."""

    def __init__(self, model: PatchFlow, condition: PatchCondition) -> None:
        self.model, self.condition = model, condition
        self.cache, self.position, self.last = model.backbone.new_cache(), 0, condition.portrait

    def context(self) -> torch.Tensor:
        """Context of the next frame ``[B, hidden + 2 D]``. Call once per frame."""
        token = self.model.frame_in(self.last) + self.condition.audio[:, self.position] + self.condition.style
        state = self.model.backbone(token[:, None], self.cache)[:, 0]
        return torch.cat([state, self.last, self.condition.portrait], -1)

    def append(self, latents: torch.Tensor) -> torch.Tensor:
        """Accept the frame's clean latents ``[B, D]``."""
        self.last = latents
        self.position += 1
        return latents


@torch.no_grad()
def motion_generator_features(model: ARFlow, mel: torch.Tensor) -> torch.Tensor:
    """Audio features of a motion generator with an anchor ``[B, T, audio_width + 16]`` for log-mel ``[B, 4T, 80]``, T
    whole chunks: what its encoder learned, and where the lips most likely are."""
    audio = model.condition(mel).audio
    split = [model.audio_in.in_features, audio.shape[-1] - model.audio_in.in_features]
    return torch.cat([p.unflatten(-1, (model.config.chunk, -1)).flatten(1, 2) for p in audio.split(split, -1)], -1)


WIDTH, CENTRE = 2.8, (0.0, 0.45)
"""The crop's width, and its middle below the eyes, in outer-eye-corner distances."""
PATCH = 2
"""Latent cells along a side of a patch."""


@dataclass(frozen=True)
class Film:
    """latents ``[T, D]`` as ``patches`` makes them; features ``[T, 144]``; the speaker's name."""

    latents: torch.Tensor
    features: torch.Tensor
    speaker: str


def framing(landmarks: np.ndarray, side: int) -> np.ndarray:
    """Affine map ``[2, 3]`` from a picture with these landmarks ``[478, 3]`` to the crop of ``side`` pixels."""
    matrix = to_canonical(landmarks) * (side / WIDTH)
    matrix[:, 2] += side / 2 - np.array(CENTRE) * side / WIDTH - 0.5
    return matrix


def framed(video: Path, clip: Clip, side: int, frames: int) -> Iterator[np.ndarray]:
    """The first ``frames`` frames of a prepared clip's video, cut to the face ``[side, side, 3]`` uint8."""
    matrix = framing(np.median(clip.landmarks, 0), side)
    for _, frame in zip(range(min(frames, len(clip))), iter_frames(video), strict=False):
        yield sample_crop(frame, matrix, side, cv2.BORDER_REPLICATE)


def film(video: Path, clip: Clip, speaker: str, codec: VaeCodec, model: ARFlow, side: int, frames: int) -> Film:
    """Latents and sound of a clip, cut to whole chunks of the motion generator."""
    chunk = model.config.chunk
    pictures = np.stack(list(framed(video, clip, side, frames)))
    features = motion_generator_features(model, log_mel(level(clip.audio))[None, : len(clip) // chunk * chunk * 4])[0]
    length = min(len(pictures), len(features))
    return Film(patches(codec.encode(pictures[:length]).values), features[:length], speaker)


def patches(values: torch.Tensor) -> torch.Tensor:
    """Latents ``[T, C, h, w]`` as rows of patches ``[T, h·w/4 · 4C]``."""
    return F.pixel_unshuffle(values, PATCH).flatten(2).mT.flatten(1)


def pictures(latents: torch.Tensor, codec: VaeCodec, side: int) -> Iterator[np.ndarray]:
    """Frames ``[side, side, 3]`` uint8 of patches ``[T, D]``."""
    cells = side // codec.spatial // PATCH
    values = F.pixel_shuffle(latents.unflatten(1, (cells**2, -1)).mT.unflatten(2, (cells, cells)), PATCH)
    yield from codec.decode(VideoLatents(values, len(values), side, side))
