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
    verified="Kernel, log-probability, loss and settings in the authors' code.",
    reading=(
        "The ratio is that of a whole chunk's step (log-ratios summed, clip 0.2), where the paper takes the "
        "mean over latent numbers and clips at 1e-4; lip sync pays single chunks. Denoising reduction is moot "
        "at six steps."
    ),
    why={
        "eta": "less than the authors' 0.7; what other values earn is in docs/results.md",
        "plan.steps": "as many as are delivered",
        "frames": "2.9 s, FlowPortrait's clips being 2 to 3",
        "groups": "96 clips an iteration with 16 siblings each, for one machine; the authors make 48 groups of 24",
        "learning_rate": "all weights are trained: between DanceGRPO's 1e-5 for that and 3e-4 for adapters",
        "objective.clip_low": "PPO's own range, the ratio being a whole action's",
        "objective.kl_weight": (
            "within the authors' 0.01 to 0.04; ratio and KL are both sums, so their proportion is the paper's"
        ),
    },
)
