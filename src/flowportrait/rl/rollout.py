"""Samples of a policy with everything that replaying them needs.

Rollouts: how a policy's samples are made, what is recorded of them, and how they are evaluated again.

    rollout(policy, condition, plan, kernel) ─► Trajectory ─► replay_velocity(policy, trajectory)
    chunk after chunk, through a KV cache       transitions    one teacher-forced pass, then the flow head on all steps

A rollout reaches its states through a KV cache, a replay in one pass; the two differ by rounding. The velocity v_old is
therefore taken from the replay as well, so that the first ratio is exactly 1, and the noise that the replay implies is
compared with the noise that was drawn. The ratio alone proves nothing: with scrambled conditions it stays at 1, and the
implied noise does not stay.

Conditions and contexts are nested tuples of tensors with one row per sample; ``map_tensors`` and ``iterate_tensors``
walk them.

Rollouts and their scores: pieces of the batch are scored in a second thread while the next piece is made.

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
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, fields, replace
from typing import Any, NamedTuple, cast

import torch
from torch import nn

from flowportrait.flow.kernels import Kernel, Step, ode
from flowportrait.flow.noise import NoiseKey, Use
from flowportrait.rewards.interface import Failure, Score
from flowportrait.rl.plan import Plan, Policy, Session, begin, module, noise_source_ids


def map_tensors(act: Callable[..., torch.Tensor], first: Any, *more: Any) -> Any:
    """``act`` on every tensor, together with those in the same place of ``more``; None stays None."""
    if isinstance(first, tuple):
        parts = [map_tensors(act, *together) for together in zip(first, *more, strict=True)]
        return type(first)(*parts) if hasattr(first, "_fields") else tuple(parts)
    return None if first is None else act(first, *more)


def iterate_tensors(rows: Any) -> Iterator[torch.Tensor]:
    """All of them, in order."""
    for part in rows:
        if isinstance(part, tuple):
            yield from iterate_tensors(part)
        elif part is not None:
            yield part


def add_step_axis(context: Any) -> Any:
    """Contexts of chunks ``[B, N, …]`` as contexts of several states of each ``[B, N, 1, …]``."""
    return map_tensors(lambda part: part[:, :, None], context)


@dataclass(frozen=True)
class Trajectory:
    """B samples of N chunks with R recorded steps over latents of D numbers.

    group ``[B]``, sample ``[B]`` ids; condition of each sample; latents ``[B, N, D]`` clean result; step ``[B, R]``
    recorded indices; sigma ``[B, 1, R]``; coefficients ``[B, N, R, 1]`` each; trainable ``[B, N, R]`` bool, false
    where the step was not stochastic; noise_source_id ``[B, N, R]`` of whose noise it was; x, x_next, noise ``[B, N, R,
    D]``; real ``[B]`` bool marks real clips; v_behaviour ``[B, N, R, D]``, the velocity a rollout was made with if it
    is older than the weights now trained.
    """

    group: torch.Tensor
    sample: torch.Tensor
    condition: Any
    latents: torch.Tensor
    step: torch.Tensor
    sigma: torch.Tensor
    coefficients: Step
    trainable: torch.Tensor
    noise_source_id: torch.Tensor
    x: torch.Tensor
    x_next: torch.Tensor
    noise: torch.Tensor
    real: torch.Tensor
    v_behaviour: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.sample)

    @property
    def noise_gain(self) -> torch.Tensor:
        """k = b/s of every transition ``[B, N, R, 1]``; zero where there is nothing to train."""
        where = self.trainable[..., None]
        return torch.where(where, self.coefficients.b / torch.where(where, self.coefficients.s, 1), 0)

    def select(self, rows: torch.Tensor) -> Trajectory:
        """The samples at ``rows``."""

        def pick(value: Any) -> Any:
            if isinstance(value, torch.Tensor):
                return value[rows]
            if isinstance(value, Step):
                return Step(*(part[rows] for part in value))
            return value if value is None else value.select(rows)

        return replace(self, **{f.name: pick(getattr(self, f.name)) for f in fields(self)})

    def to(self, device: torch.device | str) -> Trajectory:
        """Everything but the ids on a device: off-loaded between rollout and update, back for its shard."""

        kept = ("group", "sample", "real")
        moved = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in kept}
        return replace(
            self, **{name: map_tensors(lambda part: part.to(device), value) for name, value in moved.items()}
        )


def final_samples(condition: Any, latents: torch.Tensor, group: torch.Tensor, sample: torch.Tensor) -> Trajectory:
    """Samples ``[B, N, D]`` of which only the end is known, not the way there: no recorded step."""
    batch, chunks, size = latents.shape
    nowhere = torch.empty(batch, chunks, 0, dtype=torch.long)
    path = latents.new_empty(batch, chunks, 0, size)
    no_steps = latents.new_empty(batch, chunks, 0, 1)
    return Trajectory(
        group=group, sample=sample, condition=condition, latents=latents, step=nowhere[:, 0],
        sigma=latents.new_empty(batch, 1, 0), coefficients=Step(no_steps, no_steps, no_steps),
        trainable=nowhere.to(latents.device, torch.bool), noise_source_id=nowhere, x=path, x_next=path, noise=path,
        real=torch.zeros(batch, dtype=torch.bool),
    )  # fmt: skip


def join_trajectories(parts: Sequence[Trajectory]) -> Trajectory:
    """Trajectories of different samples under the same recorded step count, as one."""

    def glue(*pieces: torch.Tensor) -> torch.Tensor:
        return torch.cat(pieces)

    return Trajectory(*(map_tensors(glue, *(getattr(part, f.name) for part in parts)) for f in fields(Trajectory)))


class Points(NamedTuple):
    """States ``[B, N, R, D]`` and their noise levels, broadcastable to ``[B, N, R]``; where the states were made by
    noising a clean sample, target is the velocity ε − x₀ there; until, like sigma, is how far a teacher is to go from
    there."""

    x: torch.Tensor
    sigma: torch.Tensor
    target: torch.Tensor | None = None
    until: torch.Tensor | None = None


@torch.no_grad()
def rollout(
    policy: Policy,
    condition: Any,
    group: torch.Tensor,
    sample: torch.Tensor,
    plan: Plan,
    kernel: Kernel,
    key: NoiseKey,
    same_start: bool = False,
    group_size: int = 1,
    session: Session | None = None,
) -> Trajectory:
    """Sample B clips under ``condition`` (one row each); ``group`` ``[B]`` indexes the plan's rows.

    Noise depends on (key, source, chunk, step) alone, so the result is the same for any batching. ``same_start``
    gives siblings of a group one initial noise (keyed by the group id). ``session`` replaces the policy's own where
    a recipe explores by other means than noise.
    """
    size, steps, chunks = policy.latent_dim, len(plan.sigmas) - 1, condition.chunks
    session = session or policy.session(condition)
    source = noise_source_ids(sample, group, group_size, plan.forks, chunks, steps)
    noisy = plan.stochastic[group]
    record = plan.record[group]
    wanted = sorted(set(record.flatten().tolist()))
    stepping = step_table(plan.sigmas, kernel, noisy)
    device = _device(condition)
    stepping = Step(*(part.to(device) for part in stepping))
    states: list[list[torch.Tensor]] = []
    latents = []
    for chunk in range(chunks):
        context = session.context()
        starts = group if same_start else source[:, chunk, 0]
        x = begin(policy, _noise(size, key, "start", starts, chunk).to(device))
        kept = []
        for k in range(steps):
            step = Step(*(part[:, chunk, k] for part in stepping))
            velocity = policy.velocity(x, plan.sigmas[k].to(device), context).float()
            eps = torch.zeros_like(x)
            rows = noisy[:, chunk, k]
            if rows.any():
                eps[rows] = _noise(size, key, "step", source[rows, chunk, k + 1], chunk, k).to(device)
            x_next = step.mean(x, velocity) + step.s * eps
            if k in wanted:
                kept.append((x, x_next, eps))
            x = x_next
        empty = x.new_zeros(len(x), 0, size)
        states.append([torch.stack(part, 1) for part in zip(*kept, strict=True)] if kept else [empty] * 3)
        latents.append(x)
        session.append(x)
    index = torch.searchsorted(torch.tensor(wanted), record) if wanted else record

    def gathered(part: int) -> torch.Tensor:
        stacked = torch.stack([chunk[part] for chunk in states], 1)
        return stacked.gather(2, index[:, None, :, None].expand(-1, chunks, -1, size).to(device))

    def at(table: torch.Tensor) -> torch.Tensor:
        return table.gather(2, record[:, None].expand(-1, chunks, -1).to(table.device))

    return Trajectory(
        group=group,
        sample=sample,
        condition=condition,
        latents=torch.stack(latents, 1),
        step=record,
        sigma=plan.sigmas[record][:, None].to(device),
        coefficients=Step(*(at(part[..., 0])[..., None] for part in stepping)),
        trainable=at(noisy).to(device),
        noise_source_id=at(source[:, :, 1:]),
        x=gathered(0),
        x_next=gathered(1),
        noise=gathered(2),
        real=torch.zeros(len(group), dtype=torch.bool),
    )


def step_table(sigmas: torch.Tensor, kernel: Kernel, noisy: torch.Tensor) -> Step:
    """(a, b, s) ``[B, N, K, 1]`` of every step: the kernel's where it is noisy, Euler's elsewhere."""
    euler = ode()(sigmas[:-1], sigmas[1:])
    sde = kernel(sigmas[:-1], sigmas[1:])
    return Step(*(torch.where(noisy, s, e)[..., None] for s, e in zip(sde, euler, strict=True)))


def _noise(size: int, key: NoiseKey, use: Use, ids: torch.Tensor, chunk: int, step: int = 0) -> torch.Tensor:
    return torch.stack([key.normal(size, use, int(i), chunk, step) for i in ids])


def _device(condition: Any) -> torch.device:
    """Where the condition's first tensor is."""
    return next(iterate_tensors(condition)).device


