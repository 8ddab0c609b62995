"""TAESD-style autoencoders with weights as their author publishes them (``taef2_encoder.pth``, ``taef2_decoder.pth``).

    encoder: conv, block, then three times (halve, three blocks), conv         decoder: the same upside down

Small enough for a CPU (2 × 1.5 million weights). ``AutoencoderTiny`` of diffusers holds the older ones; the FLUX.2 kind
has a pooled branch in its coarsest blocks, which that class lacks. Architecture: github.com/madebyollin/taesd (MIT).
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

from flowportrait.devices import Device, default_device
from flowportrait.errors import BadInput

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
