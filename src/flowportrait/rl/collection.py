"""Rollouts with their scores: collected in parts, and packed into tensors while they wait to be trained on."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, fields
from typing import Any

import torch

from flowportrait.flow.kernels import StepCoefficients
from flowportrait.rewards.interface import Failure, Score
from flowportrait.rl.rollout import Trajectory, join_trajectories

# --- Collecting rollouts with their scores ---
#
# One part of the batch is scored in a second thread while the next part is sampled:
#
#     sample  ████▌████▌████▌████
#     score       ░░░░▌░░░░▌░░░░▌░░░░
#
# All parts are sampled with the same weights, and neither noise nor scores depend on the division or the order.


@dataclass(frozen=True)
class ScoredRollouts:
    """Samples with their scores.

    Attributes:
        trajectory: the samples.
        scores: reward → scores.
        seconds: wall-clock time of sampling (``seconds/rollout``) and scoring (``seconds/reward``), and of waiting for
            scores after sampling (``seconds/waiting``).
        comparison_scores: scores of further samples that groups are compared with and that are not trained on, such as
            those of a teacher, in the order of the groups and the same number for each.
    """

    trajectory: Trajectory
    scores: dict[str, Score]
    seconds: dict[str, float]
    comparison_scores: dict[str, Score] = field(default_factory=dict)


def collect_rollouts(
    pieces: Sequence[Any],
    act: Callable[[Any], Trajectory],
    score: Callable[[Trajectory, Any], Mapping[str, Score]],
    scorers: int = 1,
) -> ScoredRollouts:
    """Sample and score a batch part by part; scoring overlaps with sampling.

    Args:
        pieces: the parts, such as ids of groups.
        act: samples a part.
        score: scores the samples of a part.
        scorers: parts that are scored at once.
    """
    started, scoring = time.monotonic(), list[float]()

    def timed_score(trajectory: Trajectory, piece: Any) -> Mapping[str, Score]:
        score_started = time.monotonic()
        with torch.no_grad():
            result = score(trajectory, piece)
        scoring.append(time.monotonic() - score_started)
        return result

    trajectories, pending = [], []
    with ThreadPoolExecutor(scorers) as scorer:
        for piece in pieces:
            trajectory = act(piece)
            trajectories.append(trajectory)
            pending.append(scorer.submit(timed_score, trajectory, piece))
        sampled = time.monotonic()
        scores = [future.result() for future in pending]
    seconds = {
        "seconds/rollout": sampled - started,
        "seconds/reward": sum(scoring),
        "seconds/waiting": time.monotonic() - sampled,
    }
    return ScoredRollouts(join_trajectories(trajectories), join_scores(scores), seconds)


def join_scores(parts: Sequence[Mapping[str, Score]]) -> dict[str, Score]:
    """Return the scores of successive samples as one score per reward."""
    return {name: _concatenate_scores([part[name] for part in parts]) for name in parts[0]}


def _concatenate_scores(scores: Sequence[Score]) -> Score:
    # A score without failures may have an empty list of them; the joint list must have one entry per row.
    if any(score.failures for score in scores):
        scores = [s if s.failures else s._replace(failures=(None,) * len(s.value)) for s in scores]
    return Score(*(_concatenate_values(values) for values in zip(*scores, strict=True)))


def _concatenate_values(values: Sequence[Any]) -> Any:
    first = values[0]
    if isinstance(first, torch.Tensor):
        return torch.cat(list(values))
    if isinstance(first, Mapping):
        return {key: _concatenate_values([value[key] for value in values]) for key in first}
    if isinstance(first, (list, tuple)):
        return type(first)(item for value in values for item in value)
    return first


# --- Packing rollouts into tensors ---
#
# Rollouts that wait to be trained on are stored in a state as named tensors, so that reading them runs no code:
#
#     (trajectory, scores) ─► {"0/trajectory/x": …, "0/trajectory/condition/0": …, "0/score/sync/value": …}
#
# The type of the condition is not stored; the reader provides a template.

WaitingRollout = tuple[Trajectory, dict[str, Score]]
"""Samples and their scores, which wait to be trained on."""
Tensors = dict[str, torch.Tensor]


def pack_rollouts(waiting: Sequence[WaitingRollout]) -> Tensors:
    """Return all waiting rollouts, oldest first, as named tensors on the CPU."""
    result: Tensors = {}
    for position, (trajectory, scores) in enumerate(waiting):
        for part in fields(Trajectory):
            result |= _flatten_tensors(f"{position}/trajectory/{part.name}", getattr(trajectory, part.name))
        for name, score in scores.items():
            start = f"{position}/score/{name}"
            result |= {f"{start}/value": score.value, f"{start}/valid": score.valid}
            result |= _flatten_tensors(f"{start}/dense", score.dense)
            result |= {f"{start}/regions/{region}": part for region, part in (score.regions or {}).items()}
            text = json.dumps([score.noise, score.failures]).encode()
            result[f"{start}/words"] = torch.frombuffer(bytearray(text), dtype=torch.uint8)
    return {name: tensor.detach().cpu().contiguous() for name, tensor in result.items()}


def unpack_rollouts(
    parts: Sequence[Tensors], groups: torch.Tensor, condition: Any, device: torch.device
) -> list[WaitingRollout]:
    """Return the waiting rollouts of some groups.

    Args:
        parts: what all processes packed.
        groups: ids of the groups to return.
        condition: any condition of the same structure, as a template.
        device: where to put the tensors.
    """
    rollouts = []
    parts = [_upgrade_tensor_names(part) for part in parts]
    for position in sorted({int(name.partition("/")[0]) for part in parts for name in part}):
        packed = [part for part in parts if f"{position}/trajectory/group" in part]
        trajectory = join_trajectories([_unpack_trajectory(part, position, condition) for part in packed])
        scores = join_scores([_unpack_scores(part, f"{position}/score/") for part in packed])
        rows = torch.isin(trajectory.group, groups).nonzero()[:, 0]
        selected = {name: _select_score(score, rows) for name, score in scores.items()}
        rollouts.append((trajectory.select(rows).to(device), selected))
    return rollouts


def _upgrade_tensor_names(tensors: Tensors) -> Tensors:
    """Return the tensors under their current names. Version 0.1 wrote ``owner`` for ``noise_source_id``."""
    return {
        re.sub(r"^(\d+/trajectory/)owner(?=$|/)", r"\1noise_source_id", key): value for key, value in tensors.items()
    }


def _flatten_tensors(name: str, value: Any) -> Tensors:
    """Return the tensors in nested tuples, named by their path."""
    if value is None:
        return {}
    if isinstance(value, torch.Tensor):
        return {name: value}
    assert isinstance(value, tuple), f"{name}: a {type(value).__name__} cannot be stored in a state"
    return {
        key: tensor
        for position, part in enumerate(value)
        for key, tensor in _flatten_tensors(f"{name}/{position}", part).items()
    }


def _unflatten_tensors(template: Any, name: str, tensors: Tensors) -> Any:
    """Return nested tuples of the template's structure; the inverse of ``_flatten_tensors``."""
    if not isinstance(template, tuple):
        return tensors.get(name)
    parts = [_unflatten_tensors(part, f"{name}/{position}", tensors) for position, part in enumerate(template)]
    return type(template)(*parts) if hasattr(template, "_fields") else type(template)(parts)


