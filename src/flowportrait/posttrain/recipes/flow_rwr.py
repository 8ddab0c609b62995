"""Flow-RWR."""

from __future__ import annotations

from flowportrait.posttrain.objective.rwr import RWR
from flowportrait.posttrain.plan import NoNoise
from flowportrait.posttrain.recipe import Recipe
from flowportrait.posttrain.recipes.card import Card

CARD = Card(
    recipe=Recipe("flow-rwr", plan=NoNoise(), objective=RWR(), learning_rate=1e-4),
    source="Improving Video Generation with Human Feedback, 2501.13918",
    equation="L = mean exp(A / tau) |v - (eps - x0)|^2",
    paper="The matching loss weighted by the exponential of the reward.",
    verified="The paper; there is no authors' code of it (KwaiVGI/VideoAlign has the reward model alone).",
    reading="Online: the group-normalised advantage stands for the reward, tau = 0.5, weights no more than 10.",
    why={
        "learning_rate": "as nft's and awm's, which match samples as well",
        "objective.temperature": "ours: a sample one deviation better counts seven times as much",
    },
)
