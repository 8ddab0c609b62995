"""How the small models learn: AdamW on a learning rate that rises over a tenth of the steps and falls to nothing.

    θ ← AdamW(θ, lr(t), ∇L_t),   ‖∇L_t‖ ≤ 1
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

import torch
from torch import nn

from flowportrait.interrupt import StopRequest

Report = Callable[[int, float, float], None]
"""Told the step, its loss and the seconds left, every ``EVERY`` steps."""
EVERY = 50
RISE, LONGEST = 0.1, 1.0


def silent(step: int, loss: float, left: float) -> None:
    """A report to nobody."""


def descend(
    parameters: Iterable[nn.Parameter],
    loss: Callable[[int], torch.Tensor],
    steps: int,
    learning_rate: float,
    weight_decay: float,
    report: Report = silent,
) -> None:
    """Take ``steps`` steps down ``loss(step)`` with those parameters that want gradients.

    Raises:
        KeyboardInterrupt: asked to stop, after the step under way.
    """
    learned = [parameter for parameter in parameters if parameter.requires_grad]
    optimiser = torch.optim.AdamW(learned, learning_rate, weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, learning_rate, total_steps=steps + 1, pct_start=RISE)
    began = time.monotonic()
    with StopRequest() as stop:
        for step in range(steps):
            now = loss(step)
            optimiser.zero_grad()
            now.backward()
            nn.utils.clip_grad_norm_(learned, LONGEST)
            optimiser.step()
            schedule.step()
            done = step + 1
            if done % EVERY == 0:
                report(done, float(now.detach()), (time.monotonic() - began) / done * (steps - done))
            if stop.asked:
                break
    stop.obey()
