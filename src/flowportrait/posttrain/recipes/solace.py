"""SOLACE."""

from __future__ import annotations

from flowportrait.posttrain.recipe import Recipe
from flowportrait.posttrain.recipes.card import Card
from flowportrait.reward.composite import RewardWeights

CARD = Card(
    recipe=Recipe("solace", rewards=RewardWeights(self_confidence=0.3)),
    source="SOLACE, CVPR 2026",
    equation="r = - sum_s w(s) ln(mean (eps' - eps)^2) / sum_s w(s), w(s) = s(1 - s), beside the others of flow-grpo",
    paper="How surely the policy recognises the noise put back on its own sample is paid; no network but its own.",
    verified="Noises, levels and weights in the authors' code.",
    reading=(
        "Beside the composite, never alone: by itself it pays for easy, average motion. Guidance stays as it is "
        "delivered, normalising is left to credit, and each chunk has its own."
    ),
    why={
        "rewards.self_confidence": "as much as the perceptual group: a companion",
    },
)
