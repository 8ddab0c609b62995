"""Scoring of rollouts on the machines of a Ray cluster, while this process samples and trains.

    part of a rollout ─► batch ─┬─► rewards that can be sent, as one task on some machine ─┬─► scores
                                └─► the others, here (rewards that ask the policy)         ┘

A part (``rollout_chunks`` of them make a rollout) is scored as a whole, as it is on one machine, so the scores are the
same: rewards may compare the samples of a part, and networks may round differently in another batch.
"""

from __future__ import annotations

import pickle
import threading
import uuid
from dataclasses import replace
from functools import partial
from types import TracebackType
from typing import Any, Self

import torch

from flowportrait.parallel import RayTasks
from flowportrait.rewards.batch import RewardBatch
from flowportrait.rewards.interface import Reward, Score, score_batch
from flowportrait.rewards.registry import CompositeReward
from flowportrait.terminal import log

_UNSENDABLE = (pickle.PicklingError, TypeError, AttributeError)
"""What pickling raises for objects that cannot be pickled."""


class RayScorer:
    """Scores batches on a Ray cluster; called like ``CompositeReward``. Several threads may call it at once.

    Args:
        rewards: the rewards.
        address: of the cluster, as for ``RayTasks``.

    Raises:
        BadInput: Ray is not installed, or no cluster answers.
    """

    def __init__(self, rewards: CompositeReward, address: str) -> None:
        self._tasks = RayTasks(address, partial(torch.set_num_threads, torch.get_num_threads()))
        self._names = [reward.name for reward in rewards.rewards]
        self._key = uuid.uuid4().hex
        self._lock = threading.Lock()
        sent: list[Reward] = []
        self._here: list[Reward] = []
        for reward in rewards.rewards:
            can_be_sent = "policy" not in reward.needs and self._can_be_sent(reward)
            (sent if can_be_sent else self._here).append(reward)
        self._sent = tuple(sent)
        self._reference = self._tasks.put(self._sent)
        self._warned = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._tasks.__exit__(kind, error, trace)

    @property
    def parts(self) -> int:
        """Return how many parts can be scored at once: one per core of the cluster."""
        return max(1, self._tasks.cores)

    def __call__(self, batch: RewardBatch) -> dict[str, Score]:
        """Return the scores of every reward by name.

        Raises:
            BadInput: the batch does not have something that a reward needs, or the cluster lost the work too often.
        """
        reference = None
        if self._sent:
            try:
                reference = self._tasks.submit(_score_sent, self._key, [self._reference], _without_policy(batch))
            except _UNSENDABLE as error:
                self._warn_once(error)
        scores: dict[str, Score] = {}
        with self._lock:
            for reward in (*self._here, *(self._sent if reference is None else ())):
                scores[reward.name] = score_batch(reward, batch)
        if reference is not None:
            scores |= self._tasks.result(reference, "scores of a rollout")
        return {name: scores[name] for name in self._names}

    def _can_be_sent(self, reward: Reward) -> bool:
        try:
            self._tasks.put(reward)
        except _UNSENDABLE as error:
            reason = error.__cause__ or error
            log(f"Note: the reward {reward.name} is scored on this machine, since it cannot be sent ({reason}).")
            return False
        return True

    def _warn_once(self, error: BaseException) -> None:
        if not self._warned:
            self._warned = True
            reason = error.__cause__ or error
            log(f"Warning: rollouts are scored on this machine, since their samples cannot be sent ({reason}).")


def _without_policy(batch: RewardBatch) -> RewardBatch:
    """Return a batch with what the rewards that are sent may read."""
    return replace(
        batch,
        motion=batch.motion.detach().cpu(),
        latents=None if batch.latents is None else batch.latents.detach().cpu(),
        policy=None,
        condition=None,
    )


_rewards_by_key: dict[str, tuple[Reward, ...]] = {}
"""In a process of a cluster: the rewards of a run, which are loaded once."""


def _score_sent(key: str, references: list[Any], batch: RewardBatch) -> dict[str, Score]:
    """Score a batch in a process of a cluster."""
    if key not in _rewards_by_key:
        import ray

        _rewards_by_key.clear()
        _rewards_by_key[key] = ray.get(references[0])
    with torch.no_grad():
        return {reward.name: score_batch(reward, batch) for reward in _rewards_by_key[key]}
