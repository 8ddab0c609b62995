"""From a judge's scores to human ones: a monotone map per aspect, learned where both are known.

    map = argmin_{m non-decreasing} Σ (m(judge_i) − human_i)²          (isotonic regression, scipy)

A map never changes an order, only ties and distances; outside the scores it was learned on it stays level.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import isotonic_regression

from flowportrait.errors import BadInput
from flowportrait.judge.rubric import ASPECTS, HIGHEST, LOWEST, Aspect
from flowportrait.written import write_json

FEWEST = 8
"""Clips with both scores below which nothing is learned."""


@dataclass(frozen=True)
class Calibration:
    """knots: per aspect (judge's score, human score), both rising; judge: whose scores they are for."""

    judge: str
    knots: dict[str, list[tuple[float, float]]]

    def apply(self, aspect: Aspect, score: float) -> float:
        """The human score that belongs to ``score``; an aspect that was not learned stays as it is."""
        knots = self.knots.get(aspect)
        if not knots:
            return score
        x, y = zip(*knots, strict=True)
        return float(np.clip(np.interp(score, x, y), LOWEST, HIGHEST))

    @property
    def digest(self) -> str:
        """Changes with the map."""
        return hashlib.sha256(json.dumps([self.judge, self.knots], sort_keys=True).encode()).hexdigest()[:12]

    def to_dict(self) -> dict[str, Any]:
        """As stored."""
        return {"judge": self.judge, "knots": self.knots}

    def save(self, path: Path, report: dict[str, Any]) -> None:
        """Write with the report it comes from."""
        write_json(path, {**self.to_dict(), "report": report})

    @classmethod
    def load(cls, path: Path) -> Calibration:
        """Read what ``save`` wrote.

        Raises:
            BadInput: missing, not a calibration, or not monotone.
        """
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            knots = {str(a): [(float(x), float(y)) for x, y in k] for a, k in data["knots"].items()}
            found = cls(str(data["judge"]), knots)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise BadInput(f"{path} is no calibration ({error}): make one with judge calibrate.") from error
        for aspect, points in found.knots.items():
            x, y = np.array(points).T
            if aspect not in ASPECTS or (np.diff(x) <= 0).any() or (np.diff(y) < 0).any():
                raise BadInput(f"{path} is no calibration: {aspect} is unknown or its map does not rise.")
        return found


def learn(judge: Sequence[float] | np.ndarray, human: Sequence[float] | np.ndarray) -> list[tuple[float, float]]:
    """Knots of the monotone map from ``judge`` to ``human`` scores, ``[N]`` each. Equal judge scores share a knot.

    Raises:
        BadInput: fewer than ``FEWEST`` pairs.
    """
    if len(judge) < FEWEST:
        raise BadInput(f"{len(judge)} clips have both scores: calibrating takes at least {FEWEST}.")
    x, place = np.unique(np.asarray(judge, float), return_inverse=True)
    count = np.bincount(place).astype(float)
    mean = np.bincount(place, np.asarray(human, float)) / count
    fitted = isotonic_regression(mean, weights=count)
    # Of a level stretch only its ends are needed; between stretches the map is drawn straight.
    keep = [0, *[i for i in range(1, len(x) - 1) if not fitted.x[i - 1] == fitted.x[i] == fitted.x[i + 1]]]
    keep += [len(x) - 1] if len(x) > 1 else []
    return [(float(x[i]), float(fitted.x[i])) for i in keep]
