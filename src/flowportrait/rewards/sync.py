"""The lip-sync reward and its expert.

The reward side's sync expert: do these lips move as this speech does?

    score[t] = cos( face(motion[t … t+8]),  voice(mel[4t … 4t+35]) )

It reads motion coefficients, not pixels, so it is differentiable in what the generator makes and costs next
to nothing: hundreds of clips per second on one core. Trained by contrast
(``tools.train_sync_expert``) on speakers the evaluation side never sees. Nothing is zero-padded in
time: T frames give T − 8 windows.

The lip-sync reward: how much better the lips fit this moment of the speech than its neighbourhood.

    margin[w] = cos(f_w, a_w) − mean_{3 ≤ |k| ≤ 10} cos(f_w, a_{w+k})         of the window of frames w … w + 8
    dense[t]  = margin of the window whose middle is nearest to frame t

Against shifted speech as the baseline, lips that fit any speech a little earn nothing. A clip of T frames has T − 8
windows; its first and last four frames have the margin of the first and the last window, to which they belong, so that
every chunk is credited in full.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from flowportrait.devices import device_of, once_per_device
from flowportrait.rendering.motion_basis import LOWER, MotionBasis
from flowportrait.rewards.batch import RewardBatch
from flowportrait.rewards.interface import Score, all_valid, noises
from flowportrait.training.descend import JointEmbedding


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


NEAREST, FARTHEST = 3, 10


@dataclass(frozen=True)
class LipSync:
    """Scores with the reward-side sync expert, never with the evaluation side's."""

    expert: SyncExpert
    noise: float = 0.0
    name: str = "sync"
    needs: frozenset[str] = frozenset({"motion", "mel"})
    range: tuple[float, float] = (-2.0, 2.0)

    @classmethod
    def load(cls) -> LipSync:
        """With the expert that ships."""
        return cls(SyncExpert.load(), noises().get("sync", 0.0))

    @torch.no_grad()
    def __call__(self, batch: RewardBatch) -> Score:
        face, voice = self.expert.embed_face(batch.motion), self.expert.embed_audio(batch.mel)
        margin = margins((face @ voice.mT).cpu())
        dense = by_frame(margin, batch.motion.shape[1])
        return all_valid(margin.mean(1), dense)._replace(regions={"mouth": dense})


def by_frame(windows: torch.Tensor, frames: int) -> torch.Tensor:
    """Numbers of windows ``[B, W]`` in the middle of a clip to numbers of its frames ``[B, frames]``: that of the
    window whose middle is nearest."""
    edge = (frames - windows.shape[1]) // 2
    return windows[:, (torch.arange(frames) - edge).clamp(0, windows.shape[1] - 1)]


def margins(similarity: torch.Tensor) -> torch.Tensor:
    """Similarity ``[B, W, W]`` of every lip window with every speech window to the margin of each ``[B, W]``."""
    place = torch.arange(similarity.shape[1])
    apart = (place[:, None] - place[None]).abs()
    others = ((apart >= NEAREST) & (apart <= FARTHEST)).float()
    baseline = (similarity * others).sum(-1) / others.sum(-1).clamp_min(1.0)
    return similarity.diagonal(dim1=1, dim2=2) - baseline
