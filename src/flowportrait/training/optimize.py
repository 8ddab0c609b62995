"""The training loop of small networks, and the base class of the lip-sync experts.

    θ ← AdamW(θ, lr(t), ∇L_t),   ‖∇L_t‖ ≤ 1,   skipped where ∇L_t is not finite

``GuardedStep`` is the optimiser step that every supervised training takes; ``minimize`` is a whole training of a small
model with it. ``JointEmbedding`` is the base class of both lip-sync experts, that of the reward and that of the
evaluation: these share the class, but neither networks nor inputs.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from flowportrait.errors import BadInput
from flowportrait.terminal import StopRequest, log

ProgressReport = Callable[[int, float, float], None]
"""A callback that gets the step, its loss and the remaining seconds, every ``REPORT_EVERY`` steps."""
REPORT_EVERY = 50
WARMUP_SHARE, MAX_GRADIENT_NORM = 0.1, 1.0
"""Share of the steps in which the learning rate rises, and the norm that gradients are clipped to."""
MAX_SKIPPED_STEPS = 20
"""Steps in a row without a finite gradient after which a training is stopped."""


class GuardedStep:
    """An optimiser step with the gradient clipped to the norm ``max_norm``, which skips gradients that are not finite.

    Gradients are already averaged over all processes, so that every process takes the same decision.
    """

    def __init__(
        self, parameters: Iterable[nn.Parameter], optimizer: torch.optim.Optimizer, max_norm: float = MAX_GRADIENT_NORM
    ) -> None:
        self.parameters, self.optimizer, self.max_norm = list(parameters), optimizer, max_norm
        self.skipped = 0
        """Steps skipped in a row."""

    def __call__(self, step: int) -> bool:
        """Take the optimiser step, unless the gradient is not finite.

        Args:
            step: number of the step in messages.

        Returns:
            Whether the step was taken.

        Raises:
            BadInput: the gradient was not finite ``MAX_SKIPPED_STEPS`` times in a row.
        """
        norm = nn.utils.clip_grad_norm_(self.parameters, self.max_norm)
        if math.isfinite(float(norm.full_tensor() if isinstance(norm, DTensor) else norm)):
            self.skipped = 0
            self.optimizer.step()
            return True
        self.skipped += 1
        if self.skipped == MAX_SKIPPED_STEPS:
            raise BadInput(
                f"The gradient was not finite in {MAX_SKIPPED_STEPS} steps in a row, up to step {step}: lower the "
                "learning rate, train in fp32, or look for damaged clips; the last state saved is kept."
            )
        log(f"Warning: step {step} was left out: its gradient is not finite.")
        return False


def report_nothing(step: int, loss: float, left: float) -> None:
    """Report nothing."""


def minimize(
    parameters: Iterable[nn.Parameter],
    loss: Callable[[int], torch.Tensor],
    steps: int,
    learning_rate: float,
    weight_decay: float,
    report: ProgressReport = report_nothing,
) -> None:
    """Minimise ``loss(step)`` with AdamW over the parameters that require gradients.

    The learning rate rises over the first tenth of the steps and then falls to almost zero (``OneCycleLR``).

    Raises:
        BadInput: the gradient stays non-finite.
        KeyboardInterrupt: the user asked to stop; raised after the current step.
    """
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    optimiser = torch.optim.AdamW(trained, learning_rate, weight_decay=weight_decay)
    guarded_step = GuardedStep(trained, optimiser)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, learning_rate, total_steps=steps + 1, pct_start=WARMUP_SHARE
    )
    started = time.monotonic()
    with StopRequest() as stop:
        for step in range(steps):
            step_loss = loss(step)
            optimiser.zero_grad()
            step_loss.backward()
            steps_done = step + 1
            guarded_step(steps_done)
            schedule.step()
            if steps_done % REPORT_EVERY == 0:
                report(
                    steps_done,
                    float(step_loss.detach()),
                    (time.monotonic() - started) / steps_done * (steps - steps_done),
                )
            if stop.requested:
                break
    stop.raise_pending_signal()
