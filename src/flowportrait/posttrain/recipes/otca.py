"""Objective-aware credit over steps."""

from __future__ import annotations

from flowportrait.posttrain.advantage import Allocation
from flowportrait.posttrain.recipe import Recipe
from flowportrait.posttrain.recipes.card import Card

CARD = Card(
    recipe=Recipe(
        "otca",
        allocation=Allocation(steps={"sync": -0.5, "expressiveness": 0.5, "perceptual": -0.5}),
    ),
    source="after OTCA, 2604.19234",
    equation="A[i, n, r] = sum over rewards of A_reward[i, n] (1 + t_reward (2 s_r - 1))",
    paper="Denoising steps have weights of their own, and the weights of rewards vary over them.",
    verified="The abstract alone.",
    reading=(
        "The paper estimates its weights by formulas that were not at hand; ours are linear in the noise level: what "
        "a clip does is decided early, how exactly it does it late. As nothing is learned at the end, a sixth more "
        "of the former is paid in all, and a sixth less of the latter."
    ),
    why={
        "allocation.steps": "half as much again at one end, half as much at the other; not tuned",
    },
)