NOISE_BOUND = 1e-2
"""Largest tolerated |recomputed − drawn| unit noise in float32; rounding stays under 1e-3, any real mismatch is of
order 1."""
NOISE_BOUND_HALF = 0.05
"""The same under bfloat16 autocast, root mean square: rounding of the shipped generator is 0.01 there, a scrambled
condition 0.23, a chunk too late 0.5."""


class ReplayMismatch(RuntimeError):
    """The replay does not see what the rollout saw."""


def velocity_at(policy: Policy, trajectory: Trajectory, points: Points, strides: int = 0) -> torch.Tensor:
    """v ``[B, N, R, D]`` of ``policy`` in float32 at ``points`` of every chunk, given the trajectory's history; with
    ``strides`` its mean over so many Euler steps from there down to ``points.until``."""
    context = add_step_axis(policy.contexts(trajectory.condition, trajectory.latents))
    if not strides:
        return policy.velocity(points.x, points.sigma, context).float()
    assert points.until is not None, "a mean velocity is one over a way"
    x, sigma, stride = points.x, points.sigma, (points.until - points.sigma) / strides
    for _ in range(strides):
        x = x + stride[..., None] * policy.velocity(x, sigma, context).float()
        sigma = sigma + stride
    return (x - points.x) / (points.until - points.sigma)[..., None]


