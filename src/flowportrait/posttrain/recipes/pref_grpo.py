"""Pref-GRPO."""

from __future__ import annotations

from flowportrait.posttrain.credit import CreditConfig
from flowportrait.posttrain.recipe import Recipe
from flowportrait.posttrain.recipes.card import Card

CARD = Card(
    recipe=Recipe("pref-grpo", credit=CreditConfig(win_rate=("all",))),
    source="Pref-GRPO, 2508.20751",
    equation="reward = share of siblings that a sample beats, then as flow-grpo",
    paper="Win rates inside the group instead of z-scores, so that meaningless gaps are not blown up.",
    verified="Win rates and their use in the authors' code.",
    reading=(
        "A win is a larger score by more than the reward's own measurement noise; the paper asks a judge for "
        "every pair."
    ),
    why={
        "credit.win_rate": "the method, for every reward",
    },
)
