"""DiffusionNFT."""

from __future__ import annotations

from flowportrait.posttrain.objective.nft import NFT
from flowportrait.posttrain.plan import NoNoise
from flowportrait.posttrain.recipe import Recipe
from flowportrait.posttrain.recipes.card import Card
from flowportrait.training.roles import SlowCopy

CARD = Card(
    recipe=Recipe(
        "nft",
        plan=NoNoise(),
        objective=NFT(),
        old=SlowCopy(),
        learning_rate=1e-4,
    ),
    source="DiffusionNFT, 2509.16117",
    equation="""\
v+ = beta v + (1 - beta) v_old,   v- = (1 + beta) v_old - beta v,   r = clip(1/2 + A/2, 0, 1)
L = ( r |x0(v+) - x0|^2 / w+  +  (1 - r) |x0(v-) - x0|^2 / w- ) / beta  +  1e-4 |v - v_ref|^2
""",
    paper="Forward process only, any solver; a slow copy acts; adaptive weights; beta = 1.",
    verified="Loss, weights, decay and settings in the authors' code.",
    reading=(
        "Guidance stays in the policy, as it is delivered with it. Six noised states per chunk, stratified. A sample "
        "counts as all good from A = 1 on, where the authors' code divides A by 5. The decay of the slow copy counts "
        "iterations; the authors' counts optimiser steps and is applied once an epoch, so that with two updates an "
        "iteration theirs grows twice as fast."
    ),
    why={
        "old": "the authors' decay, min(0.001 i, 0.5), but i counts iterations and theirs optimiser steps",
        "objective.reference": "the authors', whose other term is five times ours: the pull is five times theirs",
        "learning_rate": "all weights are trained; the authors' 3e-4 is for adapters",
    },
)
