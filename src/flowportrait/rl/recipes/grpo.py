"""This module contains the recipes that learn from groups by a ratio of likelihoods: Flow-GRPO and its variants."""

from __future__ import annotations

from flowportrait.rl.allocation import Allocation
from flowportrait.rl.config import PostTrainConfig
from flowportrait.rl.credit import CreditConfig
from flowportrait.rl.objectives.ratio import ClippedRatio
from flowportrait.rl.plan import AllSteps, Branching, SingleStep, SlidingWindow
from flowportrait.rl.recipes.card import Card

FLOW_GRPO_CARD = Card(
    recipe=PostTrainConfig("flow-grpo"),
    source="Flow-GRPO, 2505.05470",
    equation="L = -mean min(r A, clip(r) A) + beta KL(v || v_ref),   r = exp sum log N(x'; v) / N(x'; v_old)",
    paper=(
        "Noise at every step but the last (Flow-SDE), advantages normalised inside the group, clipped ratio, "
        "KL to the start."
    ),
    verified="Kernel, log-probability, loss and settings in the authors' code.",
    reading=(
        "The ratio is that of a whole chunk's step (log-ratios summed, clip 0.2), where the paper takes the mean over "
        "latent numbers and clips at 1e-4; lip sync pays single chunks. Denoising reduction is moot at six steps. The "
        "first step has the authors' noise: g = eta sqrt(1/(1 - s2)) at s = 1, where s2 is the second level; version 1 "
        "had g = eta sqrt(s2/(1 - s2)), 0.913 of it at six even steps. The KL is that of the transition, divided by "
        "2 g^2 |dt|, where the authors' code divides by 2 g^2: at one weight it pulls 1/|dt| times as hard as theirs, "
        "6 times at six even steps and 6 to 28 times on their ten steps shifted by 3."
    ),
    why={
        "eta": "less than the authors' 0.7; what other values earn is in reports/2026-11-30-recipes.md",
        "plan.steps": "as many as are delivered",
        "frames": "2.9 s, FlowPortrait's clips being 2 to 3",
        "groups": "96 clips an iteration with 16 siblings each, for one machine; the authors make 48 groups of 24",
        "learning_rate": "all weights are trained: between DanceGRPO's 1e-5 for that and 3e-4 for adapters",
        "objective.clip_low": "PPO's own range, the ratio being a whole action's",
        "objective.kl_weight": (
            "ours; with the factor 1/|dt| = 6 it pulls like 0.12 of the authors', whose 0.01 to 0.04 is a twelfth to a "
            "third of that; 0.0017 to 0.0067 would be theirs"
        ),
    },
)

DANCE_GRPO_CARD = Card(
    recipe=PostTrainConfig(
        "dance-grpo",
        kernel="dance-sde",
        eta=0.3,
        same_start=True,
        train_on=12,
        plan=AllSteps(trained=3),
        objective=ClippedRatio(kl_weight=0.0),
    ),
    source="DanceGRPO, 2505.07818",
    equation="L = -mean min(r A, clip(r) A) on a random 60 % of the steps of the best and the worst samples",
    paper=(
        "Constant diffusion eta, one initial noise per group, no KL, advantages clipped at 5, 60 % of the "
        "steps, best and worst of a group."
    ),
    verified="All of it in the authors' code.",
    reading=(
        "Three of five stochastic steps, drawn per iteration; 12 of 16 samples (the paper keeps 8 of 24). With several "
        "rewards, their weighted sum is clipped at 5; the authors clip each reward's advantage at 5 and then add them."
    ),
    why={
        "kernel": "the paper's",
        "eta": "the paper's for pictures; it has 0.25 for video",
        "same_start": "the paper's",
        "train_on": "milder than the paper's 8 of 24, groups being smaller",
        "plan.trained": "60 % of the five noisy steps",
        "objective.kl_weight": "the paper has none",
    },
)

