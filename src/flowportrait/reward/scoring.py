"""Ask a reward for its scores and take only an answer that holds.

    needs met? ─► ask ─► unavailable rows: wait, ask again, at most ``retries`` times ─► last word
                  └────► wrong shape, not finite, out of range: invalid, with the reason

What a reward could not measure is NaN and not valid. A mistake in a reward's own code is raised, not hidden.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable

import torch

from flowportrait.errors import BadInput
from flowportrait.reward.batch import RewardBatch
from flowportrait.reward.interface import Failure, Reward, Score, Traits, measured, per_row, traits

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
