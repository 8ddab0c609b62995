"""What a reward sees and what it says.

Rewards stay apart until credit: each gives one number per sample, with a mask of where it could be measured at
all. A scorer that cannot measure a sample says so; it never makes a number up.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import torch


class Score(NamedTuple):
    """value ``[B]`` (higher is better), valid ``[B]`` bool, and dense values ``[B, T]`` per frame where the reward
    knows which moment earned what."""

    value: torch.Tensor
    valid: torch.Tensor
    dense: torch.Tensor | None = None


Draw = Callable[[torch.Tensor, tuple[int, ...]], torch.Tensor]
"""``(motion [B, T, 30], frame indices) -> frames [B, F, 3, H, W]`` float in [0, 1]: a small rendering."""


@dataclass
class RewardBatch:
    """Samples to score: motion ``[B, T, 30]``, mel ``[B, 4T, 80]``, and a small rendering on demand."""

    motion: torch.Tensor
    mel: torch.Tensor
    draw: Draw | None = None
    _drawn: dict[tuple[int, ...], torch.Tensor] = field(default_factory=dict, repr=False)

    def frames(self, indices: tuple[int, ...]) -> torch.Tensor:
        """Rendered frames ``[B, F, 3, H, W]``; drawn once however many rewards ask."""
        if self.draw is None:
            raise ValueError("this reward needs rendered frames, but the batch cannot draw")
        if indices not in self._drawn:
            self._drawn[indices] = self.draw(self.motion, indices)
        return self._drawn[indices]


class Reward(Protocol):
    """A scorer of ``motion``, ``mel`` or ``frames`` (its ``needs``)."""

    @property
    def name(self) -> str:
        """What it is logged and weighted as."""
        ...

    @property
    def needs(self) -> frozenset[str]:
        """What it reads of a batch."""
        ...

    def __call__(self, batch: RewardBatch) -> Score:
        """Score every sample of the batch."""
        ...


def all_valid(value: torch.Tensor, dense: torch.Tensor | None = None) -> Score:
    """A score that is valid wherever it is finite."""
    return Score(value, torch.isfinite(value), dense)
