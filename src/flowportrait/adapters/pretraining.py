"""Supervised training of a third-party generator by flow matching, for a start that post-training can improve.

x_σ = (1 − σ)·x_0 + σ·ε,   loss = |velocity(x_σ, σ, known) − (ε − x_0)|²
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from flowportrait.adapters.policy import GeneratorPolicy, Item
from flowportrait.errors import BadInput
from flowportrait.flow.schedules import interpolate, target_velocity
from flowportrait.rl.rollout import map_tensors


def fit_generator(
    generator: nn.Module,
    items: Sequence[Item],
    samples: torch.Tensor,
    steps: int = 1000,
    batch_size: int = 128,
    learning_rate: float = 2e-3,
    seed: int = 0,
) -> float:
    """Train a generator on samples by flow matching, with Adam and a learning rate that falls to zero.

    Args:
        generator: a generator (see ``adapters.policy.Generator``) that is a module. It is changed in place.
        items: what is known of each sample.
        samples: clean latents ``[M, *shape]``, one for each item.
        steps: optimiser steps.
        batch_size: samples of a step.
        learning_rate: largest learning rate.
        seed: seed of batches, noise and noise levels.

    Returns:
        The mean loss of the last tenth of the steps.

    Raises:
        BadInput: there is not one sample of the generator's shape for each item.
    """
    policy = GeneratorPolicy(generator)  # type: ignore[arg-type]
    shape = (len(items), *policy.generator.shape)
    if samples.shape != shape:
        raise BadInput(f"The samples have the shape {tuple(samples.shape)}: {shape} is one for each item.")
    draw = torch.Generator().manual_seed(seed)
    known = policy.encode(items)
    optimizer = torch.optim.Adam([p for p in generator.parameters() if p.requires_grad], lr=learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    losses = []
    for _ in range(steps):
        rows = torch.randint(len(items), (batch_size,), generator=draw)
        x0, noise = samples[rows].to(policy.device), torch.randn(batch_size, *shape[1:], generator=draw)
        sigma, noise = torch.rand(batch_size, generator=draw).to(policy.device), noise.to(policy.device)
        x = interpolate(x0, noise, sigma.reshape(-1, *[1] * (x0.ndim - 1)))
        chosen = map_tensors(lambda part, rows=rows: part[rows.to(part.device)], known)
        loss = (policy.generator.velocity(x, sigma, chosen) - target_velocity(x0, noise)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    tail = losses[-max(1, steps // 10) :]
    return sum(tail) / len(tail)
