"""How small networks are trained, and the embedding that both sync experts are.

The step that every supervised training takes, and how the small models learn: AdamW on a learning rate that rises
over a tenth of the steps and falls to nothing.

    θ ← AdamW(θ, lr(t), ∇L_t),   ‖∇L_t‖ ≤ 1,   left out where ∇L_t is not finite

What both sync experts are, whatever they look at: lips and sound embedded into one space.

    score[t] = cos( embed_face(lips)[t], embed_audio(mel)[t] )

The reward's and the evaluation's expert know nothing of each other; they share this, and neither networks nor input.
"""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Self

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from flowportrait.devices import Device, place, read_weights
from flowportrait.errors import BadInput
from flowportrait.files import write_weights
from flowportrait.terminal import StopRequest
from flowportrait.terminal import say as log

Report = Callable[[int, float, float], None]
"""Told the step, its loss and the seconds left, every ``EVERY`` steps."""
EVERY = 50
RISE, LONGEST = 0.1, 1.0
GIVE_UP = 20
"""Steps in a row without a finite gradient after which a training is ended."""


class GuardedStep:
    """An optimiser's step with the gradient clipped to ``longest``; one that is not finite changes nothing.

    Gradients are those of all processes together, so that all of them decide alike.
    """

    def __init__(
        self, parameters: Iterable[nn.Parameter], optimizer: torch.optim.Optimizer, longest: float = LONGEST
    ) -> None:
        self.parameters, self.optimizer, self.longest = list(parameters), optimizer, longest
        self.left_out = 0
        """Steps in a row."""

    def __call__(self, step: int) -> bool:
        """Take the step, named by its number in messages; returns whether it was taken.

        Raises:
            BadInput: the gradient was not finite ``GIVE_UP`` times in a row.
        """
        norm = nn.utils.clip_grad_norm_(self.parameters, self.longest)
        if math.isfinite(float(norm.full_tensor() if isinstance(norm, DTensor) else norm)):
            self.left_out = 0
            self.optimizer.step()
            return True
        self.left_out += 1
        if self.left_out == GIVE_UP:
            raise BadInput(
                f"The gradient was not finite in {GIVE_UP} steps in a row, up to step {step}: lower the learning rate, "
                "train in fp32, or look for damaged clips; the last state saved is kept."
            )
        log(f"Warning: step {step} was left out: its gradient is not finite.")
        return False


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
        BadInput: the gradient stays infinite.
        KeyboardInterrupt: asked to stop, after the step under way.
    """
    learned = [parameter for parameter in parameters if parameter.requires_grad]
    optimiser = torch.optim.AdamW(learned, learning_rate, weight_decay=weight_decay)
    guarded = GuardedStep(learned, optimiser)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, learning_rate, total_steps=steps + 1, pct_start=RISE)
    began = time.monotonic()
    with StopRequest() as stop:
        for step in range(steps):
            now = loss(step)
            optimiser.zero_grad()
            now.backward()
            done = step + 1
            guarded(done)
            schedule.step()
            if done % EVERY == 0:
                report(done, float(now.detach()), (time.monotonic() - began) / done * (steps - done))
            if stop.asked:
                break
    stop.obey()


class JointEmbedding(nn.Module, ABC):
    """Unit vectors ``[B, T − WINDOW + 1, DIM]`` of lips seen for ``WINDOW`` frames, and of the sound meanwhile."""

    WINDOW: int
    DIM: int
    log_scale: nn.Parameter
    """ln of how sharply training tells pairs apart."""

    @abstractmethod
    def embed_face(self, lips: torch.Tensor) -> torch.Tensor:
        """Of lips ``[B, T, …]``."""

    @abstractmethod
    def embed_audio(self, mel: torch.Tensor) -> torch.Tensor:
        """Of log-mel ``[B, 4T, 80]``; each window hears exactly its own ``4 · WINDOW`` columns."""

    def score(self, lips: torch.Tensor, mel: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosine per window ``[B, T − WINDOW + 1]``, the t-th centred on frame t + WINDOW // 2, and its mean per clip
        ``[B]``."""
        cosine = (self.embed_face(lips) * self.embed_audio(mel)).sum(-1)
        return cosine, cosine.mean(-1)

    def save(self, path: Path) -> None:
        """Write float16 safetensors, whole or not at all."""
        write_weights(path, self.state_dict())

    @classmethod
    def read(cls, path: Path, device: Device | None = None, dtype: torch.dtype | None = None) -> Self:
        """Load an expert written by ``save``, ready to score (no dropout, weights frozen)."""
        expert = cls()
        expert.load_state_dict(read_weights(path))
        return place(expert.eval().requires_grad_(False), device, dtype)
