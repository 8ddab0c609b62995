"""Sound to one vector per video frame, looking at most 120 ms ahead.

    mel    [B, 4T, 80] ─conv, stride 4─► [B, T, d] ─┐
                                                    ├─ three residual convs (five frames wide) ─► [B, T, d]
    speech [B, T, 768] ─norm, linear───► [B, T, d] ─┘

The look-ahead is two frames of convolution (80 ms), and for log-mel two columns and half a window (20 + 12 ms), for
speech features what ``speech_encoder`` looks ahead (37 ms).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from flowportrait.generator.speech_encoder import SPEECH_DIM
from flowportrait.media.mel import MELS_PER_FRAME, N_MELS

LOOK_AHEAD_MEL = 2
LOOK_AHEAD_FRAMES = (1, 1, 0)
_KERNEL = 5


class AudioEncoder(nn.Module):
    """Per-frame features from what ``ARFlow.listen`` returns."""

    def __init__(self, front_end: str, width: int, dropout: float = 0.0, inputs: int = SPEECH_DIM) -> None:
        super().__init__()
        self.front_end = front_end
        if front_end == "mel":
            self.stem = nn.Conv1d(N_MELS, width, _KERNEL)
            self.stride = nn.Conv1d(width, width, MELS_PER_FRAME, stride=MELS_PER_FRAME)
        else:
            self.norm = nn.LayerNorm(inputs)
            self.read = nn.Linear(inputs, width)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(_Residual(width, ahead) for ahead in LOOK_AHEAD_FRAMES)

    def forward(self, heard: torch.Tensor) -> torch.Tensor:
        """``[B, T, 320]`` (four log-mel columns a frame) or ``[B, T, 768]`` (speech features, or ``inputs`` others)
        to ``[B, T, width]``."""
        if self.front_end == "mel":
            mel = heard.unflatten(-1, (MELS_PER_FRAME, N_MELS)).flatten(1, 2)
            x = F.pad(mel.mT, (_KERNEL - 1 - LOOK_AHEAD_MEL, LOOK_AHEAD_MEL), mode="replicate")
            x = self.stride(F.gelu(self.stem(x)))
        else:
            x = self.read(self.dropout(self.norm(heard))).mT
        for block in self.blocks:
            x = block(x)
        return self.dropout(x.mT)


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
