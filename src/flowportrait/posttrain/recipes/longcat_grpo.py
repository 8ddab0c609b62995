"""LongCat-Video's multi-reward GRPO."""

from __future__ import annotations

from flowportrait.posttrain.credit import CreditConfig
from flowportrait.posttrain.objective.ratio import ClippedRatio
from flowportrait.posttrain.plan import OneStep
from flowportrait.posttrain.recipe import Recipe
from flowportrait.posttrain.recipes.card import Card

CARD = Card(
    recipe=Recipe(
        "longcat-grpo", kernel="longcat-sde", eta=1.0, same_start=True, plan=OneStep(among=3, shared=True),
        credit=CreditConfig(std="largest"),
        objective=ClippedRatio(step_weight="rectified", kl_weight=3e-4, kl_space="v"),
    ),
    source="LongCat-Video, 2510.22200",
    equation="A = sum_k w_k (R_k - mean) / largest group std of R_k;   one early step, s <= 0.45, reweighted by 1/k",
    paper=(
        "Same start in a group, one early SDE step with s capped in the drift as well, largest-std "
        "normalisation per reward, reweighted policy loss."
    ),
    verified="All of it in the paper's section 3.3 and appendix A.1.",
    reading="The paper reweights the KL too; a KL in velocity space is what that amounts to.",
    why={
        "kernel": "the paper's",
        "eta": "the paper's",
        "same_start": "the paper's",
        "plan.shared": "the paper's",
        "plan.among": "the first three of six; the paper has the first six of sixteen",
        "credit.std": "the paper's",
        "objective.step_weight": "the paper's, up to a constant",
        "objective.kl_weight": "the paper's",
        "objective.kl_space": "what the reweighted KL is, up to a factor of 1.1",
    },
)
