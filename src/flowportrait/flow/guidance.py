"""Bending a velocity field towards a reward, and going back from data to noise.

Bending a velocity field towards a reward of noisy samples (Flow-NRG, 2501.13918).

    p'(x_σ) ∝ p(x_σ) exp(w·r(x_σ, σ))   ⇒   score' = score + w·∇r

On the straight path  score = −(x + (1−σ)·v)/σ,  so  v = −(x + σ·score)/(1−σ)  and

    v' = v − w · σ/(1−σ) · ∇_x r(x_σ, σ)

The factor diverges at σ = 1, where x is noise and says nothing about the sample: it is clipped.

From data back to noise: the states that a sampler would have passed on its way to a given sample.

    straight    x_σ = (1−σ)·x₀ + σ·ε, one drawn ε                    exact at both ends, not the policy's own path
    ode         x_{k} = x_{k+1} − dt·v(x_{k+1}, σ_{k+1})             Euler walked backwards; error of first order
    two_step    r²·x_{k} = x_{k+2} − (1−r²)·x_{k+1} − h·(1+r)·v(x_{k+1}, σ_{k+1})    sampling undoes it but for rounding

with h = σ_{k+2} − σ_{k+1} and r = h / (σ_{k+1} − σ_{k}); steps of equal length make it leapfrog. The two-step scheme
follows BELM (2410.07273): a step that reads the velocity between its ends is the same step in both directions. States
come in the order of sampling, from σ = 1 to 0.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch

from flowportrait.flow.paths import Velocity, interpolate

Potential = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""``(x [B, D], sigma) -> w·r [B]``, differentiable in x."""


def guided(velocity: Velocity, potential: Potential, most: float) -> Velocity:
    """The field of the tilted density; σ/(1−σ) is clipped at ``most``."""

    def field(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        with torch.enable_grad():
            point = x.detach().requires_grad_()
            (slope,) = torch.autograd.grad(potential(point, sigma).sum(), point)
        factor = min(float(sigma / (1 - sigma)), most) if sigma < 1 else most
        return velocity(x, sigma) - factor * slope

    return field


Inversion = Literal["straight", "ode", "two_step"]


def straight(x0: torch.Tensor, noise: torch.Tensor, sigmas: torch.Tensor) -> list[torch.Tensor]:
    """K+1 states of the straight path from ``noise`` to ``x0``."""
    return [interpolate(x0, noise, sigma) for sigma in sigmas]


def ode(velocity: Velocity, x0: torch.Tensor, sigmas: torch.Tensor) -> list[torch.Tensor]:
    """K+1 states of Euler's path walked backwards from ``x0``."""
    states = [x0]
    for k in range(len(sigmas) - 2, -1, -1):
        states.append(states[-1] - (sigmas[k + 1] - sigmas[k]) * velocity(states[-1], sigmas[k + 1]))
    return states[::-1]


def two_step(velocity: Velocity, x0: torch.Tensor, sigmas: torch.Tensor) -> list[torch.Tensor]:
    """K+1 states of the two-step path walked backwards from ``x0``, its first step Euler's."""
    last = len(sigmas) - 1
    states = [x0, x0 - (sigmas[last] - sigmas[last - 1]) * velocity(x0, sigmas[last])]
    for k in range(last - 2, -1, -1):
        r, b = _coefficients(sigmas, k)
        between = states[-1]
        drift = b * velocity(between, sigmas[k + 1])
        states.append((states[-2] - (1 - r.square()) * between - drift) / r.square())
    return states[::-1]


def undo_two_step(velocity: Velocity, first: torch.Tensor, second: torch.Tensor, sigmas: torch.Tensor) -> torch.Tensor:
    """The sample whose two-step inversion ended in the states ``first`` and ``second``."""
    before, now = first, second
    for k in range(len(sigmas) - 2):
        r, b = _coefficients(sigmas, k)
        before, now = now, r.square() * before + (1 - r.square()) * now + b * velocity(now, sigmas[k + 1])
    return now


def _coefficients(sigmas: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """r and h·(1+r) of the step from k and k+1 to k+2."""
    h = sigmas[k + 2] - sigmas[k + 1]
    r = h / (sigmas[k + 1] - sigmas[k])
    return r, h * (1 + r)
