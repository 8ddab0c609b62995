"""This module defines the interface of rewards, and asks rewards for checked scores.

Rewards stay separate until credit is assigned. Each gives one number per sample and a mask of the samples that it could
measure, with the reason for the others:

    def brightness(batch: RewardBatch) -> torch.Tensor:      # a plain function is a reward
        return batch.frames((0,)).mean((1, 2, 3, 4))         # [B], or [B, C] for C equal parts of every clip

    class Brightness:                                        # a class also declares what it needs
        name = "brightness"
        needs = frozenset({"frames"})

        def __call__(self, batch: RewardBatch) -> Score:
            return all_valid(batch.frames((0,)).mean((1, 2, 3, 4)))

The parts, in order: scores and rewards, functions and classes as rewards, statistics of real footage, and checked
scoring (``score_batch``).
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, NamedTuple, Protocol

import torch

from flowportrait.errors import BadInput
from flowportrait.files import shipped_weights
from flowportrait.rewards.batch import Failure, Need, RewardBatch

__all__ = [
    "Failure", "Need", "Reward", "RewardBatch", "RewardFunction", "Score", "Traits", "all_valid",
    "as_reward", "failures_per_row", "read_traits", "score_with_failures",
]  # fmt: skip

# --- Scores and rewards ---

REGIONS = ("mouth", "face", "background")
"""Parts of a picture that a reward may score separately. ``face`` is without the mouth."""


class Score(NamedTuple):
    """The scores that one reward gives to a batch of B samples of T frames.

    Attributes:
        value: ``[B]``, higher is better.
        valid: ``[B]`` bool.
        dense: scores per frame ``[B, T]``, if the reward has them.
        regions: scores per region of ``REGIONS``, ``[B]`` or ``[B, T]``, if the reward has them.
        failures: why a row is invalid, one entry per row, or empty.
        noise: standard deviation of the measurement error of the values; 0 if they are exact.
    """

    value: torch.Tensor
    valid: torch.Tensor
    dense: torch.Tensor | None = None
    regions: Mapping[str, torch.Tensor] | None = None
    failures: tuple[Failure | None, ...] = ()
    noise: float = 0.0

    @property
    def reasons(self) -> dict[int, Failure]:
        """Return row → why it is invalid, for the rows with a reason."""
        return {row: failure for row, failure in enumerate(self.failures) if failure is not None}


class Reward(Protocol):
    """A function that scores batches. It may also have ``scope``, ``range``, ``noise`` and ``retries``: see
    ``Traits``."""

    @property
    def name(self) -> str:
        """Return the name under which the reward is logged and weighted."""
        ...

    @property
    def needs(self) -> frozenset[str]:
        """Return what the reward reads of a batch, a set of ``Need``."""
        ...

    def __call__(self, batch: RewardBatch) -> Score:
        """Score every sample of the batch."""
        ...


@dataclass(frozen=True)
class Traits:
    """Optional properties of a reward, with their defaults."""

    scope: Literal["sample", "group"] = "sample"
    """``group`` means that a sample's score depends on the other samples of its group, so the batch needs group ids."""
    range: tuple[float, float] = (-math.inf, math.inf)
    """Scores outside are invalid."""
    noise: float = 0.0
    """Standard deviation of the score of the same clip with another crop, encoding or seed."""
    retries: int = 0
    """How often a reward is asked again about samples for which it was ``unavailable``."""


def read_traits(reward: Reward) -> Traits:
    """Return the optional properties of a reward."""
    default = Traits()
    return Traits(
        scope=getattr(reward, "scope", default.scope),
        range=getattr(reward, "range", default.range),
        noise=getattr(reward, "noise", default.noise),
        retries=getattr(reward, "retries", default.retries),
    )


# --- Functions and classes as rewards ---

RewardFunction = Callable[[RewardBatch], "torch.Tensor | Score"]
"""A function that returns one score per sample ``[B]``, or per sample and part of the clip ``[B, C]``."""


