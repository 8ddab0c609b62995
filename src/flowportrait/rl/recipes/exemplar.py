"""The recipes that add real clips to groups of samples."""

from __future__ import annotations

from flowportrait.rewards.registry import RewardWeights
from flowportrait.rl.config import PostTrainConfig
from flowportrait.rl.method_stages import Exemplars
from flowportrait.rl.objectives.preference import DPO
from flowportrait.rl.objectives.ratio import AWM
from flowportrait.rl.plan import OdePlan
from flowportrait.rl.recipes.card import Card
from flowportrait.training.learner import SlowCopy

PAPER_METHOD = "Real examples, inverted, are part of each group of samples; dual reward, no reconstruction loss."

EXEMPLAR_RATIO_CARD = Card(
    recipe=PostTrainConfig(
        "exemplar-ratio",
        exemplars=Exemplars(),
        frames=28,
    ),
    source="PortraitGen, 2606.26930",
    equation="as flow-grpo, with the transitions of a real clip beside the samples'",
    paper=PAPER_METHOD,
    verified="The abstract, and what one reader notes of the paper.",
    reading=(
        "The inverted path is no sample of the policy and its ratio is biased: one real clip per group, its advantage "
        "capped, its residual logged, and the group normalised by its own samples. The inversion is a two-step scheme "
        "after BELM (2410.07273), which sampling undoes up to rounding; BELM has other coefficients for variance-"
        "preserving diffusion."
    ),
    why={
        "exemplars": "the method",
        "frames": "real clips are short",
    },
)

PORTRAITGEN_CARD = Card(
    recipe=PostTrainConfig(
        "portraitgen",
        exemplars=Exemplars(baseline="all"),
        rewards=RewardWeights.only({"omni_reward": 0.5, "ai_portrait": 0.5}),
        frames=28,
    ),
    source="after the abstract of PortraitGen, 2606.26930",
    equation="as exemplar-ratio, A = sum of the two rewards' (r - mean) / std, the real clip among the samples",
    paper=PAPER_METHOD,
    verified="The abstract, and what one reader notes of the paper: BELM, two rewards, adapters on a frozen model.",
    reading=(
        "The paper's own setting as far as it is known: two-step inversion after BELM, OmniReward and AI-Portrait, the "
        "real example in the group and in its mean. Its weights, group sizes and judge prompts are not known; the two "
        "rewards count alike and are measured, or asked of a judge with rewards.options.judge. It is of stills: here "
        "the pictures are frames of clips. The shares of an exemplar stay capped (exemplars.limit). The paper "
        "trains adapters; here --set lora.rank=8 does."
    ),
    why={
        "exemplars": "the method; the real clip counts in the mean, as in the paper",
        "rewards": "the paper's two; their weights are not known",
        "frames": "real clips are short",
    },
)

EXEMPLAR_AWM_CARD = Card(
    recipe=PostTrainConfig(
        "exemplar-awm",
        exemplars=Exemplars(),
        plan=OdePlan(),
        objective=AWM(kl_weight=1e-3, span=5.0, average_weight=1.0),
        old=SlowCopy(max_decay=0.3),
        frames=28,
        learning_rate=1e-4,
    ),
    source="PortraitGen, 2606.26930",
    equation="as awm, with the real clip as one more sample: noised directly, it needs no path and no ratio",
    paper=PAPER_METHOD,
    verified="The abstract, and what one reader notes of the paper.",
    reading=("No inversion where none is needed: the forward process noises the real clip as it noises samples."),
    why={
        "exemplars": "the method",
        "frames": "real clips are short",
        "objective": "as in awm",
        "old": "as in awm",
        "learning_rate": "as in awm",
    },
)

EXEMPLAR_DPO_CARD = Card(
    recipe=PostTrainConfig(
        "exemplar-dpo",
        exemplars=Exemplars(),
        plan=OdePlan(),
        objective=DPO(),
        frames=28,
        group_size=8,
        groups=12,
        learning_rate=2e-5,
    ),
    source="PortraitGen, 2606.26930",
    equation="as flow-dpo, the real clip the winner and the group's worst sample the loser",
    paper=PAPER_METHOD,
    verified="The abstracts.",
    reading=("After RealDPO (2510.14955): what is real is preferred to what is generated, whatever the rewards say."),
    why={
        "exemplars": "the method",
        "frames": "real clips are short",
        "groups": "as in flow-dpo",
        "group_size": "as in flow-dpo",
        "learning_rate": "as in flow-dpo",
    },
)
