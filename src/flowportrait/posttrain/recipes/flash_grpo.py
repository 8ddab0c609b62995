"""Flash-GRPO."""

from __future__ import annotations

from flowportrait.posttrain.objective.ratio import ClippedRatio
from flowportrait.posttrain.plan import OneStep
from flowportrait.posttrain.recipe import Recipe
from flowportrait.posttrain.recipes.card import Card

CARD = Card(
    recipe=Recipe(
        "flash-grpo",
        eta=0.7,
        same_start=True,
        plan=OneStep(among=3),
        objective=ClippedRatio(step_weight="rectified", kl_weight=0.0),
    ),
    source="Flash-GRPO, 2605.15980",
    equation=(
        "as flow-grpo at one step per group, weighted by s/|b|: the gradient's scale no longer depends "
        "on the step drawn"
    ),
    paper=(
        "All samples of a prompt share one stochastic step from the first half; the gradient is rectified by 1/k(t)."
    ),
    verified="One step per group, its rectification and settings in the authors' code.",
    reading="Flow-SDE noise instead of the paper's linear schedule of s, so that kernels stay exchangeable.",
    why={
        "eta": "Flow-GRPO's: one noisy step must tell siblings apart",
        "same_start": "ours: siblings then differ by the one step's noise alone",
        "plan.among": "the first half, as the paper's ten of twenty",
        "objective.step_weight": "the paper's 1/k",
        "objective.kl_weight": "the paper has none",
    },
)
