"""This module contains the recipes that distil into few steps by matching distributions with a critic."""

from __future__ import annotations

from dataclasses import replace

from flowportrait.rewards.registry import RewardWeights
from flowportrait.rl.config import PostTrainConfig
from flowportrait.rl.objectives.direct import RewardGradients
from flowportrait.rl.objectives.distribution import Critic, DistributionMatching, TransitionTrust
from flowportrait.rl.plan import OdePlan
from flowportrait.rl.recipes.card import Card
from flowportrait.rl.recipes.direct import DIRECT_CARD

DMD_CARD = Card(
    recipe=PostTrainConfig(
        "dmd",
        plan=OdePlan(steps=1, keep_path=True),
        objective=DistributionMatching(),
        critic=Critic(),
        rewards=RewardWeights(perceptual=0.0, temporal=0.0),
        groups=8,
        group_size=4,
        updates=1,
        learning_rate=1e-4,
        ema=0.95,
        iterations=50,
    ),
    source="DMD, 2311.18828; DMD2, 2405.14867; Self Forcing, 2506.08009",
    equation="""\
g = (mu_fake - mu_real) / mean |x0 - mu_real|   at (1 - t) x0 + t eps,   x0 = x_s - s v(x_s, s)
L = 1/2 |x0(v) - (x0 - g)|^2;   critic: |v_fake - (eps - x0)|^2, five steps for every one of the student
""",
    paper="Teacher and critic are compared at noised outputs of the student; the critic follows the student faster.",
    verified=(
        "Gradient, normaliser, levels and the critic's loss in the authors' code (DMD2, main/sd_guidance.py, 4e54501; "
        "Self Forcing, model/dmd.py and pipeline/self_forcing_training.py, of which a copy with additions was read)."
    ),
    reading=(
        "Student, critic and teacher see the student's own earlier chunks, and the divergence is a chunk's. The "
        "normaliser is a chunk's as well, the authors' a whole clip's. Every step of the student is trained to an "
        "output in every iteration; theirs is one that is drawn. Steps go on along the student's own straight line, "
        "since it is delivered with that solver, where theirs add new noise. Each gradient is the mean of four noise "
        "levels, with the wider noise for brows, eyes and head that the generator starts from. The target of an output "
        "stays fixed during an iteration. DMD2's adversarial loss is left out, since it needs real clips. Long speech "
        "is drawn in stretches of 72 frames, each from the last frame of the one before, so with frames=144 or "
        "more the student learns in rollouts longer than what the teacher was trained on. Rewards are logged and do "
        "nothing else."
    ),
    why={
        "plan.steps": "what the student is delivered with; one step is where distilling gains most",
        "plan.keep_path": "outputs are computed at the recorded steps",
        "critic": "five steps for one of the student, as in DMD2; the learning rate by trial",
        "rewards": "motion alone is read: nothing needs drawing",
        "groups": "many prompts",
        "group_size": "samples are not compared",
        "updates": "the gradient is of the outputs of the rollout",
        "learning_rate": "all weights are trained; the authors' 2e-6 is for networks a thousand times as large",
        "ema": "an average of about twenty updates",
        "iterations": "students catch up within these, reports/2026-12-01-distribution-matching.md",
    },
)