@dataclass(frozen=True)
class CallableReward:
    """A reward made of a function, or of a reward under another name."""

    function: RewardFunction
    name: str
    needs: frozenset[str] = frozenset({"motion"})
    scope: Literal["sample", "group"] = Traits.scope
    range: tuple[float, float] = Traits.range
    noise: float = Traits.noise
    retries: int = Traits.retries

    def __call__(self, batch: RewardBatch) -> Score:
        """Return the function's scores. Values that are not finite are invalid.

        Raises:
            ValueError: the function returns something of another shape.
        """
        result = self.function(batch)
        if isinstance(result, Score):
            return result
        value = torch.as_tensor(result).detach().float().cpu()
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
    """Return a reward, a class of rewards or a plain function as a ``Reward``.

    Args:
        found: a reward; a class of rewards that needs no arguments; or a plain function of a ``RewardBatch``. A
            function needs ``motion``, unless it has an attribute ``needs``.
        name: name of the reward. By default it is the object's own name.

    Raises:
        BadInput: the object cannot be called.
    """
    if isinstance(found, type):
        try:
            found = found.load() if hasattr(found, "load") else found()
        except TypeError as error:
            raise BadInput(
                f"The reward {found.__name__} cannot be made without arguments ({error}): give one."
            ) from error
    if not callable(found):
        raise BadInput(f"{found!r} is no reward: give a name, a function of a RewardBatch, a reward, or its class.")
    own_name = getattr(found, "name", None) or getattr(found, "__name__", type(found).__name__).strip("<>")
    if hasattr(found, "name") and hasattr(found, "needs") and name in (None, own_name):
        reward: Reward = found
        return reward
    declared = read_traits(found)
    return CallableReward(
        found, name or own_name, frozenset(getattr(found, "needs", CallableReward.needs)), declared.scope,
        declared.range, declared.noise, declared.retries,
    )  # fmt: skip


def all_valid(value: torch.Tensor, dense: torch.Tensor | None = None) -> Score:
    """Return a score that is valid wherever it is finite."""
    return Score(value, torch.isfinite(value), dense)


def score_with_failures(
    value: torch.Tensor, failures: Mapping[int, Failure], dense: torch.Tensor | None = None
) -> Score:
    """Return a score that is valid where it is finite, except in the rows of ``failures``."""
    valid = torch.isfinite(value)
    valid[list(failures)] = False
    return Score(value, valid, dense, failures=failures_per_row(failures, len(value)))


def failures_per_row(failures: Mapping[int, Failure], rows: int) -> tuple[Failure | None, ...]:
    """Return one entry per row, as in ``Score.failures``."""
    return tuple(failures.get(row) for row in range(rows))


# --- Statistics of real footage ---
#
#     z = (measurement − mean of real speakers) / their standard deviation
#
# The statistics are stored beside the experts' weights. ``tools.measure_reward_constants`` computes them from training
# speakers in two domains, since a rendered portrait is cleaner than compressed video: ``drawn`` with the small
# rendering of post-training, and ``filmed``.


class RealStatistic(NamedTuple):
    """The mean and standard deviation of one measurement over real clips."""

    mean: float
    std: float

    def z(self, value: torch.Tensor) -> torch.Tensor:
        """Return the standardised value."""
        return (value - self.mean) / self.std


@lru_cache(maxsize=1)
def real_statistics() -> dict[str, RealStatistic]:
    """Return the statistics of every measurement by ``name/domain``."""
    found = json.loads(shipped_weights("reward/real.json").read_text(encoding="utf-8"))
    return {name: RealStatistic(*values) for name, values in found.items()}


@lru_cache(maxsize=1)
def measurement_noises() -> dict[str, float]:
    """Return the standard deviation of each reward when the same clip is filmed, encoded and tracked again."""
    return json.loads(shipped_weights("reward/noise.json").read_text(encoding="utf-8"))


# --- Checked scoring ---
#
#     needs met? ─► ask ─► rows that are unavailable: wait and ask again, at most ``retries`` times ─► result
#                   └────► wrong shape, not finite, out of range: invalid, with the reason
#
# A score that could not be measured is NaN and not valid. Errors in the code of a reward are raised, not hidden.

_LOG = logging.getLogger(__name__)
_RANGE_TOLERANCE = 1e-4
FIRST_WAIT, LONGEST_WAIT = 0.5, 8.0
"""Seconds before the first retry, and at most. The wait doubles with every retry."""

_PICTURE_NEEDS = frozenset({"motion", "frames", "places", "policy"})
"""Needs that cannot be met in rows without a tracked face."""


class RewardUnavailable(Exception):
    """Raised by a reward that cannot answer now (a server is down, a time-out) but may answer later."""


def score_batch(reward: Reward, batch: RewardBatch, sleep: Callable[[float], None] = time.sleep) -> Score:
    """Return the checked scores of a batch.

    Args:
        reward: the reward to ask.
        batch: the samples.
        sleep: waits some seconds between retries.

    Raises:
        BadInput: the batch does not have something that the reward needs.
        ValueError: the reward broke the interface, such as by scores of another length.
    """
    declared = read_traits(reward)
    check_needs(reward, declared, batch)
    result = _ask(reward, batch)
    wait = FIRST_WAIT
    for tried in range(declared.retries):
        rows = [row for row, failure in result.reasons.items() if failure.kind == "unavailable"]
        if not rows:
            break
        _LOG.info("%s: %d of %d unavailable after %d tries, waiting %.1f s", reward.name, len(rows), len(batch),
                  tried + 1, wait)  # fmt: skip
        sleep(wait)
        wait = min(2 * wait, LONGEST_WAIT)
        # A reward that compares samples is asked again about whole groups.
        if declared.scope == "group":
            assert batch.group is not None
            rows = torch.isin(batch.group, batch.group[rows]).nonzero()[:, 0].tolist()
        result = _replace_rows(result, _ask(reward, batch.select(torch.tensor(rows))), rows)
    return _check_score(_give_up(result, reward.name, declared.retries), reward, declared, batch)


