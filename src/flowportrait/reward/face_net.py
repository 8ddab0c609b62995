"""A face network that ships: whose face is this (1024 numbers), and what does it look like on the way there.

    128 × 128 face ─► 64 × 64² ─► 128 × 32² ─► 256 × 16² ─► 512 × 8² ─► 1024 × 4² ─► mean: embedding [1024], |e| = 1

MobileNet (Howard et al., 1704.04861) trained on VGGFace2 by A. Savchenko (1807.07718), 3.2 million weights, batch norm
folded in. It learned from celebrities' photos and from nobody here. Reward side only: the evaluation uses another one.
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from flowportrait.devices import device_of, once_per_device, place, read_weights
from flowportrait.media.align import to_canonical
from flowportrait.written import write_weights

SIDE = 128
"""Pixels of the aligned face. Trained at 224; at 128 unseen speakers are told apart nearly as well in a third of the
time (``benchmarks/rewards.py identity``)."""
WIDTH, CENTRE = 2.0, (0.0, 0.45)
"""Width and middle of the aligned face in outer-eye-corner distances."""

_LAYERS = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2), (1024, 1))
"""Channels and stride of the pairs of depthwise and pointwise convolutions."""
_MEAN = (103.939, 116.779, 123.68)
_MAPS = (0, 2, 4)
AT_ONCE = 8
"""Faces per pass: more of them leave the processor's cache, which costs twice the time."""


class FaceNet(nn.Module):
    """Aligned faces to embeddings and feature maps."""

    DIM = 1024

    def __init__(self) -> None:
        super().__init__()
        before = 32
        self.stem, self.pairs = _Layer(3, before, 3, 2), nn.ModuleList()
        for after, stride in _LAYERS:
            # Depthwise, then pointwise.
            pair = (_Layer(before, before, 3, stride, before), _Layer(before, after, 1))
            self.pairs.append(nn.Sequential(*pair))
            before = after

    def forward(self, faces: torch.Tensor) -> torch.Tensor:
        """Unit embeddings ``[N, 1024]`` of aligned RGB faces ``[N, 3, 128, 128]`` in [0, 1]."""
        pooled = [self._walk(part, len(self.pairs))[-1].mean((2, 3)) for part in faces.split(AT_ONCE)]
        return F.normalize(torch.cat(pooled), dim=-1)

    def features(self, faces: torch.Tensor) -> list[torch.Tensor]:
        """Maps with 64, 128 and 256 channels at a half, a quarter and an eighth of the faces' side."""
        parts = [self._walk(part, max(_MAPS) + 1) for part in faces.split(AT_ONCE)]
        return [torch.cat([maps[index] for maps in parts]) for index in _MAPS]

    def _walk(self, faces: torch.Tensor, depth: int) -> list[torch.Tensor]:
        faces = faces.to(device_of(self))
        x = faces.flip(1) * 255 - faces.new_tensor(_MEAN)[:, None, None]
        x = self.stem(x.contiguous(memory_format=torch.channels_last))
        maps = []
        for pair in self.pairs[:depth]:
            x = pair(x)
            maps.append(x)
        return maps

    @classmethod
    @once_per_device
    def load(cls) -> FaceNet:
        """The network that ships with the package, frozen."""
        net = cls()
        path = Path(str(files("flowportrait") / "weights" / "face_net" / "model.safetensors"))
        net.load_state_dict(read_weights(path))
        for layer in net.layers():
            # A third faster on a CPU than rows of pixels.
            layer.weight.data = layer.weight.contiguous(memory_format=torch.channels_last)
        return place(net.eval().requires_grad_(False))

    def layers(self) -> list[nn.Conv2d]:
        """Its convolutions in the order they are applied."""
        return [part for part in self.modules() if isinstance(part, nn.Conv2d)]

    def save(self, path: Path) -> None:
        """Write float16 safetensors under a temporary name first."""
        write_weights(path, self.state_dict())


class _Layer(nn.Conv2d):
    """A convolution whose output is its input's size over the stride, padded at the far side first."""

    def __init__(self, before: int, after: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__(before, after, kernel, stride, 0, groups=groups)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        spare = max(self.kernel_size[0] - self.stride[0], 0)
        if spare:
            x = F.pad(x, (spare // 2, spare - spare // 2) * 2)
        return super().forward(x).clamp(0, 6)


def align(frames: torch.Tensor, places: torch.Tensor, side: int = SIDE) -> torch.Tensor:
    """Aligned faces ``[N, 3, side, side]`` from frames ``[N, 3, H, W]`` in [0, 1] and landmarks ``[N, 478, 2]`` px."""
    result = np.empty((len(frames), side, side, 3), np.float32)
    for row, (frame, points) in enumerate(zip(frames.numpy(), places.numpy(), strict=True)):
        matrix = to_canonical(points) * (side / WIDTH)
        matrix[:, 2] += side / 2 - np.array(CENTRE) * side / WIDTH
        picture = np.ascontiguousarray(frame.transpose(1, 2, 0))
        result[row] = cv2.warpAffine(picture, matrix, (side, side), borderMode=cv2.BORDER_REPLICATE)
    return torch.from_numpy(result).permute(0, 3, 1, 2)
