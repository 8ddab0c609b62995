"""A face in motion as 30 numbers per frame, free of who it is, and the pose of its head.

Lip contact: where upper and lower inner lip meet, and closed means closed.

Tracked landmarks keep a small gap between closed lips. Gaps below ``CONTACT`` are therefore shut exactly, and
larger ones lose that much, so that opening stays continuous:  gap' = max(0, gap − CONTACT).

Head pose: the weak-perspective similarity that carries the canonical head onto landmarks in pixels.

landmarks ≈ scale · R · canonical + shift        (R a rotation, scale in px per eye distance)

The motion basis: a face in motion as 30 numbers per frame, free of who it is.

    landmarks[t] = pose[t] ∘ ( neutral  +  Σ_j motion[t, j] · directions[j] )

``neutral`` is this person's own face at rest with the lips just closed. The directions are learned from many
speakers, separately for the lower and the upper face, so that lips, lids, brows and gaze move independently:

    0–15 lower face · 16–19 brows · 20–21 blink (left, right) · 22–23 gaze (x, y) · 24–29 head

Every coefficient is in units of its standard deviation over the training footage.

Left and right exchanged, directly on motion:  motion' = motion @ M.

Landmark i's mirror image is the landmark nearest to it on the mirrored canonical head.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors.torch import load_file

from flowportrait.files import write_weights

UPPER_INNER = [191, 80, 81, 82, 13, 312, 311, 310, 415]
LOWER_INNER = [95, 88, 178, 87, 14, 317, 402, 318, 324]
"""Inner-lip points facing each other, from the right corner to the left one."""

CONTACT = 0.01
"""Gap of closed lips in MediaPipe landmarks, in outer-eye-corner distances; on footage the tenth percentile is
0.006 and the twenty-fifth 0.023."""


def lip_gap(shape: torch.Tensor) -> torch.Tensor:
    """Opening of each inner-lip pair ``[..., 9]`` in canonical units from pose-free faces ``[..., 478, 3]``."""
    return shape[..., LOWER_INNER, 1] - shape[..., UPPER_INNER, 1]


def close_lips(shape: torch.Tensor) -> torch.Tensor:
    """The same face ``[..., 478, 3]`` with each inner-lip pair CONTACT apart around its middle, as tracked
    closed lips are."""
    return _set_gap(shape, torch.full_like(lip_gap(shape), CONTACT))


def lip_contact(shape: torch.Tensor) -> torch.Tensor:
    """The same face with the tracker's gap taken off every opening; lips never cross."""
    return _set_gap(shape, (lip_gap(shape) - CONTACT).clamp_min(0.0))


