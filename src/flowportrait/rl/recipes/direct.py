"""This module contains the recipe that follows the gradient of differentiable rewards."""

from __future__ import annotations

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
