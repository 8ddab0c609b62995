"""The motion basis: a face in motion as 30 numbers per frame, free of who it is.

    landmarks[t] = pose[t] ∘ ( neutral  +  Σ_j motion[t, j] · directions[j] )

``neutral`` is this person's own face at rest with the lips just closed. The directions are learned from many
speakers, separately for the lower and the upper face, so that lips, lids, brows and gaze move independently:

    0–15 lower face · 16–19 brows · 20–21 blink (left, right) · 22–23 gaze (x, y) · 24–29 head

Every coefficient is in units of its standard deviation over the training footage.
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

from flowportrait.codec import lips
from flowportrait.codec.pose import Pose, fit_pose, from_vector, median_pose, to_vector
from flowportrait.written import write_weights

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
        return lips.close((shape - offset).mean(0))

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
        return lips.contact(neutral + moved)

    def decode(self, motion: torch.Tensor, identity: Identity) -> torch.Tensor:
        """Landmarks ``[T, 478, 3]`` in the pixels of the identity's picture."""
        pose = from_vector(motion[:, HEAD] * self.head_std, identity.pose)
        return pose.apply(self.shape(motion, identity.neutral))


def _filter(values: torch.Tensor, window: int) -> torch.Tensor:
    from scipy.signal import savgol_filter

    return torch.from_numpy(savgol_filter(values.numpy(), window, 2, axis=0)).float()