def _set_gap(shape: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    result = shape.clone()
    excess = ((lip_gap(shape) - wanted) / 2)[..., None] * torch.tensor([0.0, 1.0, 0.0])
    result[..., UPPER_INNER, :] += excess
    result[..., LOWER_INNER, :] -= excess
    return result


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


LOWER, BROWS, BLINK, GAZE, HEAD = slice(0, 16), slice(16, 20), slice(20, 22), slice(22, 24), slice(24, 30)
EXPRESSION = slice(0, 24)
MOTION_DIM = 30


class Identity(NamedTuple):
    """What stays while a person moves: neutral face ``[478, 3]`` in canonical units and resting head pose."""

    neutral: torch.Tensor
    pose: Pose


@dataclass(frozen=True)
class MotionBasis:
    """canonical ``[478, 3]`` mean face (outer eye corners one unit apart); lower_share ``[478]`` how much of a
    point's motion belongs to the lower face; directions ``[24, 478, 3]`` per standard deviation; readout
    ``[24, 1434]`` displacement → coefficients; from_blendshapes ``[52, 1434]`` ARKit weights → displacement;
    head_std ``[6]``."""

    canonical: torch.Tensor
    lower_share: torch.Tensor
    directions: torch.Tensor
    readout: torch.Tensor
    from_blendshapes: torch.Tensor
    head_std: torch.Tensor

    @classmethod
    @lru_cache(maxsize=1)
    def load(cls) -> MotionBasis:
        """The basis that ships with the package."""
        return cls.read(Path(str(files("flowportrait") / "weights" / "basis" / "motion_basis.safetensors")))

    @classmethod
    def read(cls, path: Path) -> MotionBasis:
        """Read a basis written by ``save``."""
        return cls(**{name: tensor.float() for name, tensor in load_file(str(path)).items()})

    def save(self, path: Path) -> None:
        """Write as float16 safetensors (relative error 5e-4, under landmark noise)."""
        write_weights(path, {f.name: getattr(self, f.name) for f in fields(self)})

    def neutral(self, shape: torch.Tensor, blendshapes: torch.Tensor) -> torch.Tensor:
        """Resting face ``[478, 3]`` behind pose-free shapes ``[T, 478, 3]``: what is left when the displacement
        that the blendshapes ``[T, 52]`` account for is taken off; lips closed."""
        offset = (blendshapes @ self.from_blendshapes).reshape(-1, 478, 3)
        return close_lips((shape - offset).mean(0))

    def encode(
        self, landmarks: np.ndarray, blendshapes: np.ndarray, smooth: bool = True
    ) -> tuple[torch.Tensor, Identity]:
        """Motion ``[T, 30]`` and identity of one person's clip: landmarks ``[T, 478, 3]`` px, blendshapes ``[T, 52]``.

        ``smooth`` applies zero-phase filters (no lag): three frames wide in effect for lips and lids, seven for
        the head.
        """
        points = torch.as_tensor(np.asarray(landmarks), dtype=torch.float32)
        pose = fit_pose(points, self.canonical)
        shape = pose.remove(points)
        base = self.neutral(shape, torch.as_tensor(np.asarray(blendshapes), dtype=torch.float32))
        rest = median_pose(pose)
        expression = (shape - base).flatten(1) @ self.readout.T
        head = to_vector(pose, rest) / self.head_std
        motion = torch.cat([expression, head], -1)
        if smooth and len(motion) >= 9:
            motion[:, EXPRESSION] = _filter(motion[:, EXPRESSION], 5)
            motion[:, HEAD] = _filter(motion[:, HEAD], 9)
        return motion, Identity(base, rest)

    def shape(self, motion: torch.Tensor, neutral: torch.Tensor) -> torch.Tensor:
        """Pose-free face ``[T, 478, 3]`` in canonical units with exact lip contact."""
        moved = torch.einsum("te,enc->tnc", motion[:, EXPRESSION], self.directions)
        return lip_contact(neutral + moved)

    def decode(self, motion: torch.Tensor, identity: Identity) -> torch.Tensor:
        """Landmarks ``[T, 478, 3]`` in the pixels of the identity's picture."""
        pose = from_vector(motion[:, HEAD] * self.head_std, identity.pose)
        return pose.apply(self.shape(motion, identity.neutral))


def _filter(values: torch.Tensor, window: int) -> torch.Tensor:
    from scipy.signal import savgol_filter

    return torch.from_numpy(savgol_filter(values.numpy(), window, 2, axis=0)).float()


_FLIP = torch.tensor([-1.0, 1.0, 1.0])
_HEAD_SIGN = torch.tensor([1.0, -1.0, -1.0, -1.0, 1.0, 1.0])
"""Rotation vector (x, y, z), shift (x, y) and scale under x → −x."""


def partners(canonical: torch.Tensor) -> torch.Tensor:
    """For each landmark of a head ``[478, 3]`` the index of its mirror partner ``[478]``."""
    return torch.cdist(canonical * _FLIP, canonical).argmin(1)


def mirror_matrix(basis: MotionBasis) -> torch.Tensor:
    """``[30, 30]`` such that ``motion @ M`` is the motion seen in a mirror."""
    seen = (basis.directions * _FLIP)[:, partners(basis.canonical)].flatten(1)
    matrix = torch.zeros(MOTION_DIM, MOTION_DIM)
    for part in (LOWER, BROWS):
        own = basis.directions[part].flatten(1)
        matrix[part, part] = torch.linalg.lstsq(own.T, seen[part].T).solution.T
    matrix[BLINK, BLINK] = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    matrix[GAZE, GAZE] = torch.diag(torch.tensor([-1.0, 1.0]))
    matrix[HEAD, HEAD] = torch.diag(_HEAD_SIGN)
    return matrix
