"""Log-mel to one vector per video frame, looking at most 112 ms ahead.

    mel [B, 4T, 80] ─conv, stride 4─► [B, T, d] ─three residual convs (five frames wide)─► [B, T, d]

The look-ahead is two frames of convolution, two mel columns and half a mel window: 80 + 20 + 12 ms.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from flowportrait.media.mel import MELS_PER_FRAME, N_MELS

LOOK_AHEAD_MEL = 2
LOOK_AHEAD_FRAMES = (1, 1, 0)
_KERNEL = 5


class AudioEncoder(nn.Module):
    """Per-frame speech features from log-mel columns."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.stem = nn.Conv1d(N_MELS, width, _KERNEL)
        self.stride = nn.Conv1d(width, width, MELS_PER_FRAME, stride=MELS_PER_FRAME)
        self.blocks = nn.ModuleList(_Residual(width, ahead) for ahead in LOOK_AHEAD_FRAMES)

    def forward(self, mel: torch.Tensor) -> torch.Tensor:
        """``[B, 4T, 80]`` to ``[B, T, width]``."""
        x = F.pad(mel.mT, (_KERNEL - 1 - LOOK_AHEAD_MEL, LOOK_AHEAD_MEL), mode="replicate")
        x = self.stride(F.gelu(self.stem(x)))
        for block in self.blocks:
            x = block(x)
        return x.mT


class _Residual(nn.Module):
    def __init__(self, width: int, ahead: int) -> None:
        super().__init__()
        self.pad = (_KERNEL - 1 - ahead, ahead)
        self.norm = nn.LayerNorm(width)
        self.conv = nn.Conv1d(width, width, _KERNEL)
        self.out = nn.Conv1d(width, width, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm(x.mT).mT
        return x + self.out(F.gelu(self.conv(F.pad(y, self.pad))))
