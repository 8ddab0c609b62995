"""Checkpoints of the generator by name: shipped ones, folders, runs, and models on the Hub."""

from __future__ import annotations

from pathlib import Path

from flowportrait.errors import BadInput
from flowportrait.files import current_path, shipped_weights
from flowportrait.hub import is_hub_id, model_folder

SHIPPED_CHECKPOINTS = {
    "sft": "supervised flow matching on real footage",
    "rl": "the lips of sft; head, eyes and lids post-trained with nft-regions",
}
"""The checkpoints that come with the package, by name."""


def checkpoint_folder(name: str | Path) -> Path:
    """Return the folder of a checkpoint.

    Args:
        name: a shipped name (``rl``, ``sft``), the folder of a checkpoint, that of a run, which has a ``checkpoint`` in
            it, or a model on the Hub: ``org/name`` or ``org/name@revision``.

    Raises:
        BadInput: the name is neither of them, or the model cannot be downloaded.
    """
    if str(name) in SHIPPED_CHECKPOINTS:
        return shipped_weights(str(name))
    folder = current_path(Path(name))
    if not folder.exists():
        folder = model_folder(name)
    for candidate in (folder, folder / "checkpoint"):
        if (candidate / "model.safetensors").is_file():
            return candidate
    if is_hub_id(name):
        raise BadInput(f"The model {name} on the Hub is no checkpoint: it has no model.safetensors.")
    raise BadInput(
        f"No checkpoint named {name}: use {' or '.join(SHIPPED_CHECKPOINTS)}, or a folder with model.safetensors."
    )
