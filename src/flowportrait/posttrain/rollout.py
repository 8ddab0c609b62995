"""Let the policy act: sample every chunk with the plan's noise and record the transitions."""

from __future__ import annotations

from functools import partial

import torch

from flowportrait.flow.kernel import Kernel, Step
from flowportrait.flow.noise import unit_noise
from flowportrait.flow.solver import Transition, walk
from flowportrait.generator.arflow import ARFlow, Condition
from flowportrait.posttrain.plan import Plan
from flowportrait.posttrain.trajectory import Trajectory

_START = -1


@torch.no_grad()
def rollout(
    policy: ARFlow,
    condition: Condition,
    group: torch.Tensor,
    sample: torch.Tensor,
    plan: Plan,
    kernel: Kernel,
    key: tuple[int, ...],
    same_start: bool = False,
) -> Trajectory:
    """Sample B clips under ``condition`` (one row each).

    Noise depends on (key, sample id, chunk, step) alone, so the result is the same for any batching.
    ``same_start`` gives siblings of a group one initial noise (keyed by the group id).
    """
    size = policy.config.latent_dim
    session = policy.session(condition)
    recorded: list[list[Transition]] = []
    drawn: list[torch.Tensor] = []
    latents: list[torch.Tensor] = []
    starts = (group if same_start else sample).tolist()
    for chunk in range(condition.audio.shape[1]):
        context = session.context()

        def noise(step: int, chunk: int = chunk) -> torch.Tensor:
            return torch.stack([unit_noise(size, *key, int(i), chunk, step) for i in sample])

        x = torch.stack([unit_noise(size, *key, int(i), chunk, _START) for i in starts])
        kept, eps = [], []
        field = partial(policy.velocity, context=context)
        for transition in walk(field, x, plan.sigmas, kernel, noise, plan.stochastic):
            if transition.number in plan.record:
                kept.append(transition)
                eps.append(noise(transition.number))
        recorded.append(kept)
        drawn.append(torch.stack(eps, 1))
        latents.append(transition.x_next)
        session.append(transition.x_next)
    first = recorded[0]
    return Trajectory(
        group=group,
        sample=sample,
        condition=condition,
        latents=torch.stack(latents, 1),
        step=torch.tensor([t.number for t in first]),
        sigma=torch.stack([t.sigma for t in first]),
        coefficients=Step(*(torch.stack(c)[:, None] for c in zip(*(t.step for t in first), strict=True))),
        x=torch.stack([torch.stack([t.x for t in kept], 1) for kept in recorded], 1),
        x_next=torch.stack([torch.stack([t.x_next for t in kept], 1) for kept in recorded], 1),
        noise=torch.stack(drawn, 1),
    )

