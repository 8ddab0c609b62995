"""Coefficients-preserving sampling."""

from __future__ import annotations

from flowportrait.posttrain.recipe import Recipe
from flowportrait.posttrain.recipes.card import Card

CARD = Card(
    recipe=Recipe("cps", kernel="cps", eta=0.5),
    source="Coefficients-Preserving Sampling, 2509.05952",
    equation="x' = (1-s') x0hat + sqrt(s'^2 - sd^2) epshat + sd eps,   sd = s' sin(eta pi / 2)",
    paper=(
        "Fresh noise replaces part of the predicted noise, so that rollouts carry no more noise than their level says."
    ),
    verified="The kernel and its log-probability in other authors' code; not the paper itself.",
    reading="Over the flow-grpo objective with exact log-ratios; the authors drop the variance from theirs.",
    why={
        "kernel": "the method",
        "eta": "0.9, which others take, contracts what is drawn more",
    },
)
