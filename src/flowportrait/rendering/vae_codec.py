"""Video to latents of an image or video autoencoder and back.

Raw latents of an autoencoder to numbers of about mean zero and variance one, as generators want them.

    values = (patches(z) − mean) / std            z = unpatches(values · std + mean)

Families keep these two under different names: a scaling and a shift factor (KL, FLUX), means and deviations per channel
(Wan, LTX), or the running statistics of a batch norm over 2 × 2 patches (FLUX.2).

TAESD-style autoencoders with weights as their author publishes them (``taef2_encoder.pth``, ``taef2_decoder.pth``).

    encoder: conv, block, then three times (halve, three blocks), conv         decoder: the same upside down

Small enough for a CPU (2 × 1.5 million weights). ``AutoencoderTiny`` of diffusers holds the older ones; the FLUX.2 kind
has a pooled branch in its coarsest blocks, which that class lacks. Architecture: github.com/madebyollin/taesd (MIT).

VaeCodec: video ⇄ latents of an image or video autoencoder, so that a generator can work in those.

    encode: frames [T, H, W, 3] ─► edge-padded ─► autoencoder ─► (z − mean) / std      decode: the way back, cut to size

Where ``MotionCodec`` draws one portrait from 30 numbers a frame, this draws anything from ``C · h · w`` numbers a frame
or group of frames. Autoencoders are those of diffusers: ``AutoencoderKLWan``, ``AutoencoderKLLTXVideo``,
``AutoencoderKLFlux2``, ``AutoencoderKL``, ``AutoencoderTiny``, and ``TinyAutoencoder`` of this package.
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


@dataclass(frozen=True)
class LatentScale:
    """mean and std ``[C, 1, 1]`` (or scalars) of latents whose ``patch`` × ``patch`` neighbours are one cell."""

    mean: torch.Tensor
    std: torch.Tensor
    patch: int = 1

    @classmethod
    def of(cls, autoencoder: Any) -> LatentScale:
        """What the autoencoder says about its own latents; unscaled where it says nothing."""
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
        """``[T, C, h, w]`` raw to normal; with patches ``[T, C p², h / p, w / p]``."""
        return (F.pixel_unshuffle(latents, self.patch) - self.mean) / self.std

    def restore(self, values: torch.Tensor) -> torch.Tensor:
        """Inverse of ``normalise``."""
        return F.pixel_shuffle(values * self.std + self.mean, self.patch)


def _column(values: Any) -> torch.Tensor:
    return torch.as_tensor(values).detach().float().reshape(-1, 1, 1)


WIDTH = 64
CLAMP = 3.0
"""Latents beyond this are squashed before decoding."""
GROUPS = 4


class Block(nn.Module):
    """Three convolutions beside the input; ``pooled`` adds a wide 1 × 1 branch with group normalisation before."""

    def __init__(self, pooled: bool) -> None:
        super().__init__()
        self.conv = nn.Sequential(_conv(WIDTH, WIDTH), nn.ReLU(), _conv(WIDTH, WIDTH), nn.ReLU(), _conv(WIDTH, WIDTH))
        self.pool = (
            nn.Sequential(
                nn.Conv2d(WIDTH, 4 * WIDTH, 1, bias=False),
                nn.GroupNorm(GROUPS, 4 * WIDTH),
                nn.ReLU(),
                nn.Conv2d(4 * WIDTH, WIDTH, 1, bias=False),
            )
            if pooled
            else None
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.pool is not None:
            x = x + self.pool(x)
        return torch.relu(self.conv(x) + x)


class Clamp(nn.Module):
    """Soft limit of what the decoder reads."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return CLAMP * torch.tanh(x / CLAMP)


class TinyAutoencoder(nn.Module):
    """Image autoencoder with the interface of diffusers': pixels ``[B, 3, H, W]`` in [−1, 1] to latents
    ``[B, C, H / 8, W / 8]`` and back."""

    def __init__(self, channels: int, pooled: bool) -> None:
        super().__init__()
        self.config: Any = _Config(block_out_channels=(WIDTH,) * 4, scaling_factor=1.0)
        self.encoder = nn.Sequential(
            _conv(3, WIDTH),
            Block(False),
            *(layer for last in (False, False, pooled) for layer in (_halve(), *(Block(last) for _ in range(3)))),
            _conv(WIDTH, channels),
        )
        self.decoder = nn.Sequential(
            Clamp(),
            _conv(channels, WIDTH),
            nn.ReLU(),
            *(layer for first in (pooled, False, False) for layer in (*(Block(first) for _ in range(3)), *_double())),
            Block(False),
            _conv(WIDTH, 3),
        )

    @classmethod
    def read(
        cls, encoder: Path, decoder: Path, device: Device | None = None, dtype: torch.dtype | None = None
    ) -> TinyAutoencoder:
        """Load the two weight files, ``.pth`` or ``.safetensors``; what they hold tells the kind.

        Raises:
            BadInput: a file is missing or holds something else.
        """
        states = []
        for path in (encoder, decoder):
            if not path.is_file():
                raise BadInput(f"No weights at {path}: give the encoder's and the decoder's file.")
            safe = path.suffix == ".safetensors"
            states.append(load_file(str(path)) if safe else torch.load(path, map_location="cpu", weights_only=True))
        try:
            last = states[0][max((key for key in states[0] if key.endswith(".weight")), key=_place)]
            model = cls(channels=len(last), pooled=any(".pool." in key for key in states[0]))
            model.encoder.load_state_dict(states[0])
            model.decoder.load_state_dict(states[1])
        except (RuntimeError, ValueError, KeyError) as error:
            raise BadInput(f"{encoder} and {decoder} are not the two halves of a tiny autoencoder.") from error
        return model.to(*default_device(device, dtype))

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return next(self.parameters()).dtype

    def encode(self, pixels: torch.Tensor) -> SimpleNamespace:
        """``.latents`` of pixels in [−1, 1]."""
        return SimpleNamespace(latents=self.encoder((pixels + 1) / 2))

    def decode(self, latents: torch.Tensor) -> SimpleNamespace:
        """``.sample``, pixels in about [−1, 1]."""
        return SimpleNamespace(sample=2 * self.decoder(latents) - 1)


