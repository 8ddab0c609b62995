"""Exemplars in advantage-weighted matching."""

from __future__ import annotations

from flowportrait.posttrain.exemplar import Exemplars
from flowportrait.posttrain.objective.awm import AWM
from flowportrait.posttrain.plan import NoNoise
from flowportrait.posttrain.recipe import Recipe
from flowportrait.posttrain.recipes.card import Card

CARD = Card(
    recipe=Recipe(
        "exemplar-awm",
        exemplars=Exemplars(),
        plan=NoNoise(),
        objective=AWM(),
        frames=28,
        learning_rate=1e-4,
    ),
    source="PortraitGen, 2606.26930",
    equation="as awm, with the real clip as one more sample: noised directly, it needs no path and no ratio",
    paper=("Real examples, inverted, stand among the samples of a group; dual reward, no reconstruction loss."),
    verified="The abstract, and what one reader notes of the paper.",
    reading=("No inversion where none is needed: the forward process noises the real clip as it noises samples."),
    why={
        "exemplars": "the method",
        "frames": "real clips are short",
        "learning_rate": "as in awm",
    },
)
