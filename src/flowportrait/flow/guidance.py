"""Guide a velocity field with the gradient of a reward, and invert a sampler from data back to noise.

Both work on the straight path of ``flow.schedules``: the first part changes the velocity, the second walks it
backwards.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch

from flowportrait.flow.schedules import VelocityField, interpolate

# --- Reward guidance -------------------------------------------------------------------------------------------------
#
# Flow-NRG (2501.13918) tilts the density by a reward of noisy samples:
#
#     p'(x_σ) ∝ p(x_σ) exp(w·r(x_σ, σ))   ⇒   score' = score + w·∇r
#
# On the straight path  score = −(x + (1−σ)·v)/σ,  so  v = −(x + σ·score)/(1−σ)  and
#
#     v' = v − w · σ/(1−σ) · ∇_x r(x_σ, σ)
#
# The factor diverges at σ = 1, where x is pure noise and carries no information about the sample; it is clipped.

Potential = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""``(x [B, D], sigma) -> w·r [B]``, differentiable in x."""


def guided_velocity(velocity: VelocityField, potential: Potential, most: float) -> VelocityField:
    """Return the velocity field of the density that is tilted by ``potential``.

    Args:
        velocity: the field to guide.
        potential: the weighted reward w·r of noisy samples.
        most: upper bound of the factor σ/(1−σ).
    """

    def field(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        with torch.enable_grad():
            point = x.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(potential(point, sigma).sum(), point)
        factor = min(float(sigma / (1 - sigma)), most) if sigma < 1 else most
        return velocity(x, sigma) - factor * gradient

    return field


# --- Inversion -------------------------------------------------------------------------------------------------------
#
# The states that a sampler would have passed on its way to a given sample:
#
#     straight    x_σ = (1−σ)·x₀ + σ·ε, one drawn ε                    exact at both ends, not the policy's own path
#     ode         x_{k} = x_{k+1} − dt·v(x_{k+1}, σ_{k+1})             Euler walked backwards; error of first order
#     two_step    r²·x_{k} = x_{k+2} − (1−r²)·x_{k+1} − h·(1+r)·v(x_{k+1}, σ_{k+1})    sampling undoes it up to rounding
#
# with h = σ_{k+2} − σ_{k+1} and r = h / (σ_{k+1} − σ_{k}); with steps of equal length this is leapfrog. The two-step
# scheme follows BELM (2410.07273): a step that evaluates the velocity between its two ends is the same step in both
# directions. All functions return the states in the order of sampling, from σ = 1 to 0.

Inversion = Literal["straight", "ode", "two_step"]
"""Name of an inversion scheme."""


def straight_path_states(x0: torch.Tensor, noise: torch.Tensor, sigmas: torch.Tensor) -> list[torch.Tensor]:
    """Return the K+1 states of the straight path from ``noise`` to ``x0``."""
    return [interpolate(x0, noise, sigma) for sigma in sigmas]


def invert_euler(velocity: VelocityField, x0: torch.Tensor, sigmas: torch.Tensor) -> list[torch.Tensor]:
    """Return the K+1 states of the Euler path that is walked backwards from ``x0``."""
    states = [x0]
    for k in range(len(sigmas) - 2, -1, -1):
        states.append(states[-1] - (sigmas[k + 1] - sigmas[k]) * velocity(states[-1], sigmas[k + 1]))
    return states[::-1]


def invert_two_step(velocity: VelocityField, x0: torch.Tensor, sigmas: torch.Tensor) -> list[torch.Tensor]:
    """Return the K+1 states of the two-step path walked backwards from ``x0``; the first backward step is Euler's."""
    last = len(sigmas) - 1
    states = [x0, x0 - (sigmas[last] - sigmas[last - 1]) * velocity(x0, sigmas[last])]
    for k in range(last - 2, -1, -1):
        r, b = _coefficients(sigmas, k)
        middle = states[-1]
        drift = b * velocity(middle, sigmas[k + 1])
        states.append((states[-2] - (1 - r.square()) * middle - drift) / r.square())
    return states[::-1]


def sample_two_step(
    velocity: VelocityField, first: torch.Tensor, second: torch.Tensor, sigmas: torch.Tensor
) -> torch.Tensor:
    """Return the sample at σ = 0 by two-step sampling from the states at the first two levels.

    This is the exact inverse of ``invert_two_step``, up to rounding.
    """
    previous, current = first, second
    for k in range(len(sigmas) - 2):
        r, b = _coefficients(sigmas, k)
        drift = b * velocity(current, sigmas[k + 1])
        previous, current = current, r.square() * previous + (1 - r.square()) * current + drift
    return current


def _coefficients(sigmas: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return r and h·(1+r) of the step from the states k and k+1 to k+2."""
    h = sigmas[k + 2] - sigmas[k + 1]
    r = h / (sigmas[k + 1] - sigmas[k])
    return r, h * (1 + r)
