"""Draw motion from a generator, chunk after chunk, with noise that depends only on the seed and the place."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

from flowportrait.flow.noise import unit_noise
from flowportrait.flow.schedule import shifted
from flowportrait.flow.solver import solve
from flowportrait.generator.arflow import ARFlow, Condition


@torch.no_grad()
def generate(model: ARFlow, condition: Condition, seeds: list[int]) -> Iterator[torch.Tensor]:
    """Yield motion ``[B, chunk, 30]`` chunk by chunk; item b uses ``seeds[b]``."""
    config = model.config
    sigmas = shifted(config.steps, config.shift)
    session = model.session(condition)
    for chunk in range(condition.audio.shape[1]):
        x = model.begin(torch.stack([unit_noise(config.latent_dim, seed, chunk) for seed in seeds]))
        context = session.context()
        yield session.append(solve(partial(model.velocity, context=context), x, sigmas))


def generate_motion(
    model: ARFlow, mel: torch.Tensor, seeds: list[int], style: torch.Tensor | None = None
) -> torch.Tensor:
    """Motion ``[B, T, 30]`` for log-mel ``[B, 4T, 80]``, T a multiple of the chunk."""
    with torch.no_grad():
        condition = model.condition(mel, style)
    return torch.cat(list(generate(model, condition, seeds)), 1)
