"""Distillation to one or two steps."""

from __future__ import annotations

from flowportrait.posttrain.distil import Teacher
from flowportrait.posttrain.objective.distil import Distil
from flowportrait.posttrain.plan import NoNoise
from flowportrait.posttrain.recipe import Recipe
from flowportrait.posttrain.recipes.card import Card
from flowportrait.reward.composite import RewardWeights

CARD = Card(
    recipe=Recipe(
        "distil",
        plan=NoNoise(steps=2, keep_path=True),
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
        "iterations": "students catch up within a few, docs/few-steps.md",
    },
)
