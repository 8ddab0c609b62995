"""PatchFlow, a generator that draws pictures: AR-Flow over the latents of an image autoencoder.

    token_i = sound of frame i  +  patches of frame i−1  +  portrait        h_i = backbone(token_1 … token_i)
    ẑ       = head(x_σ, σ | h_i, patches of frame i−1, patches of the portrait)
    v       = (x_σ − ẑ) / max(σ, 0.1)                                       σ: 1 → 0, then the next frame

A frame is a chunk, and its patches are drawn together. It is the same kind of policy as ``ARFlow``, but its pictures
are unconstrained: nothing keeps the identity of the face, the sharpness of the lips, or the quality of the first second
until the tenth. It serves to study perceptual rewards and their failures. The sound is given as the (frozen) audio
features of a motion generator.

The parts in order: ``PatchHead``, the velocity head; ``PatchFlow``, the generator; ``PatchSession``, which draws frame
by frame; ``LatentClip``, its training data.
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

from flowportrait.data.corpus import FaceClip
from flowportrait.devices import Device, place_network, read_weights
from flowportrait.errors import BadInput
from flowportrait.files import write_json, write_weights
from flowportrait.media.crop import canonical_transform, sample_crop
from flowportrait.media.mel import log_mel, normalize_loudness
from flowportrait.media.video import iter_frames
from flowportrait.models.arflow import ARFlow
from flowportrait.models.backbone import FREQUENCIES, Backbone, GeneratorConfig, fourier
from flowportrait.models.speech_encoder import N_LIPS
from flowportrait.rendering.vae_codec import VaeCodec, VideoLatents

# --- The head ----------------------------------------------------------------------------------------------------


class PatchHead(nn.Module):
    """Predicts the change of every patch ``[..., P, depth]`` from its inputs ``[..., P, 3·depth]``.

        y ← y + mix over patches (norm y)        y ← y + mix over numbers (norm y)

    Norms are shifted and scaled by the context h and σ (adaptive layer norm as in ``FlowHead``). Face crops are
    aligned, so that the position of a patch determines what it shows, and mixing needs no attention (MLP-Mixer,
    2105.01601).
    """

    def __init__(self, patch_count: int, depth: int, context_dim: int, width: int, blocks: int) -> None:
        super().__init__()
        self.read = nn.Linear(3 * depth, width)
        self.place = nn.Parameter(0.02 * torch.randn(patch_count, width))
        self.context = nn.Linear(context_dim, width)
        self.level = nn.Sequential(nn.Linear(2 * FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width))
        self.blocks = nn.ModuleList(_Block(patch_count, width) for _ in range(blocks))
        self.norm = nn.LayerNorm(width)
        self.write = nn.Linear(width, depth)
        nn.init.zeros_(self.write.weight)
        nn.init.zeros_(self.write.bias)

    def forward(self, cells: torch.Tensor, sigma: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        """Return the change of every patch.

        Args:
            cells: each patch as it is now, in the frame before and in the portrait ``[..., P, 3·depth]``.
            sigma: noise levels ``[...]``.
            context: ``[..., context_dim]``.

        Returns:
            ``[..., P, depth]``.
        """
        condition = nn.functional.silu(self.context(context) + self.level(fourier(sigma)))[..., None, :]
        y = self.read(cells) + self.place
        for block in self.blocks:
            y = block(y, condition)
        return self.write(self.norm(y))


class _Block(nn.Module):
    def __init__(self, patch_count: int, width: int) -> None:
        super().__init__()
        self.norm_patches = nn.LayerNorm(width, elementwise_affine=False)
        self.norm_numbers = nn.LayerNorm(width, elementwise_affine=False)
        self.modulate = nn.Linear(width, 4 * width)
        self.over_patches = nn.Sequential(
            nn.Linear(patch_count, 2 * patch_count), nn.SiLU(), nn.Linear(2 * patch_count, patch_count)
        )
        self.over_numbers = nn.Sequential(nn.Linear(width, 2 * width), nn.SiLU(), nn.Linear(2 * width, width))
        nn.init.zeros_(self.modulate.weight)
        nn.init.zeros_(self.modulate.bias)

    def forward(self, y: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        scale, shift, scale_numbers, shift_numbers = self.modulate(condition).chunk(4, -1)
        y = y + self.over_patches((self.norm_patches(y) * (1 + scale) + shift).mT).mT
        return y + self.over_numbers(self.norm_numbers(y) * (1 + scale_numbers) + shift_numbers)


# --- The generator -----------------------------------------------------------------------------------------------

MIN_SIGMA = 0.1
"""Smallest σ that the velocity is divided by, so that it does not magnify the error of ẑ without bound."""


@dataclass(frozen=True)
class PatchFlowConfig:
    """The settings of a picture generator's networks and of sampling from it."""

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
    """Width of the motion generator's audio features, without the predicted lips."""
    head_width: int = 192
    head_depth: int = 5
    steps: int = 4
    shift: float = 1.0

    @property
    def latent_dim(self) -> int:
        """Number of latents per frame."""
        return self.grid**2 * self.depth


