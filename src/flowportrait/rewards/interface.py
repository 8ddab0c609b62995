"""What a reward says, what it declares about itself, and how its answer is checked and normalised.

What a reward says, and what it declares about itself.

Rewards stay separate until credit: each gives one number per sample, with a mask of where it could be measured at
all. A scorer that cannot measure a sample says so, and why; it never makes a number up.

    def brightness(batch: RewardBatch) -> torch.Tensor:      # a plain function is a reward
        return batch.frames((0,)).mean((1, 2, 3, 4))         # [B], or [B, C] for C equal parts of every clip

    class Brightness:                                        # one that declares what it needs, and what is invalid
        name = "brightness"
        needs = frozenset({"frames"})

        def __call__(self, batch: RewardBatch) -> Score:
            return all_valid(batch.frames((0,)).mean((1, 2, 3, 4)))

What real footage measures, and how well a measurement repeats: the constants behind the rewards.

    z = (measured − mean of real speakers) / their standard deviation

Kept beside the experts' weights, made by ``tools.measure_reward_constants`` on training speakers. Two domains,
because a drawn portrait is cleaner than a compressed broadcast: ``drawn`` by the small rendering of post-training, and
``filmed``.

Ask a reward for its scores and take only an answer that holds.

    needs met? ─► ask ─► unavailable rows: wait, ask again, at most ``retries`` times ─► last word
                  └────► wrong shape, not finite, out of range: invalid, with the reason

What a reward could not measure is NaN and not valid. A mistake in a reward's own code is raised, not hidden.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import torch

from flowportrait.errors import BadInput
from flowportrait.rewards.batch import Draw, Failure, Need, Place, RewardBatch

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


FOLDER = Path(str(files("flowportrait") / "weights" / "reward"))


class Normal(NamedTuple):
    """Mean and standard deviation of one measurement over real clips."""

    mean: float
    std: float

    def z(self, value: torch.Tensor) -> torch.Tensor:
        """Deviations from what is usual."""
        return (value - self.mean) / self.std


@lru_cache(maxsize=1)
def normals() -> dict[str, Normal]:
    """Every measurement by ``name/domain``."""
    found = json.loads((FOLDER / "real.json").read_text(encoding="utf-8"))
    return {name: Normal(*values) for name, values in found.items()}


@lru_cache(maxsize=1)
def noises() -> dict[str, float]:
    """Standard deviation of each reward when the same clip is filmed, encoded and tracked again."""
    return json.loads((FOLDER / "noise.json").read_text(encoding="utf-8"))


_LOG = logging.getLogger(__name__)
_SLACK = 1e-4
FIRST_WAIT, LONGEST_WAIT = 0.5, 8.0
"""Seconds between tries; doubled each time."""

_PICTURE_NEEDS = frozenset({"motion", "frames", "places", "policy"})


class Unavailable(Exception):
    """Raised by a scorer that could not answer now (a server down, a time-out) but may later."""


def score(reward: Reward, batch: RewardBatch, sleep: Callable[[float], None] = time.sleep) -> Score:
    """Scores of a batch, checked.

    Raises:
        BadInput: the batch lacks something the reward needs.
        ValueError: the reward broke the interface (a score of another length).
    """
    own = traits(reward)
    check_needs(reward, own, batch)
    found = _ask(reward, batch)
    wait = FIRST_WAIT
    for tried in range(own.retries):
        rows = [row for row, failure in found.reasons.items() if failure.kind == "unavailable"]
        if not rows:
            break
        _LOG.info("%s: %d of %d unavailable after %d tries, waiting %.1f s", reward.name, len(rows), len(batch),
                  tried + 1, wait)  # fmt: skip
        sleep(wait)
        wait = min(2 * wait, LONGEST_WAIT)
        # Siblings are judged together: a group-scope reward is asked about whole groups again.
        if own.scope == "group":
            assert batch.group is not None
            rows = torch.isin(batch.group, batch.group[rows]).nonzero()[:, 0].tolist()
        found = _replace(found, _ask(reward, batch.select(torch.tensor(rows))), rows)
    return _checked(_last_word(found, reward.name, own.retries), reward, own, batch)


def check_needs(reward: Reward, own: Traits, batch: RewardBatch) -> None:
    """Raises ``BadInput`` if the batch cannot show what the reward wants to see."""
    needs = reward.needs | ({"group"} if own.scope == "group" else frozenset())
    missing = sorted(needs - batch.has)
    if missing:
        cannot = "; it cannot draw" if "frames" in missing else ""
        raise BadInput(
            f"The reward {reward.name!r} needs {', '.join(missing)}, which this batch does not have{cannot}: "
            f"it has {', '.join(sorted(batch.has))}. Leave the reward out (weight 0), or give what it needs."
        )


def _ask(reward: Reward, batch: RewardBatch) -> Score:
    try:
        return reward(batch)
    except (Unavailable, ConnectionError, TimeoutError) as error:
        reason = Failure("unavailable", str(error) or type(error).__name__)
        failures = dict.fromkeys(range(len(batch)), reason)
        return measured(torch.full((len(batch),), torch.nan), failures)


def _replace(before: Score, again: Score, rows: list[int]) -> Score:
    value, valid = before.value.clone(), before.valid.clone()
    value[rows], valid[rows] = again.value.to(value.dtype), again.valid
    failures = {row: failure for row, failure in before.reasons.items() if row not in rows}
    failures |= {rows[row]: failure for row, failure in again.reasons.items()}
    dense = before.dense
    if again.dense is not None:
        dense = torch.zeros(len(value), again.dense.shape[1]) if dense is None else dense.clone()
        dense[rows] = again.dense
    # Maps by region exist only if every sample has one.
    regions = {
        name: part.clone().index_copy_(0, torch.tensor(rows), again.regions[name])
        for name, part in (before.regions or {}).items()
        if again.regions and name in again.regions
    }
    return Score(value, valid, dense, regions or None, per_row(failures, len(value)))


def _last_word(found: Score, name: str, retries: int) -> Score:
    lost = {row: failure for row, failure in found.reasons.items() if failure.kind == "unavailable"}
    if not lost:
        return found
    tries = f"after {retries + 1} tries" if retries else "at the only try"
    last = next(iter(lost.values())).detail
    _LOG.warning("%s gave up on %d of %d samples %s: %s", name, len(lost), len(found.value), tries, last)
    worded = {row: Failure("unavailable", f"gave up {tries}: {failure.detail}") for row, failure in lost.items()}
    return found._replace(failures=per_row(found.reasons | worded, len(found.value)))


def _checked(found: Score, reward: Reward, own: Traits, batch: RewardBatch) -> Score:
    value, valid = found.value.detach().float().cpu().clone(), found.valid.cpu().clone()
    if value.shape != (len(batch),) or valid.shape != (len(batch),):
        raise ValueError(f"{reward.name}: {tuple(value.shape)} scores for {len(batch)} samples")
    if found.dense is not None and found.dense.shape != batch.motion.shape[:2]:
        raise ValueError(f"{reward.name}: dense scores {tuple(found.dense.shape)}, not {tuple(batch.motion.shape[:2])}")
    failures = found.reasons
    if reward.needs & _PICTURE_NEEDS:
        failures |= batch.unseen
    low, high = own.range
    for row, number in enumerate(value.tolist()):
        if not math.isfinite(number):
            failures.setdefault(row, Failure("not_finite", f"{reward.name} gave {number}"))
        elif valid[row] and not low - _SLACK <= number <= high + _SLACK:
            failures[row] = Failure("malformed", f"{reward.name} gave {number:.4g}, outside [{low:g}, {high:g}]")
    valid[list(failures)] = False
    value[~valid] = torch.nan
    return Score(value, valid, found.dense, found.regions, per_row(failures, len(value)), own.noise)
