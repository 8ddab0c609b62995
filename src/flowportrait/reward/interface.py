"""What a reward says, and what it declares about itself.

Rewards stay separate until credit: each gives one number per sample, with a mask of where it could be measured at
all. A scorer that cannot measure a sample says so, and why; it never makes a number up.

    def brightness(batch: RewardBatch) -> torch.Tensor:      # a plain function is a reward
        return batch.frames((0,)).mean((1, 2, 3, 4))         # [B], or [B, C] for C equal parts of every clip

    class Brightness:                                        # one that declares what it needs, and what is invalid
        name = "brightness"
        needs = frozenset({"frames"})

        def __call__(self, batch: RewardBatch) -> Score:
            return all_valid(batch.frames((0,)).mean((1, 2, 3, 4)))
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

import torch

from flowportrait.errors import BadInput
from flowportrait.reward.batch import Draw, Failure, Need, Place, RewardBatch

__all__ = [
    "Draw", "Failure", "Need", "Place", "Reward", "RewardBatch", "RewardFunction", "Score", "Traits", "all_valid",
    "as_reward", "measured", "per_row", "traits",
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


RewardFunction = Callable[[RewardBatch], "torch.Tensor | Score"]
"""A plain function as a reward: per sample ``[B]``, or per sample and part of the clip ``[B, C]``; higher is better."""


@dataclass(frozen=True)
class CallableReward:
    """A function, or a reward under another name, as a ``Reward``."""

    function: RewardFunction
    name: str
    needs: frozenset[str] = frozenset({"motion"})
    scope: Literal["sample", "group"] = Traits.scope
    range: tuple[float, float] = Traits.range
    noise: float = Traits.noise
    retries: int = Traits.retries

    def __call__(self, batch: RewardBatch) -> Score:
        """The function's scores; values that are not finite are invalid.

        Raises:
            ValueError: it returns something of another shape.
        """
        found = self.function(batch)
        if isinstance(found, Score):
            return found
        value = torch.as_tensor(found).detach().float().cpu()
        if value.shape == (len(batch),):
            return all_valid(value)
        if value.ndim != 2 or len(value) != len(batch) or not value.shape[1]:
            raise ValueError(
                f"{self.name} returns scores of shape {tuple(value.shape)} for {len(batch)} samples: return [B], or "
                "[B, C] for C equal parts of every clip."
            )
        frames, parts = batch.motion.shape[1], value.shape[1]
        return all_valid(value.mean(1), value[:, torch.arange(frames) * parts // frames])


def as_reward(found: Any, name: str | None = None) -> Reward:
    """Whatever may stand for a reward as a ``Reward``.

    Args:
        found: a reward; a class whose instances are rewards and need no arguments; or a plain function of a
            ``RewardBatch``. A function is taken to need ``motion``, unless it has an attribute ``needs``.
        name: what it is called; without it, what it calls itself.

    Raises:
        BadInput: it cannot be called.
    """
    if isinstance(found, type):
        try:
            found = found()
        except TypeError as error:
            raise BadInput(
                f"The reward {found.__name__} cannot be made without arguments ({error}): give one."
            ) from error
    if not callable(found):
        raise BadInput(f"{found!r} is no reward: give a name, a function of a RewardBatch, a reward, or its class.")
    own = getattr(found, "name", None) or getattr(found, "__name__", type(found).__name__).strip("<>")
    if hasattr(found, "name") and hasattr(found, "needs") and name in (None, own):
        reward: Reward = found
        return reward
    declared = traits(found)
    return CallableReward(
        found, name or own, frozenset(getattr(found, "needs", CallableReward.needs)), declared.scope, declared.range,
        declared.noise, declared.retries,
    )  # fmt: skip


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
