"""``flowportrait animate --guide``, ``--best-of``: a reward's say in a performance."""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from flowportrait.errors import BadInput
from flowportrait.steered import DIMENSIONS, HEAVIEST, steering_by
from flowportrait.terminal import progress, say

if TYPE_CHECKING:
    import numpy as np
    import torch

    from flowportrait.animator import Animator
    from flowportrait.best_of import Take
    from flowportrait.codec.controls import Controls
    from flowportrait.generator.arflow import ARFlow
    from flowportrait.generator.steering import Steering
    from flowportrait.media.portrait import Portrait

MOST_TAKES = 64
ALIASES = {"reward": "preference", "expression": "preference_expression", "motion": "preference_motion"}
"""Short names of ``--by`` and the rewards that they stand for."""


def add_reward_options(add: argparse.ArgumentParser) -> None:
    """What rewards may do while a performance is made."""
    group = add.add_argument_group("rewards (photos only)")
    group.add_argument("--guide", metavar="sync=W,…",
                       help="bend every chunk: sync moves the mouth (W up to 10), motion the head (up to 3), "
                       "expression brows and lids a little (up to 3)")  # fmt: skip
    group.add_argument("--best-of", type=int, default=1, metavar="N", help="make N performances and keep the best")
    group.add_argument("--by", metavar="REWARD", help="with --best-of: reward (default), sync, expression, motion, …")
    group.add_argument(
        "--prune", action="store_true", help="with --best-of: choose chunk by chunk, cheaper and with --stream as well"
    )


def check_reward_options(options: argparse.Namespace) -> None:
    """That they go together.

    Raises:
        BadInput: they do not, or a name or number is wrong.
    """
    if not 1 <= options.best_of <= MOST_TAKES:
        raise BadInput(f"--best-of {options.best_of} is not possible: give a number from 1 to {MOST_TAKES}.")
    if options.best_of == 1 and (options.by is not None or options.prune):
        raise BadInput("--by and --prune say how to choose: give --best-of N with N of 2 or more.")
    if options.stream and options.best_of > 1 and not options.prune:
        raise BadInput("--stream cannot wait for whole performances: add --prune to choose chunk by chunk.")
    if options.prune and (options.by or "reward") not in ("reward", *DIMENSIONS):
        raise BadInput(f"--prune looks at single chunks: --by must be reward, {', '.join(DIMENSIONS)}.")
    flag = "--guide" if parse_weights(options.guide) else "--best-of" if options.best_of > 1 else None
    for name in ("video", "speaker", "motion_in"):
        if flag and getattr(options, name):
            raise BadInput(f"{flag} goes with --image and a new performance: leave out --{name.replace('_', '-')}.")


def parse_weights(text: str | None) -> dict[str, float]:
    """``sync=1,motion=0.3`` as weights; none of them is named twice.

    Raises:
        BadInput: an unknown name, or a weight that is no number from 0 to 10.
    """
    weights: dict[str, float] = {}
    for part in text.split(",") if text else ():
        name, _, number = (piece.strip() for piece in part.partition("="))
        if name not in DIMENSIONS:
            raise BadInput(f"--guide knows no {name!r}: choose from {', '.join(DIMENSIONS)}, such as sync=1.")
        if name in weights:
            raise BadInput(f"--guide names {name} twice: give each weight once.")
        try:
            weight = float(number)
        except ValueError:
            weight = math.nan
        if not 0 <= weight <= HEAVIEST:
            raise BadInput(f"--guide {name}={number} is not possible: give a weight from 0 to {HEAVIEST:g}.")
        weights[name] = weight
    return weights


def steering_of(options: argparse.Namespace, generator: ARFlow) -> Steering | None:
    """What the options ask of every chunk, if anything.

    Raises:
        BadInput: the latent reward hears otherwise than this generator.
    """
    candidates = options.best_of if options.prune else 1
    return steering_by(generator, parse_weights(options.guide), candidates, options.by, options.checkpoint)


def comparison_of(chosen: Take, found: Sequence[Take], by: str) -> str:
    """How the chosen performance compares with the others, in a sentence: more is better for every reward."""
    scores = [take.score for take in found if math.isfinite(take.score)]
    if not scores:
        return f"Warning: none of {len(found)} performances could be measured by {by}; seed {chosen.seed} is used."
    unmeasured = len(found) - len(scores)
    return (
        f"Seed {chosen.seed} is the best of {len(found)} by {by}, where higher is better: {chosen.score:.3f}; "
        f"the worst has {min(scores):.3f}, the median is {statistics.median(scores):.3f}"
        + (f"; {unmeasured} could not be measured." if unmeasured else ".")
    )


def perform(
    options: argparse.Namespace,
    animator: Animator,
    audio: np.ndarray,
    controls: Controls,
    portrait: Portrait | None = None,
) -> Iterator[torch.Tensor]:
    """Chunks of the performance, or the whole of the best one, spoken by this portrait.

    Raises:
        BadInput: no such reward, or one that cannot choose among performances.
    """
    steering = steering_of(options, animator.generator)

    def motion(seed: int) -> Iterator[torch.Tensor]:
        return animator.motion(audio, seed=seed, controls=controls, steering=steering, portrait=portrait)

    if options.best_of == 1 or options.prune:
        return motion(options.seed)
    import torch

    from flowportrait.best_of import best, takes
    from flowportrait.reward.registry import build

    by = options.by or "reward"
    seeds = progress(range(options.seed, options.seed + options.best_of), options.best_of, "performing")

    def take(seed: int) -> torch.Tensor:
        return torch.cat(list(motion(seed)))

    with torch.no_grad():
        found = takes(take, seeds, audio, build(ALIASES.get(by, by)))
    chosen = best(found)
    say(comparison_of(chosen, found, by))
    return iter([chosen.motion])
