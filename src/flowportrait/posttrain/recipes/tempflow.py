"""TempFlow-GRPO."""

from __future__ import annotations

from flowportrait.posttrain.objective.ratio import ClippedRatio
from flowportrait.posttrain.plan import Branching
from flowportrait.posttrain.recipe import Recipe
from flowportrait.posttrain.recipes.card import Card

CARD = Card(
    recipe=Recipe(
        "tempflow",
        plan=Branching(forks=1, elsewhere="ode"),
        eta=0.7,
        objective=ClippedRatio(step_weight="noise"),
    ),
    source="TempFlow-GRPO, 2508.04324",
    equation="the ODE everywhere but at one fork, which is credited with the difference that it made; weight s",
    paper=("One stochastic branch on a deterministic path, credit to that step, weights proportional to its noise."),
    verified="At second hand: no code was to be had.",
    reading=(
        "The fork is a step of one chunk: later chunks share their initial noise, so that the difference is the fork's "
        "own. The paper credits it with the difference of the whole sample's reward; here a reward that knows when it "
        "was earned (lip sync) pays 70 % (credit.dense) for the fork's own chunk and the rest for the whole clip. "
        "credit.dense=0 is the paper's."
    ),
    why={
        "eta": "one fork alone tells siblings apart",
        "objective.step_weight": "the paper's s, for more is explored there",
    },
)
