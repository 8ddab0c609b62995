"""What the lips most likely do, told from the sound alone: the anchor that the generator draws around.

    μ = regression of lower face on sound          lips ≈ mean of the speaker + amplitude · g ⊙ μ

A sampled motion is μ plus what sound does not tell; drawn in full, that rest hides the articulation (its correlation
with real lips is the square of μ's). Training targets keep the share τ of it, and g gives the amplitude back:

    target = mean + amplitude · g ⊙ (μ + τ (x − μ)),      g = std(x) / std(μ + τ (x − μ))
"""

from __future__ import annotations

import torch
from torch import nn

from flowportrait.codec.basis import LOWER
from flowportrait.generator.audio_encoder import AudioEncoder
from flowportrait.generator.speech_encoder import SPEECH_DIM

N_LIPS = LOWER.stop - LOWER.start
STYLE_MEAN, STYLE_LIPS = slice(0, N_LIPS), N_LIPS
"""Where a style keeps the speaker's mean lower face and the log of its amplitude."""
_LARGEST_GAIN = 2.0


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

    def forward(self, heard: torch.Tensor) -> torch.Tensor:
        """μ ``[B, T, 16]`` in the speaker's own standard deviations."""
        return self.out(self.encoder(heard))

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
    def clearer(self, motion: torch.Tensor, heard: torch.Tensor, style: torch.Tensor, share: float) -> torch.Tensor:
        """Training target ``[B, T, 30]`` of real motion: the formula above on the lower face."""
        predicted = self(heard)
        real = self.standardise(motion, style)
        target = motion.clone()
        target[..., LOWER] = self.lips(predicted + share * (real - predicted), style)
        return target
