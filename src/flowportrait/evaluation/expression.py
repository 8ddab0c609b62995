"""ECS: do facial actions move as real faces move?

    score = 1 − W₁(video, real) / IQR(real)        (not below −1)

per action group (mouth, cheeks, eyes, brows), mean of (a) amplitude and speed together: four projections of their joint
distribution (sliced Wasserstein), and (b) autocorrelation at 0.2–0.6 s, and at 1 and 2 s where the video is long
enough. All over windows of 1.2 s.

``ecs`` of one clip is compared with footage of many speakers; as one person is not everybody, even real clips stay well
below 1. ``pooled_ecs`` takes all clips of a system together and holds them against the real clips of the same prompts
(or the shipped footage): there real footage split in half reaches the ceiling, noise with the same marginals does not.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache
from importlib.resources import files
from typing import Any

import numpy as np

from flowportrait.evaluation.signals import GROUPS

WINDOW, HOP = 30, 15
SHORT_LAGS, LONG_LAGS = (5, 10, 15), (25, 50)
LONG_WINDOW = 75
QUANTILES = np.linspace(0.005, 0.995, 100)
Samples = dict[str, np.ndarray]
Reference = dict[str, dict[str, list[float]]]


def dynamics_samples(signals: np.ndarray) -> Samples:
    """Samples of one group's signals ``[T, n]``: log amplitude × log speed projections and autocorrelations."""
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


def reference_quantiles(samples: Sequence[Samples]) -> dict[str, list[float]]:
    """The reference of one group: pooled quantiles per feature."""
    names = sorted({name for sample in samples for name in sample})
    return {
        name: [
            round(float(q), 5) for q in np.quantile(np.concatenate([s[name] for s in samples if name in s]), QUANTILES)
        ]
        for name in names
    }


@lru_cache(maxsize=1)
def reference_file() -> dict[str, Any]:
    """What ``flowportrait.evaluation.fit_reference`` measured on the footage of training speakers."""
    source = files("flowportrait") / "weights" / "sync_eval" / "expression_reference.json"
    return json.loads(source.read_text(encoding="utf-8"))


def shipped_quantiles(network: str) -> Reference:
    """Quantiles per group and feature of real footage as the face network (``dlib68`` or ``mediapipe``) sees it."""
    return reference_file()["groups"][network]


def ecs(groups: dict[str, np.ndarray], reference: Reference) -> dict[str, float] | None:
    """Score per action group and their mean (``all``) of signals ``[T, n]``; ``None`` below 1.2 s."""
    return dynamics_score({group: dynamics_samples(groups[group]) for group in GROUPS}, reference)


def pooled_ecs(clips: Sequence[dict[str, Samples]], reference: Reference) -> dict[str, float] | None:
    """The same for the samples of all clips together."""
    pooled = {
        group: {
            name: np.concatenate([clip[group][name] for clip in clips if name in clip[group]])
            for name in sorted({name for clip in clips for name in clip[group]})
        }
        for group in GROUPS
    }
    return dynamics_score(pooled, reference)


def dynamics_score(samples: dict[str, Samples], reference: Reference) -> dict[str, float] | None:
    """1 − W₁ / IQR per action group, and the mean (``all``); ``None`` where there is nothing to compare."""
    scores: dict[str, float] = {}
    for group in GROUPS:
        parts: dict[str, list[float]] = {}
        for name, values in samples[group].items():
            if name not in reference[group]:
                continue
            real = np.array(reference[group][name])
            iqr = max(float(np.quantile(real, 0.75) - np.quantile(real, 0.25)), 1e-9)
            gap = np.abs(np.quantile(values, QUANTILES) - real).mean()
            parts.setdefault(name.split()[0], []).append(max(-1.0, 1 - gap / iqr))
        if not parts:
            return None
        scores[group] = float(np.mean([np.mean(values) for values in parts.values()]))
    return scores | {"all": float(np.mean([scores[group] for group in GROUPS]))}
