"""Flow-DPPO."""

from __future__ import annotations

from flowportrait.posttrain.objective.ratio import ClippedRatio
from flowportrait.posttrain.recipe import Recipe
from flowportrait.posttrain.recipes.card import Card

CARD = Card(
    recipe=Recipe("dppo", objective=ClippedRatio(trust="divergence", divergence=0.02)),
    source="Flow-DPPO, 2606.11025",
    equation=(
        "L = -mean r A, leaving out transitions with k^2 dv^2 / 2 > delta that move on in the direction "
        "A asks for;  + beta KL(v || v_ref)"
    ),
    paper="The trust region is the divergence of the transition, not the ratio of one draw from it.",
    verified="The abstract, and the mask in the authors' code (UniRL).",
    reading=(
        "The divergence is summed over a chunk's latents; delta = 0.02 corresponds to a ratio spread of 0.2, "
        "the clip it replaces."
    ),
    why={
        "objective.trust": "the method",
        "objective.divergence": "a log-ratio of spread 0.2, the clip that it replaces, has this divergence",
    },
)
