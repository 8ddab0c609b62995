"""What the generator learns from sound: one vector per video frame, looking at most 120 ms ahead, and where the sound
alone puts the lips.

    mel    [B, 4T, 80] ─conv, stride 4─► [B, T, d] ─┐
                                                    ├─ three residual convs (five frames wide) ─► [B, T, d]
    speech [B, T, 768] ─norm, linear───► [B, T, d] ─┘

The look-ahead is two frames of convolution (80 ms), and for log-mel two columns and half a window (20 + 12 ms), for
speech features what ``speech_encoder`` looks ahead (37 ms).

``LipReader`` is the anchor that the generator draws around: a regression of the lower face on the sound,

    μ = regression of lower face on sound          lips ≈ mean of the speaker + amplitude · g ⊙ μ

A sampled motion is μ plus what sound does not tell; drawn in full, that rest hides the articulation (its correlation
with real lips is the square of μ's). Training targets keep the share τ of it, and g gives the amplitude back:

    target = mean + amplitude · g ⊙ (μ + τ (x − μ)),      g = std(x) / std(μ + τ (x − μ))
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from flowportrait.codec.basis import LOWER
from flowportrait.generator.speech_encoder import SPEECH_DIM
from flowportrait.media.mel import MELS_PER_FRAME, N_MELS

LOOK_AHEAD_MEL = 2
LOOK_AHEAD_FRAMES = (1, 1, 0)
_KERNEL = 5
N_LIPS = LOWER.stop - LOWER.start
STYLE_MEAN, STYLE_LIPS = slice(0, N_LIPS), N_LIPS
"""Where a style keeps the speaker's mean lower face and the log of its amplitude."""
_LARGEST_GAIN = 2.0


class AudioEncoder(nn.Module):
    """Learned per-frame features, from what ``ARFlow.audio_features`` returns."""

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

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """``[B, T, 320]`` (four log-mel columns a frame) or ``[B, T, 768]`` (speech features, or ``inputs`` others)
        to ``[B, T, width]``."""
        if self.front_end == "mel":
            mel = features.unflatten(-1, (MELS_PER_FRAME, N_MELS)).flatten(1, 2)
            x = F.pad(mel.mT, (_KERNEL - 1 - LOOK_AHEAD_MEL, LOOK_AHEAD_MEL), mode="replicate")
            x = self.stride(F.gelu(self.stem(x)))
        else:
            x = self.read(self.dropout(self.norm(features))).mT
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


class LipReader(nn.Module):
    """Regression of the lower face; trained before the generator, then frozen."""

    def __init__(self, front_end: str, width: int, dropout: float = 0.3, inputs: int = SPEECH_DIM) -> None:
        super().__init__()
        self.encoder = AudioEncoder(front_end, width, dropout, inputs)
        self.out = nn.Linear(width, N_LIPS)
        self.register_buffer("scale", torch.ones(N_LIPS))
        self.register_buffer("gain", torch.ones(N_LIPS))

    scale: torch.Tensor
    gain: torch.Tensor

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """μ ``[B, T, 16]`` in the speaker's own standard deviations."""
        return self.out(self.encoder(features))

    def standardise(self, motion: torch.Tensor, style: torch.Tensor) -> torch.Tensor:
        """Lower face of motion ``[..., T, 30]`` in the speaker's deviations ``[..., T, 16]``; style ``[..., 19]``."""
        return (motion[..., LOWER] - style[..., None, STYLE_MEAN]) / self._amplitude(style)

    def lips(self, standard: torch.Tensor, style: torch.Tensor) -> torch.Tensor:
        """Inverse of ``standardise``, with the gain."""
        return style[..., None, STYLE_MEAN] + self.gain * standard * self._amplitude(style)

    def _amplitude(self, style: torch.Tensor) -> torch.Tensor:
        return self.scale * style[..., None, STYLE_LIPS : STYLE_LIPS + 1].exp()

    @torch.no_grad()
    def fit_scale(self, standard: torch.Tensor) -> None:
        """Unit deviation for samples ``[N, 16]`` standardised with scale 1."""
        self.scale.copy_(standard.std(0))

    @torch.no_grad()
    def fit_gain(self, standard: torch.Tensor, predicted: torch.Tensor, share: float) -> None:
        """Gain that gives real amplitudes back; samples ``[N, 16]``, ``share`` is τ."""
        blend = predicted + share * (standard - predicted)
        self.gain.copy_((standard.std(0) / blend.std(0)).clamp(1.0, _LARGEST_GAIN))

    @torch.no_grad()
    def training_target(
        self, motion: torch.Tensor, features: torch.Tensor, style: torch.Tensor, share: float
    ) -> torch.Tensor:
        """Training target ``[B, T, 30]`` of real motion: the formula of the module on the lower face."""
        predicted = self(features)
        real = self.standardise(motion, style)
        target = motion.clone()
        target[..., LOWER] = self.lips(predicted + share * (real - predicted), style)
        return target
