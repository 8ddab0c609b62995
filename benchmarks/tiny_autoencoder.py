"""taef2, the tiny autoencoder for FLUX.2 latents (madebyollin/taesd, MIT), run from its published weights.

encoder: conv, block, three times (stride-2 conv, three blocks), conv       decoder: the way back
block:   relu(x + conv relu conv relu conv);  at an eighth of the size x first gains its global statistics
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

_GROUPS = 4


class TinyAutoencoder:
    """Encoder and decoder from their state dicts."""

    def __init__(self, encoder: dict[str, torch.Tensor], decoder: dict[str, torch.Tensor]) -> None:
        self._encoder, self._decoder = ({k: v.float() for k, v in part.items()} for part in (encoder, decoder))

    @classmethod
    def load(cls, folder: Path) -> TinyAutoencoder:
        """From ``taef2_encoder.pth`` and ``taef2_decoder.pth``."""
        parts = (folder / f"taef2_{part}.pth" for part in ("encoder", "decoder"))
        return cls(*(torch.load(part, map_location="cpu", weights_only=True) for part in parts))

    def reconstruct(self, frame: np.ndarray) -> np.ndarray:
        """Frame ``[H, W, 3]`` uint8 through latents and back."""
        height, width = frame.shape[:2]
        image = torch.from_numpy(frame).permute(2, 0, 1)[None].float() / 255
        image = F.pad(image, (0, -width % 8, 0, -height % 8), mode="replicate")
        with torch.inference_mode():
            latents = self._walk(self._encoder, image, down=(2, 6, 10))
            x = F.relu(self._conv(self._decoder, "1", torch.tanh(latents / 3) * 3))
            x = self._walk({k: v for k, v in self._decoder.items() if not k.startswith("1.")}, x, up=(7, 12, 17))
        drawn = (x[0, :, :height, :width].permute(1, 2, 0) * 255).round().clamp(0, 255)
        return drawn.byte().numpy()

    def _walk(
        self, w: dict[str, torch.Tensor], x: torch.Tensor, down: tuple[int, ...] = (), up: tuple[int, ...] = ()
    ) -> torch.Tensor:
        for index in sorted({int(name.split(".")[0]) for name in w}):
            if f"{index}.conv.0.weight" in w:
                x = self._block(w, index, x)
            else:
                if index in up:
                    x = F.interpolate(x, scale_factor=2.0)
                x = self._conv(w, str(index), x, 2 if index in down else 1)
        return x

    def _block(self, w: dict[str, torch.Tensor], index: int, x: torch.Tensor) -> torch.Tensor:
        if f"{index}.pool.0.weight" in w:
            spread = F.conv2d(x, w[f"{index}.pool.0.weight"])
            spread = F.group_norm(spread, _GROUPS, w[f"{index}.pool.1.weight"], w[f"{index}.pool.1.bias"])
            x = x + F.conv2d(F.relu(spread), w[f"{index}.pool.3.weight"])
        y = x
        for part in (0, 2, 4):
            y = self._conv(w, f"{index}.conv.{part}", y)
            y = F.relu(y) if part < 4 else y
        return F.relu(x + y)

    @staticmethod
    def _conv(w: dict[str, torch.Tensor], name: str, x: torch.Tensor, stride: int = 1) -> torch.Tensor:
        return F.conv2d(x, w[f"{name}.weight"], w.get(f"{name}.bias"), stride, 1)
