"""Two scores that are read from landmark tracks alone: how steadily a face moves, and whether its head can be.

Steadiness: does the face move as filmed faces do, without trembling, freezing or jumps?

    a = rms acceleration of the face's middle       h = share of steps in which nothing moves
    steadiness = − max(ln a, ln a₀) − 4 h           in distances between the outer corners of the eyes

a₀ is what the steadiest fifth of real clips has: steadier earns nothing, so that a photo, which never moves (h = 1),
loses. Trembling raises a; a freeze raises h, and a by the jump that ends it.

Head pose: is this a skull that keeps its shape, on a neck that turns as necks do?

    2-D    landmarks ≈ M · canonical head,  M = [m₁ m₂]ᵀ per frame     bend = rms of ln |m₁|/|m₂| and of cos(m₁, m₂)
                                                                              about their medians
    3-D    R from M                                                    turn = 95 % of the angle between frames, degrees
    pose = − max(ln bend − b₀, 0) − max(ln turn − t₀, 0)

Under any pose m₁ and m₂ of a rigid head stay orthogonal and equally long. b₀ and t₀ are what four fifths of real clips
stay below, so that a plausible body earns nothing and one that cannot be loses.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from flowportrait.codec.basis import MotionBasis
from flowportrait.codec.pose import RIGID_POINTS
from flowportrait.reward.batch import Failure, RewardBatch
from flowportrait.reward.interface import Score, measured

MIN_FRAMES = 4
OUTER_CORNERS = (33, 263)
FREEZE_WEIGHT = 4.0
_TINY_STEP, _TINY = 1e-5, 1e-4
_USUAL = 0.8
_FAST = 0.95


@dataclass(frozen=True)
class Steadiness:
    """A reward for steady motion. ``floor``: ln a₀; ``unmoved``: speed per frame below which a step counts as none."""

    floor: float
    unmoved: float
    name: str = "steadiness"
    needs: frozenset[str] = frozenset({"places"})

    def __call__(self, batch: RewardBatch) -> Score:
        return score_tracks(batch, self.measure, "steadiness")

    def measure(self, places: torch.Tensor) -> torch.Tensor:
        """Return the scores ``[B]`` of tracks ``[B, T, 478, 2]`` px."""
        shaking, speed = track_statistics(places)
        return -shaking.clamp_min(self.floor) - FREEZE_WEIGHT * (speed < self.unmoved).float().mean(1)

    @classmethod
    def of_real(cls, places: torch.Tensor) -> Steadiness:
        """Fit to real clips ``[B, T, 478, 2]`` px: a₀ is their 20 %, half of their slowest 5 % of steps is unmoved."""
        shaking, speed = track_statistics(places)
        return cls(float(shaking.quantile(0.2)), float(speed.flatten().quantile(0.05)) / 2)


def track_statistics(places: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ln a ``[B]`` and the rms speed of all landmarks ``[B, T − 1]`` of tracks ``[B, T, 478, 2]`` px."""
    left, right = (places[:, :, corner] for corner in OUTER_CORNERS)
    scaled = places / (left - right).norm(dim=-1).mean(1)[:, None, None, None]
    acceleration = scaled.mean(2).diff(n=2, dim=1).square().sum(-1).mean(1).sqrt()
    speed = scaled.diff(dim=1).square().sum(-1).mean(-1).sqrt()
    return (acceleration + _TINY_STEP).log(), speed


@dataclass(frozen=True)
class HeadPose:
    """A reward for a possible head. ``bend`` and ``turn``: b₀ and t₀, of real clips."""

    bend: float
    turn: float
    name: str = "pose"
    needs: frozenset[str] = frozenset({"places"})

    def __call__(self, batch: RewardBatch) -> Score:
        return score_tracks(batch, self.measure, "pose to follow")

    def measure(self, places: torch.Tensor) -> torch.Tensor:
        """Return the scores ``[B]`` of tracks ``[B, T, 478, 2]`` px."""
        bend, turn = pose_statistics(places)
        return (-(bend - self.bend).clamp_min(0) - (turn - self.turn).clamp_min(0)).float()

    @classmethod
    def of_real(cls, places: torch.Tensor) -> HeadPose:
        """Fit to real clips ``[B, T, 478, 2]`` px."""
        bend, turn = pose_statistics(places)
        return cls(float(bend.quantile(_USUAL)), float(turn.quantile(_USUAL)))


def pose_statistics(places: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ln bend and ln turn ``[B]`` each of tracks ``[B, T, 478, 2]`` px."""
    camera = affine_camera(places)
    first, second = camera.unbind(-2)
    lengths = first.norm(dim=-1) / second.norm(dim=-1).clamp_min(_TINY)
    shape = torch.stack([lengths.clamp_min(_TINY).log(), torch.nn.functional.cosine_similarity(first, second, -1)], -1)
    off = shape - shape.median(1, keepdim=True).values
    bend = off.square().sum(-1).mean(1).sqrt()
    turn = angles(rotation(camera)).quantile(_FAST, 1)
    return (bend + _TINY).log(), (turn + _TINY).log()


def affine_camera(places: torch.Tensor) -> torch.Tensor:
    """Return the affine camera M ``[B, T, 2, 3]`` from the canonical head's rigid points, by least squares."""
    head = MotionBasis.load().canonical[RIGID_POINTS].double()
    head = head - head.mean(0)
    points = places[:, :, RIGID_POINTS].double()
    points = points - points.mean(2, keepdim=True)
    return (torch.linalg.pinv(head) @ points).mT


def rotation(camera: torch.Tensor) -> torch.Tensor:
    """Return the rotation ``[..., 3, 3]`` nearest to a camera ``[..., 2, 3]``, its third axis from the first two."""
    u, _, vt = torch.linalg.svd(camera, full_matrices=False)
    rows = u @ vt
    return torch.cat([rows, torch.linalg.cross(rows[..., :1, :], rows[..., 1:, :])], -2)


def angles(turned: torch.Tensor) -> torch.Tensor:
    """Return the degrees between successive rotations ``[B, T, 3, 3]``."""
    step = turned[:, 1:] @ turned[:, :-1].mT
    cosine = (step.diagonal(dim1=-2, dim2=-1).sum(-1) - 1) / 2
    return torch.rad2deg(torch.arccos(cosine.clamp(-1, 1)))


def score_tracks(batch: RewardBatch, measure: Callable[[torch.Tensor], torch.Tensor], what: str) -> Score:
    """Score a batch by ``measure`` of its tracks; clips too short to have ``what`` have no score."""
    length = batch.motion.shape[1]
    if length < MIN_FRAMES:
        why = Failure("too_short", f"{length} frames have no {what}")
        return measured(torch.full((len(batch),), torch.nan), dict.fromkeys(range(len(batch)), why))
    return measured(measure(batch.places(tuple(range(length)))), {})
