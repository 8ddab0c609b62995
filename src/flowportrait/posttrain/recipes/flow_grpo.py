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
        "The ratio is that of a whole chunk's step (log-ratios summed, clip 0.2), where the paper takes the mean over "
        "latent numbers and clips at 1e-4; lip sync pays single chunks. Denoising reduction is moot at six steps. The "
        "first step has the authors' noise: g = eta sqrt(1/(1 - s2)) at s = 1, where s2 is the second level; version 1 "
        "had g = eta sqrt(s2/(1 - s2)), 0.913 of it at six even steps. The KL is that of the transition, divided by "
        "2 g^2 |dt|, where the authors' code divides by 2 g^2: at one weight it pulls 1/|dt| times as hard as theirs, "
        "6 times at six even steps and 6 to 28 times on their ten steps shifted by 3."
    ),
    why={
        "eta": "less than the authors' 0.7; what other values earn is in docs/results.md",
        "plan.steps": "as many as are delivered",
        "frames": "2.9 s, FlowPortrait's clips being 2 to 3",
        "groups": "96 clips an iteration with 16 siblings each, for one machine; the authors make 48 groups of 24",
        "learning_rate": "all weights are trained: between DanceGRPO's 1e-5 for that and 3e-4 for adapters",
        "objective.clip_low": "PPO's own range, the ratio being a whole action's",
        "objective.kl_weight": (
            "ours; with the factor 1/|dt| = 6 it pulls like 0.12 of the authors', whose 0.01 to 0.04 is a twelfth to a "
            "third of that; 0.0017 to 0.0067 would be theirs"
        ),
    },
)
