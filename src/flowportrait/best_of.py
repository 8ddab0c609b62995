"""Several performances of the same speech, and the one that a reward likes best.

    seeds s, s+1, … s+n−1 ─► motion each ─► reward ─► the largest

Nothing is drawn before it is chosen: rewards that read motion and sound need no pictures.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
import torch

from flowportrait.errors import BadInput
from flowportrait.media.mel import MELS_PER_FRAME, level, log_mel
from flowportrait.reward.interface import Reward, RewardBatch

READABLE = frozenset({"motion", "mel", "fps"})
"""What a performance that is not drawn yet can tell."""


class Take(NamedTuple):
    """A performance: its seed, motion ``[T, 30]``, and score (minus infinity where it could not be measured)."""

    seed: int
    motion: torch.Tensor
    score: float


def takes(
    perform: Callable[[int], torch.Tensor], seeds: Iterable[int], audio: np.ndarray, reward: Reward
) -> list[Take]:
    """A performance ``[T, 30]`` per seed, scored on 16 kHz ``audio`` ``[N]``.

    Raises:
        BadInput: the reward needs more than motion and sound.
    """
    if more := sorted(reward.needs - READABLE):
        raise BadInput(f"The reward {reward.name} needs {more[0]}: choose one that reads motion and sound.")
    mel = log_mel(level(audio))
    found = []
    for seed in seeds:
        motion = perform(seed)
        score = reward(RewardBatch(motion[None], mel[None, : MELS_PER_FRAME * len(motion)]))
        found.append(Take(seed, motion, float(score.value[0]) if score.valid[0] else -torch.inf))
    return found


def best(found: list[Take]) -> Take:
    """The take of highest score; of equals the first."""
    return max(found, key=lambda take: take.score)
