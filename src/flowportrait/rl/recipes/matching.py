"""This module contains the recipes that learn by weighted or contrastive flow matching."""

from __future__ import annotations

from dataclasses import replace

from flowportrait.rewards.registry import RewardWeights
from flowportrait.rl.allocation import Allocation
from flowportrait.rl.config import PostTrainConfig
from flowportrait.rl.method_stages import Teacher
from flowportrait.rl.objectives.matching import NFT, RWR, CorrectiveReflow, Distil
from flowportrait.rl.objectives.ratio import AWM
from flowportrait.rl.plan import OdePlan
from flowportrait.rl.recipes.card import Card
from flowportrait.training.learner import SlowCopy

NFT_CARD = Card(
    recipe=PostTrainConfig(
        "nft",
        plan=OdePlan(),
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
        "objective.kl_weight": "the authors', whose other term is five times ours: the pull is five times theirs",
        "learning_rate": "all weights are trained; the authors' 3e-4 is for adapters",
    },
)

REGIONS = {"sync": "mouth", "crowd_mouth": "mouth", "crowd_eyes": "eyes", "crowd_head": "head"}

NFT_REGIONS_CARD = Card(
    recipe=PostTrainConfig(
        "nft-regions",
        plan=OdePlan(),
        objective=NFT(),
        old=SlowCopy(),
        groups=4,
        group_size=8,
        rollout_chunks=1,
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
    source="DiffusionNFT, 2509.16117, with regions after the abstracts of ViPO, 2511.18719, and OmniNFT, 2605.12480",
    equation="as nft, with r and the two errors per region: mouth, eyes, head;   A[region] = sum of what pays it",
    paper=(
        "NFT as in nft; ViPO's point, that a place should answer for what is seen there, and OmniNFT's, that rewards "
        "of sound and of pictures are routed to their own outputs."
    ),
    verified="NFT as in nft; of ViPO and OmniNFT the abstracts.",
    reading=(
        "Rewards that read motion alone, so that an iteration costs 4 s on one core; small batches, many of them, "
        "and a long average of the weights against their noise. Sync pays the mouth; mouth, eyes and head are each "
        "paid for making the batch more like a crowd of real people. A region weighs by its latent numbers (mouth "
        ".533, eyes .267, head .2), so that regions paid alike are nft; in version 1, which the shipped rl was made "
        "with, each weighed a third. One part: a crowd is scored whole."
    ),
    why={
        "old": "as in nft; with four updates an iteration the authors' would grow four times as fast",
        "groups": "small batches, many of them",
        "group_size": "the same",
        "updates": "the same",
        "rollout_chunks": "a crowd is scored whole",
        "learning_rate": "with the long average below, over nft's",
        "ema": "the average of fifty updates: small batches are noisy",
        "rewards": (
            "motion alone is read, so that an iteration costs 4 s of one core; weights by trial, "
            "reports/2026-11-30-recipes.md"
        ),
        "allocation.regions": "each reward pays what it looks at",
    },
)

CORRECTIVE_REFLOW_CARD = Card(
    recipe=replace(
        NFT_REGIONS_CARD.recipe,
        name="corrective-reflow",
        objective=CorrectiveReflow(),
        updates=2,
    ),
    source="after the abstract of CreFlow, 2605.14274",
    equation="""\
L = L_NFT per region + c mean max(1 - 2 r, 0) |x0(v) - y|^2 / w,   y = x0 + mean of the good - mean of the bad samples
""",
    paper=(
        "An NFT loss confined to the region that a reward is about, and a reflow loss that takes the positive samples "
        "of a group as an estimate of the direction of correction."
    ),
    verified=(
        "The abstract. With c = 0 it is nft-regions to the bit; the gradient against a closed form, for both targets."
    ),
    reading=(
        "Regions of the face stand for the traces of violated constraints: each reward has its own, as in nft-regions. "
        "Good and bad samples have a positive and a negative advantage; a bad one is corrected as far as it is bad, "
        "in NFT's own measure of distance. A summary of the paper has the mean of the good samples as the target "
        "(objective.toward=mean). A mean of motions is smoother than any of them, and in our measurements this took "
        "life out of the face, with random rewards as well (reports/2026-12-01-distribution-matching.md). So a bad "
        "sample is shifted by the difference of the means and keeps what is its own."
    ),
    why={
        **NFT_REGIONS_CARD.why,
        "objective.correction": "a tenth of NFT's own pull",
        "updates": "groups are whole in an update",
    },
)

AWM_CARD = Card(
    recipe=PostTrainConfig(
        "awm",
        plan=OdePlan(),
        objective=AWM(kl_weight=1e-3, span=5.0, average_weight=1.0),
        old=SlowCopy(max_decay=0.3),
        learning_rate=1e-4,
    ),
    source="Advantage Weighted Matching, 2509.25050",
    equation="""\
L = -min(r A', clip(r) A') + |v - v_old|^2 + c |v - v_ref|^2,   A' = clip(A, -5, 5) / 5
r = exp(l - l_old),   l = -w(s) e,   e = mean |v - (eps - x0)|^2
""",
    paper=(
        "The matching loss of own samples as log-probability; clipped; a pull to a slow average of the weights, and a "
        "weaker one to the start, both in velocity space."
    ),
    verified=(
        "The authors' code (scxue/advantage_weighted_matching, 12b1397, scripts/train_sd3_awm.py): l with its five "
        "weights, ratio, clip, both pulls, the average's decay, A / 5. The paper's text was not read."
    ),
    reading=(
        "Six states per chunk, as in the paper, but stratified over the sample's own levels; w = 1, and "
        "objective.weight=ghuber is the authors' generalised Huber of power 0.25. The average samples the rollouts and "
        "is the old policy of the ratio, as with the authors' off_policy; without it they sample from the live weights "
        "and keep the average apart. Its decay min(0.3, 0.001 i) counts iterations, theirs optimiser steps, once an "
        "epoch, so that with two updates an iteration theirs grows twice as fast. The average is that "
        "of the iteration's beginning for all its updates, as theirs is. The ratio is a chunk's at one state, clipped "
        "at 0.2, where theirs is a picture's, clipped at 1e-4 or 1e-5. As in version 0.1: "
        "objective.average_weight=0 objective.span=1 objective.kl_weight=0.02 old=none."
    ),
    why={
        "objective.span": "the authors'",
        "objective.average_weight": "the authors', their main regulariser",
        "objective.kl_weight": "the authors' 0.001 to 0.003, beside the pull to the average",
        "old": "the authors' decay, min(0.3, 0.001 step)",
        "objective.clip": "of a chunk's ratio; the authors' 1e-5 is one of whole pictures",
        "learning_rate": "all weights are trained; the authors' 3e-4 is for adapters",
    },
)

FLOW_RWR_CARD = Card(
    recipe=PostTrainConfig("flow-rwr", plan=OdePlan(), objective=RWR(), learning_rate=1e-4),
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

DISTIL_CARD = Card(
    recipe=PostTrainConfig(
        "distil",
        plan=OdePlan(steps=2, keep_path=True),
        objective=Distil(),
        teacher=Teacher(),
        rewards=RewardWeights(perceptual=0.0, temporal=0.0),
        groups=8,
        group_size=6,
        frames=144,
        updates=6,
        epochs=3,
        learning_rate=3e-4,
        ema=0.98,
        iterations=40,
    ),
    source="Stream-R1, 2605.03849; Reward Forcing, 2512.04678; RATS, 2604.14910; Self Forcing, 2506.08009",
    equation="""\
u = (x_s' - x_s) / (s' - s),   x_s' = teacher's many guided steps from x_s
L = [r_teacher > r_student] exp(A / tau) |v(x_s, s) - u|^2
""",
    paper="Weights exp(reward); a gate that lets only the better teacher teach; training on one's own rollouts.",
    verified="Weights and rollouts in the papers or their code; of RATS the abstract.",
    reading=(
        "Regression on the teacher's way from the same noise in the place of distribution matching: chunks are small "
        "enough for it, and it needs no critic. The teacher is guided and the student is not, so that guidance is "
        "distilled as well. Rewards that read motion alone; plan.steps is what the student is delivered with."
    ),
    why={
        "plan.steps": "what the student is delivered with",
        "plan.keep_path": "the teacher starts where the student stood",
        "teacher": "eight guided steps, two witnesses",
        "rewards": "motion alone is read: nothing needs drawing",
        "groups": "a rollout is learned from often",
        "group_size": "the same",
        "updates": "the same",
        "epochs": "the same",
        "frames": "six seconds, so that the past is the student's own",
        "learning_rate": "regression bears more than a ratio",
        "ema": "a long average",
        "iterations": "students catch up within a few, reports/2026-11-30-few-steps.md",
    },
)
