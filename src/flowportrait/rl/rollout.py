"""This module samples trajectories from a policy, replays them, scores them, and stores them in states.

    rollout(policy, condition, plan, kernel) ─► Trajectory ─► replay_velocity(policy, trajectory)
    chunk after chunk, through a KV cache       transitions    one teacher-forced pass, then the flow head on all steps

The parts, in order: nested tuples of tensors, ``Trajectory``, sampling (``rollout``), replay, collecting rollouts with
their scores, and packing rollouts into tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple, cast

import torch
from torch import nn

from flowportrait.flow.kernels import Kernel, StepCoefficients, ode_kernel
from flowportrait.flow.noise import NoiseKey, NoiseUse
from flowportrait.flow.schedules import predict_data
from flowportrait.rl.plan import Plan, Policy, PolicySession, as_module, initial_state

# --- Nested tuples of tensors ---
#
# Conditions and contexts are nested tuples of tensors with one row per sample.


def map_tensors(act: Callable[..., torch.Tensor], first: Any, *more: Any) -> Any:
    """Return nested tuples with ``act`` applied to every tensor and its counterparts in ``more``. None stays None."""
    if isinstance(first, tuple):
        parts = [map_tensors(act, *together) for together in zip(first, *more, strict=True)]
        return type(first)(*parts) if hasattr(first, "_fields") else tuple(parts)
    return None if first is None else act(first, *more)


def iterate_tensors(rows: Any) -> Iterator[torch.Tensor]:
    """Yield all tensors in nested tuples, in order."""
    for part in rows:
        if isinstance(part, tuple):
            yield from iterate_tensors(part)
        elif part is not None:
            yield part


def add_step_axis(context: Any) -> Any:
    """Return contexts of chunks ``[B, N, …]`` as contexts of several states per chunk ``[B, N, 1, …]``."""
    return map_tensors(lambda part: part[:, :, None], context)


# --- Trajectories ---


@dataclass(frozen=True)
class Trajectory:
    """B samples of N chunks with R recorded steps over latents of D elements.

    Attributes:
        group: ids of the groups ``[B]``.
        sample: ids of the samples ``[B]``.
        condition: of the policy, one row per sample.
        latents: clean latents ``[B, N, D]``.
        step: indices of the recorded steps ``[B, R]``.
        sigma: noise levels of the recorded steps ``[B, 1, R]``.
        coefficients: (a, b, s) of the recorded steps, ``[B, N, R, 1]`` each.
        trainable: ``[B, N, R]`` bool, false where the step was not stochastic.
        noise_source_id: ids ``[B, N, R]`` of the sources of the noise; see ``rl.plan``.
        x: states before the recorded steps ``[B, N, R, D]``.
        x_next: states after them ``[B, N, R, D]``.
        noise: unit noise of the steps ``[B, N, R, D]``.
        real: ``[B]`` bool, true for real clips.
        v_behaviour: velocities ``[B, N, R, D]`` of the weights that made the rollout, if these are older than the
            weights that are trained.
        reward_gradient: gradient of the rewards at the clean latents ``[B, N, D]``, if a stage has added it.
        score_gradient: by what a critic and a teacher differ at ``outputs``, ``[B, N, R, D]``, if a stage has added it.
    """

    group: torch.Tensor
    sample: torch.Tensor
    condition: Any
    latents: torch.Tensor
    step: torch.Tensor
    sigma: torch.Tensor
    coefficients: StepCoefficients
    trainable: torch.Tensor
    noise_source_id: torch.Tensor
    x: torch.Tensor
    x_next: torch.Tensor
    noise: torch.Tensor
    real: torch.Tensor
    v_behaviour: torch.Tensor | None = None
    reward_gradient: torch.Tensor | None = None
    score_gradient: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.sample)

    @property
    def noise_gain(self) -> torch.Tensor:
        """Return k = b/s of every transition ``[B, N, R, 1]``, zero where the step is not trainable."""
        where = self.trainable[..., None]
        return torch.where(where, self.coefficients.b / torch.where(where, self.coefficients.s, 1), 0)

    @property
    def outputs(self) -> torch.Tensor:
        """Return the clean latents ``[B, N, R, D]`` that the weights of the rollout predict at every recorded state.

        The recorded steps must be steps of the ODE: x̂₀ = x − σ·v with v = (x' − x) / b.
        """
        return predict_data(self.x, (self.x_next - self.x) / self.coefficients.b, self.sigma[..., None])

    def select(self, rows: torch.Tensor) -> Trajectory:
        """Return the samples at ``rows``."""

        def pick(value: Any) -> Any:
            if isinstance(value, torch.Tensor):
                return value[rows]
            if isinstance(value, StepCoefficients):
                return StepCoefficients(*(part[rows] for part in value))
            return value if value is None else value.select(rows)

        return replace(self, **{f.name: pick(getattr(self, f.name)) for f in fields(self)})

    def to(self, device: torch.device | str) -> Trajectory:
        """Return a copy with everything on a device but ``group``, ``sample`` and ``real``, which stay on the CPU."""

        on_cpu = ("group", "sample", "real")
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in on_cpu}
        return replace(
            self, **{name: map_tensors(lambda part: part.to(device), value) for name, value in values.items()}
        )


def trajectory_of_final_samples(
    condition: Any, latents: torch.Tensor, group: torch.Tensor, sample: torch.Tensor
) -> Trajectory:
    """Return a trajectory without recorded steps from final samples ``[B, N, D]``."""
    batch, chunks, size = latents.shape
    no_ids = torch.empty(batch, chunks, 0, dtype=torch.long)
    path = latents.new_empty(batch, chunks, 0, size)
    no_steps = latents.new_empty(batch, chunks, 0, 1)
    return Trajectory(
        group=group, sample=sample, condition=condition, latents=latents, step=no_ids[:, 0],
        sigma=latents.new_empty(batch, 1, 0), coefficients=StepCoefficients(no_steps, no_steps, no_steps),
        trainable=no_ids.to(latents.device, torch.bool), noise_source_id=no_ids, x=path, x_next=path, noise=path,
        real=torch.zeros(batch, dtype=torch.bool),
    )  # fmt: skip


def join_trajectories(parts: Sequence[Trajectory]) -> Trajectory:
    """Return trajectories of different samples with the same number of recorded steps as one."""

    def concatenate(*pieces: torch.Tensor) -> torch.Tensor:
        return torch.cat(pieces)

    return Trajectory(
        *(map_tensors(concatenate, *(getattr(part, f.name) for part in parts)) for f in fields(Trajectory))
    )


class EvaluationPoints(NamedTuple):
    """The states at which velocities are evaluated.

    Attributes:
        x: states ``[B, N, R, D]``.
        sigma: their noise levels, broadcastable to ``[B, N, R]``.
        target: velocities ε − x₀ ``[B, N, R, D]`` of states that were made by noising a clean sample.
        until: noise levels, like ``sigma``, down to which a teacher integrates from the states.
    """

    x: torch.Tensor
    sigma: torch.Tensor
    target: torch.Tensor | None = None
    until: torch.Tensor | None = None


# --- Sampling ---


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
    session: PolicySession | None = None,
) -> Trajectory:
    """Sample B clips and record the steps of the plan.

    Noise depends on (key, source, chunk, step) alone, so the result is the same for any batching.

    Args:
        policy: the generator.
        condition: its condition, one row per clip.
        group: ids of the groups ``[B]``, which are rows of the plan.
        sample: ids of the samples ``[B]``.
        plan: which steps are stochastic and recorded.
        kernel: the stochastic kernel.
        key: key of all noise.
        same_start: give all samples of a group the same initial noise, keyed by the id of the group.
        group_size: samples per group, for plans with forks.
        session: replaces the policy's own session if a recipe explores by other means than noise.
    """
    size, steps, chunks = policy.latent_dim, len(plan.sigmas) - 1, condition.chunks
    session = session or policy.session(condition)
    source = plan.noise_sources(sample, group, group_size)
    noisy = plan.stochastic[group]
    record = plan.record[group]
    recorded_steps = sorted(set(record.flatten().tolist()))
    stepping = step_coefficients(plan.sigmas, kernel, noisy)
    device = _device(condition)
    stepping = StepCoefficients(*(part.to(device) for part in stepping))
    states: list[list[torch.Tensor]] = []
    latents = []
    for chunk in range(chunks):
        context = session.context()
        starts = group if same_start else source[:, chunk, 0]
        x = initial_state(policy, _noise(size, key, "start", starts, chunk).to(device))
        transitions = []
        previous: torch.Tensor | None = None
        for k in range(steps):
            step = StepCoefficients(*(part[:, chunk, k] for part in stepping))
            velocity = policy.velocity(x, plan.sigmas[k].to(device), context).float()
            eps = torch.zeros_like(x)
            rows = noisy[:, chunk, k]
            if rows.any():
                eps[rows] = _noise(size, key, "step", source[rows, chunk, k + 1], chunk, k).to(device)
            slope = velocity
            if plan.second_order and k > max(recorded_steps, default=-1) and previous is not None:
                ratio = (plan.sigmas[k + 1] - plan.sigmas[k]) / (plan.sigmas[k] - plan.sigmas[k - 1])
                slope = velocity + ratio.to(device) / 2 * (velocity - previous)
            previous = velocity
            x_next = step.mean(x, slope) + step.s * eps
            if k in recorded_steps:
                transitions.append((x, x_next, eps))
            x = x_next
        empty = x.new_zeros(len(x), 0, size)
        states.append([torch.stack(part, 1) for part in zip(*transitions, strict=True)] if transitions else [empty] * 3)
        latents.append(x)
        session.append(x)
    index = torch.searchsorted(torch.tensor(recorded_steps), record) if recorded_steps else record

    def gather_states(part: int) -> torch.Tensor:
        stacked = torch.stack([chunk[part] for chunk in states], 1)
        return stacked.gather(2, index[:, None, :, None].expand(-1, chunks, -1, size).to(device))

    def gather_steps(table: torch.Tensor) -> torch.Tensor:
        return table.gather(2, record[:, None].expand(-1, chunks, -1).to(table.device))

    return Trajectory(
        group=group,
        sample=sample,
        condition=condition,
        latents=torch.stack(latents, 1),
        step=record,
        sigma=plan.sigmas[record][:, None].to(device),
        coefficients=StepCoefficients(*(gather_steps(part[..., 0])[..., None] for part in stepping)),
        trainable=gather_steps(noisy).to(device),
        noise_source_id=gather_steps(source[:, :, 1:]),
        x=gather_states(0),
        x_next=gather_states(1),
        noise=gather_states(2),
        real=torch.zeros(len(group), dtype=torch.bool),
    )


def step_coefficients(sigmas: torch.Tensor, kernel: Kernel, noisy: torch.Tensor) -> StepCoefficients:
    """Return (a, b, s) ``[B, N, K, 1]`` of every step: of the kernel where it is noisy, of Euler's method elsewhere."""
    euler = ode_kernel()(sigmas[:-1], sigmas[1:])
    sde = kernel(sigmas[:-1], sigmas[1:])
    return StepCoefficients(*(torch.where(noisy, s, e)[..., None] for s, e in zip(sde, euler, strict=True)))


def _noise(size: int, key: NoiseKey, use: NoiseUse, ids: torch.Tensor, chunk: int, step: int = 0) -> torch.Tensor:
    """Return unit noise ``[len(ids), size]`` of every source."""
    return torch.stack([key.normal(size, use, int(i), chunk, step) for i in ids])


def _device(condition: Any) -> torch.device:
    """Return the device of the condition's first tensor."""
    return next(iterate_tensors(condition)).device


# --- Replay ---
#
# A rollout computes its states through a KV cache, a replay in one pass; the two differ by rounding. The velocity v_old
# is therefore taken from the replay as well, so that the first likelihood ratio is exactly 1. The noise that the replay
# implies is compared with the noise that was drawn, since the ratio alone detects no mismatch: with a scrambled
# condition it is still 1, while the implied noise changes.

NOISE_BOUND = 1e-2
"""Largest tolerated absolute difference between replayed and drawn unit noise in float32. Rounding stays under 1e-3; a
real mismatch is of order 1."""
NOISE_BOUND_HALF = 0.05
"""The same under bfloat16 autocast, root mean square. Rounding of the shipped generator is 0.01 there, a scrambled
condition 0.23, and a shift by one chunk 0.5."""


class ReplayMismatch(RuntimeError):
    """Raised when a replay has other inputs or another network state than the rollout had."""


def velocity_at(policy: Policy, trajectory: Trajectory, points: EvaluationPoints, strides: int = 0) -> torch.Tensor:
    """Return the float32 velocity ``[B, N, R, D]`` of a policy at ``points``, given the trajectory's history.

    Args:
        policy: the generator.
        trajectory: its condition and the latents of the chunks before.
        points: states at which to evaluate.
        strides: if not 0, return the mean velocity over this many Euler steps from the points to ``points.until``.
    """
    context = add_step_axis(policy.contexts(trajectory.condition, trajectory.latents))
    if not strides:
        return policy.velocity(points.x, points.sigma, context).float()
    assert points.until is not None, "a mean velocity needs the noise level at which it ends"
    x, sigma, stride = points.x, points.sigma, (points.until - points.sigma) / strides
    for _ in range(strides):
        x = x + stride[..., None] * policy.velocity(x, sigma, context).float()
        sigma = sigma + stride
    return (x - points.x) / (points.until - points.sigma)[..., None]


def replay_velocity(policy: Policy, trajectory: Trajectory) -> torch.Tensor:
    """Return the velocity ``[B, N, R, D]`` of a policy at every recorded state."""
    return velocity_at(policy, trajectory, EvaluationPoints(trajectory.x, trajectory.sigma))


@torch.no_grad()
def check_replayed_noise(trajectory: Trajectory, velocity: torch.Tensor, half: bool = False) -> float:
    """Return the largest difference between the drawn noise and the noise that replayed velocities imply.

    Args:
        trajectory: the samples with the drawn noise.
        velocity: replayed velocities ``[B, N, R, D]`` of the weights that made the rollout.
        half: return the root mean square instead, for velocities under bfloat16 autocast.

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


class VelocityReplay(nn.Module):
    """``velocity_at`` as a network, so that libraries that wrap networks (DDP, FSDP) have one forward pass."""

    def __init__(self, policy: Policy) -> None:
        super().__init__()
        self.policy = as_module(policy)

    def forward(self, trajectory: Trajectory, points: EvaluationPoints, strides: int = 0) -> torch.Tensor:
        """Return the velocity ``[B, N, R, D]``; see ``velocity_at``."""
        return velocity_at(cast(Policy, self.policy), trajectory, points, strides)

    def fsdp_root_forward(self) -> None:
        """Do nothing. FSDP treats it as a forward pass and identifies the root module before any part is called."""
