"""Fréchet distance between two sets of vectors, each taken for a normal distribution.

d² = ‖μ₁ − μ₂‖² + tr( Σ₁ + Σ₂ − 2 (Σ₁ Σ₂)^½ )                 (Heusel et al. 2017)
"""

from __future__ import annotations

import numpy as np

SHRINK = 1e-3
"""Share of the mean variance added to the diagonal, so that few clips do not make a singular covariance."""


def frechet(one: np.ndarray, other: np.ndarray) -> float:
    """d² between ``[N, D]`` and ``[M, D]``; both need at least two rows."""
    gap = one.mean(0) - other.mean(0)
    first, second = _covariance(one), _covariance(other)
    # tr (Σ₁ Σ₂)^½ is the sum of square roots of the eigenvalues of the symmetric Σ₁^½ Σ₂ Σ₁^½.
    values, vectors = np.linalg.eigh(first)
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    cross = np.sqrt(np.linalg.eigvalsh(root @ second @ root).clip(0)).sum()
    return float(max(0.0, gap @ gap + np.trace(first) + np.trace(second) - 2 * cross))


def _covariance(rows: np.ndarray) -> np.ndarray:
    found = np.atleast_2d(np.cov(rows.astype(np.float64), rowvar=False))
    return found + SHRINK * np.trace(found) / len(found) * np.eye(len(found))
