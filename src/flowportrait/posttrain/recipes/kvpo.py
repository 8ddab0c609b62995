"""KVPO."""

from __future__ import annotations

from flowportrait.posttrain.explore import HistoryRouting
from flowportrait.posttrain.objective.kvpo import KVPO
from flowportrait.posttrain.plan import NoNoise
from flowportrait.posttrain.recipe import Recipe
from flowportrait.posttrain.recipes.card import Card

CARD = Card(
    recipe=Recipe(
        "kvpo",
        plan=NoNoise(keep_path=True),
        explore=HistoryRouting(),
        objective=KVPO(),
        same_start=True,
        group_size=8,
        groups=12,
    ),
    source="KVPO, 2605.14278",
    equation="""\
pi(branch) = softmax -E/tau,   E = mean |v(x | true past) - (x' - x)/dt|^2
L = -mean min(r A, clip(r) A) + beta KL(pi_ref || pi),   r = pi / pi_old
""",
    paper=(
        "Branches differ by which older entries of the history cache they see, from shared noise along the "
        "ODE; the replay sees the true cache; discrete KL."
    ),
    verified="Routing, energies, KL, anchor, clip and settings in the authors' code.",
    reading=(
        "The softmax is taken per chunk, so that dense credit reaches the chunk that explored. Energies are of "
        "velocities, a mean over steps and numbers, against the straight way of each step, over tau; the authors' "
        "are of clean samples, |x0 - x0hat|^2 / 2 s^2, summed over blocks and steps. Our KL is KL(pi_ref || pi), "
        "the authors' KL(pi || pi_ref). A branch is compared with the mean of its siblings and their std; the "
        "authors' anchor, a branch that did not explore, is missing: theirs is (r - r_anchor) over the std with the "
        "anchor among them. tau and the KL weight are set for 120-number latents."
    ),
    why={
        "plan.keep_path": "the way a branch went is what is learned",
        "explore": "the authors': four kept, five routed",
        "same_start": "the authors'",
        "group_size": "the authors' eight branches",
        "groups": "96 clips an iteration",
        "objective.clip_low": "the authors' 0.9 … 1.2",
    },
)
