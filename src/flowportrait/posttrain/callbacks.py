"""Code of one's own that runs while a run trains.

class Patience(Callback):
    def on_evaluate(self, metrics):
        if metrics["evaluation/sync"] < 0.1:
            self.stop("lip sync is gone")

PostTrainer(..., callbacks=[Patience()])
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from flowportrait.posttrain.trainer import Trainer


class Callback:
    """Override what you need; every method does nothing here.

    Of several processes the main one calls them. What a callback raises ends the run; the last saved state is kept.
    """

    stop_reason: str | None = None
    """Why the run should end after this iteration, set by ``stop``."""

    def stop(self, reason: str) -> None:
        """Ask the run to end after this iteration; it is saved first and can be resumed."""
        self.stop_reason = reason

    def on_train_begin(self, trainer: Trainer) -> None:
        """Before the first iteration; ``trainer`` has ``recipe``, ``policy`` and ``iteration``."""

    def on_step_end(self, metrics: Mapping[str, float]) -> None:
        """After every iteration, with its line of ``metrics.jsonl``."""

    def on_evaluate(self, metrics: Mapping[str, float]) -> None:
        """After every evaluation on held-out prompts, with its ``evaluation/…``."""

    def on_save(self, folder: Path) -> None:
        """After a state was written; ``folder`` is the run's, with ``checkpoint`` in it."""

    def on_train_end(self, reason: str) -> None:
        """After the last iteration; ``reason`` says why a run ended early, and is empty where it did not."""