DMD_REWARD_CARD = Card(
    recipe=replace(
        DMD_CARD.recipe,
        name="dmd-reward",
        objective=DistributionMatching(temperature=0.5),
        group_size=8,
        groups=4,
    ),
    source="after Re-DMD of Reward Forcing, 2512.04678, and HP-DMD of Hallo-Live, 2604.23632",
    equation="""\
L = exp(A / beta) 1/2 |x0(v) - (x0 - g)|^2,   x0, g and the critic as in dmd
""",
    paper="The loss of distribution matching, weighted by the exponential of twice the reward: beta = 1/2.",
    verified=(
        "The weights exp(2 r) in descriptions of both; DMD as in dmd. With beta = infinity the step is dmd's, bit "
        "by bit; in a closed form, at little noise, the weights move the mean by (S^2 - s^2) / beta for a student of "
        "spread s that cannot reach the teacher's S, and not at all for one that can."
    ),
    reading=(
        "The reward is the advantage inside the group, at most five in size, so that rewards of any scale compare; the "
        "authors take raw scores of VideoAlign and of a sync network. The weight does not move the target: where the "
        "student can match the teacher, it ends at the teacher, and nothing is gained from rewards. In measurements "
        "a run and its random-reward control ended at the same rewards (reports/2026-12-01-distribution-matching.md); "
        "dmd-tilted moves the target. No weight is above 10."
    ),
    why={
        **DMD_CARD.why,
        "objective.temperature": "the authors', exp(2 r)",
        "groups": "as many samples as dmd",
        "group_size": "samples of a prompt are compared",
    },
)

DMD_TILTED_CARD = Card(
    recipe=replace(
        DMD_CARD.recipe,
        name="dmd-tilted",
        objective=DistributionMatching(tilt=0.1),
        stages=(RewardGradients(),),
        rollout_chunks=1,
        rewards=DIRECT_CARD.recipe.rewards,
    ),
    source="after the abstract of RTDMD, 2605.26108",
    equation="""\
L = 1/2 |x0(v) - (x0 - g + tilt G)|^2,   G = dR/dx0 of unit size;   x0, g and the critic as in dmd
""",
    paper=(
        "The divergence from a teacher that is tilted by its rewards is that from the teacher and a term that raises "
        "the rewards."
    ),
    verified=(
        "The abstract; DMD as in dmd. With tilt = 0 the step is dmd's, bit by bit; in a closed form the mean ends at "
        "M + tilt ((1 - t)^2 S^2 + t^2) / t^2."
    ),
    reading=(
        "For rewards of motion that are differentiable, as direct; the authors have a policy gradient as well. The "
        "gradient is taken at the finished sample, and every output moves along it. It has unit size over the batch, "
        "where the mean square of g is about 0.2. The teacher holds the student where direct has nothing but a small "
        "penalty: measured gains are small (reports/2026-12-01-distribution-matching.md)."
    ),
    why={
        **DMD_CARD.why,
        "objective.tilt": "a quarter of what teacher and critic pull",
        "stages": "the gradient of the rewards",
        "rollout_chunks": "a crowd is scored whole",
        "rewards": "direct's, which all have gradients",
    },
)

DMD_TRUST_CARD = Card(
    recipe=replace(DMD_CARD.recipe, name="dmd-trust", critic=Critic(trust=TransitionTrust()), frames=144, groups=4),
    source="after the description of Delta Forcing, 2605.14382",
    equation="""\
w = sigmoid(s (c - rho / mean rho)),   rho = mean |x0 - mu_real|;   g -> w g + (1 - w) x0,   x0 the change of motion
""",
    paper=(
        "A teacher is followed less where its transition differs much from the generator's, and continuity takes its "
        "place."
    ),
    verified=(
        "The abstract, and notes of the equations w = sigmoid(-(rho - mu) s) and w L_DMD + (1 - w) |f_k - f_(k-1)|^2. "
        "With c = infinity it is dmd to the bit, with c = 0 and s = infinity continuity alone."
    ),
    reading=(
        "The transition of a chunk is its latents, which are the change since the last frame in units of real motion. "
        "The authors measure the gap with DINO features of frames and have a fixed mu; here it is measured in latents "
        "at noised outputs, relative to the batch's mean. They train on prompts that change within a video; speech "
        "changes all the time. Where the teacher is excluded the face moves less."
    ),
    why={
        **DMD_CARD.why,
        "critic.trust": "most chunks follow the teacher; one at twice the mean distance does so at an eighth",
        "frames": "rollouts of two stretches, since drift is what it is against",
        "groups": "rollouts are twice as long",
    },
)
