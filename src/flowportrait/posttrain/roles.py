"""The weights a run keeps: ``live`` is trained, ``ref`` never moves, ``ema`` follows slowly and is what ships."""

from __future__ import annotations

import copy
from typing import Any

import torch

from flowportrait.generator.arflow import ARFlow


class Roles:
    """Three copies of one policy."""

    def __init__(self, policy: ARFlow, decay: float) -> None:
        self.live = policy.train()
        self.ref = copy.deepcopy(policy).requires_grad_(False).eval()
        self.ema = copy.deepcopy(policy).requires_grad_(False).eval()
        self.decay = decay

    @torch.no_grad()
    def after_update(self, updates: int) -> None:
        """Move ``ema`` towards ``live``; early on it follows faster, so that it forgets the start."""
        decay = min(self.decay, (1 + updates) / (10 + updates))
        for mean, value in zip(self.ema.parameters(), self.live.parameters(), strict=True):
            mean.lerp_(value, 1 - decay)

    def state_dict(self) -> dict[str, Any]:
        """Weights of all roles."""
        return {name: getattr(self, name).state_dict() for name in ("live", "ref", "ema")}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of ``state_dict``."""
        for name, weights in state.items():
            getattr(self, name).load_state_dict(weights)
