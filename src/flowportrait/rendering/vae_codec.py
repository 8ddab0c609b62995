"""VaeCodec: video to latents of an image or video autoencoder and back, so that a generator can work in latent space.

    encode: frames [T, H, W, 3] ─► edge-padded ─► autoencoder ─► (z − mean) / std      decode: the inverse, cut to size

Where ``MotionCodec`` draws one portrait from 30 numbers a frame, this draws anything from ``C · h · w`` numbers per
frame or group of frames. The autoencoders are those of diffusers (``AutoencoderKLWan``, ``AutoencoderKLLTXVideo``,
``AutoencoderKLFlux2``, ``AutoencoderKL``, ``AutoencoderTiny``), and ``TinyAutoencoder`` of this module. ``LatentScale``
normalises their latents.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn

from flowportrait.devices import Device, default_device, device_of
from flowportrait.errors import BadInput

# --- Scale of latents ------------------------------------------------------------------------------------------------
#
# Generators expect latents of about mean zero and variance one:
#
#     values = (patches(z) − mean) / std            z = unpatches(values · std + mean)
#
# Families store the two numbers under different names: a scaling and a shift factor (KL, FLUX), means and deviations
# per channel (Wan, LTX), or the running statistics of a batch norm over 2 × 2 patches (FLUX.2).


@dataclass(frozen=True)
class LatentScale:
    """Mean and standard deviation of raw latents.

    Attributes:
        mean: ``[C, 1, 1]`` or a scalar.
        std: ``[C, 1, 1]`` or a scalar.
        patch: ``patch`` × ``patch`` neighbouring latents form one cell.
    """

    mean: torch.Tensor
    std: torch.Tensor
    patch: int = 1

    @classmethod
    def of(cls, autoencoder: Any) -> LatentScale:
        """Return the scale that an autoencoder's configuration gives for its latents; unscaled if it gives none."""
        config = autoencoder.config
        factor = 1.0 / (config.get("scaling_factor") or 1.0)
        if hasattr(autoencoder, "bn"):
            norm = autoencoder.bn
            return cls(_column(norm.running_mean), _column((norm.running_var + norm.eps).sqrt()), config.patch_size[0])
        for holder in (config, dict(autoencoder.named_buffers())):
            mean, std = (holder.get(name) for name in ("latents_mean", "latents_std"))
            if mean is not None and std is not None:
                return cls(_column(mean), _column(std) * factor)
        return cls(torch.tensor(float(config.get("shift_factor") or 0.0)), torch.tensor(factor))

    def normalise(self, latents: torch.Tensor) -> torch.Tensor:
        """Return the normalised values of raw latents ``[T, C, h, w]``.

        The result is ``[T, C p², h / p, w / p]`` for patches of size p.
        """
        return (F.pixel_unshuffle(latents, self.patch) - self.mean) / self.std

    def restore(self, values: torch.Tensor) -> torch.Tensor:
        """Return the raw latents of normalised values, the inverse of ``normalise``."""
        return F.pixel_shuffle(values * self.std + self.mean, self.patch)


def _column(values: Any) -> torch.Tensor:
    return torch.as_tensor(values).detach().float().reshape(-1, 1, 1)


# --- A tiny autoencoder ----------------------------------------------------------------------------------------------
#
# TAESD-style autoencoders with weights as their author publishes them (``taef2_encoder.pth``, ``taef2_decoder.pth``):
#
#     encoder: conv, block, then three times (halve, three blocks), conv         decoder: the reverse
#
# They are small enough for a CPU (2 × 1.5 million weights). ``AutoencoderTiny`` of diffusers loads the older ones; the
# FLUX.2 kind has a pooled branch in its coarsest blocks, which that class lacks. Architecture:
# github.com/madebyollin/taesd (MIT).

HIDDEN_CHANNELS = 64
"""Channels of all hidden layers."""
LATENT_BOUND = 3.0
"""Bound at which latents are compressed before decoding."""
NORM_GROUPS = 4
"""Groups of the group normalisation."""


