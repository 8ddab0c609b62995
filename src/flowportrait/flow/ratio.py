"""How much likelier a new velocity makes a recorded transition, exactly and per element.

With x' = a·x + b·v_old + s·ε, Δv = v − v_old and k = b/s:

    log r = k·ε·Δv − ½·k²·Δv²

Computed from Δv and ε instead of as a difference of two log-probabilities, it is exactly 0 where Δv is 0.
"""

from __future__ import annotations

import torch


def log_ratio(gain: torch.Tensor, noise: torch.Tensor, delta_v: torch.Tensor) -> torch.Tensor:
    """Un-reduced log N(x'; v) − log N(x'; v_old) in float32; all arguments broadcast."""
    shift = gain.float() * delta_v.float()
    return shift * noise.float() - 0.5 * shift.square()


def gaussian_kl(gain: torch.Tensor, delta_v: torch.Tensor) -> torch.Tensor:
    """Un-reduced KL between the transitions of two velocities, ½k²Δv²."""
    return 0.5 * (gain.float() * delta_v.float()).square()