class PatchCondition(NamedTuple):
    """The encoded inputs of B samples.

    Attributes:
        audio: embedded sound ``[B, N, hidden]``.
        style: embedded portrait ``[B, hidden]``.
        portrait: latents of the portrait ``[B, D]``.
    """

    audio: torch.Tensor
    style: torch.Tensor
    portrait: torch.Tensor

    def repeat(self, times: int) -> PatchCondition:
        """Return each row ``times`` times in a row."""
        return PatchCondition(*(part.repeat_interleave(times, 0) for part in self))

    def select(self, rows: torch.Tensor) -> PatchCondition:
        """Return the rows at these indices."""
        return PatchCondition(*(part[rows] for part in self))

    @property
    def chunks(self) -> int:
        """N, the number of frames to generate."""
        return self.audio.shape[1]


class PatchFlow(nn.Module):
    """The networks of the picture generator; also a policy for post-training."""

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
        """D, the number of latents per frame."""
        return self.config.latent_dim

    def condition(self, features: torch.Tensor, portrait: torch.Tensor) -> PatchCondition:
        """Encode the inputs of a generation.

        Args:
            features: what ``motion_generator_features`` returned ``[B, N, 144]``.
            portrait: latents of the portrait ``[B, D]``.
        """
        return PatchCondition(self.audio_in(features), self.portrait_in(portrait), portrait)

    def contexts(self, condition: PatchCondition, latents: torch.Tensor) -> torch.Tensor:
        """Return the context of every frame ``[B, N, hidden + 2 D]``, given the clean latents ``[B, N, D]``."""
        return self.contexts_from_motion(condition, torch.cat([condition.portrait[:, None], latents[:, :-1]], 1))

    def contexts_from_motion(self, condition: PatchCondition, before: torch.Tensor) -> torch.Tensor:
        """Return the context of every frame ``[B, N, hidden + 2 D]``, given the frame before each ``[B, N, D]``."""
        state = self.backbone(self.frame_in(before) + condition.audio + condition.style[:, None])
        return torch.cat([state, before, condition.portrait[:, None].expand_as(before)], -1)

    def velocity(self, x: torch.Tensor, sigma: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        """Return the velocity ``[..., D]`` at x ``[..., D]`` and noise level sigma (scalar or ``[...]``)."""
        level = sigma.to(x.device).expand(x.shape[:-1])
        return (x - self.frame(x, level, context)) / level.clamp_min(MIN_SIGMA)[..., None]

    def frame(self, x: torch.Tensor, sigma: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        """Return ẑ ``[..., D]``, the clean frame predicted from x: the frame before plus the predicted change."""
        state, before, portrait = context.split([self.config.hidden, self.latent_dim, self.latent_dim], -1)
        parts = torch.broadcast_tensors(x, before, portrait)
        cells = [part.unflatten(-1, (-1, self.config.depth)) for part in parts]
        return before + self.head(torch.cat(cells, -1), sigma, state).flatten(-2)

    def session(self, condition: PatchCondition) -> PatchSession:
        """Start generating from the portrait."""
        return PatchSession(self, condition)

    def recompute_activations(self) -> None:
        """Recompute the backbone's activations in the backward pass instead of keeping them, in training mode only."""
        self.backbone.recompute_activations()

    def save_pretrained(self, folder: Path) -> None:
        """Write ``config.json`` and float16 ``model.safetensors``."""
        folder.mkdir(parents=True, exist_ok=True)
        write_weights(folder / "model.safetensors", self.state_dict())
        write_json(folder / "config.json", asdict(self.config), indent=2)

    @classmethod
    def from_pretrained(cls, folder: Path, device: Device | None = None, dtype: torch.dtype | None = None) -> PatchFlow:
        """Load what ``save_pretrained`` wrote; for ``device`` and ``dtype`` see ``devices.place_network``.

        Raises:
            BadInput: the folder holds no such checkpoint.
        """
        try:
            model = cls(PatchFlowConfig(**json.loads((folder / "config.json").read_text(encoding="utf-8"))))
            model.load_state_dict(read_weights(folder / "model.safetensors"))
        except (OSError, TypeError, ValueError, RuntimeError) as error:
            reason = str(error).splitlines()[0]
            raise BadInput(f"No picture generator in {folder} ({reason}): train one with train_patches.") from error
        return place_network(model.eval(), device, dtype)


class PatchSession:
    """The generation of B samples, frame by frame: alternate ``context`` and ``append``."""

    def __init__(self, model: PatchFlow, condition: PatchCondition) -> None:
        self.model, self.condition = model, condition
        self.cache, self.position, self.last = model.backbone.new_cache(), 0, condition.portrait

    def context(self) -> torch.Tensor:
        """Return the context of the next frame ``[B, hidden + 2 D]``; call it once per frame."""
        token = self.model.frame_in(self.last) + self.condition.audio[:, self.position] + self.condition.style
        state = self.model.backbone(token[:, None], self.cache)[:, 0]
        return torch.cat([state, self.last, self.condition.portrait], -1)

    def append(self, latents: torch.Tensor) -> torch.Tensor:
        """Continue after the clean latents ``[B, D]`` of a frame, and return them."""
        self.last = latents
        self.position += 1
        return latents


@torch.no_grad()
def motion_generator_features(model: ARFlow, mel: torch.Tensor) -> torch.Tensor:
    """Return the audio features of a motion generator with an anchor: its encoded sound and the predicted lips.

    Args:
        model: the motion generator.
        mel: log-mel ``[B, 4T, 80]``, T a multiple of the chunk.

    Returns:
        ``[B, T, audio_width + 16]``.
    """
    audio = model.condition(mel).audio
    split = [model.audio_in.in_features, audio.shape[-1] - model.audio_in.in_features]
    return torch.cat([p.unflatten(-1, (model.config.chunk, -1)).flatten(1, 2) for p in audio.split(split, -1)], -1)


# --- Training data -----------------------------------------------------------------------------------------------
#
# Framed faces as autoencoder latents, with audio features. There is one crop per clip, from the median of the
# landmarks: the frame stands still while the head moves in it.

CROP_WIDTH, CROP_CENTRE = 2.8, (0.0, 0.45)
"""Width of the crop and its centre relative to the eyes, in outer-eye-corner distances."""
PATCH_SIDE = 2
"""Latent cells along a side of a patch."""


@dataclass(frozen=True)
class LatentClip:
    """A clip as latents ``[T, D]`` (see ``latents_to_patches``) and audio features ``[T, 144]``, with the speaker's
    name."""

    latents: torch.Tensor
    features: torch.Tensor
    speaker: str


def crop_matrix(landmarks: np.ndarray, side: int) -> np.ndarray:
    """Return the affine map ``[2, 3]`` from a picture with landmarks ``[478, 3]`` to the crop of ``side`` pixels."""
    matrix = canonical_transform(landmarks) * (side / CROP_WIDTH)
    matrix[:, 2] += side / 2 - np.array(CROP_CENTRE) * side / CROP_WIDTH - 0.5
    return matrix


def cropped_frames(video: Path, clip: FaceClip, side: int, frames: int) -> Iterator[np.ndarray]:
    """Yield the first ``frames`` frames of a prepared clip's video, cropped to the face ``[side, side, 3]`` uint8."""
    matrix = crop_matrix(np.median(clip.landmarks, 0), side)
    for _, frame in zip(range(min(frames, len(clip))), iter_frames(video), strict=False):
        yield sample_crop(frame, matrix, side, cv2.BORDER_REPLICATE)


def encode_clip(
    video: Path, clip: FaceClip, speaker: str, codec: VaeCodec, model: ARFlow, side: int, frames: int
) -> LatentClip:
    """Return a clip as latents and audio features, cut to whole chunks of the motion generator."""
    chunk = model.config.chunk
    crops = np.stack(list(cropped_frames(video, clip, side, frames)))
    features = motion_generator_features(
        model, log_mel(normalize_loudness(clip.audio))[None, : len(clip) // chunk * chunk * 4]
    )[0]
    length = min(len(crops), len(features))
    return LatentClip(latents_to_patches(codec.encode(crops[:length]).values), features[:length], speaker)


def latents_to_patches(values: torch.Tensor) -> torch.Tensor:
    """Rearrange latents ``[T, C, h, w]`` to rows of patches ``[T, h·w/4 · 4C]``."""
    return F.pixel_unshuffle(values, PATCH_SIDE).flatten(2).mT.flatten(1)


def decode_patches(latents: torch.Tensor, codec: VaeCodec, side: int) -> Iterator[np.ndarray]:
    """Decode rows of patches ``[T, D]`` to frames ``[side, side, 3]`` uint8."""
    cells = side // codec.spatial // PATCH_SIDE
    values = F.pixel_shuffle(latents.unflatten(1, (cells**2, -1)).mT.unflatten(2, (cells, cells)), PATCH_SIDE)
    yield from codec.decode(VideoLatents(values, len(values), side, side))
