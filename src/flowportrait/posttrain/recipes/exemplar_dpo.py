"""Exemplars as winners."""

from __future__ import annotations

from flowportrait.posttrain.exemplar import Exemplars
from flowportrait.posttrain.objective.dpo import DPO
from flowportrait.posttrain.plan import NoNoise
from flowportrait.posttrain.recipe import Recipe
from flowportrait.posttrain.recipes.card import Card

CARD = Card(
    recipe=Recipe(
        "exemplar-dpo",
        exemplars=Exemplars(),
        plan=NoNoise(),
        objective=DPO(),
        frames=28,
        group_size=8,
        groups=12,
        learning_rate=2e-5,
    ),
    source="PortraitGen, 2606.26930",
    equation="as flow-dpo, the real clip the winner and the group's worst sample the loser",
    paper=("Real examples, inverted, stand among the samples of a group; dual reward, no reconstruction loss."),
    verified="The abstracts.",
    reading=("After RealDPO (2510.14955): what is real is preferred to what is generated, whatever the rewards say."),
    why={
        "exemplars": "the method",
        "frames": "real clips are short",
        "groups": "as in flow-dpo",
        "group_size": "as in flow-dpo",
        "learning_rate": "as in flow-dpo",
    },
)
