"""LongCat-Video's multi-reward GRPO."""

from __future__ import annotations

from flowportrait.posttrain.credit import CreditConfig
from flowportrait.posttrain.objective.ratio import ClippedRatio
from flowportrait.posttrain.plan import OneStep
from flowportrait.posttrain.recipe import Recipe
from flowportrait.posttrain.recipes.card import Card

CARD = Card(
    recipe=Recipe(
        "longcat-grpo",
        kernel="longcat-sde",
        eta=1.0,
        same_start=True,
        plan=OneStep(among=3, shared=True),
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
    reading=(
        "Steps are weighted by s/|b| of the capped s. The paper's weight sqrt(t/(|dt|(1 - t))) is 1.5 times that "
        "while the cap of 0.45 does not bind. It binds in all three of our steps: there s/|b| is 2.7, 2.4 and 2.1, "
        "the paper's weight unbounded (t = 1), 5.5 and 3.5, so that their proportion is not the paper's. The paper "
        "reweights the KL too; without the cap that is 1.125 of a KL in velocity space, which we take; with it, 2.6 "
        "and 1.4 of one at the second and third step."
    ),
    why={
        "kernel": "the paper's",
        "eta": "the paper's",
        "same_start": "the paper's",
        "plan.shared": "the paper's",
        "plan.among": "the first three of six; the paper has the first six of sixteen",
        "credit.std": "the paper's",
        "objective.step_weight": "the paper's, up to a constant, where the cap does not bind: not at six steps",
        "objective.kl_weight": "the paper's",
        "objective.kl_space": "what the reweighted KL is, up to 1.125 without the cap and up to 2.6 with it",
    },
)
