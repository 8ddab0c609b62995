"""Temporal consistency: what optical flow cannot explain between two frames, relative to how much there is to see.

    m = ln ( mean |later − warp(now, flow)| / mean |∇ later| )          temporal = − softplus( (m − μ) / d )

μ and d are those of real motion; less than real motion leaves is hardly worth more, so stillness cannot win. It is
relative to the picture's own gradients, because a blurred video would otherwise look steadier than a sharp one. All
three colours count: pumping in colour at equal brightness is seen.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import cv2
import numpy as np
import torch
import torch.nn.functional as F

from flowportrait.media.optical_flow import Dis, OpticalFlow
from flowportrait.reward.batch import RewardBatch
from flowportrait.reward.interface import Score, all_valid
from flowportrait.reward.pixels import pair_indices
from flowportrait.reward.real import Normal, noises, normals
from flowportrait.reward.regions import masks, mean_over

_RESIDUAL_FLOOR, _GRADIENT_FLOOR = 5e-4, 2e-3


@dataclass(frozen=True)
class Temporal:
    """Unexplained change over two frame pairs; with landmarks known, also by region."""

    real: Mapping[str, Normal] = field(default_factory=normals)
    flow: OpticalFlow = field(default_factory=Dis)
    noise: float = 0.0
    name: str = "temporal"
    needs: frozenset[str] = frozenset({"frames"})

    @classmethod
    def load(cls, flow: OpticalFlow | None = None) -> Temporal:
        """With what real footage measures, by this flow."""
        flow = flow or Dis()
        return cls(flow=flow, noise=noises().get(f"temporal/{flow.name}", 0.0))

    def __call__(self, batch: RewardBatch) -> Score:
        # A flow that was never measured on real footage is compared with what DIS leaves there.
        usual = self.real[f"temporal/dis/{batch.domain}"]
        real = self.real.get(f"temporal/{self.flow.name}/{batch.domain}", usual)
        value, parts = self._measured(batch)
        regions = {name: -F.softplus(real.z(part)) for name, part in parts.items()}
        return all_valid(-F.softplus(real.z(value)))._replace(regions=regions or None)

    def measure(self, batch: RewardBatch) -> dict[str, torch.Tensor]:
        """m ``[B]``, for ``measure_real``."""
        return {f"temporal/{self.flow.name}": self._measured(batch)[0]}

    def _measured(self, batch: RewardBatch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        indices = pair_indices(batch.motion.shape[1])
        frames = batch.frames(indices)
        now, later = frames[:, 0::2].flatten(0, 1), frames[:, 1::2].flatten(0, 1)
        residual = unexplained(now, later, self.flow(now, later))
        gradient = _gradient(later)
        pairs = frames.shape[1] // 2

        def ratio(left: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
            shares = (left + _RESIDUAL_FLOOR).log() - (seen + _GRADIENT_FLOOR).log()
            return shares.unflatten(0, (-1, pairs)).mean(1)

        value = ratio(residual.mean((1, 2)), gradient.mean((1, 2)))
        if "places" not in batch.has:
            return value, {}
        where = masks(batch.places(indices)[:, 1::2].flatten(0, 1), (residual.shape[1], residual.shape[2]))
        parts = {name: ratio(mean_over(residual, mask), mean_over(gradient, mask)) for name, mask in where.items()}
        return value, parts


def unexplained(now: torch.Tensor, later: torch.Tensor, flow: np.ndarray) -> torch.Tensor:
    """|later − now carried along the flow| ``[N, H, W]``, mean over the colours of RGB frames ``[N, 3, H, W]``."""
    height, width = now.shape[-2:]
    x, y = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    result = np.empty((len(now), height, width), np.float32)
    for row, (before, after, moved) in enumerate(zip(now.numpy(), later.numpy(), flow, strict=True)):
        picture = np.ascontiguousarray(before.transpose(1, 2, 0))
        carried = cv2.remap(picture, x + moved[..., 0], y + moved[..., 1], cv2.INTER_LINEAR,
                            borderMode=cv2.BORDER_REPLICATE)  # fmt: skip
        result[row] = np.abs(carried.transpose(2, 0, 1) - after).mean(0)
    return torch.from_numpy(result)


def _gradient(frames: torch.Tensor) -> torch.Tensor:
    """|∂x| + |∂y| of the mean colour ``[N, H, W]``."""
    grey = frames.mean(1)
    across = F.pad(grey.diff(dim=2).abs(), (0, 1))
    return across + F.pad(grey.diff(dim=1).abs(), (0, 0, 0, 1))
