"""A batch of pairs and what it teaches, with d = score of the first clip − score of the second.

    Bradley–Terry with ties   P(first) = σ(d − ln k)    P(second) = σ(−d − ln k)    P(tie) = (k² − 1) P(first) P(second)
    plain Bradley–Terry       P(first) = σ(d), ties unused
    regression                (score − (points − 3))² of each clip
    Thurstone with ties       P(first) = Φ((d − τ)/s)   P(second) = Φ((−d − τ)/s)   P(tie) = 1 − P(first) − P(second)

with k = 5 (VideoReward, arXiv 2501.13918, sec. 3.2; Rao & Kupper 1967). Thurstone's law (1927; ties after Glenn & David
1960) is for scores that know how uncertain they are: s² is the sum of both variances.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F

from flowportrait.media.mel import MELS_PER_FRAME
from flowportrait.preference.clips import ClipFeatures
from flowportrait.preference.dataset import PreferencePair

Objective = Literal["ties", "plain", "regression"]
K = 5.0
MIDDLE = 3.0
"""Middle of the scale of points."""
MARGIN = 0.9674
"""τ from Φ(−τ) = 1/6: two equal scores of unit s tie in two of three cases, as under Bradley–Terry with k = 5."""


@dataclass(frozen=True)
class PreferenceBatch:
    """Pairs of clips as the reward model is trained on them.

    Attributes:
        first, second: motion ``[B, T, 30]`` of both clips.
        mel: log-mel ``[B, 4T, 80]`` of the first clip, and of the second where ``mel_second`` is None.
        labels: ``[B, 3]`` values of ``Label`` per dimension, ``NOT_JUDGED`` where there is none.
        points: ``[B, 2, 3]`` 1 to 5 of both clips, NaN where there are none.
        kinds: the damage of the worse clip.
        mel_second: log-mel of the second clip where it has another sound.
        origins: index of the clip each pair was made from, and the window's first frame in it.
    """

    first: torch.Tensor
    second: torch.Tensor
    mel: torch.Tensor
    labels: torch.Tensor
    points: torch.Tensor
    kinds: tuple[str, ...] = ()
    mel_second: torch.Tensor | None = None
    origins: tuple[tuple[int, int], ...] = ()

    @classmethod
    def from_pair(cls, pair: PreferencePair[ClipFeatures]) -> PreferenceBatch:
        """A batch of one row: both clips cut to the shorter one, each with its own sound."""
        frames = min(len(clip.motion) for clip in pair.clips)
        first, second = (clip.motion[None, :frames] for clip in pair.clips)
        mel, mel_second = (clip.mel[None, : MELS_PER_FRAME * frames] for clip in pair.clips)
        labels, points = torch.tensor([pair.label_values()]), torch.tensor([pair.point_values()])
        return cls(first, second, mel, labels, points, (pair.source,), mel_second)


def pair_loss(
    objective: Objective, first: torch.Tensor, second: torch.Tensor, labels: torch.Tensor, points: torch.Tensor
) -> torch.Tensor:
    """Mean loss over the judged entries, a scalar.

    Args:
        objective: see the module.
        first, second: scores ``[B, D]`` of both clips.
        labels: ``[B, D]`` values of ``Label``, NaN where nobody judged.
        points: ``[B, 2, D]`` of both clips, NaN where there are none.
    """
    # What is unknown must be a number too: NaN times the zero gradient of the mask would be NaN.
    difference = first - second
    if objective == "regression":
        known = points.isfinite()
        wrong = (torch.stack([first, second], 1) - (torch.where(known, points, MIDDLE) - MIDDLE)).square()
        return wrong[known].mean() if known.any() else wrong.sum() * 0
    known = labels.isfinite()
    labels = torch.where(known, labels, 0.5)
    if objective == "plain":
        known = labels != 0.5
        loss = -F.logsigmoid(difference * (2 * labels - 1))
    else:
        loss = -choice_log_probs(bradley_terry_log_probs(difference), labels)
    return loss[known].mean() if known.any() else loss.sum() * 0


def choice_log_probs(log_probs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The ln P ``[…]`` of the labels, out of ln P of first, tie, second ``[…, 3]``."""
    return log_probs.gather(-1, (2 * (1 - labels)).long()[..., None])[..., 0]


def bradley_terry_log_probs(difference: torch.Tensor, k: float = K) -> torch.Tensor:
    """ln P of first, tie, second ``[…, 3]`` for score differences ``[…]``."""
    win = F.logsigmoid(difference - math.log(k))
    loss = F.logsigmoid(-difference - math.log(k))
    return torch.stack([win, math.log(k**2 - 1) + win + loss, loss], -1)


def thurstone_log_probs(difference: torch.Tensor, variance: torch.Tensor, margin: torch.Tensor | float) -> torch.Tensor:
    """ln P of first, tie, second ``[…, 3]`` for score differences, s² and τ ``[…]``."""
    spread = variance.sqrt()
    apart = difference.abs()
    win = torch.special.log_ndtr((difference - margin) / spread)
    loss = torch.special.log_ndtr((-difference - margin) / spread)
    # Φ(u) − Φ(l) on the side where both are small enough to be exact.
    upper = torch.special.log_ndtr((margin - apart) / spread)
    lower = torch.special.log_ndtr((-margin - apart) / spread)
    tie = upper + torch.log1p(-(lower - upper).clamp_max(-1e-6).exp())
    return torch.stack([win, tie, loss], -1)
