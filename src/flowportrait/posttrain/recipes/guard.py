"""GRPO-Guard."""

from __future__ import annotations

from flowportrait.posttrain.objective.ratio import ClippedRatio
from flowportrait.posttrain.recipe import Recipe
from flowportrait.posttrain.recipes.card import Card

CARD = Card(
    recipe=Recipe(
        "guard",
        objective=ClippedRatio(form="guard", reduce="mean", clip_low=2e-3, clip_high=2e-3, step_weight="rectified"),
    ),
    source="GRPO-Guard, 2510.22319",
    equation=(
        "r = exp mean b eps (v - v_old): centred at 1 and alike at every step, so that the clip binds "
        "on both sides"
    ),
    paper=(
        "RatioNorm: the quadratic bias is taken out of the log-ratio, which is scaled by the step's "
        "deviation; gradients are balanced over steps."
    ),
    reading="Clip range 2e-3 for 120 latent numbers; step weights 1/|b|, the paper's 1/dt but for a constant.",
)