def replay_velocity(policy: Policy, trajectory: Trajectory) -> torch.Tensor:
    """v ``[B, N, R, D]`` of ``policy`` at every recorded state."""
    return velocity_at(policy, trajectory, Points(trajectory.x, trajectory.sigma))


@torch.no_grad()
def check_noise(trajectory: Trajectory, velocity: torch.Tensor, half: bool = False) -> float:
    """The largest gap between drawn noise and the noise that replayed velocities ``[B, N, R, D]`` under the
    rollout's weights imply (with ``half`` its root mean square).

    Raises:
        ReplayMismatch: the gap exceeds its bound.
    """
    if not trajectory.trainable.any():
        return 0.0
    implied = trajectory.coefficients.noise(trajectory.x, trajectory.x_next, velocity)
    error = (implied - trajectory.noise)[trajectory.trainable]
    gap, bound = float(error.abs().max()), NOISE_BOUND
    if half:
        gap, bound = float(error.square().mean().sqrt()), NOISE_BOUND_HALF
    if not gap <= bound:
        raise ReplayMismatch(
            f"replayed noise differs from the drawn noise by {gap:.3g} (bound {bound}): "
            "the replay sees another condition, chunk or network state than the rollout did"
        )
    return gap


class Replay(nn.Module):
    """``velocity_at`` as a network, so that libraries which wrap networks (DDP, FSDP) see one forward pass."""

    def __init__(self, policy: Policy) -> None:
        super().__init__()
        self.policy = module(policy)

    def forward(self, trajectory: Trajectory, points: Points, strides: int = 0) -> torch.Tensor:
        """v ``[B, N, R, D]``."""
        return velocity_at(cast(Policy, self.policy), trajectory, points, strides)

    def fsdp_root_forward(self) -> None:
        """Do nothing; a forward pass by name, with which FSDP learns who is outermost before any part is called."""


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
