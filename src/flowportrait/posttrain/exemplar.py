"""Real clips among a group's own samples (PortraitGen, 2606.26930), with the states they would have passed.

    group:   ○ ○ ○ ○ ○ ○ ○ ○ ●        ● the real clip of the same speech, inverted

An inverted path is no sample of the stochastic policy: its residual (x' − a·x − b·v)/s is not unit normal, so its
ratio is biased; the residual's mean square is logged. Objectives that noise finished samples (AWM, NFT, DPO) need no
path and have no such bias.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import torch

from flowportrait.flow import inversion
from flowportrait.flow.inversion import Inversion
from flowportrait.flow.kernel import Kernel
from flowportrait.flow.noise import NoiseKey
from flowportrait.posttrain.objective.interface import Advantage
from flowportrait.posttrain.plan import Plan
from flowportrait.posttrain.policy import Policy
from flowportrait.posttrain.rollout import step_table
from flowportrait.posttrain.rows import over_steps
from flowportrait.posttrain.trajectory import Trajectory


@dataclass(frozen=True)
class Exemplars:
    inversion: Inversion = "straight"
    baseline: Literal["rollouts", "all"] = "rollouts"
    """What a group is normalised by: its own samples alone, or the real clip as well. Either way a real clip is
    credited by the same rules as they are (gate, floors, caps, win rate, chunks). With ``all`` most own samples fall
    below the mean and a step only pushes away."""
    limit: float = 1.5
    """Largest advantage of a real clip."""
    push: float = 1.5
    """Largest negative advantage of a real clip. Where samples come to be paid better than what is real, to push away
    from what no policy draws has no end; with 0 nothing is ever pushed away from a real clip."""


@torch.no_grad()
def invert(
    policy: Policy,
    condition: Any,
    latents: torch.Tensor,
    group: torch.Tensor,
    sample: torch.Tensor,
    plan: Plan,
    kernel: Kernel,
    key: NoiseKey,
    how: Inversion,
) -> Trajectory:
    """Real latents ``[B, N, D]`` as a trajectory; the recorded noise is what the transitions imply under ``policy``."""
    chunks, size = latents.shape[1:]
    sigmas, record = plan.sigmas.to(latents.device), plan.record[group]
    context = policy.contexts(condition, latents)
    velocity = partial(policy.velocity, context=context)
    if how == "straight":
        noise = [[key.normal(size, "real", int(i), chunk) for chunk in range(chunks)] for i in sample]
        states = inversion.straight(latents, torch.stack([torch.stack(row) for row in noise]).to(latents), sigmas)
    else:
        states = getattr(inversion, how)(velocity, latents, sigmas)
    path = torch.stack(states, 2)
    noisy = plan.stochastic[group]
    table = step_table(plan.sigmas, kernel, noisy)
    index = record[:, None].expand(-1, chunks, -1)

    def states_at(offset: int) -> torch.Tensor:
        where = (index + offset)[..., None].expand(-1, -1, -1, size).to(path.device)
        return path.gather(2, where)

    coefficients = type(table)(*(part[..., 0].gather(2, index)[..., None].to(path.device) for part in table))
    trainable = noisy.gather(2, index).to(path.device)
    x, x_next, sigma = states_at(0), states_at(1), plan.sigmas[record][:, None].to(path.device)
    implied = coefficients.noise(x, x_next, policy.velocity(x, sigma, over_steps(context)).float())
    return Trajectory(
        group=group, sample=sample, condition=condition, latents=latents, step=record, sigma=sigma,
        coefficients=coefficients, trainable=trainable, owner=sample[:, None, None].expand(-1, chunks, record.shape[1]),
        x=x, x_next=x_next, noise=torch.where(trainable[..., None], implied, 0),
        real=torch.ones(len(group), dtype=torch.bool),
    )  # fmt: skip


def set_exemplar_advantage(
    advantage: Advantage, trajectory: Trajectory, exemplars: Exemplars
) -> tuple[Advantage, dict[str, float]]:
    """Advantages with those of the real clips inside their bounds, and what to log: ``residual``, the mean square of
    real clips' noise (1 if they were samples of the policy); ``advantage`` of the real clips; ``negative``, the share
    of own samples that this step pushes away from."""
    real, value = trajectory.real, advantage.value.clone()
    value[real] = value[real].clamp(-exemplars.push, exemplars.limit)
    paid = replace(advantage, value=value)
    metrics = {
        "exemplar/advantage": float(paid.per_sample[real].mean()),
        "exemplar/negative": float((paid.per_sample[~real] < 0).float().mean()),
    }
    if trajectory.trainable[real].any():
        metrics["exemplar/residual"] = float(trajectory.noise[real][trajectory.trainable[real]].square().mean())
    return paid, metrics
