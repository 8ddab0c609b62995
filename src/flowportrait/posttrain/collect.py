"""Rollouts and their scores: pieces of the batch are scored in a second thread while the next piece is made.

    act   ████▌████▌████▌████
    score     ░░░░▌░░░░▌░░░░▌░░░░

Nothing is stale: all pieces are made with the same weights, and a sample's noise and score depend on neither the
piece nor the order. What overlap hides is reported.

Rollouts that wait to be trained on are packed as named tensors, so that a state can hold them and reading runs no code:

    (trajectory, scores) ─► {"0/trajectory/x": …, "0/trajectory/condition/0": …, "0/score/sync/value": …}

What kind of condition it was is not kept; whoever reads knows it.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, fields
from typing import Any

import torch

from flowportrait.flow.kernel import Step
from flowportrait.posttrain.rollout import Trajectory, join_trajectories
from flowportrait.reward.interface import Failure, Score

WaitingRollout = tuple[Trajectory, dict[str, Score]]
Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Batch:
    """Samples with their scores, and how long making and scoring took (wall-clock of each, and of both).

    comparison_scores: scores of further samples that groups are compared with and nothing is trained on, such as a
    teacher's: in the order of the groups, equally many in each.
    """

    trajectory: Trajectory
    scores: dict[str, Score]
    seconds: dict[str, float]
    comparison_scores: dict[str, Score] = field(default_factory=dict)


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
    return Batch(join_trajectories(made), join_scores(scores), seconds)


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


def pack_rollouts(waiting: Sequence[WaitingRollout]) -> Tensors:
    """Everything that waits, oldest first."""
    result: Tensors = {}
    for place, (trajectory, scores) in enumerate(waiting):
        for part in fields(Trajectory):
            result |= _leaves(f"{place}/trajectory/{part.name}", getattr(trajectory, part.name))
        for name, score in scores.items():
            start = f"{place}/score/{name}"
            result |= {f"{start}/value": score.value, f"{start}/valid": score.valid}
            result |= _leaves(f"{start}/dense", score.dense)
            result |= {f"{start}/regions/{region}": part for region, part in (score.regions or {}).items()}
            text = json.dumps([score.noise, score.failures]).encode()
            result[f"{start}/words"] = torch.frombuffer(bytearray(text), dtype=torch.uint8)
    return {name: tensor.detach().cpu().contiguous() for name, tensor in result.items()}


def unpack_rollouts(
    parts: Sequence[Tensors], groups: torch.Tensor, condition: Any, device: torch.device
) -> list[WaitingRollout]:
    """What waits for ``groups``, from what all processes packed; ``condition`` is any of the kind they hold."""
    found = []
    parts = [_upgrade_keys(part) for part in parts]
    for place in sorted({int(name.partition("/")[0]) for part in parts for name in part}):
        own = [part for part in parts if f"{place}/trajectory/group" in part]
        trajectory = join_trajectories([_trajectory(part, place, condition) for part in own])
        scores = join_scores([_scores(part, f"{place}/score/") for part in own])
        rows = torch.isin(trajectory.group, groups).nonzero()[:, 0]
        found.append((trajectory.select(rows).to(device), {name: _rows(score, rows) for name, score in scores.items()}))
    return found


def _upgrade_keys(tensors: Tensors) -> Tensors:
    """Tensors under today's names; version 0.1 said ``owner`` for ``noise_source_id``."""
    return {
        re.sub(r"^(\d+/trajectory/)owner(?=$|/)", r"\1noise_source_id", key): value for key, value in tensors.items()
    }


def _leaves(name: str, value: Any) -> Tensors:
    if value is None:
        return {}
    if isinstance(value, torch.Tensor):
        return {name: value}
    assert isinstance(value, tuple), f"{name}: a {type(value).__name__} cannot wait in a checkpoint"
    return {key: leaf for place, part in enumerate(value) for key, leaf in _leaves(f"{name}/{place}", part).items()}


def _like(template: Any, name: str, tensors: Tensors) -> Any:
    """Inverse of ``_leaves`` for values of the template's kind."""
    if not isinstance(template, tuple):
        return tensors.get(name)
    parts = [_like(part, f"{name}/{place}", tensors) for place, part in enumerate(template)]
    return type(template)(*parts) if hasattr(template, "_fields") else type(template)(parts)


def _trajectory(tensors: Tensors, place: int, condition: Any) -> Trajectory:
    kinds = {"condition": condition, "coefficients": Step(*(torch.empty(0),) * 3)}
    return Trajectory(
        **{
            field.name: _like(kinds.get(field.name), f"{place}/trajectory/{field.name}", tensors)
            for field in fields(Trajectory)
        }
    )


def _scores(tensors: Tensors, start: str) -> dict[str, Score]:
    found = {}
    for name in dict.fromkeys(key.removeprefix(start).split("/")[0] for key in tensors if key.startswith(start)):
        noise, failures = json.loads(bytes(tensors[f"{start}{name}/words"].tolist()))
        within = f"{start}{name}/regions/"
        regions = {key.removeprefix(within): part for key, part in tensors.items() if key.startswith(within)}
        found[name] = Score(
            tensors[f"{start}{name}/value"], tensors[f"{start}{name}/valid"], tensors.get(f"{start}{name}/dense"),
            regions or None, tuple(failure and Failure(*failure) for failure in failures), noise,
        )  # fmt: skip
    return found


def _rows(score: Score, rows: torch.Tensor) -> Score:
    def pick(value: Any) -> Any:
        return None if value is None else value[rows]

    return score._replace(
        value=score.value[rows], valid=score.valid[rows], dense=pick(score.dense),
        regions=score.regions and {name: part[rows] for name, part in score.regions.items()},
        failures=tuple(score.failures[row] for row in rows.tolist()) if score.failures else (),
    )  # fmt: skip
