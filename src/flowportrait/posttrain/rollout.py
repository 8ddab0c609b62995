"""Let the policy act: sample every chunk with the plan's noise and record the transitions."""

from __future__ import annotations

from typing import Any

import torch

from flowportrait.flow.kernel import Kernel, Step, ode
from flowportrait.flow.noise import NoiseKey, Use
from flowportrait.posttrain.plan import Plan
from flowportrait.posttrain.policy import Policy, Session, begin
from flowportrait.posttrain.rows import tensors
from flowportrait.posttrain.trajectory import Trajectory
from flowportrait.posttrain.tree import owners


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

    Noise depends on (key, owner, chunk, step) alone, so the result is the same for any batching. ``same_start``
    gives siblings of a group one initial noise (keyed by the group id). ``session`` replaces the policy's own where
    a recipe explores by other means than noise.
    """
    size, steps, chunks = policy.latent_dim, len(plan.sigmas) - 1, condition.chunks
    session = session or policy.session(condition)
    owner = owners(sample, group, group_size, plan.forks, chunks, steps)
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
        starts = group if same_start else owner[:, chunk, 0]
        x = begin(policy, _noise(size, key, "start", starts, chunk).to(device))
        kept = []
        for k in range(steps):
            step = Step(*(part[:, chunk, k] for part in stepping))
            velocity = policy.velocity(x, plan.sigmas[k].to(device), context).float()
            eps = torch.zeros_like(x)
            rows = noisy[:, chunk, k]
            if rows.any():
                eps[rows] = _noise(size, key, "step", owner[rows, chunk, k + 1], chunk, k).to(device)
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
        owner=at(owner[:, :, 1:]),
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
    return next(tensors(condition)).device
