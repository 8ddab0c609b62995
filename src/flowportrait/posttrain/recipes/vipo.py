"""Credit by region."""

from __future__ import annotations

from flowportrait.posttrain.advantage import Allocation
from flowportrait.posttrain.recipe import Recipe
from flowportrait.posttrain.recipes.card import Card

CARD = Card(
    recipe=Recipe("vipo", allocation=Allocation(regions={"sync": "mouth"})),
    source="after ViPO, 2511.18719",
    equation="""\
A[i, n, p] = sum of the rewards that region p is paid by
L = -mean sum_p min(r_p A_p, clip(r_p) A_p) + beta KL(v || v_ref),   r = product of r_p
""",
    paper="Latent positions get advantages of their own.",
    verified="The abstract alone.",
    reading=(
        "The paper weighs positions by variance of backbone features; a motion latent knows what it moves, so "
        "regions are named: lip sync pays the mouth's numbers only."
    ),
    why={
        "allocation.regions": "lips are what sync looks at",
    },
)
