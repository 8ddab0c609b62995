"""BranchGRPO."""

from __future__ import annotations

from flowportrait.posttrain.plan import Branching
from flowportrait.posttrain.recipe import Recipe
from flowportrait.posttrain.recipes.card import Card

CARD = Card(
    recipe=Recipe("branch-grpo", plan=Branching(forks=2, elsewhere="sde"), eta=0.7),
    source="BranchGRPO, 2509.06040",
    equation="A[node] = (mean of its leaves - mean) / std, at every place of the tree",
    paper=("Rollouts share their past up to forks; leaf rewards flow upward as means and are normalised per depth."),
    verified="Splits, means of leaves and normalising per depth in the authors' code.",
    reading=(
        "Forks are denoising steps of chunks, two per rollout, four branches each; no pruning. The std of a depth is "
        "taken over its leaves, each with its node's mean (n - 1 of sixteen); the authors take it over the nodes, each "
        "once: behind the first fork, with four nodes, our advantages are 12 % larger, behind the last they agree."
    ),
    why={
        "plan.forks": "sixteen leaves by two forks of four",
        "plan.elsewhere": "the method",
        "eta": "siblings differ from a fork on only, so it should matter",
    },
)
