"""Exemplars, inverted, in the ratio."""

from __future__ import annotations

from flowportrait.posttrain.exemplar import Exemplars
from flowportrait.posttrain.recipe import Recipe
from flowportrait.posttrain.recipes.card import Card

CARD = Card(
    recipe=Recipe(
        "exemplar-ratio",
        exemplars=Exemplars(),
        frames=28,
    ),
    source="PortraitGen, 2606.26930",
    equation="as flow-grpo, with the transitions of a real clip beside the samples'",
    paper=("Real examples, inverted, stand among the samples of a group; dual reward, no reconstruction loss."),
    verified="The abstract, and what one reader notes of the paper.",
    reading=(
        "The inverted path is no sample of the policy and its ratio is biased: one real clip per group, its advantage "
        "capped, its residual logged, and the group normalised by its own samples."
    ),
    why={
        "exemplars": "the method; straight-line re-noising is exact at both ends",
        "frames": "real clips are short",
    },
)
