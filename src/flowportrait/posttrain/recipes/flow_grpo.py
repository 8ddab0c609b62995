"""Flow-GRPO (2505.05470)."""

from __future__ import annotations

from flowportrait.posttrain.recipe import Recipe


def flow_grpo() -> Recipe:
    """Noise at every step but the last, group-normalised advantages, clipped ratio, KL to the supervised policy.

    Denoising reduction is moot at six steps. Differs in that the ratio is that of a whole chunk's step (log-ratios
    summed, clip 0.2), and that lip sync pays single chunks.
    """
    return Recipe("flow-grpo")
