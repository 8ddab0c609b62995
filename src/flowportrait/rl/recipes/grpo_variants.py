"""This module contains the recipes that change the objective, credit or exploration of Flow-GRPO."""

from __future__ import annotations

from flowportrait.rewards.registry import RewardWeights
from flowportrait.rl.allocation import Allocation
from flowportrait.rl.config import PostTrainConfig
from flowportrait.rl.method_stages import HistoryRouting
from flowportrait.rl.objectives.ratio import KVPO, ClippedRatio, SequenceRatio
from flowportrait.rl.plan import OdePlan
from flowportrait.rl.recipes.card import Card

GUARD_CARD = Card(
    recipe=PostTrainConfig(
        "guard",
        objective=ClippedRatio(form="guard", reduce="mean", clip_low=2e-3, clip_high=2e-3, step_weight="rectified"),
    ),
    source="GRPO-Guard, 2510.22319",
    equation=(
        "as flow-grpo, its steps weighted by 1/|b|, with r = exp mean b eps (v - v_old): centred at 1 and alike at "
        "every step, so that the clip binds on both sides"
    ),
    paper=(
        "RatioNorm: the quadratic bias is taken out of the log-ratio, which is scaled by the step's "
        "deviation; gradients are balanced over steps."
    ),
    verified="The ratio and 1/dt in the code of Flow-GRPO and RealGen; the paper itself at second hand.",
    reading="Clip range 2e-3 for 120 latent numbers; step weights 1/|b|, the paper's 1/dt but for a constant.",
    why={
        "objective.form": "the method",
        "objective.reduce": "the paper's; its clip is one of means",
        "objective.clip_low": (
            "the spread of a mean falls with the root of the count: 1e-4 of FLUX's 262144 numbers is 5e-3 of our 120"
        ),
        "objective.clip_high": "the same",
        "objective.step_weight": "the paper's 1/dt",
    },
)

DPPO_CARD = Card(
    recipe=PostTrainConfig("dppo", objective=ClippedRatio(trust="divergence", divergence=0.02)),
    source="Flow-DPPO, 2606.11025",
    equation=(
        "L = -mean r A, leaving out transitions with k^2 dv^2 / 2 > delta that move on in the direction "
        "A asks for;  + beta KL(v || v_ref)"
    ),
    paper="The trust region is the divergence of the transition, not the ratio of one draw from it.",
    verified="The abstract, and the mask in the authors' code (UniRL).",
    reading=(
        "The divergence is summed over a chunk's latents; delta = 0.02 corresponds to a ratio spread of 0.2, "
        "the clip it replaces."
    ),
    why={
        "objective.trust": "the method",
        "objective.divergence": "a log-ratio of spread 0.2, the clip that it replaces, has this divergence",
    },
)

GSPO_CARD = Card(
    recipe=PostTrainConfig("gspo", objective=SequenceRatio()),
    source="Group Sequence Policy Optimization, 2507.18071",
    equation="L = -mean min(s A, clip(s) A),   s = exp mean over a clip's transitions of log N(x'; v) / N(x'; v_old)",
    paper="The ratio, and what is clipped, is that of a whole sequence, since that is what a reward is of; no KL.",
    verified="Formulas and settings as the documentation of two libraries quotes them (TRL, ms-swift).",
    reading=(
        "Of language models there; a token is a chunk's step here. The form with a gradient per token, so that lip "
        "sync still pays single chunks."
    ),
    why={
        "objective.clip_low": "a mean of 90 transitions spreads a ninth of one, whose own clip is 0.2",
        "objective.clip_high": "the same; a third wider above, as the paper's 3e-4 and 4e-4",
    },
)

