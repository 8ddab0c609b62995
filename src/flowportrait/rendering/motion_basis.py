"""The motion basis: a moving face as 30 numbers per frame that do not depend on the person.

    landmarks[t] = pose[t] ∘ ( neutral  +  Σ_j motion[t, j] · directions[j] )

``neutral`` is the person's own face in a neutral pose with the lips just closed. The directions are learned from many
speakers, separately for the lower and the upper face, so that lips, lids, brows and gaze move independently:

    0–15 lower face · 16–19 brows · 20–21 blink (left, right) · 22–23 gaze (x, y) · 24–29 head

Every coefficient is in units of its standard deviation over the training footage. The parts in order: lip contact, the
head pose, the basis itself, and the mirror image of motion.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors.torch import load_file

from flowportrait.files import shipped_weights, write_weights

# --- Lip contact -----------------------------------------------------------------------------------------------------
#
# Tracked landmarks keep a small gap between closed lips. Gaps below ``CONTACT`` are therefore closed exactly, and
# larger ones are reduced by that much, so that opening stays continuous:  gap' = max(0, gap − CONTACT).

UPPER_LIP_PAIRS = [191, 80, 81, 82, 13, 312, 311, 310, 415]
LOWER_LIP_PAIRS = [95, 88, 178, 87, 14, 317, 402, 318, 324]
"""Pairs of landmarks of the inner lips that face each other, from the right corner to the left one."""

CONTACT = 0.01
"""Gap of closed lips in MediaPipe landmarks, in outer-eye-corner distances; in the footage the tenth percentile of gaps
is 0.006 and the twenty-fifth 0.023."""


def lip_pair_gaps(shape: torch.Tensor) -> torch.Tensor:
    """Return the gap of each inner-lip pair ``[..., 9]`` in canonical units, for pose-free faces ``[..., 478, 3]``."""
    return shape[..., LOWER_LIP_PAIRS, 1] - shape[..., UPPER_LIP_PAIRS, 1]


def close_lips(shape: torch.Tensor) -> torch.Tensor:
    """Return the face ``[..., 478, 3]`` with each inner-lip pair ``CONTACT`` apart, like tracked closed lips."""
    return _set_gap(shape, torch.full_like(lip_pair_gaps(shape), CONTACT))


def apply_lip_contact(shape: torch.Tensor) -> torch.Tensor:
    """Return the face ``[..., 478, 3]`` with every lip gap reduced by that of tracked closed lips; lips never cross."""
    return _set_gap(shape, (lip_pair_gaps(shape) - CONTACT).clamp_min(0.0))


def _set_gap(shape: torch.Tensor, gap: torch.Tensor) -> torch.Tensor:
    """Return the face with the gaps ``[..., 9]`` of its inner-lip pairs, each around its middle."""
    result = shape.clone()
    excess = ((lip_pair_gaps(shape) - gap) / 2)[..., None] * torch.tensor([0.0, 1.0, 0.0])
    result[..., UPPER_LIP_PAIRS, :] += excess
    result[..., LOWER_LIP_PAIRS, :] -= excess
    return result


# --- Head pose -------------------------------------------------------------------------------------------------------
#
# The weak-perspective similarity that maps the canonical head to landmarks in pixels:
#
#     landmarks ≈ scale · R · canonical + shift        R a rotation, scale in px per eye distance

RIGID_POINTS = [
    33, 133, 362, 263, 168, 6, 197, 195, 5, 4, 2, 98, 327, 10, 109, 338, 67, 297, 151, 9, 127, 356, 234, 454, 21, 251,
]  # fmt: skip
"""Landmarks that hardly move with speech: eye corners, nose, forehead, temples."""


class Pose(NamedTuple):
    """Head poses: rotation ``[T, 3, 3]``, shift ``[T, 3]`` px, scale ``[T]`` px per canonical unit."""

    rotation: torch.Tensor
    shift: torch.Tensor
    scale: torch.Tensor

    def apply(self, shape: torch.Tensor) -> torch.Tensor:
        """Return the pixels of canonical points ``[T, N, 3]``."""
        return self.scale[:, None, None] * shape @ self.rotation.mT + self.shift[:, None]

    def remove(self, landmarks: torch.Tensor) -> torch.Tensor:
        """Return the canonical points of pixels ``[T, N, 3]``, the inverse of ``apply``."""
        return (landmarks - self.shift[:, None]) @ self.rotation / self.scale[:, None, None]


def fit_pose(landmarks: torch.Tensor, canonical: torch.Tensor) -> Pose:
    """Return the least-squares pose of landmarks relative to a canonical head (Umeyama 1991).

    Args:
        landmarks: ``[T, 478, 3]`` px.
        canonical: ``[478, 3]``.
    """
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


def pose_to_vector(pose: Pose, base: Pose) -> torch.Tensor:
    """Return the motion of the head relative to one pose ``base``, ``[T, 6]``.

    It consists of a rotation vector (rad), the shift / base scale, and the logarithm of the scale ratio.
    """
    from scipy.spatial.transform import Rotation

    turn = (pose.rotation @ base.rotation.mT).numpy()
    vector = torch.from_numpy(Rotation.from_matrix(turn).as_rotvec()).float()
    shift = (pose.shift[:, :2] - base.shift[:, :2]) / base.scale[:, None]
    return torch.cat([vector, shift, torch.log(pose.scale / base.scale)[:, None]], -1)


def vector_to_pose(vector: torch.Tensor, base: Pose) -> Pose:
    """Return the poses of head motion ``[T, 6]``, the inverse of ``pose_to_vector``; the depth shift is that of
    ``base``."""
    from scipy.spatial.transform import Rotation

    turn = torch.from_numpy(Rotation.from_rotvec(vector[:, :3].double().numpy()).as_matrix()).float()
    shift = base.shift.expand(len(vector), 3).clone()
    shift[:, :2] += vector[:, 3:5] * base.scale
    return Pose(turn @ base.rotation, shift, base.scale * torch.exp(vector[:, 5]))


def median_pose(pose: Pose) -> Pose:
    """Return one representative pose (leading dimension 1): mean rotation, median shift and scale."""
    from scipy.spatial.transform import Rotation

    mean = Rotation.from_matrix(pose.rotation.numpy()).mean().as_matrix()
    return Pose(
        torch.from_numpy(mean).float()[None],
        pose.shift.median(0, keepdim=True).values,
        pose.scale.median(0, keepdim=True).values,
    )


# --- The basis -------------------------------------------------------------------------------------------------------

LOWER_FACE, BROWS, BLINK, GAZE, HEAD = slice(0, 16), slice(16, 20), slice(20, 22), slice(22, 24), slice(24, 30)
"""The parts of a motion vector; see the module docstring."""

EXPRESSION = slice(0, 24)
MOTION_DIM = 30


class Identity(NamedTuple):
    """What stays constant while a person moves.

    Attributes:
        neutral: neutral face ``[478, 3]`` in canonical units.
        pose: neutral head pose.
    """

    neutral: torch.Tensor
    pose: Pose


@dataclass(frozen=True)
class MotionBasis:
    """The linear basis of facial motion, with the conversion from and to landmarks.

    Attributes:
        canonical: mean face ``[478, 3]``, with the outer eye corners one unit apart.
        lower_share: how much of each landmark's motion belongs to the lower face, ``[478]``.
        directions: displacement per standard deviation of each coefficient, ``[24, 478, 3]``.
        readout: linear map from displacement to coefficients, ``[24, 1434]``.
        from_blendshapes: linear map from ARKit weights to displacement, ``[52, 1434]``.
        head_std: standard deviations of head motion, ``[6]``.
    """

    canonical: torch.Tensor
    lower_share: torch.Tensor
    directions: torch.Tensor
    readout: torch.Tensor
    from_blendshapes: torch.Tensor
    head_std: torch.Tensor

    @classmethod
    @lru_cache(maxsize=1)
    def load(cls) -> MotionBasis:
        """Return the basis that ships with the package."""
        return cls.read(shipped_weights("basis/motion_basis.safetensors"))

    @classmethod
    def read(cls, path: Path) -> MotionBasis:
        """Return a basis that was written by ``save``."""
        return cls(**{name: tensor.float() for name, tensor in load_file(str(path)).items()})

    def save(self, path: Path) -> None:
        """Write the basis as float16 safetensors (relative error 5e-4, below the noise of landmarks)."""
        write_weights(path, {f.name: getattr(self, f.name) for f in fields(self)})

    def neutral(self, shape: torch.Tensor, blendshapes: torch.Tensor) -> torch.Tensor:
        """Return the neutral face ``[478, 3]`` of one person, with closed lips.

        It is the mean of the pose-free faces after subtracting the displacement that the blendshapes explain.

        Args:
            shape: pose-free faces ``[T, 478, 3]``.
            blendshapes: their ARKit weights ``[T, 52]``.
        """
        offset = (blendshapes @ self.from_blendshapes).reshape(-1, 478, 3)
        return close_lips((shape - offset).mean(0))

    def encode(
        self, landmarks: np.ndarray, blendshapes: np.ndarray, smooth: bool = True
    ) -> tuple[torch.Tensor, Identity]:
        """Return the motion ``[T, 30]`` and the identity of one person's clip.

        Args:
            landmarks: ``[T, 478, 3]`` px.
            blendshapes: ``[T, 52]``.
            smooth: apply zero-phase filters (no lag), with an effective width of three frames for lips and lids and
                seven for the head.
        """
        points = torch.as_tensor(np.asarray(landmarks), dtype=torch.float32)
        pose = fit_pose(points, self.canonical)
        shape = pose.remove(points)
        base = self.neutral(shape, torch.as_tensor(np.asarray(blendshapes), dtype=torch.float32))
        neutral_pose = median_pose(pose)
        expression = (shape - base).flatten(1) @ self.readout.T
        head = pose_to_vector(pose, neutral_pose) / self.head_std
        motion = torch.cat([expression, head], -1)
        if smooth and len(motion) >= 9:
            motion[:, EXPRESSION] = _filter(motion[:, EXPRESSION], 5)
            motion[:, HEAD] = _filter(motion[:, HEAD], 9)
        return motion, Identity(base, neutral_pose)

    def shape(self, motion: torch.Tensor, neutral: torch.Tensor) -> torch.Tensor:
        """Return pose-free faces ``[T, 478, 3]`` in canonical units, with exact lip contact."""
        displacement = torch.einsum("te,enc->tnc", motion[:, EXPRESSION], self.directions)
        return apply_lip_contact(neutral + displacement)

    def decode(self, motion: torch.Tensor, identity: Identity) -> torch.Tensor:
        """Return landmarks ``[T, 478, 3]`` in pixels of the picture that the identity comes from."""
        pose = vector_to_pose(motion[:, HEAD] * self.head_std, identity.pose)
        return pose.apply(self.shape(motion, identity.neutral))


def _filter(values: torch.Tensor, window: int) -> torch.Tensor:
    from scipy.signal import savgol_filter

    return torch.from_numpy(savgol_filter(values.numpy(), window, 2, axis=0)).float()


# --- Mirror image ----------------------------------------------------------------------------------------------------
#
# Left and right are exchanged directly on motion,  motion' = motion @ M.  The mirror partner of a landmark is the one
# nearest to it on the mirrored canonical head.

_FLIP = torch.tensor([-1.0, 1.0, 1.0])
_HEAD_SIGN = torch.tensor([1.0, -1.0, -1.0, -1.0, 1.0, 1.0])
"""Signs of rotation vector (x, y, z), shift (x, y) and scale under x → −x."""


def mirror_partners(canonical: torch.Tensor) -> torch.Tensor:
    """Return the index ``[478]`` of each landmark's mirror partner, for a canonical head ``[478, 3]``."""
    return torch.cdist(canonical * _FLIP, canonical).argmin(1)


def mirror_matrix(basis: MotionBasis) -> torch.Tensor:
    """Return the matrix M ``[30, 30]`` with which ``motion @ M`` is the motion in a mirror."""
    mirrored = (basis.directions * _FLIP)[:, mirror_partners(basis.canonical)].flatten(1)
    matrix = torch.zeros(MOTION_DIM, MOTION_DIM)
    for part in (LOWER_FACE, BROWS):
        original = basis.directions[part].flatten(1)
        matrix[part, part] = torch.linalg.lstsq(original.T, mirrored[part].T).solution.T
    matrix[BLINK, BLINK] = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    matrix[GAZE, GAZE] = torch.diag(torch.tensor([-1.0, 1.0]))
    matrix[HEAD, HEAD] = torch.diag(_HEAD_SIGN)
    return matrix
