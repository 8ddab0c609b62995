"""What a face's pixels are like, whatever the face does: texture, colour, and what a face network's first layer sees.

    x = [ natural-scene statistics at two scales (20) · gradient (1) · chroma (4) · mean response of 64 filters ]

The first two families are those of BRISQUE and NIQE (Mittal 2012, 2013) on normalised luminance
n = (I − μ) / (σ + c): its power, the weight of its tails, and products of neighbours in four directions.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from flowportrait.reward.face_net import AT_ONCE, FaceNet

SIDE = 96
"""Pixels of the aligned face these are measured on."""
PLAIN = 25
"""Statistics before the network's."""
SIZE = PLAIN + 64

_C = 1 / 255
_TAP = torch.exp(-0.5 * (torch.arange(-3, 4) / (7 / 6)) ** 2)
_WINDOW = _TAP / _TAP.sum()
_NEIGHBOURS = ((0, 1), (1, 0), (1, 1), (1, -1))


@torch.no_grad()
def face_statistics(faces: torch.Tensor) -> torch.Tensor:
    """``[N, 89]`` of aligned RGB faces ``[N, 3, 96, 96]`` in [0, 1]."""
    grey = faces.mean(1, keepdim=True)
    across, down = grey.diff(dim=3).abs().mean((1, 2, 3)), grey.diff(dim=2).abs().mean((1, 2, 3))
    plain = [*_natural(grey), *_natural(F.avg_pool2d(grey, 2)), (across + down + 1e-4).log(), *_chroma(faces)]
    first = [FaceNet.load().features(part)[0].mean((2, 3)) for part in faces.split(AT_ONCE)]
    return torch.cat([torch.stack(plain, 1), torch.cat(first)], 1)


def _natural(grey: torch.Tensor) -> list[torch.Tensor]:
    mean = _smooth(grey)
    deviation = (_smooth(grey * grey) - mean * mean).clamp_min(0).sqrt()
    normal = (grey - mean) / (deviation + _C)
    power = normal.square().mean((1, 2, 3))
    found = [power.clamp_min(1e-6).log(), normal.abs().mean((1, 2, 3)).square() / power.clamp_min(1e-6)]
    for y, x in _NEIGHBOURS:
        product = normal * normal.roll((y, x), (2, 3))
        found += [product.mean((1, 2, 3)), product.abs().mean((1, 2, 3)).clamp_min(1e-6).log()]
    return found


def _chroma(faces: torch.Tensor) -> list[torch.Tensor]:
    red, green, blue = faces.unbind(1)
    bright = faces.mean((1, 2, 3)).clamp_min(0.02)
    found = []
    for opponent in (red - green, (red + green) / 2 - blue):
        found += [opponent.mean((1, 2)) / bright, (opponent.std((1, 2)) / bright + 1e-3).log()]
    return found


def _smooth(picture: torch.Tensor) -> torch.Tensor:
    padded = F.pad(picture, (3, 3, 3, 3), mode="replicate")
    return F.conv2d(F.conv2d(padded, _WINDOW.view(1, 1, 1, 7)), _WINDOW.view(1, 1, 7, 1))
