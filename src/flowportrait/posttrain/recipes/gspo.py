"""GSPO."""

from __future__ import annotations

from flowportrait.posttrain.objective.sequence import SequenceRatio
from flowportrait.posttrain.recipe import Recipe
from flowportrait.posttrain.recipes.card import Card

CARD = Card(
    recipe=Recipe("gspo", objective=SequenceRatio()),
    source="Group Sequence Policy Optimization, 2507.18071",
    equation="L = -mean min(s A, clip(s) A),   s = exp mean over a clip's transitions of log N(x'; v) / N(x'; v_old)",
    paper="The ratio, and what is clipped, is that of a whole sequence, since that is what a reward is of; no KL.",
    verified="Formulas and settings as the documentation of two libraries quotes them (TRL, ms-swift).",
    reading=(
        "Of language models there; a token is a chunk's step here. The form with a gradient per token, so that lip "
        "sync still pays single chunks."
    ),
    why={
        "objective.clip_low": "a mean of 90 transitions spreads a ninth of one, whose own clip is 0.2",
        "objective.clip_high": "the same; a third wider above, as the paper's 3e-4 and 4e-4",
    },
)
