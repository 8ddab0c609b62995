"""The straight path between data and noise, its schedules, and walking along it.

The straight path between data and noise:  x_σ = (1−σ)·x₀ + σ·ε,  v = dx/dσ = ε − x₀.

Noise levels from 1 down to 0 at which a sampler stops.

Walk a velocity field from noise to data.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch

from flowportrait.flow.kernels import Kernel, Step, ode


def interpolate(x0: torch.Tensor, noise: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """x_σ; ``sigma`` broadcasts against the data."""
    return (1 - sigma) * x0 + sigma * noise


def target_velocity(x0: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """What a velocity field is regressed on: ε − x₀."""
    return noise - x0


def predict_data(x: torch.Tensor, velocity: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """The clean sample that a velocity points to: x̂₀ = x − σ·v."""
    return x - sigma * velocity


def predict_noise(x: torch.Tensor, velocity: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """The noise that a velocity points away from: ε̂ = x + (1−σ)·v."""
    return x + (1 - sigma) * velocity


def shifted(steps: int, shift: float = 1.0) -> torch.Tensor:
    """``steps + 1`` levels σ = shift·u / (1 + (shift−1)·u), u linear from 1 to 0; shift 1 is uniform, more than 1
    spends more steps at high noise."""
    return shift_levels(torch.linspace(1, 0, steps + 1), shift)


def shift_levels(sigmas: torch.Tensor, shift: float) -> torch.Tensor:
    """Levels shifted once more, as ``shifted`` does from uniform ones: two shifts multiply."""
    return shift * sigmas / (1 + (shift - 1) * sigmas)


def shift_of(sigmas: torch.Tensor) -> float:
    """The shift that ``shifted`` made these levels ``[K + 1]`` with; 1 for a single step, which no shift moves."""
    steps = len(sigmas) - 1
    return 1.0 if steps < 2 else float(sigmas[1] / (1 - sigmas[1])) / (steps - 1)


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
