"""Walk a velocity field from noise to data."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch

from flowportrait.flow.kernel import Kernel, Step, ode

Velocity = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""``(x, sigma) -> v``; sigma is a scalar tensor."""

Noise = Callable[[int], torch.Tensor]
"""Unit noise for step ``i``, shaped like x."""


class Transition(NamedTuple):
    """One step taken: its number, level, coefficients, the state before and after."""

    number: int
    sigma: torch.Tensor
    step: Step
    x: torch.Tensor
    x_next: torch.Tensor


def walk(
    velocity: Velocity,
    x: torch.Tensor,
    sigmas: torch.Tensor,
    kernel: Kernel | None = None,
    noise: Noise | None = None,
    stochastic: torch.Tensor | None = None,
) -> Iterator[Transition]:
    """Yield every transition from ``sigmas[0]`` to ``sigmas[-1]``; the last one's ``x_next`` is the sample.

    ``stochastic`` ``[K]`` bool marks the steps that use ``kernel``; the others are Euler steps. Without it every
    step but the last is stochastic if a kernel is given. The last step is never stochastic.
    """
    steps = len(sigmas) - 1
    if stochastic is None:
        stochastic = torch.tensor([kernel is not None] * steps)
    euler = ode()
    for i in range(steps):
        sigma, sigma_next = sigmas[i], sigmas[i + 1]
        noisy = kernel is not None and noise is not None and bool(stochastic[i]) and i < steps - 1
        step = kernel(sigma, sigma_next) if noisy and kernel is not None else euler(sigma, sigma_next)
        x_next = step.mean(x, velocity(x, sigma))
        if noisy and noise is not None:
            x_next = x_next + step.s * noise(i)
        yield Transition(i, sigma, step, x, x_next)
        x = x_next


def solve(velocity: Velocity, x: torch.Tensor, sigmas: torch.Tensor) -> torch.Tensor:
    """The ODE's end point from ``x`` at ``sigmas[0]`` by Euler steps."""
    for transition in walk(velocity, x, sigmas):
        x = transition.x_next
    return x
