"""Threshold-guided optimisation."""

from __future__ import annotations

from flowportrait.posttrain.credit import CreditConfig
from flowportrait.posttrain.objective.threshold import Threshold
from flowportrait.posttrain.plan import NoNoise
from flowportrait.posttrain.recipe import Recipe
from flowportrait.posttrain.recipes.card import Card

CARD = Card(
    recipe=Recipe(
        "threshold",
        plan=NoNoise(),
        objective=Threshold(),
        credit=CreditConfig(among="batch"),
        learning_rate=2e-5,
        group_size=4,
        groups=24,
    ),
    source="Threshold-guided optimisation, 2605.04653",
    equation="L = -mean |r - tau| log sigmoid(sign(r - tau) beta/2 (E_ref - E)),   E = mean |v - (eps - x0)|^2",
    paper="One threshold for all prompts turns unpaired ratings into labels, weighted by the distance from it.",
    verified="The abstract alone.",
    reading=(
        "Only the abstract was at hand: the loss is KTO's (2402.01306) without its reference point, the threshold the "
        "mean of the batch. With --pairs the points of single clips are the ratings; without, one's own samples are "
        "rated by the rewards."
    ),
    why={
        "credit.among": "the method: one threshold for all prompts",
        "groups": "many prompts make the threshold",
        "group_size": "siblings are not compared",
        "learning_rate": "as in flow-dpo",
    },
)
