"""Perceptual consistency: does the picture hold together, from frame to frame and with the photo it came from.

    f = − ln(1.001 − similarity of neighbouring frames)      p = the same of frames to the portrait, face on face
    perceptual = − ½ huber( (f − μ_f) / d_f ) − ½ huber( (p − μ_p) / d_p )

Two-sided, against real motion: a torn or pulsating face is less alike from frame to frame than real ones are, a frozen
or blurred one more. Without a portrait, the clip's median picture stands for it; without landmarks, frames are compared
as they are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F

from flowportrait.reward.backbones import Backbone, Structural
from flowportrait.reward.batch import RewardBatch
from flowportrait.reward.face_net import align
from flowportrait.reward.interface import Score, all_valid
from flowportrait.reward.photo import shrunk
from flowportrait.reward.pixels import pair_indices
from flowportrait.reward.real import Normal, noises, normals

_EQUAL = 1e-3
_MOST = -math.log(_EQUAL)

ALIGNED = 96
"""Pixels of the aligned face; in a 128 px rendering the face has about as many."""


@dataclass(frozen=True)
class Perceptual:
    """Similarity under one backbone."""

    real: Mapping[str, Normal] = field(default_factory=normals)
    backbone: Backbone = field(default_factory=Structural)
    noise: float = 0.0
    name: str = "perceptual"
    needs: frozenset[str] = frozenset({"frames"})

    @classmethod
    def load(cls, backbone: Backbone | None = None) -> Perceptual:
        """With what real footage measures under this backbone."""
        backbone = backbone or Structural()
        return cls(backbone=backbone, noise=noises().get(f"perceptual/{backbone.name}", 0.0))

    def __call__(self, batch: RewardBatch) -> Score:
        distance = torch.zeros(len(batch))
        for name, value in self.measure(batch).items():
            z = self._normal(f"{name}/{batch.domain}").z(value)
            distance += 0.5 * F.huber_loss(z, torch.zeros_like(z), reduction="none")
        return all_valid(-distance)

    def measure(self, batch: RewardBatch) -> dict[str, torch.Tensor]:
        """f and p, ``[B]`` each, under the names they are kept by."""
        indices = pair_indices(batch.motion.shape[1])
        frames = batch.frames(indices)
        neighbours = self._alike(frames[:, 0::2], frames[:, 1::2])
        seen, kind = frames, "median"
        if "places" in batch.has:
            faces = align(frames.flatten(0, 1), batch.places(indices).flatten(0, 1), ALIGNED)
            seen = faces.unflatten(0, frames.shape[:2])
            kind = "median" if batch.portraits is None else "portrait"
        if kind == "portrait":
            model = _portraits(batch, frames.shape[-1])[:, None]
        else:
            model = seen.median(1, keepdim=True).values
        likeness = self._alike(seen, model.expand_as(seen))
        own = f"perceptual/{self.backbone.name}"
        return {f"{own}/frames": neighbours, f"{own}/{kind}": likeness}

    def _alike(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        alike = self.backbone(a.flatten(0, 1), b.flatten(0, 1)).unflatten(0, a.shape[:2]).mean(1)
        # Similarities crowd under 1; on this scale real clips spread evenly and a frozen one stands out.
        return -(1 + _EQUAL - alike).clamp_min(_EQUAL).log()

    def _normal(self, name: str) -> Normal:
        # A backbone that was never measured on real footage counts as it is: the more alike the better.
        return self.real.get(name, Normal(_MOST, 1.0))


def _portraits(batch: RewardBatch, side: int) -> torch.Tensor:
    """The aligned portrait of every row ``[B, 3, S, S]``; each person once."""
    assert batch.portraits is not None
    people = {id(portrait): portrait for portrait in batch.portraits}
    aligned = {}
    for key, portrait in people.items():
        picture, points = shrunk(portrait, side)
        aligned[key] = align(picture[None], points[None], ALIGNED)[0]
    return torch.stack([aligned[id(portrait)] for portrait in batch.portraits])
