"""Sharpness of mouth and eyes: the share of fine detail where people look.

    s = ln ( mean |∇ I|² / mean |∇ (G ∗ I)|² )       sharpness = − softplus( −(s − s_photo − μ) / d ),  mean of regions

The ratio of fine to coarse gradients does not depend on contrast or light. Compared with the portrait, as real motion
drawn from a portrait compares; without a portrait, with real footage. Being sharper than that is hardly worth more.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F

from flowportrait.reward.batch import RewardBatch
from flowportrait.reward.interface import Score, all_valid
from flowportrait.reward.photo import shrunk
from flowportrait.reward.pixels import pair_indices
from flowportrait.reward.real import Normal, noises, normals
from flowportrait.reward.regions import masks, mean_over

WHERE = ("mouth", "eyes")
_BLUR = torch.tensor([1.0, 4.0, 6.0, 4.0, 1.0]) / 16
_FLOOR = 1e-6


@dataclass(frozen=True)
class Sharpness:
    """Detail of mouth and eyes in four frames."""

    real: Mapping[str, Normal] = field(default_factory=normals)
    noise: float = 0.0
    name: str = "sharpness"
    needs: frozenset[str] = frozenset({"frames", "places"})

    @classmethod
    def load(cls) -> Sharpness:
        """With what real footage measures."""
        return cls(noise=noises().get("sharpness", 0.0))

    def __call__(self, batch: RewardBatch) -> Score:
        z = {name: self.real[f"{name}/{batch.domain}"].z(value) for name, value in self.measure(batch).items()}
        regions = {name.split("/")[1]: -F.softplus(-value) for name, value in z.items()}
        return all_valid(torch.stack(list(regions.values())).mean(0))._replace(regions=regions)

    def measure(self, batch: RewardBatch) -> dict[str, torch.Tensor]:
        """s, or s − s_photo, ``[B]`` by region."""
        indices = pair_indices(batch.motion.shape[1])
        frames = batch.frames(indices)
        found = detail(frames.flatten(0, 1), batch.places(indices).flatten(0, 1))
        clips = {name: value.unflatten(0, frames.shape[:2]).mean(1) for name, value in found.items()}
        if batch.portraits is None:
            return {f"sharpness/{name}/alone": value for name, value in clips.items()}
        people = {id(portrait): portrait for portrait in batch.portraits}
        photos = {key: shrunk(portrait, frames.shape[-1]) for key, portrait in people.items()}
        own = {key: detail(picture[None], points[None]) for key, (picture, points) in photos.items()}
        return {
            f"sharpness/{name}/photo": value - torch.cat([own[id(portrait)][name] for portrait in batch.portraits])
            for name, value in clips.items()
        }


def detail(frames: torch.Tensor, places: torch.Tensor) -> dict[str, torch.Tensor]:
    """s ``[N]`` of mouth and eyes in frames ``[N, 3, H, W]`` with landmarks ``[N, 478, 2]`` px."""
    grey = frames.mean(1)
    where = masks(places, (grey.shape[1], grey.shape[2]))
    fine, coarse = _power(grey), _power(_blurred(grey))
    return {
        name: (mean_over(fine, where[name]) + _FLOOR).log() - (mean_over(coarse, where[name]) + _FLOOR).log()
        for name in WHERE
    }


def _power(grey: torch.Tensor) -> torch.Tensor:
    across, down = grey.diff(dim=2).square(), grey.diff(dim=1).square()
    return F.pad(across, (0, 1)) + F.pad(down, (0, 0, 0, 1))


def _blurred(grey: torch.Tensor) -> torch.Tensor:
    padded = F.pad(grey[:, None], (2, 2, 2, 2), mode="replicate")
    return F.conv2d(F.conv2d(padded, _BLUR.view(1, 1, 1, 5)), _BLUR.view(1, 1, 5, 1))[:, 0]
