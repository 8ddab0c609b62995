"""The same numbers again: what torch needs for one."""

from __future__ import annotations

import torch


def repeatable() -> None:
    """Without this a convolution's gradient on a CPU depends on where memory happens to lie, in the last bit."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.mkldnn.set_flags(_deterministic=True)
