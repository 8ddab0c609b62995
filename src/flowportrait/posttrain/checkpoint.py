"""A run's state as one file: written whole or not at all, and refused if it belongs to another recipe."""

from __future__ import annotations

import json
import os
from pathlib import Path

import torch

from flowportrait.config import to_dict
from flowportrait.posttrain.adapter import merged
from flowportrait.posttrain.trainer import Trainer


def write(trainer: Trainer, path: Path) -> None:
    """Everything a resumed run needs."""
    partial = path.with_suffix(".partial")
    torch.save({**trainer.state_dict(), "recipe": json.dumps(to_dict(trainer.recipe))}, partial)
    os.replace(partial, path)


def read(trainer: Trainer, path: Path) -> None:
    """Continue from ``write``."""
    trainer.load_state_dict(torch.load(path, weights_only=True))


def deliver(trainer: Trainer, folder: Path, role: str = "ema") -> None:
    """The averaged weights as a checkpoint to use, adapters merged."""
    with trainer.roles.use(role):
        merged(trainer.roles.policy).save_pretrained(folder)  # type: ignore[operator]