MIX_GRPO_CARD = Card(
    recipe=PostTrainConfig(
        "mix-grpo",
        eta=0.7,
        same_start=True,
        plan=SlidingWindow(width=2, dwell=10, second_order=True),
        objective=ClippedRatio(kl_weight=0.0),
    ),
    source="MixGRPO, 2507.21802",
    equation="as flow-grpo, noise and gradient only in a window of steps that slides from high to low noise",
    paper="A window of SDE steps moves progressively, the ODE runs outside it, gradients only inside.",
    verified="Window, strategies and gains in the paper and the authors' code; eta and width from memory.",
    reading=(
        "Two of six steps; the window moves every ten iterations and begins again at the top, so that short runs see "
        "all of it. Siblings share one start, as the authors' do. After the window runs a second-order multistep "
        "solver in the velocity (Adams-Bashforth), where MixGRPO-Flash has DPM-Solver++ in the clean sample and fewer "
        "steps; before it runs Euler. With the window at the last two steps that may be noisy, one step is left to it."
    ),
    why={
        "eta": "remembered of the paper: noise in two steps must do what noise in five does",
        "same_start": "the authors'",
        "plan.second_order": "MixGRPO-Flash's, but for the solver",
        "plan.width": "a third of the steps; the paper's four of 25 would be one",
        "objective.kl_weight": "none that we know of in the paper",
    },
)

FLASH_GRPO_CARD = Card(
    recipe=PostTrainConfig(
        "flash-grpo",
        eta=0.7,
        same_start=True,
        plan=SingleStep(first_steps=3),
        objective=ClippedRatio(step_weight="rectified", kl_weight=0.0),
    ),
    source="Flash-GRPO, 2605.15980",
    equation=(
        "as flow-grpo at one step per group, weighted by s/|b|: the gradient's scale no longer depends "
        "on the step drawn"
    ),
    paper=(
        "All samples of a prompt share one stochastic step from the first half; the gradient is rectified by 1/k(t)."
    ),
    verified="One step per group, its rectification and settings in the authors' code.",
    reading="Flow-SDE noise instead of the paper's linear schedule of s, so that kernels stay exchangeable.",
    why={
        "eta": "Flow-GRPO's: one noisy step must tell siblings apart",
        "same_start": "ours: siblings then differ by the one step's noise alone",
        "plan.first_steps": "the first half, as the paper's ten of twenty",
        "objective.step_weight": "the paper's 1/k",
        "objective.kl_weight": "the paper has none",
    },
)

LONGCAT_GRPO_CARD = Card(
    recipe=PostTrainConfig(
        "longcat-grpo",
        kernel="longcat-sde",
        eta=1.0,
        same_start=True,
        plan=SingleStep(first_steps=3, shared=True),
        credit=CreditConfig(std="largest"),
        objective=ClippedRatio(step_weight="level", kl_weight=3e-4, kl_space="v"),
    ),
    source="LongCat-Video, 2510.22200",
    equation="A = sum_k w_k (R_k - mean) / largest group std of R_k;   one early step, s <= 0.45, reweighted by 1/k",
    paper=(
        "Same start in a group, one early SDE step with s capped in the drift as well, largest-std "
        "normalisation per reward, reweighted policy loss."
    ),
    verified="All of it in the paper's section 3.3 and appendix A.1.",
    reading=(
        "Steps have the paper's weight sqrt(t/(|dt|(1 - t))), at most 6: it has no bound at t = 1, and is 5.5 and 3.5 "
        "at our second and third step. Up to a constant it is s/|b| while the cap of 0.45 on s does not bind; it binds "
        "in all three of our steps, where s/|b| (objective.step_weight=rectified, as in version 0.1) is 2.7, 2.4 and "
        "2.1. The paper reweights the KL too; without the cap that is 1.125 of a KL in velocity space, which we take; "
        "with it, 2.6 and 1.4 of one at the second and third step."
    ),
    why={
        "kernel": "the paper's",
        "eta": "the paper's",
        "same_start": "the paper's",
        "plan.shared": "the paper's",
        "plan.first_steps": "the first three of six; the paper has the first six of sixteen",
        "credit.std": "the paper's",
        "objective.step_weight": "the paper's, with a limit at t = 1",
        "objective.kl_weight": "the paper's",
        "objective.kl_space": "what the reweighted KL is, up to 1.125 without the cap and up to 2.6 with it",
    },
)

