"""Is this a skull that keeps its shape, on a neck that turns as necks do? Read from landmarks alone.

    2-D    landmarks ≈ M · canonical head,  M = [m₁ m₂]ᵀ per frame     bend = rms of ln |m₁|/|m₂| and of cos(m₁, m₂)
                                                                              about their medians
    3-D    R from M                                                    turn = 95 % of the angle between frames, degrees
    pose = − max(ln bend − b₀, 0) − max(ln turn − t₀, 0)

Under any pose m₁ and m₂ of a rigid head stay orthogonal and equally long. b₀ and t₀ are what four fifths of real clips
stay below, so that a plausible body earns nothing and one that cannot be loses.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from flowportrait.codec.basis import MotionBasis
from flowportrait.codec.pose import RIGID_POINTS
from flowportrait.judge.tracks import from_tracks
from flowportrait.reward.interface import RewardBatch, Score

_USUAL = 0.8
_FAST = 0.95
_TINY = 1e-4


@dataclass(frozen=True)
class HeadPose:
    """bend, turn: b₀ and t₀, of real clips."""

    bend: float
    turn: float
    name: str = "pose"
    needs: frozenset[str] = frozenset({"places"})

    def __call__(self, batch: RewardBatch) -> Score:
        return from_tracks(batch, self.figures, "pose to follow")

    def figures(self, places: torch.Tensor) -> torch.Tensor:
        """Of tracks ``[B, T, 478, 2]`` px, ``[B]``."""
        bend, turn = pose_statistics(places)
        return (-(bend - self.bend).clamp_min(0) - (turn - self.turn).clamp_min(0)).float()

    @classmethod
    def of_real(cls, places: torch.Tensor) -> HeadPose:
        """From real clips ``[B, T, 478, 2]`` px."""
        bend, turn = pose_statistics(places)
        return cls(float(bend.quantile(_USUAL)), float(turn.quantile(_USUAL)))


def pose_statistics(places: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """ln bend and ln turn ``[B]`` each of tracks ``[B, T, 478, 2]`` px."""
    camera = affine_camera(places)
    first, second = camera.unbind(-2)
    lengths = first.norm(dim=-1) / second.norm(dim=-1).clamp_min(_TINY)
    shape = torch.stack([lengths.clamp_min(_TINY).log(), torch.nn.functional.cosine_similarity(first, second, -1)], -1)
    off = shape - shape.median(1, keepdim=True).values
    bend = off.square().sum(-1).mean(1).sqrt()
    turn = angles(rotation(camera)).quantile(_FAST, 1)
    return (bend + _TINY).log(), (turn + _TINY).log()


def affine_camera(places: torch.Tensor) -> torch.Tensor:
    """M ``[B, T, 2, 3]``: how the canonical head's rigid points come to lie where they are seen, least squares."""
    head = MotionBasis.load().canonical[RIGID_POINTS].double()
    head = head - head.mean(0)
    seen = places[:, :, RIGID_POINTS].double()
    seen = seen - seen.mean(2, keepdim=True)
    return (torch.linalg.pinv(head) @ seen).mT


def rotation(camera: torch.Tensor) -> torch.Tensor:
    """The rotation ``[..., 3, 3]`` nearest to a camera ``[..., 2, 3]``, its third axis from the first two."""
    u, _, vt = torch.linalg.svd(camera, full_matrices=False)
    rows = u @ vt
    return torch.cat([rows, torch.linalg.cross(rows[..., :1, :], rows[..., 1:, :])], -2)


def angles(turned: torch.Tensor) -> torch.Tensor:
    """Degrees between successive rotations ``[B, T, 3, 3]``."""
    step = turned[:, 1:] @ turned[:, :-1].mT
    cosine = (step.diagonal(dim1=-2, dim2=-1).sum(-1) - 1) / 2
    return torch.rad2deg(torch.arccos(cosine.clamp(-1, 1)))
