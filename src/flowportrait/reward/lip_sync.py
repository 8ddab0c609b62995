"""The lip-sync reward: how much better the lips fit this moment of the speech than its neighbourhood.

    margin[w] = cos(f_w, a_w) − mean_{3 ≤ |k| ≤ 10} cos(f_w, a_{w+k})         of the window of frames w … w + 8
    dense[t]  = margin of the window whose middle is nearest to frame t

Against shifted speech as the baseline, lips that fit any speech a little earn nothing. A clip of T frames has T − 8
windows; its first and last four frames have the margin of the first and the last window, to which they belong, so that
every chunk is credited in full.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from flowportrait.reward.batch import RewardBatch
from flowportrait.reward.interface import Score, all_valid
from flowportrait.reward.real import noises
from flowportrait.reward.sync import SyncExpert

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
