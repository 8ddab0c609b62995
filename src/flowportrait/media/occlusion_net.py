"""The network that sees what is before a face: 64 x 64 px of it in, how much of each 4 x 4 px is covered out.

picture ─► 32² × 16 ─► 16² × 32 ─► 8² × 64 ─► 4² × 64 ─► mean of all
                          └──────── + ◄─────── + ◄──────────┘            one logit a cell of the 16² map
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn


class OcclusionNet(nn.Module):
    """Pictures ``[B, 3, 64, 64]`` in [0, 1] to the covered share ``[B, 1, 16, 16]`` of their cells."""

    place: torch.Tensor

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        # Where in the face a cell lies: colour and place come in together.
        ys, xs = torch.meshgrid(torch.linspace(-1, 1, 64), torch.linspace(-1, 1, 64), indexing="ij")
        self.register_buffer("place", torch.stack([xs, ys])[None])
        self.to32 = _block(5, width, 2)
        self.to16 = nn.Sequential(_block(width, 2 * width, 2), _block(2 * width, 2 * width))
        self.to8 = nn.Sequential(_block(2 * width, 4 * width, 2), _block(4 * width, 4 * width))
        self.to4 = nn.Sequential(_block(4 * width, 4 * width, 2), _block(4 * width, 4 * width))
        self.whole = nn.Linear(4 * width, 2 * width)
        self.from4, self.from8 = nn.Conv2d(4 * width, 2 * width, 1), nn.Conv2d(4 * width, 2 * width, 1)
        self.mix8 = _block(2 * width, 2 * width)
        self.mix16 = nn.Sequential(_block(2 * width, 2 * width), nn.Conv2d(2 * width, 1, 1))

    def logits(self, pictures: torch.Tensor) -> torch.Tensor:
        """Log odds ``[B, 1, 16, 16]``."""
        place = self.place.expand(pictures.shape[0], -1, -1, -1)
        at16 = self.to16(self.to32(torch.cat([2 * pictures - 1, place], 1)))
        at8 = self.to8(at16)
        at4 = self.to4(at8)
        whole = self.whole(at4.mean((2, 3)))[:, :, None, None]
        up8 = F.interpolate(self.from4(at4) + whole, scale_factor=2.0, mode="nearest")
        up16 = F.interpolate(self.mix8(self.from8(at8) + up8), scale_factor=2.0, mode="nearest")
        result: torch.Tensor = self.mix16(at16 + up16)
        return result

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        """Covered share of each cell."""
        return torch.sigmoid(self.logits(pictures))


def _block(before: int, after: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(before, after, 3, stride, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU(inplace=True)
    )
