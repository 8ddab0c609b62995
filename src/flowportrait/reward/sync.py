"""The reward side's sync expert: do these lips move as this speech does?

    score[t] = cos( face(motion[t … t+8]),  voice(mel[4t … 4t+35]) )

It reads motion coefficients, not pixels, so it is differentiable in what the generator makes and costs next
to nothing: hundreds of clips per second on one core. Trained by contrast
(``flowportrait.evaluation.train_expert``) on speakers the evaluation side never sees. Nothing is zero-padded in
time: T frames give T − 8 windows.
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from flowportrait.codec.basis import LOWER, MotionBasis
from flowportrait.devices import device_of, once_per_device
from flowportrait.training.joint_embedding import JointEmbedding


class SyncExpert(JointEmbedding):
    """Joint embedding of lower-face motion and log-mel, unit length, ``DIM`` numbers per window."""

    WINDOW = 9
    DIM = 96

    def __init__(self) -> None:
        super().__init__()
        lower = LOWER.stop - LOWER.start
        self.face = nn.Sequential(
            *_block(2 * lower, 128, 3),
            *_block(128, 128, 3, groups=4),
            *_block(128, 128, 3, groups=4),
            *_block(128, 128, 2, groups=4),
            nn.Dropout(0.1),
            nn.Conv1d(128, self.DIM, 1),
        )
        self.voice = nn.Sequential(
            *_block(80, 128, 3),
            *_block(128, 128, 4, stride=2, groups=2),
            *_block(128, 128, 4, stride=2, groups=2),
            *_block(128, 128, 3, groups=2),
            *_block(128, 128, 3, groups=2),
            *_block(128, 128, 3, groups=2),
            nn.Dropout(0.1),
            nn.Conv1d(128, self.DIM, 1),
        )
        self.log_scale = nn.Parameter(torch.tensor(2.3))

    def embed_face(self, lips: torch.Tensor) -> torch.Tensor:
        """``[B, T, ≥16]`` motion (the first 16 coefficients count) to ``[B, T - 8, DIM]``.

        The mean over the clip is taken off: whose resting mouth it is says nothing about sync.
        """
        lower = lips[..., LOWER].to(device_of(self))
        lower = lower - lower.mean(1, keepdim=True)
        speed = lower[:, 1:] - lower[:, :-1]
        features = torch.cat([lower[:, 1:], 2 * speed], -1)
        return F.normalize(self.face(features.mT).mT, dim=-1)

    def embed_audio(self, mel: torch.Tensor) -> torch.Tensor:
        """``[B, 4T, 80]`` log-mel to ``[B, T - 8, DIM]``; each window hears exactly its own 36 columns."""
        return F.normalize(self.voice((mel.to(device_of(self)) - 1.0).mT).mT, dim=-1)

    @classmethod
    @once_per_device
    def load(cls) -> SyncExpert:
        """The expert that ships with the package."""
        return cls.read(Path(str(files("flowportrait") / "weights" / "sync_reward" / "model.safetensors")))


def _block(before: int, after: int, kernel: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    layer = nn.Conv1d(before, after, kernel, stride, groups=groups)
    return [layer, nn.BatchNorm1d(after), nn.ReLU(inplace=True)]


def lower_face(landmarks: np.ndarray, blendshapes: np.ndarray) -> torch.Tensor:
    """Lower-face motion ``[T, 16]`` of a tracked clip (landmarks ``[T, 478, 3]`` px, blendshapes ``[T,
    52]``)."""
    return MotionBasis.load().encode(landmarks, blendshapes)[0][:, LOWER]
