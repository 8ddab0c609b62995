"""What a pair teaches, with d = score_A − score_B (VideoReward, arXiv 2501.13918, sec. 3.2; Rao & Kupper 1967).

with ties:   P(A) = σ(d − ln k)    P(B) = σ(−d − ln k)    P(tie) = (k² − 1) P(A) P(B)        k = 5
plain:       P(A) = σ(d), ties unused
regression:  (score − (points − 3))² of each clip
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F

Objective = Literal["ties", "plain", "regression"]
K = 5.0
MIDDLE = 3.0
"""Of the points."""


def pair_loss(
    objective: Objective, a: torch.Tensor, b: torch.Tensor, labels: torch.Tensor, points: torch.Tensor
) -> torch.Tensor:
    """Scalar mean over judged entries: scores a, b ``[B, D]``; labels ``[B, D]`` 1, 0, −1 or 2 (not judged); points
    ``[B, 2, D]``, NaN where there are none."""
    difference = a - b
    if objective == "regression":
        known = points.isfinite()
        wrong = (torch.stack([a, b], 1) - (points - MIDDLE)).square()
        return wrong[known].mean() if known.any() else wrong.sum() * 0
    if objective == "plain":
        decided = labels.abs() == 1
        loss = -F.logsigmoid(difference * labels)
        return loss[decided].mean() if decided.any() else loss.sum() * 0
    loss = -log_chances(difference).gather(-1, (1 - labels.clamp(-1, 1))[..., None])[..., 0]
    judged = labels.abs() <= 1
    return loss[judged].mean() if judged.any() else loss.sum() * 0


def log_chances(difference: torch.Tensor, k: float = K) -> torch.Tensor:
    """ln P of A, tie, B ``[…, 3]`` for score differences ``[…]``."""
    win = F.logsigmoid(difference - math.log(k))
    loss = F.logsigmoid(-difference - math.log(k))
    return torch.stack([win, math.log(k**2 - 1) + win + loss, loss], -1)
