"""The lip-sync reward and the sync expert that it uses.

score[t]  = cos( face(motion[t … t+8]),  voice(mel[4t … 4t+35]) )                      of the expert
margin[w] = cos(f_w, a_w) − mean_{3 ≤ |k| ≤ 10} cos(f_w, a_{w+k})                      of the reward
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from flowportrait.devices import cached_per_device, device_of
from flowportrait.errors import BadInput
from flowportrait.files import shipped_weights
from flowportrait.rendering.motion_basis import LOWER_FACE, MotionBasis
from flowportrait.rewards.batch import RewardBatch
from flowportrait.rewards.interface import Score, all_valid, measurement_noises
from flowportrait.training.joint_embedding import JointEmbedding

# --- The sync expert ---


class MotionSyncExpert(JointEmbedding):
    """A joint embedding of lower-face motion and log-mel, of unit length and ``DIM`` elements per window of 9 frames.

    It reads motion coefficients instead of pixels, so it is differentiable with respect to the generator's output and
    scores hundreds of clips per second on one core. It was trained with a contrastive loss
    (``tools.train_sync_expert``) on speakers that the evaluation does not use. There is no padding in time: T frames
    give T − 8 windows.
    """

    WINDOW = 9
    DIM = 96

    def __init__(self) -> None:
        super().__init__()
        lower = LOWER_FACE.stop - LOWER_FACE.start
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
        """Return the embeddings ``[B, T - 8, DIM]`` of motion ``[B, T, ≥16]``, of which it uses the first 16
        coefficients.

        The mean over the clip is subtracted, since the neutral shape of a mouth tells nothing about sync.
        """
        lower = lips[..., LOWER_FACE].to(device_of(self))
        lower = lower - lower.mean(1, keepdim=True)
        speed = lower[:, 1:] - lower[:, :-1]
        features = torch.cat([lower[:, 1:], 2 * speed], -1)
        return F.normalize(self.face(features.mT).mT, dim=-1)

    def embed_audio(self, mel: torch.Tensor) -> torch.Tensor:
        """Return the embeddings ``[B, T - 8, DIM]`` of a log-mel ``[B, 4T, 80]``; each uses the 36 columns of its
        window."""
        return F.normalize(self.voice((mel.to(device_of(self)) - 1.0).mT).mT, dim=-1)

    @classmethod
    @cached_per_device
    def load(cls) -> MotionSyncExpert:
        """Return the expert that ships with the package."""
        return cls.read(shipped_weights("sync_reward/model.safetensors"))


def _block(before: int, after: int, kernel: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    layer = nn.Conv1d(before, after, kernel, stride, groups=groups)
    return [layer, nn.BatchNorm1d(after), nn.ReLU(inplace=True)]


def lower_face_motion(landmarks: np.ndarray, blendshapes: np.ndarray) -> torch.Tensor:
    """Return the lower-face motion ``[T, 16]`` of a tracked clip.

    Args:
        landmarks: ``[T, 478, 3]`` in pixels.
        blendshapes: ``[T, 52]``.
    """
    return MotionBasis.load().encode(landmarks, blendshapes)[0][:, LOWER_FACE]


# --- The lip-sync reward ---

MIN_SHIFT, MAX_SHIFT = 3, 10
"""Smallest and largest shift in frames of the speech that serves as baseline."""


@dataclass(frozen=True)
class LipSyncReward:
    """Rewards lips that fit the speech better than they fit the speech shortly before and after.

        margin[w] = cos(f_w, a_w) − mean_{3 ≤ |k| ≤ 10} cos(f_w, a_{w+k})         of the window of frames w … w + 8
        dense[t]  = margin of the window with its middle nearest to frame t

    With shifted speech as the baseline, lips that fit any speech a little gain nothing. A clip of T frames has T − 8
    windows. Its first and last four frames have the margin of the first and the last window, so that every chunk gets
    credit for all of its frames. The expert is that of rewards, not the one of the evaluation.
    """

    expert: MotionSyncExpert
    noise: float = 0.0
    name: str = "sync"
    needs: frozenset[str] = frozenset({"motion", "mel"})
    range: tuple[float, float] = (-2.0, 2.0)

    @classmethod
    def load(cls) -> LipSyncReward:
        """Return the reward with the expert that ships with the package."""
        return cls(MotionSyncExpert.load(), measurement_noises().get("sync", 0.0))

    def __call__(self, batch: RewardBatch) -> Score:
        """Return the mean margin of every clip, with the margin of every frame as dense scores.

        Raises:
            BadInput: the clips are shorter than a window of the expert.
        """
        frames, shortest = batch.motion.shape[1], self.expert.WINDOW
        if frames < shortest:
            raise BadInput(
                f"The reward {self.name!r} needs clips of at least {shortest} frames, not {frames}: raise frames to "
                f"{-(-shortest // 4) * 4} or more, or set the reward's weight to 0."
            )
        face, voice = self.expert.embed_face(batch.motion), self.expert.embed_audio(batch.mel)
        margin = sync_margins((face @ voice.mT).cpu())
        dense = windows_to_frames(margin, batch.motion.shape[1])
        return all_valid(margin.mean(1), dense)._replace(regions={"mouth": dense})


def windows_to_frames(windows: torch.Tensor, frames: int) -> torch.Tensor:
    """Return values of windows ``[B, W]`` as values of frames ``[B, frames]``: that of the window with the nearest
    middle."""
    edge = (frames - windows.shape[1]) // 2
    return windows[:, (torch.arange(frames) - edge).clamp(0, windows.shape[1] - 1)]


def sync_margins(similarity: torch.Tensor) -> torch.Tensor:
    """Return the margin of every window ``[B, W]`` from the similarity ``[B, W, W]`` of lip and speech windows."""
    index = torch.arange(similarity.shape[1])
    shift = (index[:, None] - index[None]).abs()
    shifted = ((shift >= MIN_SHIFT) & (shift <= MAX_SHIFT)).float()
    baseline = (similarity * shifted).sum(-1) / shifted.sum(-1).clamp_min(1.0)
    return similarity.diagonal(dim1=1, dim2=2) - baseline
