"""Thurstone's law of comparative judgement with ties: what two uncertain scores say about a preference.

    d = mean_A − mean_B,   s² = v_A + v_B
    P(A) = Φ((d − τ)/s)     P(B) = Φ((−d − τ)/s)     P(tie) = 1 − P(A) − P(B)

Thurstone 1927; ties after Glenn & David 1960. τ is where two equal scores of unit s tie as often as under Bradley–Terry
with k = 5 (``pair_loss``): in two of three cases.
"""

from __future__ import annotations

import torch

MARGIN = 0.9674
"""τ, from Φ(−τ) = 1/6."""


def log_chances(difference: torch.Tensor, variance: torch.Tensor, margin: torch.Tensor | float) -> torch.Tensor:
    """ln P of A, tie, B ``[…, 3]`` for d, s² and τ ``[…]``."""
    spread = variance.sqrt()
    apart = difference.abs()
    win = torch.special.log_ndtr((difference - margin) / spread)
    loss = torch.special.log_ndtr((-difference - margin) / spread)
    # Φ(u) − Φ(l) on the side where both are small enough to be exact.
    upper = torch.special.log_ndtr((margin - apart) / spread)
    lower = torch.special.log_ndtr((-margin - apart) / spread)
    tie = upper + torch.log1p(-(lower - upper).clamp_max(-1e-6).exp())
    return torch.stack([win, tie, loss], -1)
