"""Figures of a whole system, that no single clip has: pooled ECS, Fréchet distances, THEval.

Intervals by delete-a-group jackknife over clips (ten groups): resampling with repeats would shrink covariances and
move Fréchet distances. The real system itself is split in half, which gives each figure its ceiling.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from flowportrait.evaluate import theval
from flowportrait.evaluate.compare import REAL, Estimate
from flowportrait.evaluate.expression import pooled_ecs, quantiles, real_reference
from flowportrait.evaluate.frechet import frechet
from flowportrait.evaluate.measure import Findings
from flowportrait.evaluate.reference import real_means
from flowportrait.evaluate.signals import GROUPS

FOLDS = 10
FEWEST = 4
"""Clips on each side below which a distribution is not spoken of."""

Clips = Sequence[Findings]


def set_figures(systems: dict[str, dict[str, Findings]]) -> dict[str, dict[str, Estimate]]:
    """Estimates per system and figure. Without real clips in the run, ECS and THEval are held against the shipped
    figures of real footage, and Fréchet distances are left out."""
    real = list(systems.get(REAL, {}).values())
    found: dict[str, dict[str, Estimate]] = {}
    for name, clips in systems.items():
        own, truth = list(clips.values()), real
        if name == REAL:
            # Shuffled, because prompts often take portraits in turn and every other clip would be of the same ones.
            order = np.random.default_rng(0).permutation(len(own))
            own, truth = [own[i] for i in order[::2]], [own[i] for i in order[1::2]]
        found[name] = {}
        for key, figure in FIGURES.items():
            estimate = jackknife(own, truth, figure)
            if estimate is not None:
                found[name][key] = estimate
    return found


def jackknife(clips: Clips, truth: Clips, figure: Callable[[Clips, Clips], float | None]) -> Estimate | None:
    """The figure over all clips, ± 1.96 standard errors from leaving out a tenth of them at a time."""
    mean = figure(clips, truth)
    if mean is None:
        return None
    folds = min(FOLDS, len(clips))
    left = [figure([c for i, c in enumerate(clips) if i % folds != fold], truth) for fold in range(folds)]
    values = np.array([value for value in left if value is not None])
    if len(values) < 2:
        return Estimate(mean, None, None, len(clips))
    reach = 1.96 * float(np.sqrt((len(values) - 1) * values.var()))
    low = max(0.0, mean - reach) if figure in DISTANCES else mean - reach
    high = min(1.0, mean + reach) if figure in SCORES else mean + reach
    return Estimate(mean, low, high, len(clips))


def ecs_of_set(clips: Clips, truth: Clips) -> float | None:
    """Pooled ECS against the real clips, or the shipped footage."""
    network = clips[0].network if clips else ""
    own = [c.dynamics for c in clips if c.dynamics and c.network == network]
    real = [c.dynamics for c in truth if c.dynamics and c.network == network]
    if not own:
        return None
    held = {g: quantiles([c[g] for c in real]) for g in GROUPS} if len(real) >= FEWEST else real_reference(network)
    scores = pooled_ecs(own, held)
    return scores["all"] if scores else None


def _distance(rows: Callable[[Findings], np.ndarray]) -> Callable[[Clips, Clips], float | None]:
    def figure(clips: Clips, truth: Clips) -> float | None:
        own = [found for c in clips if len(found := rows(c))]
        real = [found for c in truth if len(found := rows(c))]
        if min(len(own), len(real)) < FEWEST:
            return None
        return frechet(np.concatenate(own), np.concatenate(real))

    return figure


def theval_of_set(clips: Clips, truth: Clips) -> float | None:
    """Total of the measures at hand; measures as means over clips."""
    truth_means = measure_means(truth) if len(truth) >= FEWEST else real_means("theval_")
    found = theval.total(measure_means(clips), truth_means)
    return found[0] if found else None


def measure_means(clips: Clips) -> dict[str, float]:
    """Mean over clips of each THEval measure."""
    found = {}
    for name in theval.MEASURES:
        values = [float(v) for c in clips if (v := c.row.get(f"theval_{name}")) is not None]
        if values:
            found[name] = float(np.mean(values))
    return found


FIGURES: dict[str, Callable[[Clips, Clips], float | None]] = {
    "ecs_pooled": ecs_of_set,
    "e_fid": _distance(lambda clip: clip.expression[::3]),
    "fid": _distance(lambda clip: clip.features.image),
    "fvd": _distance(lambda clip: clip.features.video),
    "theval": theval_of_set,
}
DISTANCES = {FIGURES[key] for key in ("e_fid", "fid", "fvd")}
SCORES = {ecs_of_set, theval_of_set}
"""Figures that cannot be above one."""
