"""Lip contact: where upper and lower inner lip meet, and closed means closed.

Tracked landmarks keep a small gap between closed lips. Gaps below ``CONTACT`` are therefore shut exactly, and
larger ones lose that much, so that opening stays continuous:  gap' = max(0, gap − CONTACT).
"""

from __future__ import annotations

import torch

UPPER_INNER = [191, 80, 81, 82, 13, 312, 311, 310, 415]
LOWER_INNER = [95, 88, 178, 87, 14, 317, 402, 318, 324]
"""Inner-lip points facing each other, from the right corner to the left one."""

CONTACT = 0.01
"""Gap of closed lips in MediaPipe landmarks, in outer-eye-corner distances; on footage the tenth percentile is
0.006 and the twenty-fifth 0.023."""


def gap(shape: torch.Tensor) -> torch.Tensor:
    """Opening of each inner-lip pair ``[..., 9]`` in canonical units from pose-free faces ``[..., 478, 3]``."""
    return shape[..., LOWER_INNER, 1] - shape[..., UPPER_INNER, 1]


def close(shape: torch.Tensor) -> torch.Tensor:
    """The same face ``[..., 478, 3]`` with each inner-lip pair CONTACT apart around its middle, as tracked
    closed lips are."""
    return _set_gap(shape, torch.full_like(gap(shape), CONTACT))


def contact(shape: torch.Tensor) -> torch.Tensor:
    """The same face with the tracker's gap taken off every opening; lips never cross."""
    return _set_gap(shape, (gap(shape) - CONTACT).clamp_min(0.0))


def _set_gap(shape: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    result = shape.clone()
    excess = ((gap(shape) - wanted) / 2)[..., None] * torch.tensor([0.0, 1.0, 0.0])
    result[..., UPPER_INNER, :] += excess
    result[..., LOWER_INNER, :] -= excess
    return result
