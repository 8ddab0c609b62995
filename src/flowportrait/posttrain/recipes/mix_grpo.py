"""MixGRPO."""

from __future__ import annotations

from flowportrait.posttrain.objective.ratio import ClippedRatio
from flowportrait.posttrain.plan import SlidingWindow
from flowportrait.posttrain.recipe import Recipe
from flowportrait.posttrain.recipes.card import Card

CARD = Card(
    recipe=Recipe(
        "mix-grpo",
        eta=0.7,
        plan=SlidingWindow(width=2, dwell=10),
        objective=ClippedRatio(kl_weight=0.0),
    ),
    source="MixGRPO, 2507.21802",
    equation="as flow-grpo, noise and gradient only in a window of steps that slides from high to low noise",
    paper="A window of SDE steps moves progressively, the ODE runs outside it, gradients only inside.",
    verified="Window, strategies and gains in the paper and the authors' code; eta and width from memory.",
    reading=(
        "Two of six steps; the window moves every ten iterations and begins again at the top, so that short runs see "
        "all of it. Siblings start from noise of their own, where the authors' share one start (same_start=true); "
        "outside the window runs Euler, where MixGRPO-Flash has a second-order solver after it."
    ),
    why={
        "eta": "remembered of the paper: noise in two steps must do what noise in five does",
        "plan.width": "a third of the steps; the paper's four of 25 would be one",
        "objective.kl_weight": "none that we know of in the paper",
    },
)
