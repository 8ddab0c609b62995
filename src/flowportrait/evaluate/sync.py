"""The evaluation side's sync expert: do these five mouth pictures belong to these 0.2 seconds of sound?

    score[t] = cos( face(mouth[t … t+4]),  voice(mel[4t … 4t+19]) )

Two small convolutional networks embed both sides into one space (after SyncNet, Chung & Zisserman 2016),
trained by contrast: the right sound against the same clip shifted and against other clips. It sees pixels
only, and speakers the reward side never saw. Nothing is zero-padded in time: T frames give T − 4 windows.
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from flowportrait.devices import device_of, once_per_device
from flowportrait.training.joint_embedding import JointEmbedding

CROP = (40, 56)
"""The part of the 48 × 64 mouth patch that is looked at; the rest is room for training jitter."""


class SyncExpert(JointEmbedding):
    """Joint embedding of mouth patches and log-mel, unit length, ``DIM`` numbers per window."""

    WINDOW = 5
    DIM = 128

    def __init__(self) -> None:
        super().__init__()
        self.face = nn.Sequential(
            *_block(nn.Conv2d(self.WINDOW, 32, 5, stride=2, padding=2)),
            *_block(nn.Conv2d(32, 64, 3, stride=2, padding=1)),
            *_block(nn.Conv2d(64, 96, 3, stride=2, padding=1)),
            *_block(nn.Conv2d(96, 128, 3, stride=2, padding=1)),
            nn.Flatten(),
            nn.Dropout(0.2),
            nn.Linear(128 * 3 * 4, self.DIM),
        )
        self.voice = nn.Sequential(
            *_block(nn.Conv2d(1, 32, 3, stride=(1, 2), padding=(0, 1))),
            *_block(nn.Conv2d(32, 48, (4, 3), stride=2, padding=(0, 1))),
            *_block(nn.Conv2d(48, 96, (4, 3), stride=2, padding=(0, 1))),
            *_block(nn.Conv2d(96, 128, 3, stride=(1, 2), padding=(0, 1))),
        )
        self.voice_out = nn.Sequential(nn.Dropout(0.2), nn.Linear(128 * 5, self.DIM))
        self.log_scale = nn.Parameter(torch.tensor(2.3))

    def embed_face(self, lips: torch.Tensor) -> torch.Tensor:
        """``[B, T, 40, 56]`` or ``[B, T, 48, 64]`` grey patches of any range to ``[B, T - 4, DIM]``."""
        top, left = ((size - crop) // 2 for size, crop in zip(lips.shape[-2:], CROP, strict=True))
        mouth = lips[..., top : top + CROP[0], left : left + CROP[1]].to(device_of(self)).float()
        windows = take_out_shading(mouth).unfold(1, self.WINDOW, 1).movedim(-1, 2)
        batch, count = windows.shape[:2]
        flat = windows.reshape(batch * count, *windows.shape[2:])
        flat = flat / (flat.std((1, 2, 3), keepdim=True) + 0.5)
        return F.normalize(self.face(flat), dim=-1).view(batch, count, -1)

    def embed_audio(self, mel: torch.Tensor) -> torch.Tensor:
        """``[B, 4T, 80]`` log-mel to ``[B, T - 4, DIM]``; each window hears exactly its own 20 columns."""
        sound = self.voice((mel.to(device_of(self)) - 1.0)[:, None])
        return F.normalize(self.voice_out(sound.permute(0, 2, 1, 3).flatten(2)), dim=-1)

    @classmethod
    @once_per_device
    def load(cls) -> SyncExpert:
        """The expert that ships with the package."""
        return cls.read(Path(str(files("flowportrait") / "weights" / "sync_eval" / "model.safetensors")))


def _block(layer: nn.Conv2d) -> list[nn.Module]:
    return [layer, nn.BatchNorm2d(layer.out_channels), nn.ReLU(inplace=True)]


def take_out_shading(mouth: torch.Tensor) -> torch.Tensor:
    """Patches ``[B, T, H, W]`` minus their own coarse 3 × 4 picture: light from a side, exposure and skin
    tone go, lips stay. Together with unit variance per window, gain and gamma hardly matter either."""
    coarse = F.adaptive_avg_pool2d(mouth, (3, 4))
    return mouth - F.interpolate(coarse, size=mouth.shape[-2:], mode="bilinear", align_corners=False)
