"""SyncDPO."""

from __future__ import annotations

from flowportrait.posttrain.advantage import Allocation
from flowportrait.posttrain.objective.dpo import DPO
from flowportrait.posttrain.offline_data import OfflineDataConfig
from flowportrait.posttrain.plan import NoNoise
from flowportrait.posttrain.recipe import Recipe
from flowportrait.posttrain.recipes.card import Card

CARD = Card(
    recipe=Recipe(
        "sync-dpo",
        given=OfflineDataConfig(clips="damaged", weights={"sync": 1.0}),
        plan=NoNoise(),
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
        "given": "the method",
        "allocation.regions": "timing is in the lips",
        "group_size": "a clip and its damage",
        "groups": "many cheap pairs",
        "frames": "a real clip of 28 has room for a shift of 8",
        "learning_rate": "as in flow-dpo",
    },
)
