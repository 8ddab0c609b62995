"""Flow-GRPO."""

from __future__ import annotations

from flowportrait.posttrain.recipe import Recipe
from flowportrait.posttrain.recipes.card import Card

CARD = Card(
    recipe=Recipe("flow-grpo"),
    source="Flow-GRPO, 2505.05470",
    equation="L = -mean min(r A, clip(r) A) + beta KL(v || v_ref),   r = exp sum log N(x'; v) / N(x'; v_old)",
    paper=(
        "Noise at every step but the last (Flow-SDE), advantages normalised inside the group, clipped ratio, "
        "KL to the start."
    ),
    reading=(
        "The ratio is that of a whole chunk's step (log-ratios summed, clip 0.2), where the paper takes the "
        "mean over latent numbers and clips at 1e-4; lip sync pays single chunks. Denoising reduction is moot "
        "at six steps."
    ),
)
