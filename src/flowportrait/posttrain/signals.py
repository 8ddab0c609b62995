"""Where a run's learning signal comes from: each reward's share of the advantage, and how rewards go together."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations

import torch

_NOTHING = 1e-9


def describe(parts: Mapping[str, torch.Tensor]) -> dict[str, float]:
    """Of every reward's contribution ``[B, N]``: ``share/name`` of the mean magnitude; of every pair:
    ``correlation/a/b``, where both vary."""
    size = {name: float(part.abs().mean()) for name, part in parts.items()}
    total = sum(size.values())
    result = {f"share/{name}": value / total if total > _NOTHING else 0.0 for name, value in size.items()}
    for first, second in combinations(parts, 2):
        both = torch.stack([parts[first].flatten(), parts[second].flatten()]).double()
        if (both.std(1) > _NOTHING).all():
            result[f"correlation/{first}/{second}"] = float(torch.corrcoef(both)[0, 1])
    return result
