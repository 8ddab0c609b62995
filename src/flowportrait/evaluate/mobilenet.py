"""MobileNetV2 without its classifier (Sandler et al. 2018, table 2), laid out as torchvision's weights are stored.

A stage is one inverted residual: widen 1 × 1, filter 3 × 3 by channel, narrow 1 × 1, add where shapes allow.
"""

from __future__ import annotations

import torch
from torch import nn

STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
"""Widening, channels, repetitions, stride of the first."""


class InvertedResidual(nn.Module):
    """One stage."""

    def __init__(self, before: int, after: int, stride: int, widen: int) -> None:
        super().__init__()
        wide = before * widen
        layers: list[nn.Module] = [] if widen == 1 else [_filtered(before, wide, 1)]
        self.conv = nn.Sequential(
            *layers,
            _filtered(wide, wide, 3, stride, wide),
            nn.Conv2d(wide, after, 1, bias=False),
            nn.BatchNorm2d(after),
        )
        self.adds = stride == 1 and before == after

    def forward(self, picture: torch.Tensor) -> torch.Tensor:
        changed = self.conv(picture)
        return picture + changed if self.adds else changed


def mobilenet_v2(stages: int = 19) -> nn.Sequential:
    """The first of the 19 feature stages."""
    layers: list[nn.Module] = [_filtered(3, 32, 3, 2)]
    channels = 32
    for widen, after, repeats, stride in STAGES:
        for index in range(repeats):
            layers.append(InvertedResidual(channels, after, stride if index == 0 else 1, widen))
            channels = after
    return nn.Sequential(*[*layers, _filtered(channels, 1280, 1)][:stages])


def _filtered(before: int, after: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(before, after, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(after), nn.ReLU6(inplace=True))
