"""This module contains the recipes that follow the gradient of differentiable rewards."""

from __future__ import annotations

from dataclasses import replace

from flowportrait.rewards.registry import RewardWeights
from flowportrait.rl.config import PostTrainConfig
from flowportrait.rl.objectives.direct import Direct, RewardGradients
from flowportrait.rl.plan import OdePlan
from flowportrait.rl.recipes.card import Card

DIRECT_CARD = Card(
    recipe=PostTrainConfig(
        "direct",
        plan=OdePlan(),
        objective=Direct(),
        stages=(RewardGradients(),),
        groups=16,
        group_size=2,
        rollout_chunks=1,
        learning_rate=5e-5,
        rewards=RewardWeights.only({"sync": 0.7, "crowd_mouth": 0.35, "crowd_eyes": 0.4, "crowd_head": 0.4}),
    ),
    source="own method, after the abstracts of DRaFT, 2309.17400, and SRPO, 2509.06942",
    equation="""\
g = dR/dx0 at the finished sample, of unit size;   L = mean |v - (v_old - step g)|^2 / step + 1e-4 |v - v_ref|^2
""",
    paper="The reward is differentiated through the generator's output instead of being compared among samples.",
    verified="Of both the abstract; the gradient of the loss against finite differences of the expected reward.",
    reading=(
        "For rewards of motion that are differentiable: sync, crowd and preference; any other is refused. DRaFT "
        "differentiates through the last sampling steps, SRPO through one step from a noised sample; here the gradient "
        "is taken at the finished sample, and the velocity at every noise level moves by the same bounded step, so "
        "that the end of the path moves by it. A chunk answers for itself: what it changes in later ones through the "
        "history is not in the gradient. What a reward does not see is changed as well: see docs/guides/recipes.md."
    ),
    why={
        "groups": "samples are not compared, so that many prompts count more than many samples of each",
        "group_size": "two, for the statistics of groups that are logged",
        "rollout_chunks": "a crowd is scored whole",
        "rewards": "those of nft-regions, which all have gradients",
        "stages": "the gradient of the rewards",
    },
)

ROLLOUT_GRADIENT_CARD = Card(
    recipe=replace(
        DIRECT_CARD.recipe,
        name="rollout-gradient",
        plan=OdePlan(keep_path=True),
        stages=(RewardGradients(through_history=True),),
        groups=8,
        frames=144,
    ),
    source="after the abstract of Reward-Forcing, 2601.16933",
    equation="""\
G_i = g_i + sum_{j > i} g_j dx_j/dx_i,   g = dR/dx0;   L = mean |v - (v_old - step G)|^2 / step + 1e-4 |v - v_ref|^2
""",
    paper="An autoregressive generator learns from rewards alone, on its own rollouts, without a teacher.",
    verified=(
        "The abstract. G against finite differences of the reward of whole rollouts; without later chunks, and for a "
        "generator of one chunk, it is direct."
    ),
    reading=(
        "As direct, but a chunk also answers for what it changes in the chunks after it, which see it as history. The "
        "sum over chunks of G times the gradient of a chunk in the weights, its history fixed, is backpropagation "
        "through the rollout. A rollout has six seconds: two stretches of 72 frames, the second of which begins at the "
        "last frame of the first. Costs about three times the rollout of direct."
    ),
    why={
        **DIRECT_CARD.why,
        "plan.keep_path": "the rollout is repeated from its first states",
        "frames": "rollouts are longer than what the generator was trained on",
        "groups": "a rollout is twice as long as direct's",
        "stages": "the gradient of the rewards, through the history",
    },
)