def check_needs(reward: Reward, traits: Traits, batch: RewardBatch) -> None:
    """Check that the batch has everything that the reward needs.

    Raises:
        BadInput: it does not.
    """
    needs = reward.needs | ({"group"} if traits.scope == "group" else frozenset())
    missing = sorted(needs - batch.has)
    if missing:
        cannot = "; it cannot draw" if "frames" in missing else ""
        cannot += "; set rewards.options.text for one text for all" if "transcript" in missing else ""
        raise BadInput(
            f"The reward {reward.name!r} needs {', '.join(missing)}, which this batch does not have{cannot}: "
            f"it has {', '.join(sorted(batch.has))}. Leave the reward out (weight 0), or give what it needs."
        )


def _ask(reward: Reward, batch: RewardBatch) -> Score:
    """Return the reward's scores, with all rows ``unavailable`` if it cannot answer."""
    try:
        return reward(batch)
    except (RewardUnavailable, ConnectionError, TimeoutError) as error:
        reason = Failure("unavailable", str(error) or type(error).__name__)
        failures = dict.fromkeys(range(len(batch)), reason)
        return score_with_failures(torch.full((len(batch),), torch.nan), failures)


def _replace_rows(before: Score, replacement: Score, rows: list[int]) -> Score:
    """Return the score ``before`` with the rows ``rows`` replaced by those of ``replacement``."""
    value, valid = before.value.clone(), before.valid.clone()
    value[rows], valid[rows] = replacement.value.to(value.dtype), replacement.valid
    failures = {row: failure for row, failure in before.reasons.items() if row not in rows}
    failures |= {rows[row]: failure for row, failure in replacement.reasons.items()}
    dense = before.dense
    if replacement.dense is not None:
        dense = torch.zeros(len(value), replacement.dense.shape[1]) if dense is None else dense.clone()
        dense[rows] = replacement.dense
    # Scores by region exist only if all samples have them.
    regions = {
        name: part.clone().index_copy_(0, torch.tensor(rows), replacement.regions[name])
        for name, part in (before.regions or {}).items()
        if replacement.regions and name in replacement.regions
    }
    return Score(value, valid, dense, regions or None, failures_per_row(failures, len(value)))


def _give_up(result: Score, name: str, retries: int) -> Score:
    """Log the rows that are still unavailable and add the number of tries to their reasons."""
    unavailable = {row: failure for row, failure in result.reasons.items() if failure.kind == "unavailable"}
    if not unavailable:
        return result
    tries = f"after {retries + 1} tries" if retries else "at the only try"
    detail = next(iter(unavailable.values())).detail
    _LOG.warning("%s gave up on %d of %d samples %s: %s", name, len(unavailable), len(result.value), tries, detail)
    final = {row: Failure("unavailable", f"gave up {tries}: {failure.detail}") for row, failure in unavailable.items()}
    return result._replace(failures=failures_per_row(result.reasons | final, len(result.value)))


def _check_score(result: Score, reward: Reward, declared: Traits, batch: RewardBatch) -> Score:
    """Return the score with invalid values marked, or raise ValueError if its shape is wrong."""
    value, valid = result.value.detach().float().cpu().clone(), result.valid.cpu().clone()
    if value.shape != (len(batch),) or valid.shape != (len(batch),):
        raise ValueError(f"{reward.name}: {tuple(value.shape)} scores for {len(batch)} samples")
    if result.dense is not None and result.dense.shape != batch.motion.shape[:2]:
        shape = tuple(batch.motion.shape[:2])
        raise ValueError(f"{reward.name}: dense scores {tuple(result.dense.shape)}, not {shape}")
    failures = result.reasons
    if reward.needs & _PICTURE_NEEDS:
        failures |= batch.tracking_failures
    low, high = declared.range
    for row, number in enumerate(value.tolist()):
        if not math.isfinite(number):
            failures.setdefault(row, Failure("not_finite", f"{reward.name} gave {number}"))
        elif valid[row] and not low - _RANGE_TOLERANCE <= number <= high + _RANGE_TOLERANCE:
            failures[row] = Failure("malformed", f"{reward.name} gave {number:.4g}, outside [{low:g}, {high:g}]")
    valid[list(failures)] = False
    value[~valid] = torch.nan
    return Score(value, valid, result.dense, result.regions, failures_per_row(failures, len(value)), declared.noise)
