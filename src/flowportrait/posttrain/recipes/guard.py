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
        "as flow-grpo, its steps weighted by 1/|b|, with r = exp mean b eps (v - v_old): centred at 1 and alike at "
        "every step, so that the clip binds on both sides"
    ),
    paper=(
        "RatioNorm: the quadratic bias is taken out of the log-ratio, which is scaled by the step's "
        "deviation; gradients are balanced over steps."
    ),
    verified="The ratio and 1/dt in the code of Flow-GRPO and RealGen; the paper itself at second hand.",
    reading="Clip range 2e-3 for 120 latent numbers; step weights 1/|b|, the paper's 1/dt but for a constant.",
    why={
        "objective.form": "the method",
        "objective.reduce": "the paper's; its clip is one of means",
        "objective.clip_low": (
            "the spread of a mean falls with the root of the count: 1e-4 of FLUX's 262144 numbers is 5e-3 of our 120"
        ),
        "objective.clip_high": "the same",
        "objective.step_weight": "the paper's 1/dt",
    },
)
