"""Rollouts and their scores: pieces of the batch are scored in a second thread while the next piece is made.

    act   ████▌████▌████▌████
    score     ░░░░▌░░░░▌░░░░▌░░░░

Nothing is stale: all pieces are made with the same weights, and a sample's noise and score depend on neither the
piece nor the order. What overlap hides is reported.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch

from flowportrait.posttrain.trajectory import Trajectory, join
from flowportrait.reward.interface import Score


@dataclass(frozen=True)
class Batch:
    """Samples with their scores, and how long making and scoring took (wall-clock of each, and of both)."""

    trajectory: Trajectory
    scores: dict[str, Score]
    seconds: dict[str, float]


def collect(
    pieces: Sequence[Any], act: Callable[[Any], Trajectory], score: Callable[[Trajectory, Any], Mapping[str, Score]]
) -> Batch:
    """Act and score piece by piece, overlapped."""
    started, scoring = time.monotonic(), [0.0]

    def timed(trajectory: Trajectory, piece: Any) -> Mapping[str, Score]:
        begun = time.monotonic()
        with torch.no_grad():
            result = score(trajectory, piece)
        scoring[0] += time.monotonic() - begun
        return result

    made, pending = [], []
    with ThreadPoolExecutor(1) as scorer:
        for piece in pieces:
            trajectory = act(piece)
            made.append(trajectory)
            pending.append(scorer.submit(timed, trajectory, piece))
        acted = time.monotonic()
        scores = [future.result() for future in pending]
    seconds = {
        "seconds/rollout": acted - started,
        "seconds/reward": scoring[0],
        "seconds/waiting": time.monotonic() - acted,
    }
    return Batch(join(made), join_scores(scores), seconds)


def join_scores(parts: Sequence[Mapping[str, Score]]) -> dict[str, Score]:
    """Scores of successive samples, as one per reward."""
    return {name: _join([part[name] for part in parts]) for name in parts[0]}


def _join(scores: Sequence[Score]) -> Score:
    # A piece without failures may leave the list out; rows must still line up.
    if any(score.failures for score in scores):
        scores = [s if s.failures else s._replace(failures=(None,) * len(s.value)) for s in scores]
    return Score(*(_glue(values) for values in zip(*scores, strict=True)))


def _glue(values: Sequence[Any]) -> Any:
    first = values[0]
    if isinstance(first, torch.Tensor):
        return torch.cat(list(values))
    if isinstance(first, Mapping):
        return {key: _glue([value[key] for value in values]) for key in first}
    if isinstance(first, (list, tuple)):
        return type(first)(item for value in values for item in value)
    return first
