"""Head pose: the weak-perspective similarity that carries the canonical head onto landmarks in pixels.

landmarks ≈ scale · R · canonical + shift        (R a rotation, scale in px per eye distance)
"""

from __future__ import annotations

from typing import NamedTuple

import torch

RIGID_POINTS = [
    33, 133, 362, 263, 168, 6, 197, 195, 5, 4, 2, 98, 327, 10, 109, 338, 67, 297, 151, 9, 127, 356, 234, 454, 21, 251,
]  # fmt: skip
"""Landmarks that hardly move with speech: eye corners, nose, forehead, temples."""


class Pose(NamedTuple):
    """Rotation ``[T, 3, 3]``, shift ``[T, 3]`` px, scale ``[T]`` px per canonical unit."""

    rotation: torch.Tensor
    shift: torch.Tensor
    scale: torch.Tensor

    def apply(self, shape: torch.Tensor) -> torch.Tensor:
        """Canonical points ``[T, N, 3]`` to pixels."""
        return self.scale[:, None, None] * shape @ self.rotation.mT + self.shift[:, None]

    def remove(self, landmarks: torch.Tensor) -> torch.Tensor:
        """Pixels ``[T, N, 3]`` to canonical points."""
        return (landmarks - self.shift[:, None]) @ self.rotation / self.scale[:, None, None]


def fit_pose(landmarks: torch.Tensor, canonical: torch.Tensor) -> Pose:
    """Least-squares pose (Umeyama 1991) of landmarks ``[T, 478, 3]`` px against a canonical head ``[478, 3]``."""
    target = landmarks[:, RIGID_POINTS].double()
    source = canonical[RIGID_POINTS].double()
    target_mean, source_mean = target.mean(1, keepdim=True), source.mean(0)
    source = source - source_mean
    u, s, vt = torch.linalg.svd((target - target_mean).mT @ source)
    sign = torch.ones_like(s)
    sign[:, 2] = torch.sign(torch.linalg.det(u) * torch.linalg.det(vt))
    rotation = u @ torch.diag_embed(sign) @ vt
    scale = (s * sign).sum(-1) / source.square().sum()
    shift = target_mean[:, 0] - scale[:, None] * (rotation @ source_mean)
    return Pose(rotation.float(), shift.float(), scale.float())


def to_vector(pose: Pose, base: Pose) -> torch.Tensor:
    """Motion of the head relative to ``base`` (one pose): rotation vector (rad), shift / base scale,
    log scale ratio: ``[T, 6]``."""
    from scipy.spatial.transform import Rotation

    turn = (pose.rotation @ base.rotation.mT).numpy()
    vector = torch.from_numpy(Rotation.from_matrix(turn).as_rotvec()).float()
    shift = (pose.shift[:, :2] - base.shift[:, :2]) / base.scale[:, None]
    return torch.cat([vector, shift, torch.log(pose.scale / base.scale)[:, None]], -1)


def from_vector(vector: torch.Tensor, base: Pose) -> Pose:
    """Inverse of ``to_vector``; depth shift stays that of ``base``."""
    from scipy.spatial.transform import Rotation

    turn = torch.from_numpy(Rotation.from_rotvec(vector[:, :3].double().numpy()).as_matrix()).float()
    shift = base.shift.expand(len(vector), 3).clone()
    shift[:, :2] += vector[:, 3:5] * base.scale
    return Pose(turn @ base.rotation, shift, base.scale * torch.exp(vector[:, 5]))


def median_pose(pose: Pose) -> Pose:
    """A single representative pose (leading dimension 1): mean rotation, median shift and scale."""
    from scipy.spatial.transform import Rotation

    mean = Rotation.from_matrix(pose.rotation.numpy()).mean().as_matrix()
    return Pose(
        torch.from_numpy(mean).float()[None],
        pose.shift.median(0, keepdim=True).values,
        pose.scale.median(0, keepdim=True).values,
    )
