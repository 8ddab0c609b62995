"""This module contains the recipes that learn from preferences."""

from __future__ import annotations

from flowportrait.rl.allocation import Allocation
from flowportrait.rl.config import PostTrainConfig
from flowportrait.rl.credit import CreditConfig
from flowportrait.rl.objectives.preference import DPO, Threshold
from flowportrait.rl.offline_data import OfflineDataConfig
from flowportrait.rl.plan import OdePlan
from flowportrait.rl.recipes.card import Card

FLOW_DPO_CARD = Card(
    recipe=PostTrainConfig("flow-dpo", plan=OdePlan(), objective=DPO(), learning_rate=2e-5, group_size=8, groups=12),
    source="Improving Video Generation with Human Feedback, 2501.13918",
    equation="L = -log sigmoid(-beta/2 [(E - E_ref)_winner - (E - E_ref)_loser]),   E = mean |v - (eps - x0)|^2",
    paper="One shared noise and level per pair; constant beta.",
    verified="Loss in the authors' and Flow-GRPO's code; that a constant beta is better, in the paper.",
    reading=(
        "Pairs are made online: the best and the worst of a group under the composite reward; groups without "
        "a difference make none. Every chunk has its own margin. With --pairs they are the stated ones, two a group."
    ),
    why={
        "learning_rate": "a margin of beta = 100 is steep",
        "groups": "a group makes one pair: many small ones",
        "group_size": "the same",
        "objective.beta": "Flow-GRPO's code has it for pictures",
    },
)

SYNC_DPO_CARD = Card(
    recipe=PostTrainConfig(
        "sync-dpo",
        offline_data=OfflineDataConfig(clips="damaged", weights={"sync": 1.0}),
        plan=OdePlan(),
        objective=DPO(),
        allocation=Allocation(regions={"sync": "mouth"}),
        group_size=2,
        groups=48,
        frames=20,
        learning_rate=2e-5,
    ),
    source="SyncDPO, 2605.12179",
    equation="as flow-dpo, a real clip the winner and the same clip out of time the loser, on the mouth's numbers",
    paper=(
        "The loser is the winner itself, distorted in time by rule, made on the fly, from coarse to subtle: no "
        "annotator and no sampling."
    ),
    verified="The abstract alone.",
    reading=(
        "Shifts of 8 down to 2 frames, time-warps, swapped segments; both clips go on from the frame that they "
        "really followed, and only the mouth is compared, so that what is learned is timing."
    ),
    why={
        "offline_data": "the method",
        "allocation.regions": "timing is in the lips",
        "group_size": "a clip and its damage",
        "groups": "many cheap pairs",
        "frames": "a real clip of 28 has room for a shift of 8",
        "learning_rate": "as in flow-dpo",
    },
)

THRESHOLD_CARD = Card(
    recipe=PostTrainConfig(
        "threshold",
        plan=OdePlan(),
        objective=Threshold(),
        credit=CreditConfig(baseline_scope="batch"),
        learning_rate=2e-5,
        group_size=4,
        groups=24,
    ),
    source="Threshold-guided optimisation, 2605.04653",
    equation="L = -mean |r - tau| log sigmoid(sign(r - tau) beta/2 (E_ref - E)),   E = mean |v - (eps - x0)|^2",
    paper="One threshold for all prompts turns unpaired ratings into labels, weighted by the distance from it.",
    verified="The abstract alone.",
    reading=(
        "Only the abstract was available: the loss is KTO's (2402.01306) without its reference point, the threshold "
        "the mean of the batch. With --pairs the points of single clips are the ratings; without, the policy's samples "
        "are rated by the rewards."
    ),
    why={
        "credit.baseline_scope": "the method: one threshold for all prompts",
        "groups": "many prompts make the threshold",
        "group_size": "siblings are not compared",
        "learning_rate": "as in flow-dpo",
    },
)