class _Config(dict[str, Any]):
    """Keys as attributes, as diffusers has them."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError as error:
            raise AttributeError(name) from error


def _conv(before: int, after: int) -> nn.Conv2d:
    return nn.Conv2d(before, after, 3, padding=1)


def _halve() -> nn.Conv2d:
    return nn.Conv2d(WIDTH, WIDTH, 3, stride=2, padding=1, bias=False)


def _double() -> tuple[nn.Module, nn.Module]:
    return nn.Upsample(scale_factor=2), nn.Conv2d(WIDTH, WIDTH, 3, padding=1, bias=False)


def _place(key: str) -> int:
    return int(key.split(".")[0])


BATCH = 4
"""Frames an image autoencoder sees at once."""


@dataclass(frozen=True)
class VideoLatents:
    """values ``[T', C, h, w]`` float32, about standard normal; how many frames of what height and width they are."""

    values: torch.Tensor
    frames: int
    height: int
    width: int


class VaeCodec:
    """Encode and decode with one autoencoder, frozen.

    ::

        codec = VaeCodec.from_pretrained("Wan-AI/Wan2.1-T2V-1.3B-Diffusers", subfolder="vae")
        latents = codec.encode(frames)             # [T, H, W, 3] uint8 -> values [1 + (T - 1) / 4, 16, H / 8, W / 8]
        again = list(codec.decode(latents))
    """

    def __init__(self, autoencoder: Any) -> None:
        self.autoencoder = autoencoder.eval().requires_grad_(False)
        self.scale = LatentScale.of(autoencoder)
        self.video = _is_video(autoencoder)
        self.spatial = _spatial(autoencoder) * self.scale.patch
        """Pixels per latent cell along height and width."""
        self.temporal = _temporal(autoencoder) if self.video else 1
        """Frames per latent after the first, which stands for one frame alone."""

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        subfolder: str | None = None,
        device: Device | None = None,
        dtype: torch.dtype | None = None,
    ) -> VaeCodec:
        """With an autoencoder saved by diffusers, in a folder or on the Hugging Face hub.

        Raises:
            BadInput: diffusers is not installed, or there is no autoencoder under that name.
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
        """Latents of frames ``[T, H, W, 3]`` uint8; the mean of the posterior, so the same frames give the same."""
        count, height, width = frames.shape[:3]
        pixels = torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2)
        if self.video:
            whole = self._padded(pixels)
            late = -(len(whole) - 1) % self.temporal
            whole = torch.cat([whole, whole[-1:].expand(late, -1, -1, -1)])
            values = self._mean(whole.transpose(0, 1)[None])[0].transpose(0, 1)
        else:
            values = torch.cat([self._mean(self._padded(part)) for part in pixels.split(BATCH)])
        return VideoLatents(self.scale.normalise(values.float().cpu()), count, height, width)

    @torch.no_grad()
    def decode(self, latents: VideoLatents) -> Iterator[np.ndarray]:
        """Frames ``[H, W, 3]`` uint8 of latents, as many and as large as were encoded."""
        device = next(self.autoencoder.parameters()).device
        values = self.scale.restore(latents.values).to(device, self.autoencoder.dtype)
        parts = [values.transpose(0, 1)[None]] if self.video else values.split(BATCH)
        for part in parts:
            pixels = self._decoded(part)
            if self.video:
                pixels = pixels[0].transpose(0, 1)[: latents.frames]
            shown = ((pixels.float().clamp(-1, 1) + 1) * 127.5).round().to("cpu", torch.uint8)
            for frame in shown[..., : latents.height, : latents.width]:
                yield np.ascontiguousarray(frame.permute(1, 2, 0).numpy())

    def _padded(self, pixels: torch.Tensor) -> torch.Tensor:
        """Bytes ``[T, 3, H, W]`` to [−1, 1], sides filled up to whole cells by repeating the edge."""
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
            # LTX decoders of the distilled kind can also denoise; at time zero they only decode.
            return self.autoencoder.decode(values, values.new_zeros(len(values))).sample
        return self.autoencoder.decode(values).sample


def _is_video(autoencoder: Any) -> bool:
    """Whether it wants ``[B, C, T, H, W]``: its first convolution tells."""
    kernels = (m for m in autoencoder.encoder.modules() if isinstance(m, torch.nn.Conv2d | torch.nn.Conv3d))
    return isinstance(next(kernels), torch.nn.Conv3d)


def _spatial(autoencoder: Any) -> int:
    config = autoencoder.config
    if "dim_mult" in config:
        return int(2 ** (len(config.dim_mult) - 1) * (config.get("patch_size") or 1))
    if hasattr(autoencoder, "spatial_compression_ratio"):
        return int(autoencoder.spatial_compression_ratio)
    blocks = config.get("block_out_channels") or config.encoder_block_out_channels
    return int(2 ** (len(blocks) - 1))


def _temporal(autoencoder: Any) -> int:
    if "temperal_downsample" in autoencoder.config:
        return int(2 ** sum(autoencoder.config.temperal_downsample))
    return int(autoencoder.temporal_compression_ratio)
