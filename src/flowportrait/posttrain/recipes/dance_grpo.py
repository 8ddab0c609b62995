"""DanceGRPO."""

from __future__ import annotations

from flowportrait.posttrain.objective.ratio import ClippedRatio
from flowportrait.posttrain.plan import EveryStep
from flowportrait.posttrain.recipe import Recipe
from flowportrait.posttrain.recipes.card import Card

CARD = Card(
    recipe=Recipe(
        "dance-grpo",
        kernel="dance-sde",
        eta=0.3,
        same_start=True,
        train_on=12,
        plan=EveryStep(trained=3),
        objective=ClippedRatio(kl_weight=0.0),
    ),
    source="DanceGRPO, 2505.07818",
    equation="L = -mean min(r A, clip(r) A) on a random 60 % of the steps of the best and the worst samples",
    paper=(
        "Constant diffusion eta, one initial noise per group, no KL, advantages clipped at 5, 60 % of the "
        "steps, best and worst of a group."
    ),
    verified="All of it in the authors' code.",
    reading=(
        "Three of five stochastic steps, drawn per iteration; 12 of 16 samples (the paper keeps 8 of 24). With several "
        "rewards, their weighted sum is clipped at 5; the authors clip each reward's advantage at 5 and then add them."
    ),
    why={
        "kernel": "the paper's",
        "eta": "the paper's for pictures; it has 0.25 for video",
        "same_start": "the paper's",
        "train_on": "milder than the paper's 8 of 24, groups being smaller",
        "plan.trained": "60 % of the five noisy steps",
        "objective.kl_weight": "the paper has none",
    },
)