def _unpack_trajectory(tensors: Tensors, position: int, condition: Any) -> Trajectory:
    templates = {"condition": condition, "coefficients": StepCoefficients(*(torch.empty(0),) * 3)}
    return Trajectory(
        **{
            field.name: _unflatten_tensors(templates.get(field.name), f"{position}/trajectory/{field.name}", tensors)
            for field in fields(Trajectory)
        }
    )


def _unpack_scores(tensors: Tensors, start: str) -> dict[str, Score]:
    scores = {}
    for name in dict.fromkeys(key.removeprefix(start).split("/")[0] for key in tensors if key.startswith(start)):
        noise, failures = json.loads(bytes(tensors[f"{start}{name}/words"].tolist()))
        within = f"{start}{name}/regions/"
        regions = {key.removeprefix(within): part for key, part in tensors.items() if key.startswith(within)}
        scores[name] = Score(
            tensors[f"{start}{name}/value"], tensors[f"{start}{name}/valid"], tensors.get(f"{start}{name}/dense"),
            regions or None, tuple(failure and Failure(*failure) for failure in failures), noise,
        )  # fmt: skip
    return scores


def _select_score(score: Score, rows: torch.Tensor) -> Score:
    """Return the score of the samples at ``rows``."""

    def pick(value: Any) -> Any:
        return None if value is None else value[rows]

    return score._replace(
        value=score.value[rows], valid=score.valid[rows], dense=pick(score.dense),
        regions=score.regions and {name: part[rows] for name, part in score.regions.items()},
        failures=tuple(score.failures[row] for row in rows.tolist()) if score.failures else (),
    )  # fmt: skip
