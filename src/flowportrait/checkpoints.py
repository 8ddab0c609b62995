"""Checkpoints by name: ``sft`` and ``rl`` ship with the package, anything else is a folder."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import torch

from flowportrait.devices import Device
from flowportrait.errors import BadInput
from flowportrait.generator.arflow import ARFlow

SHIPPED = {
    "sft": "supervised flow matching on real footage",
    "rl": "the lips of sft; head, eyes and lids post-trained with nft-regions",
}


def checkpoint_folder(name: str | Path) -> Path:
    """Where a checkpoint lies; a run folder stands for the ``checkpoint`` in it.

    Raises:
        BadInput: neither a shipped name nor a folder with a checkpoint.
    """
    if str(name) in SHIPPED:
        return Path(str(files("flowportrait") / "weights" / str(name)))
    folder = Path(name)
    for candidate in (folder, folder / "checkpoint"):
        if (candidate / "model.safetensors").is_file():
            return candidate
    raise BadInput(f"No checkpoint named {name}: use {' or '.join(SHIPPED)}, or a folder with model.safetensors.")


def load_generator(name: str | Path, device: Device | None = None, dtype: torch.dtype | None = None) -> ARFlow:
    """Load the generator of a checkpoint, in evaluation mode; see ``devices`` for device and dtype."""
    return ARFlow.from_pretrained(checkpoint_folder(name), device, dtype)
