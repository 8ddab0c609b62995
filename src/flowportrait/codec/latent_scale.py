"""Raw latents of an autoencoder to numbers of about mean zero and variance one, as generators want them.

    values = (patches(z) − mean) / std            z = unpatches(values · std + mean)

Families keep these two under different names: a scaling and a shift factor (KL, FLUX), means and deviations per channel
(Wan, LTX), or the running statistics of a batch norm over 2 × 2 patches (FLUX.2).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F


@dataclass(frozen=True)
class LatentScale:
    """mean and std ``[C, 1, 1]`` (or scalars) of latents whose ``patch`` × ``patch`` neighbours are one cell."""

    mean: torch.Tensor
    std: torch.Tensor
    patch: int = 1

    @classmethod
    def of(cls, autoencoder: Any) -> LatentScale:
        """What the autoencoder says about its own latents; unscaled where it says nothing."""
        config = autoencoder.config
        factor = 1.0 / (config.get("scaling_factor") or 1.0)
        if hasattr(autoencoder, "bn"):
            norm = autoencoder.bn
            return cls(_column(norm.running_mean), _column((norm.running_var + norm.eps).sqrt()), config.patch_size[0])
        for holder in (config, dict(autoencoder.named_buffers())):
            mean, std = (holder.get(name) for name in ("latents_mean", "latents_std"))
            if mean is not None and std is not None:
                return cls(_column(mean), _column(std) * factor)
        return cls(torch.tensor(float(config.get("shift_factor") or 0.0)), torch.tensor(factor))

    def normalise(self, latents: torch.Tensor) -> torch.Tensor:
        """``[T, C, h, w]`` raw to normal; with patches ``[T, C p², h / p, w / p]``."""
        return (F.pixel_unshuffle(latents, self.patch) - self.mean) / self.std

    def restore(self, values: torch.Tensor) -> torch.Tensor:
        """Inverse of ``normalise``."""
        return F.pixel_shuffle(values * self.std + self.mean, self.patch)


def _column(values: Any) -> torch.Tensor:
    return torch.as_tensor(values).detach().float().reshape(-1, 1, 1)
