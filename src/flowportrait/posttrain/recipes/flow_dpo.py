"""Flow-DPO, online or from given pairs."""

from __future__ import annotations

from flowportrait.posttrain.objective.dpo import DPO
from flowportrait.posttrain.plan import NoNoise
from flowportrait.posttrain.recipe import Recipe
from flowportrait.posttrain.recipes.card import Card

CARD = Card(
    recipe=Recipe("flow-dpo", plan=NoNoise(), objective=DPO(), learning_rate=2e-5, group_size=8, groups=12),
    source="Improving Video Generation with Human Feedback, 2501.13918",
    equation="L = -log sigmoid(-beta/2 [(E - E_ref)_winner - (E - E_ref)_loser]),   E = mean |v - (eps - x0)|^2",
    paper="One shared noise and level per pair; constant beta.",
    verified="Loss in the authors' and Flow-GRPO's code; that a constant beta is better, in the paper.",
    reading=(
        "Pairs are made online: the best and the worst of a group under the composite reward; groups without "
        "a difference make none. Every chunk has its own margin. With --pairs they are the stated ones, two a group."
    ),
    why={
        "learning_rate": "a margin of beta = 100 is steep",
        "groups": "a group makes one pair: many small ones",
        "group_size": "the same",
        "objective.beta": "Flow-GRPO's code has it for pictures",
    },
)
