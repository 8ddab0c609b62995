"""Other voices and rooms out of the same log-mel: vocal-tract warp, level, coloured noise, missing bands.

Everything acts on log-mel as ``media.mel`` scales it, ``mel = (ln power + 9.5) / 4``.
"""

from __future__ import annotations

import torch

_LN_PER_UNIT = 4.0


def augment(mel: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """A new voice and room for each item of ``[B, 4T, 80]``; lips and timing stay valid."""
    batch, _, bands = mel.shape

    def uniform(low: float, high: float, *shape: int) -> torch.Tensor:
        return low + (high - low) * torch.rand(batch, *shape, generator=generator)

    # Vocal-tract length: read the spectrum at stretched band positions.
    position = torch.arange(bands) * uniform(0.85, 1.18, 1)
    lower = position.floor().clamp(0, bands - 1).long()
    upper = (lower + 1).clamp_max(bands - 1)
    fraction = (position - lower).clamp(0, 1)[:, None]
    steps = mel.shape[1]
    low_values = mel.gather(2, lower[:, None].expand(-1, steps, -1))
    high_values = mel.gather(2, upper[:, None].expand(-1, steps, -1))
    warped = low_values + fraction * (high_values - low_values)

    # Microphone colour: a smooth tilt and level.
    tilt = uniform(-0.35, 0.35, 1, 1) * torch.linspace(-1, 1, bands) + uniform(-0.25, 0.25, 1, 1)
    voiced = warped + tilt

    # Coloured noise at 0–20 dB below the clip's mean power, in half of the items.
    power = (voiced * _LN_PER_UNIT).exp()
    below = 10 ** (-uniform(0.0, 2.0, 1, 1)) * (torch.rand(batch, 1, 1, generator=generator) < 0.5)
    colour = (uniform(-2.0, 0.5, 1, 1) * torch.linspace(0, 1, bands)).exp()
    ripple = torch.empty_like(mel).exponential_(generator=generator)
    noise = colour * ripple * power.mean((1, 2), keepdim=True) * below
    noisy = (power + noise).log() / _LN_PER_UNIT

    # A band of up to ten mels lost, in half of the items.
    start = (uniform(0, bands) // 1).long()[:, None]
    width = (uniform(0, 10) * (torch.rand(batch, generator=generator) < 0.5)).long()[:, None]
    band = torch.arange(bands)[None]
    lost = (band >= start) & (band < start + width)
    return torch.where(lost[:, None], noisy.mean((1, 2), keepdim=True), noisy)