KVPO_CARD = Card(
    recipe=PostTrainConfig(
        "kvpo",
        plan=OdePlan(keep_path=True),
        exploration=HistoryRouting(anchor=True),
        objective=KVPO(),
        same_start=True,
        group_size=8,
        groups=12,
    ),
    source="KVPO, 2605.14278",
    equation="""\
pi(branch) = softmax -E/tau,   E = 1/2 sum over steps of mean |x0hat(v(x | true past)) - x0hat(branch)|^2
L = -mean min(r A, clip(r) A) + beta KL(pi || pi_ref),   r = pi / pi_old
A = clip(sum_k w_k (r_k - r_k of the anchor) / std_k, -2.5, 2.5)
""",
    paper=(
        "Branches differ by which older entries of the history cache they see, from shared noise along the "
        "ODE; the replay sees the true cache; discrete KL."
    ),
    verified=(
        "The authors' code (Richard-Zhang-AI/KVPO, b0c4c9d, models/longlive/trainer/kvpo.py): energies, softmax, "
        "ratio, clip, KL(pi || pi_ref), the anchor. The paper's text was not read."
    ),
    reading=(
        "The authors divide each step's error of the clean sample by 2 max(s, 1)^2, which is 2 at every level, and sum "
        "over steps and blocks: objective.scope=clip objective.temperature=1. Here the softmax is taken per chunk, "
        "so that dense credit reaches the chunk that explored, with tau = 0.05: one chunk has a share of the energy, "
        "and latents of 120 numbers differ less than theirs. The KL weight is set for this tau; theirs is 10. Each "
        "reward is divided by its std with the anchor among the samples, as theirs. Where no branch beats its anchor "
        "the authors leave the update out or weigh it by 1 - pi(anchor); this protection is missing. As in "
        "version 0.1: exploration.anchor=false objective.energy=velocity objective.kl=from_reference."
    ),
    why={
        "plan.keep_path": "the way a branch went is what is learned",
        "exploration": "the authors': four kept, five routed, an anchor",
        "same_start": "the authors'",
        "group_size": "the authors' eight branches",
        "groups": "96 clips an iteration",
        "objective.clip_low": "the authors' 0.9 … 1.2",
    },
)

STEP_CREDIT_CARD = Card(
    recipe=PostTrainConfig(
        "step-credit",
        allocation=Allocation(steps={"sync": -0.5, "expressiveness": 0.5, "perceptual": -0.5}),
    ),
    source="after the abstract of OTCA, 2604.19234",
    equation="A[i, n, r] = sum over rewards of A_reward[i, n] (1 + t_reward (2 s_r - 1))",
    paper="Denoising steps have weights of their own, and the weights of rewards vary over them.",
    verified="The abstract alone; hence the name, which was otca before.",
    reading=(
        "The paper estimates the importance of steps from trajectories and adapts the weights of rewards; neither is "
        "done here, since its formulas could not be read. Weights are set by hand and linear in the noise level: what "
        "a clip does is decided early, how exactly it does it late. As nothing is learned at the end, a sixth more "
        "of the former is paid in all, and a sixth less of the latter."
    ),
    why={
        "allocation.steps": "half as much again at one end, half as much at the other; not tuned",
    },
)

REGION_CREDIT_CARD = Card(
    recipe=PostTrainConfig("region-credit", allocation=Allocation(regions={"sync": "mouth"})),
    source="after the abstract of ViPO, 2511.18719",
    equation="""\
A[i, n, p] = sum of the rewards that region p is paid by
L = -mean sum_p min(r_p A_p, clip(r_p) A_p) + beta KL(v || v_ref),   r = product of r_p
""",
    paper="Latent positions get advantages of their own.",
    verified="The abstract alone; hence the name, which was vipo before.",
    reading=(
        "The paper multiplies one advantage by a map that it computes from the features of a pretrained vision network "
        "in space and time. Here the regions are named by hand and are the same for every sample, and what differs "
        "between them is which rewards they are paid by: a motion latent knows what it moves, so that lip sync pays "
        "the mouth's numbers only."
    ),
    why={
        "allocation.regions": "lips are what sync looks at",
    },
)

PREF_GRPO_CARD = Card(
    recipe=PostTrainConfig("pref-grpo", rewards=RewardWeights(judge_by="pairwise")),
    source="Pref-GRPO, 2508.20751",
    equation="r_i = mean over the siblings j of P(i is preferred to j), beside the other rewards, then as flow-grpo",
    paper="Win rates inside the group instead of z-scores, so that meaningless gaps are not blown up.",
    verified="Win rates and their use in the authors' code.",
    reading=(
        "A judge with method=compare sees both clips of every pair of siblings, in both orders, on three aspects; its "
        "margins count as probabilities, where the authors count whole wins. The pairs have the judge's weight of 0.5 "
        "and the other rewards theirs; the authors have 0.4 beside 0.6 of CLIP. It needs a judge "
        "(rewards.options.judge). In version 0.1 the recipe compared scalar scores: rewards.judge_by=measured "
        "credit.win_rate=all."
    ),
    why={
        "rewards.judge_by": "the method: a judge is asked about pairs",
    },
)

SOLACE_CARD = Card(
    recipe=PostTrainConfig("solace", rewards=RewardWeights(self_confidence=0.3)),
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
