"""What real footage measures, and how well a measurement repeats: the constants behind the rewards.

    z = (measured − mean of real speakers) / their standard deviation

Kept beside the experts' weights, made by ``flowportrait.reward.measure_pictures`` on training speakers. Two domains,
because a drawn portrait is cleaner than a compressed broadcast: ``drawn`` by the small rendering of post-training, and
``filmed``.
"""

from __future__ import annotations

import json
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

import torch

FOLDER = Path(str(files("flowportrait") / "weights" / "reward"))


class Normal(NamedTuple):
    """Mean and standard deviation of one measurement over real clips."""

    mean: float
    std: float

    def z(self, value: torch.Tensor) -> torch.Tensor:
        """Deviations from what is usual."""
        return (value - self.mean) / self.std


@lru_cache(maxsize=1)
def normals() -> dict[str, Normal]:
    """Every measurement by ``name/domain``."""
    found = json.loads((FOLDER / "real.json").read_text(encoding="utf-8"))
    return {name: Normal(*values) for name, values in found.items()}


@lru_cache(maxsize=1)
def noises() -> dict[str, float]:
    """Standard deviation of each reward when the same clip is filmed, encoded and tracked again."""
    return json.loads((FOLDER / "noise.json").read_text(encoding="utf-8"))
