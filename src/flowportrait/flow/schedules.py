"""The straight path between data and noise, its noise schedules, and integration of a velocity field along it.

x_σ = (1−σ)·x₀ + σ·ε        v = dx/dσ = ε − x₀        σ runs from 1 (noise) down to 0 (data)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch

from flowportrait.flow.kernels import Kernel, StepCoefficients, ode_kernel

# --- The path --------------------------------------------------------------------------------------------------------


def interpolate(x0: torch.Tensor, noise: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """Return the noised sample x_σ = (1−σ)·x₀ + σ·ε; ``sigma`` broadcasts against the data."""
    return (1 - sigma) * x0 + sigma * noise


def target_velocity(x0: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """Return the regression target of a velocity field, ε − x₀."""
    return noise - x0


def predict_data(x: torch.Tensor, velocity: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """Return the clean sample that a velocity predicts, x̂₀ = x − σ·v."""
    return x - sigma * velocity


def predict_noise(x: torch.Tensor, velocity: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """Return the noise that a velocity predicts, ε̂ = x + (1−σ)·v."""
    return x + (1 - sigma) * velocity


# --- Noise schedules -------------------------------------------------------------------------------------------------


def noise_schedule(steps: int, shift: float = 1.0) -> torch.Tensor:
    """Return the ``steps + 1`` noise levels σ = shift·u / (1 + (shift−1)·u) of a sampler, with u linear from 1 to 0.

    A shift of 1 gives uniform levels; a larger one spends more steps at high noise.
    """
    return shift_levels(torch.linspace(1, 0, steps + 1), shift)


def shift_levels(sigmas: torch.Tensor, shift: float) -> torch.Tensor:
    """Return the noise levels ``[K + 1]`` after another shift; successive shifts multiply."""
    return shift * sigmas / (1 + (shift - 1) * sigmas)


def schedule_shift(sigmas: torch.Tensor) -> float:
    """Return the shift with which ``noise_schedule`` makes these levels ``[K + 1]``.

    It is 1 for a single step, which no shift changes.
    """
    steps = len(sigmas) - 1
    return 1.0 if steps < 2 else float(sigmas[1] / (1 - sigmas[1])) / (steps - 1)


# --- Integration -----------------------------------------------------------------------------------------------------

VelocityField = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""``(x, sigma) -> v``; sigma is a scalar tensor."""

NoiseSource = Callable[[int], torch.Tensor]
"""``step number -> unit noise`` of the shape of x."""


class Transition(NamedTuple):
    """One step of a sampler: its number, noise level and coefficients, and the states before and after it."""

    number: int
    sigma: torch.Tensor
    step: StepCoefficients
    x: torch.Tensor
    x_next: torch.Tensor


def iterate_transitions(
    velocity: VelocityField,
    x: torch.Tensor,
    sigmas: torch.Tensor,
    kernel: Kernel | None = None,
    noise: NoiseSource | None = None,
    stochastic: torch.Tensor | None = None,
) -> Iterator[Transition]:
    """Yield every transition from ``sigmas[0]`` to ``sigmas[-1]``; ``x_next`` of the last one is the sample.

    Args:
        velocity: the velocity field.
        x: the state at ``sigmas[0]``.
        sigmas: noise levels ``[K + 1]``, decreasing.
        kernel: the kernel of stochastic steps.
        noise: unit noise of each stochastic step.
        stochastic: ``[K]`` bool, the steps that use ``kernel``; the others are Euler steps. By default every step is
            stochastic if a kernel is given. The last step is never stochastic.
    """
    steps = len(sigmas) - 1
    if stochastic is None:
        stochastic = torch.tensor([kernel is not None] * steps)
    euler = ode_kernel()
    for i in range(steps):
        sigma, sigma_next = sigmas[i], sigmas[i + 1]
        noisy = kernel is not None and noise is not None and bool(stochastic[i]) and i < steps - 1
        step = kernel(sigma, sigma_next) if noisy and kernel is not None else euler(sigma, sigma_next)
        x_next = step.mean(x, velocity(x, sigma))
        if noisy and noise is not None:
            x_next = x_next + step.s * noise(i)
        yield Transition(i, sigma, step, x, x_next)
        x = x_next


def solve_ode(velocity: VelocityField, x: torch.Tensor, sigmas: torch.Tensor) -> torch.Tensor:
    """Return the end point of the ODE that starts at ``x`` and ``sigmas[0]``, integrated by Euler steps."""
    for transition in iterate_transitions(velocity, x, sigmas):
        x = transition.x_next
    return x
