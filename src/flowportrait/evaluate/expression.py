"""ECS: do facial actions move as real faces move? 1 is real; a still face, noise or a loop score lower.

    score = 1 − W₁(video, real) / IQR(real)        (not below −1)

per action group, mean over (a) amplitude and speed together, as four projections of their joint distribution
(sliced Wasserstein), and (b) autocorrelation at 0.2–0.6 s, and at 1 and 2 s where the video is long enough.
All over windows of 1.2 s. The real distributions are quantiles of training speakers' footage shipped with the
package. What real footage of other speakers reaches is the ceiling; it is under 1, because one person is not
everybody.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache
from importlib.resources import files

import numpy as np

from flowportrait.evaluate.signals import GROUPS

WINDOW, HOP = 30, 15
SHORT_LAGS, LONG_LAGS = (5, 10, 15), (25, 50)
LONG_WINDOW = 75
QUANTILES = np.linspace(0.005, 0.995, 100)

Samples = dict[str, np.ndarray]


def dynamics(signals: np.ndarray) -> Samples:
    """Samples of one group's signals ``[T, n]``: log amplitude × log speed projections and
    autocorrelations."""
    spread: list[np.ndarray] = []
    lags: dict[int, list[np.ndarray]] = {lag: [] for lag in (*SHORT_LAGS, *LONG_LAGS)}
    for start in range(0, len(signals) - WINDOW + 1, HOP):
        piece = signals[start : start + WINDOW]
        amplitude = np.linalg.norm(piece - np.median(piece, 0), axis=1)[1:]
        speed = np.linalg.norm(np.diff(piece, axis=0), axis=1)
        spread.append(np.log(np.stack([amplitude, speed], 1) + 1e-4))
        for lag in SHORT_LAGS:
            lags[lag].append(autocorrelation(piece, lag))
    for start in range(0, len(signals) - LONG_WINDOW + 1, HOP):
        for lag in LONG_LAGS:
            lags[lag].append(autocorrelation(signals[start : start + LONG_WINDOW], lag))
    samples: Samples = {}
    if spread:
        pairs = np.concatenate(spread)
        for angle in (0, 45, 90, 135):
            turn = np.radians(angle)
            samples[f"spread {angle}"] = pairs @ np.array([np.cos(turn), np.sin(turn)])
    return samples | {f"lag {lag}": np.concatenate(values) for lag, values in lags.items() if values}


def autocorrelation(piece: np.ndarray, lag: int) -> np.ndarray:
    """Normalised autocorrelation ``[n]`` of each column of ``[T, n]``; zero for a constant one."""
    centred = piece - piece.mean(0)
    power = (centred**2).mean(0)
    product = (centred[lag:] * centred[:-lag]).mean(0)
    return np.where(power > 1e-12, product / np.maximum(power, 1e-12), 0.0)


def quantiles(samples: Sequence[Samples]) -> dict[str, list[float]]:
    """The reference of one group: pooled quantiles per feature."""
    names = sorted({name for sample in samples for name in sample})
    return {
        name: [
            round(float(q), 5)
            for q in np.quantile(np.concatenate([s[name] for s in samples if name in s]), QUANTILES)
        ]
        for name in names
    }


@lru_cache(maxsize=1)
def real_reference() -> dict[str, dict[str, list[float]]]:
    """Quantiles per group and feature of the footage of training speakers
    (``flowportrait.evaluate.fit_reference``)."""
    source = files("flowportrait") / "weights" / "sync_eval" / "expression_reference.json"
    return json.loads(source.read_text())["groups"]


def ecs(
    groups: dict[str, np.ndarray], reference: dict[str, dict[str, list[float]]] | None = None
) -> dict[str, float] | None:
    """Score per action group and their mean (``all``) of signals ``[T, n]``; ``None`` below 1.2 s."""
    reference = reference or real_reference()
    scores: dict[str, float] = {}
    for group in GROUPS:
        found = dynamics(groups[group])
        if not found:
            return None
        parts: dict[str, list[float]] = {"spread": [], "lag": []}
        for name, values in found.items():
            real = np.array(reference[group][name])
            iqr = np.quantile(real, 0.75) - np.quantile(real, 0.25)
            gap = np.abs(np.quantile(values, QUANTILES) - real).mean()
            parts[name.split()[0]].append(max(-1.0, 1 - gap / iqr))
        scores[group] = float(np.mean([np.mean(values) for values in parts.values()]))
    return scores | {"all": float(np.mean([scores[group] for group in GROUPS]))}
