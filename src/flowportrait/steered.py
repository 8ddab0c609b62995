"""A performance that the latent reward has a say in: weights by name, for the command line and the studio alike."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from flowportrait.errors import BadInput

if TYPE_CHECKING:
    from flowportrait.generator.arflow import ARFlow
    from flowportrait.generator.steering import Steering

DIMENSIONS = ("sync", "expression", "motion")
HEAVIEST = 10.0
"""The most that was measured, of any weight (docs/preference_methods.md)."""
USEFUL = {"sync": 10.0, "expression": 3.0, "motion": 3.0}
"""The most that helps: beyond, a weight costs more than it moves."""


def steering_by(
    generator: ARFlow, guide: Mapping[str, float], candidates: int = 1, by: str | None = None, name: str = "it"
) -> Steering | None:
    """Bend every chunk by ``guide`` (0 … 10 by name), or choose the best of ``candidates`` by one dimension or all;
    None where nothing is asked. ``name`` stands for the generator in messages.

    Raises:
        BadInput: the latent reward hears otherwise than this generator.
    """
    if candidates == 1 and not any(guide.values()):
        return None
    from flowportrait.generator.steering import Steering, ordered_weights
    from flowportrait.preference.latent_reward import REACH, LatentReward

    reward, fresh = LatentReward.load(), LatentReward.fresh(generator)
    if (reward.config.heard, reward.config.chunk) != (fresh.config.heard, generator.config.chunk):
        raise BadInput(f"Guiding and pruning do not fit {name}: the latent reward hears otherwise.")
    chosen_by = ordered_weights(dict.fromkeys((by,) if by in DIMENSIONS else DIMENSIONS, 1.0), DIMENSIONS)
    return Steering(reward, ordered_weights(guide, DIMENSIONS), chosen_by, candidates, history_chunks=REACH)
