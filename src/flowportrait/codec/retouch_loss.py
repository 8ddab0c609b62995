"""What a retouched window is compared with the truth by, part by part."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from flowportrait.codec.retouch_net import Windows

_WEIGHTS = {
    "colours": {"colour": 1.0, "edges": 0.5, "features": 0.15, "look": 0.0, "change": 0.6, "bend": 0.004},
    "look": {"colour": 0.3, "edges": 0.15, "features": 0.05, "look": 1.0, "change": 0.2, "bend": 0.001},
}
"""What is trained on: mostly colours, or mostly the distance that the benchmark measures (with other features)."""

_INSIDE = 2.0
_LIPS = 1.0


Objective = Literal["colours", "look"]


class Misfit(NamedTuple):
    """Mean distances: colour and edges in [0, 1], features of RAFT, the same as unit vectors squared (LPIPS's formula
    without learned weights), change from a frame to the next, flow's bend."""

    colour: Tensor
    edges: Tensor
    features: Tensor
    look: Tensor
    change: Tensor
    bend: Tensor

    def total(self, objective: Objective = "colours") -> Tensor:
        """The weighted sum that is trained on."""
        return torch.stack([_WEIGHTS[objective][name] * value for name, value in self._asdict().items()]).sum()


class RaftFeatures:
    """First stages of RAFT-small's feature encoder (Teed & Deng 2020), from its authors' published weights."""

    def __init__(self, weights: dict[str, Tensor]) -> None:
        prefix = "module.fnet."
        self._w = {name[len(prefix) :]: value for name, value in weights.items() if name.startswith(prefix)}

    @classmethod
    def load(cls, path: Path) -> RaftFeatures:
        """From ``raft-small.pth``."""
        return cls(torch.load(path, map_location="cpu", weights_only=True))

    def __call__(self, images: Tensor) -> list[Tensor]:
        """Features at a half, a half and a quarter of the size of ``images`` ``[B, 3, H, W]`` in [0, 1]."""
        x = F.relu(self._norm(self._conv("conv1", 2 * images - 1, 2, 3)))
        stages = [x]
        for layer, stride in (("layer1", 1), ("layer2", 2)):
            for block in range(2):
                x = self._bottleneck(f"{layer}.{block}", x, stride if block == 0 else 1)
            stages.append(x)
        return stages

    def _conv(self, name: str, x: Tensor, stride: int = 1, padding: int = 0) -> Tensor:
        return F.conv2d(x, self._w[f"{name}.weight"], self._w[f"{name}.bias"], stride, padding)

    @staticmethod
    def _norm(x: Tensor) -> Tensor:
        return F.instance_norm(x)

    def _bottleneck(self, name: str, x: Tensor, stride: int) -> Tensor:
        y = F.relu(self._norm(self._conv(f"{name}.conv1", x)))
        y = F.relu(self._norm(self._conv(f"{name}.conv2", y, stride, 1)))
        y = F.relu(self._norm(self._conv(f"{name}.conv3", y)))
        if stride > 1:
            x = self._norm(self._conv(f"{name}.downsample.0", x, stride))
        return F.relu(x + y)


def misfit(out: Tensor, flow: Tensor, windows: Windows, truth: Tensor, features: RaftFeatures) -> Misfit:
    """Distances of windows ``out`` ``[2 N, 3, H, W]`` (N first frames, then the ones after them) from ``truth``."""
    weight = 1 + _INSIDE * windows.inner + _LIPS * windows.outer
    weight = weight / weight.mean()
    gap = weight * (out - truth)
    mine, true = features(out), features(truth)
    deep = torch.stack([(a - b).abs().mean() for a, b in zip(mine, true, strict=True)]).sum()
    unit = [F.normalize(a, dim=1) - F.normalize(b, dim=1) for a, b in zip(mine, true, strict=True)]
    look = torch.stack([part.square().sum(1).mean() for part in unit]).mean()
    now, then = gap.chunk(2)
    bend = flow.diff(dim=-1).abs().mean() + flow.diff(dim=-2).abs().mean() + 0.1 * flow.abs().mean()
    edges = gap.diff(dim=-1).abs().mean() + gap.diff(dim=-2).abs().mean()
    return Misfit(gap.abs().mean(), edges, deep, look, (then - now).abs().mean(), bend)