CPS_CARD = Card(
    recipe=PostTrainConfig("cps", kernel="cps", eta=0.5),
    source="Coefficients-Preserving Sampling, 2509.05952",
    equation="x' = (1-s') x0hat + sqrt(s'^2 - sd^2) epshat + sd eps,   sd = s' sin(eta pi / 2)",
    paper=(
        "Fresh noise replaces part of the predicted noise, so that rollouts carry no more noise than their level says."
    ),
    verified="The kernel and its log-probability in other authors' code; not the paper itself.",
    reading="Over the flow-grpo objective with exact log-ratios; the authors drop the variance from theirs.",
    why={
        "kernel": "the method",
        "eta": "0.9, which others take, contracts what is drawn more",
    },
)

BRANCH_GRPO_CARD = Card(
    recipe=PostTrainConfig(
        "branch-grpo", plan=Branching(forks=2, elsewhere="sde"), eta=0.7, allocation=Allocation(node_std="nodes")
    ),
    source="BranchGRPO, 2509.06040",
    equation="A[node] = (mean of its leaves - mean) / std, at every place of the tree",
    paper=("Rollouts share their past up to forks; leaf rewards flow upward as means and are normalised per depth."),
    verified="Splits, means of leaves and normalising per depth in the authors' code.",
    reading=(
        "Forks are denoising steps of chunks, two per rollout, four branches each. The std of a depth is taken over "
        "its nodes, each once, as the authors' (in version 0.1 over its leaves, allocation.node_std=leaves: 12 % "
        "larger advantages behind the first fork). Neither width nor depth is pruned: all leaves are trained on."
    ),
    why={
        "plan.forks": "sixteen leaves by two forks of four",
        "plan.elsewhere": "the method",
        "allocation.node_std": "the authors'",
        "eta": "siblings differ from a fork on only, so it should matter",
    },
)

TEMPFLOW_CARD = Card(
    recipe=PostTrainConfig(
        "tempflow",
        plan=Branching(forks=1, elsewhere="ode", per_group=True),
        eta=0.7,
        objective=ClippedRatio(step_weight="noise"),
    ),
    source="TempFlow-GRPO, 2508.04324",
    equation="the ODE everywhere but at one fork, which is credited with the difference that it made; weight s",
    paper=("One stochastic branch on a deterministic path, credit to that step, weights proportional to its noise."),
    verified=(
        "The authors' code (Shredded-Pork/TempFlow-GRPO, e66824e, scripts/train_sd3_pr.py and the sampler with one "
        "noisy step): branching, advantages per prompt and step, the weight 2.25 s. The paper's text was not read."
    ),
    reading=(
        "The authors fork one ODE path at each of its steps, six branches a step, and compare the branches of a prompt "
        "that fork at the same step. Here every group has one fork of its own, drawn anew: as many forks an iteration "
        "as groups, all branches of a group at one fork. Their weight is 2.25 s = 2.25 g |dt|^0.5; ours is s, so that "
        "the KL pulls 2.25 times as hard at one weight. The fork is a step of one chunk: later chunks share their "
        "initial noise, so that the difference is the fork's own. The paper credits it with the difference of the "
        "whole sample's reward; here a reward that knows when it was earned (lip sync) pays 70 % (credit.dense) for "
        "the fork's own chunk and the rest for the whole clip. "
        "credit.dense=0 is the paper's."
    ),
    why={
        "plan.per_group": "several forks an iteration, as in the paper",
        "eta": "one fork alone tells siblings apart; the authors'",
        "objective.step_weight": "the paper's s, for more is explored there",
    },
)