class AutoencoderBlock(nn.Module):
    """A residual block of three convolutions.

    ``pooled`` puts a wide 1 × 1 branch with group normalisation before it.
    """

    def __init__(self, pooled: bool) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            _conv(HIDDEN_CHANNELS, HIDDEN_CHANNELS),
            nn.ReLU(),
            _conv(HIDDEN_CHANNELS, HIDDEN_CHANNELS),
            nn.ReLU(),
            _conv(HIDDEN_CHANNELS, HIDDEN_CHANNELS),
        )
        self.pool = (
            nn.Sequential(
                nn.Conv2d(HIDDEN_CHANNELS, 4 * HIDDEN_CHANNELS, 1, bias=False),
                nn.GroupNorm(NORM_GROUPS, 4 * HIDDEN_CHANNELS),
                nn.ReLU(),
                nn.Conv2d(4 * HIDDEN_CHANNELS, HIDDEN_CHANNELS, 1, bias=False),
            )
            if pooled
            else None
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.pool is not None:
            x = x + self.pool(x)
        return torch.relu(self.conv(x) + x)


class SoftClamp(nn.Module):
    """A soft limit of the decoder's input."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return LATENT_BOUND * torch.tanh(x / LATENT_BOUND)


class TinyAutoencoder(nn.Module):
    """A small image autoencoder with the interface of those in diffusers.

    It maps pixels ``[B, 3, H, W]`` in [−1, 1] to latents ``[B, C, H / 8, W / 8]`` and back.
    """

    def __init__(self, channels: int, pooled: bool) -> None:
        super().__init__()
        self.config: Any = _Config(block_out_channels=(HIDDEN_CHANNELS,) * 4, scaling_factor=1.0)
        self.encoder = nn.Sequential(
            _conv(3, HIDDEN_CHANNELS),
            AutoencoderBlock(False),
            *(
                layer
                for last in (False, False, pooled)
                for layer in (_halve(), *(AutoencoderBlock(last) for _ in range(3)))
            ),
            _conv(HIDDEN_CHANNELS, channels),
        )
        self.decoder = nn.Sequential(
            SoftClamp(),
            _conv(channels, HIDDEN_CHANNELS),
            nn.ReLU(),
            *(
                layer
                for first in (pooled, False, False)
                for layer in (*(AutoencoderBlock(first) for _ in range(3)), *_double())
            ),
            AutoencoderBlock(False),
            _conv(HIDDEN_CHANNELS, 3),
        )

    @classmethod
    def read(
        cls, encoder: Path, decoder: Path, device: Device | None = None, dtype: torch.dtype | None = None
    ) -> TinyAutoencoder:
        """Return the autoencoder of two weight files, ``.pth`` or ``.safetensors``; its kind is inferred from them.

        Raises:
            BadInput: if a file is missing or contains something else.
        """
        states = []
        for path in (encoder, decoder):
            if not path.is_file():
                raise BadInput(f"No weights at {path}: give the encoder's and the decoder's file.")
            safe = path.suffix == ".safetensors"
            states.append(load_file(str(path)) if safe else torch.load(path, map_location="cpu", weights_only=True))
        try:
            last = states[0][max((key for key in states[0] if key.endswith(".weight")), key=_layer_number)]
            model = cls(channels=len(last), pooled=any(".pool." in key for key in states[0]))
            model.encoder.load_state_dict(states[0])
            model.decoder.load_state_dict(states[1])
        except (RuntimeError, ValueError, KeyError) as error:
            raise BadInput(f"{encoder} and {decoder} are not the two halves of a tiny autoencoder.") from error
        return model.to(*default_device(device, dtype))

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights."""
        return next(self.parameters()).dtype

    def encode(self, pixels: torch.Tensor) -> SimpleNamespace:
        """Return an object with the ``latents`` of pixels in [−1, 1]."""
        return SimpleNamespace(latents=self.encoder((pixels + 1) / 2))

    def decode(self, latents: torch.Tensor) -> SimpleNamespace:
        """Return an object with the ``sample``, pixels in about [−1, 1]."""
        return SimpleNamespace(sample=2 * self.decoder(latents) - 1)


class _Config(dict[str, Any]):
    """A dictionary with its keys as attributes, like the configurations of diffusers."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError as error:
            raise AttributeError(name) from error


def _conv(inputs: int, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1)


def _halve() -> nn.Conv2d:
    return nn.Conv2d(HIDDEN_CHANNELS, HIDDEN_CHANNELS, 3, stride=2, padding=1, bias=False)


def _double() -> tuple[nn.Module, nn.Module]:
    return nn.Upsample(scale_factor=2), nn.Conv2d(HIDDEN_CHANNELS, HIDDEN_CHANNELS, 3, padding=1, bias=False)


def _layer_number(key: str) -> int:
    return int(key.split(".")[0])


# --- The codec -------------------------------------------------------------------------------------------------------

FRAME_BATCH = 4
"""Number of frames that an image autoencoder processes at once."""


@dataclass(frozen=True)
class VideoLatents:
    """Latents of a video.

    Attributes:
        values: ``[T', C, h, w]`` float32, about standard normal.
        frames: number of frames T of the video.
        height: height of its frames in pixels.
        width: width of its frames in pixels.
    """

    values: torch.Tensor
    frames: int
    height: int
    width: int


class VaeCodec:
    """Encodes and decodes video with one frozen autoencoder.

    For example:

        codec = VaeCodec.from_pretrained("Wan-AI/Wan2.1-T2V-1.3B-Diffusers", subfolder="vae")
        latents = codec.encode(frames)             # [T, H, W, 3] uint8 -> values [1 + (T - 1) / 4, 16, H / 8, W / 8]
        again = list(codec.decode(latents))
    """

    def __init__(self, autoencoder: Any) -> None:
        self.autoencoder = autoencoder.eval().requires_grad_(False)
        self.scale = LatentScale.of(autoencoder)
        self.video = _is_video(autoencoder)
        self.spatial = _spatial(autoencoder) * self.scale.patch
        """Pixels of a latent cell along height and width."""
        self.temporal = _temporal(autoencoder) if self.video else 1
        """Frames of each latent after the first, which represents a single frame."""

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        subfolder: str | None = None,
        device: Device | None = None,
        dtype: torch.dtype | None = None,
    ) -> VaeCodec:
        """Return the codec of an autoencoder that diffusers saved, in a folder or on the Hugging Face hub.

        Raises:
            BadInput: if diffusers is not installed, or there is no autoencoder of this name.
        """
        try:
            from diffusers import AutoModel
        except ImportError as error:
            raise BadInput("Autoencoder latents need diffusers: run pip install 'flowportrait[vae]'.") from error
        where = f"{name}/{subfolder}" if subfolder else str(name)
        try:
            autoencoder = AutoModel.from_pretrained(str(name), subfolder=subfolder)
        except (OSError, ValueError, AttributeError) as error:
            reason = str(error).splitlines()[0]
            raise BadInput(f"No autoencoder could be loaded from {where} ({reason}): check the name.") from error
        if not hasattr(autoencoder, "encode"):
            raise BadInput(f"{where} holds a {type(autoencoder).__name__}, which is no autoencoder.")
        return cls(autoencoder.to(*default_device(device, dtype)))

    @torch.no_grad()
    def encode(self, frames: np.ndarray) -> VideoLatents:
        """Return the latents of frames ``[T, H, W, 3]`` uint8.

        They are the mean of the posterior, so encoding is deterministic.
        """
        count, height, width = frames.shape[:3]
        pixels = torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2)
        if self.video:
            clip = self._padded(pixels)
            missing = -(len(clip) - 1) % self.temporal
            clip = torch.cat([clip, clip[-1:].expand(missing, -1, -1, -1)])
            values = self._mean(clip.transpose(0, 1)[None])[0].transpose(0, 1)
        else:
            values = torch.cat([self._mean(self._padded(part)) for part in pixels.split(FRAME_BATCH)])
        return VideoLatents(self.scale.normalise(values.float().cpu()), count, height, width)

    @torch.no_grad()
    def decode(self, latents: VideoLatents) -> Iterator[np.ndarray]:
        """Yield the frames ``[H, W, 3]`` uint8 of latents, as many and as large as were encoded."""
        device = next(self.autoencoder.parameters()).device
        values = self.scale.restore(latents.values).to(device, self.autoencoder.dtype)
        parts = [values.transpose(0, 1)[None]] if self.video else values.split(FRAME_BATCH)
        for part in parts:
            pixels = self._decoded(part)
            if self.video:
                pixels = pixels[0].transpose(0, 1)[: latents.frames]
            rounded = ((pixels.float().clamp(-1, 1) + 1) * 127.5).round().to("cpu", torch.uint8)
            for frame in rounded[..., : latents.height, : latents.width]:
                yield np.ascontiguousarray(frame.permute(1, 2, 0).numpy())

    def _padded(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return bytes ``[T, 3, H, W]`` in [−1, 1], padded to whole cells by repeating the edge."""
        down, right = (-side % self.spatial for side in pixels.shape[-2:])
        scaled = pixels.float() / 127.5 - 1
        return F.pad(scaled, (0, right, 0, down), mode="replicate").to(
            device_of(self.autoencoder), self.autoencoder.dtype
        )

    def _mean(self, pixels: torch.Tensor) -> torch.Tensor:
        encoded = self.autoencoder.encode(pixels)
        return encoded.latent_dist.mode() if hasattr(encoded, "latent_dist") else encoded.latents

    def _decoded(self, values: torch.Tensor) -> torch.Tensor:
        if getattr(self.autoencoder.config, "timestep_conditioning", False):
            # Distilled LTX decoders can also denoise; at time zero they only decode.
            return self.autoencoder.decode(values, values.new_zeros(len(values))).sample
        return self.autoencoder.decode(values).sample


def _is_video(autoencoder: Any) -> bool:
    """Return whether the autoencoder takes ``[B, C, T, H, W]``, inferred from its first convolution."""
    kernels = (m for m in autoencoder.encoder.modules() if isinstance(m, torch.nn.Conv2d | torch.nn.Conv3d))
    return isinstance(next(kernels), torch.nn.Conv3d)


def _spatial(autoencoder: Any) -> int:
    """Return the pixels of a raw latent along height and width."""
    config = autoencoder.config
    if "dim_mult" in config:
        return int(2 ** (len(config.dim_mult) - 1) * (config.get("patch_size") or 1))
    if hasattr(autoencoder, "spatial_compression_ratio"):
        return int(autoencoder.spatial_compression_ratio)
    blocks = config.get("block_out_channels") or config.encoder_block_out_channels
    return int(2 ** (len(blocks) - 1))


def _temporal(autoencoder: Any) -> int:
    """Return the frames of a latent of a video autoencoder."""
    if "temperal_downsample" in autoencoder.config:
        return int(2 ** sum(autoencoder.config.temperal_downsample))
    return int(autoencoder.temporal_compression_ratio)
