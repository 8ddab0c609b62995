"""Advantage-weighted matching."""

from __future__ import annotations

from flowportrait.posttrain.objective.awm import AWM
from flowportrait.posttrain.plan import NoNoise
from flowportrait.posttrain.recipe import Recipe
from flowportrait.posttrain.recipes.card import Card

CARD = Card(
    recipe=Recipe("awm", plan=NoNoise(), objective=AWM(), learning_rate=1e-4),
    source="Advantage Weighted Matching, 2509.25050",
    equation="L = -min(r A, clip(r) A) + c |v - v_ref|^2,   r = exp(l - l_old),   l = -w(s) mean |v - (eps - x0)|^2",
    paper="The matching loss of own samples as log-probability; clipped; KL in velocity space.",
    verified="Loss, weightings and settings in the authors' code; the clip at second hand.",
    reading=(
        "Six states per chunk, as in the paper, but stratified; w = 1. The ratio is a chunk's at one state, clipped at "
        "0.2. Three parts of the authors' code are missing: the second pull, of weight 1, to a slow average of the "
        "weights (decay min(0.3, 0.001 step)), which they call its main regulariser; the generalised Huber weight "
        "(ghuber, power 0.25) among those of l; and advantages clipped at 5 and then divided by 5."
    ),
    why={
        "objective.kl_weight": "alone here; the authors have 0.001 to 0.003 and the second pull",
        "objective.clip": "of a chunk's ratio; the authors' 1e-5 is one of whole pictures",
        "learning_rate": "all weights are trained; the authors' 3e-4 is for adapters",
    },
)
