"""What a reward says, and what it declares about itself.

Rewards stay apart until credit: each gives one number per sample, with a mask of where it could be measured at
all. A scorer that cannot measure a sample says so, and why; it never makes a number up.

    class Brightness:                                    # all that a reward must be
        name = "brightness"
        needs = frozenset({"frames"})

        def __call__(self, batch):
            return all_valid(batch.frames((0,)).mean((1, 2, 3, 4)))
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

import torch

from flowportrait.reward.batch import Draw, Failure, Need, Place, RewardBatch

__all__ = [
    "Draw", "Failure", "Need", "Place", "Reward", "RewardBatch", "Score", "Traits", "all_valid", "measured",
    "per_row", "traits",
]  # fmt: skip

REGIONS = ("mouth", "face", "background")
"""Parts of a picture that a reward may score by themselves; ``face`` is without the mouth."""


class Score(NamedTuple):
    """One reward's opinion of a batch.

    value ``[B]``, higher is better; valid ``[B]`` bool; dense ``[B, T]`` per frame where the reward knows which moment
    earned what; regions: ``[B]`` or ``[B, T]`` per region of ``REGIONS`` likewise; failures: why a row is invalid, one
    entry per row or none at all; noise: standard deviation of the value's own measurement error (0: exact).
    """

    value: torch.Tensor
    valid: torch.Tensor
    dense: torch.Tensor | None = None
    regions: Mapping[str, torch.Tensor] | None = None
    failures: tuple[Failure | None, ...] = ()
    noise: float = 0.0

    @property
    def reasons(self) -> dict[int, Failure]:
        """Row → why it is invalid, for the rows that say so."""
        return {row: failure for row, failure in enumerate(self.failures) if failure is not None}


class Reward(Protocol):
    """A scorer. Beyond these it may declare ``scope``, ``range``, ``noise`` and ``retries``: see ``Traits``."""

    @property
    def name(self) -> str:
        """What it is logged and weighted as."""
        ...

    @property
    def needs(self) -> frozenset[str]:
        """What it reads of a batch: a set of ``Need``."""
        ...

    def __call__(self, batch: RewardBatch) -> Score:
        """Score every sample of the batch."""
        ...


@dataclass(frozen=True)
class Traits:
    """What a reward declares, with the defaults of one that declares nothing."""

    scope: Literal["sample", "group"] = "sample"
    """``group``: a sample's score depends on its siblings; the batch must say who they are."""
    range: tuple[float, float] = (-math.inf, math.inf)
    """Values outside are malformed."""
    noise: float = 0.0
    """Standard deviation of the score when a clip is shown again with another crop, encoding or seed."""
    retries: int = 0
    """How often a scorer that was ``unavailable`` is asked again."""


def traits(reward: Reward) -> Traits:
    """What ``reward`` declares."""
    default = Traits()
    return Traits(
        scope=getattr(reward, "scope", default.scope),
        range=getattr(reward, "range", default.range),
        noise=getattr(reward, "noise", default.noise),
        retries=getattr(reward, "retries", default.retries),
    )


def all_valid(value: torch.Tensor, dense: torch.Tensor | None = None) -> Score:
    """A score that is valid wherever it is finite."""
    return Score(value, torch.isfinite(value), dense)


def measured(value: torch.Tensor, failures: Mapping[int, Failure], dense: torch.Tensor | None = None) -> Score:
    """A score that is valid except in the rows of ``failures``."""
    valid = torch.isfinite(value)
    valid[list(failures)] = False
    return Score(value, valid, dense, failures=per_row(failures, len(value)))


def per_row(failures: Mapping[int, Failure], rows: int) -> tuple[Failure | None, ...]:
    """Failures by row as ``Score`` keeps them."""
    return tuple(failures.get(row) for row in range(rows))
