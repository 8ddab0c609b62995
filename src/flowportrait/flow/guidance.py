"""Bending a velocity field towards a reward of noisy samples (Flow-NRG, 2501.13918).

    p'(x_σ) ∝ p(x_σ) exp(w·r(x_σ, σ))   ⇒   score' = score + w·∇r

On the straight path  score = −(x + (1−σ)·v)/σ,  so  v = −(x + σ·score)/(1−σ)  and

    v' = v − w · σ/(1−σ) · ∇_x r(x_σ, σ)

The factor diverges at σ = 1, where x is noise and says nothing about the sample: it is clipped.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from flowportrait.flow.solver import Velocity

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
