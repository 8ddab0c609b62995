"""NFT, every reward paying the part of the face that it looks at: what the shipped ``rl`` was made with."""

from __future__ import annotations

from flowportrait.posttrain.advantage import Allocation
from flowportrait.posttrain.objective.nft import NFT
from flowportrait.posttrain.plan import NoNoise
from flowportrait.posttrain.recipe import Recipe
from flowportrait.posttrain.recipes.card import Card
from flowportrait.reward.composite import RewardWeights
from flowportrait.training.roles import SlowCopy

REGIONS = {"sync": "mouth", "crowd_mouth": "mouth", "crowd_eyes": "eyes", "crowd_head": "head"}

CARD = Card(
    recipe=Recipe(
        "nft-regions",
        plan=NoNoise(),
        objective=NFT(),
        old=SlowCopy(),
        groups=4,
        group_size=8,
        pieces=1,
        updates=4,
        learning_rate=1.5e-4,
        ema=0.98,
        rewards=RewardWeights(
            judge=0.0,
            perceptual=0.0,
            temporal=0.0,
            sync=0.7,
            other={"crowd_mouth": 0.35, "crowd_eyes": 0.4, "crowd_head": 0.4},
        ),
        allocation=Allocation(regions=REGIONS),
    ),
    source="DiffusionNFT, 2509.16117, with regions after ViPO, 2511.18719",
    equation="as nft, with r and the two errors per region: mouth, eyes, head;   A[region] = sum of what pays it",
    paper="NFT as in nft; ViPO's point, that a place should answer for what is seen there.",
    verified="NFT as in nft; of ViPO the abstract.",
    reading=(
        "Rewards that read motion alone, so that an iteration costs 4 s on one core; small batches, many of them, "
        "and a long average of the weights against their noise. Sync pays the mouth; mouth, eyes and head are each "
        "paid for making the batch more like a crowd of real people. A region weighs by its latent numbers (mouth "
        ".533, eyes .267, head .2), so that regions paid alike are nft; in version 1, which the shipped rl was made "
        "with, each weighed a third. One piece: a crowd is scored whole."
    ),
    why={
        "old": "as in nft; with four updates an iteration the authors' would grow four times as fast",
        "groups": "small batches, many of them",
        "group_size": "the same",
        "updates": "the same",
        "pieces": "a crowd is scored whole",
        "learning_rate": "with the long average below, over nft's",
        "ema": "the average of fifty updates: small batches are noisy",
        "rewards": (
            "motion alone is read, so that an iteration costs 4 s of one core; weights by trial, docs/results.md"
        ),
        "allocation.regions": "each reward pays what it looks at",
    },
)
