"""The straight path between data and noise:  x_σ = (1−σ)·x₀ + σ·ε,  v = dx/dσ = ε − x₀."""

from __future__ import annotations

import torch


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
