"""VaeCodec: video ⇄ latents of an image or video autoencoder, so that a generator can work in those.

    encode: frames [T, H, W, 3] ─► edge-padded ─► autoencoder ─► (z − mean) / std      decode: the way back, cut to size

Where ``MotionCodec`` draws one portrait from 30 numbers a frame, this draws anything from ``C · h · w`` numbers a frame
or group of frames. Autoencoders are those of diffusers: ``AutoencoderKLWan``, ``AutoencoderKLLTXVideo``,
``AutoencoderKLFlux2``, ``AutoencoderKL``, ``AutoencoderTiny``, and ``TinyAutoencoder`` of this package.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from flowportrait.codec.latent_scale import LatentScale
from flowportrait.devices import Device, default_device, device_of
from flowportrait.errors import BadInput

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
