"""Draw motion from a generator, chunk after chunk, with noise that depends only on the seed and the place."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from flowportrait.flow.noise import unit_noise
from flowportrait.flow.schedule import shifted
from flowportrait.flow.solver import solve
from flowportrait.generator.arflow import ARFlow, Condition


@torch.no_grad()
def generate(
    model: ARFlow, condition: Condition, seeds: list[int], guidance: float | None = None
) -> Iterator[torch.Tensor]:
    """Yield motion ``[B, chunk, 30]`` chunk by chunk; item b uses ``seeds[b]``."""
    config = model.config
    weight = config.guidance if guidance is None else guidance
    sigmas = shifted(config.steps, config.shift)
    session = model.session(condition)
    blind = model.session(model.without_audio(condition)) if weight != 1.0 else None
    for chunk in range(condition.audio.shape[1]):
        x = torch.stack([unit_noise(config.latent_dim, seed, chunk) for seed in seeds])
        latents = solve(_field(model, session.context(), blind and blind.context(), weight), x, sigmas)
        if blind:
            blind.append(latents)
        yield session.append(latents)


def _field(
    model: ARFlow, context: torch.Tensor, blind: torch.Tensor | None, weight: float
) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """The velocity, extrapolated away from the one without audio:  v = v_blind + w·(v − v_blind)."""
    if blind is None:
        return lambda x, sigma: model.velocity(x, sigma, context)

    def guided(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        without = model.velocity(x, sigma, blind)
        return without + weight * (model.velocity(x, sigma, context) - without)

    return guided


def generate_motion(
    model: ARFlow, mel: torch.Tensor, seeds: list[int], style: torch.Tensor | None = None, guidance: float | None = None
) -> torch.Tensor:
    """Motion ``[B, T, 30]`` for log-mel ``[B, 4T, 80]``, T a multiple of the chunk."""
    with torch.no_grad():
        condition = model.condition(mel, style)
    return torch.cat(list(generate(model, condition, seeds, guidance)), 1)
