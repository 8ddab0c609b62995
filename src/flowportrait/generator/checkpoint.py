"""A generator on disk: ``config.json``, float16 ``model.safetensors``, and a model card.

frozen or LoRA over a pretrained backbone      only what was trained is written; the backbone is found by its name
adapters merged into the backbone              all of it is written, and the config says ``adapt: full``
"""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from flowportrait.devices import read_weights
from flowportrait.errors import BadInput
from flowportrait.generator import model_card
from flowportrait.generator.config import GeneratorConfig
from flowportrait.written import write_json, write_text, write_weights

if TYPE_CHECKING:
    from flowportrait.generator.arflow import ARFlow

CARD = "README.md"


def save(model: ARFlow, folder: Path) -> None:
    """Write a checkpoint; each file appears only when complete, and a card that is there already is kept."""
    folder.mkdir(parents=True, exist_ok=True)
    config = replace(model.config, adapt="full") if _merged(model) else model.config
    write_weights(folder / "model.safetensors", own_weights(model))
    write_json(folder / "config.json", asdict(config), indent=2)
    if not (folder / CARD).exists():
        write_text(folder / CARD, model_card.card(model))


def read_config(folder: Path) -> GeneratorConfig:
    """What a checkpoint is made of.

    Raises:
        BadInput: the folder holds no checkpoint, or one of another version.
    """
    if not (folder / "config.json").is_file() or not (folder / "model.safetensors").is_file():
        raise BadInput(f"No checkpoint in {folder}: it needs config.json and model.safetensors.")
    try:
        stored = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        today = dict(GeneratorConfig.earlier_keys)
        return GeneratorConfig(**{today.get(key, key): value for key, value in stored.items()})
    except (TypeError, ValueError, AttributeError) as error:
        raise _misfit(folder, error) from error


def fill(model: ARFlow, folder: Path) -> None:
    """Read a checkpoint's weights into ``model``, in float32.

    Raises:
        BadInput: they are of another shape, or some are missing.
    """
    try:
        missing, unknown = model.load_state_dict(read_weights(folder / "model.safetensors"), strict=False)
        own = own_weights(model)
        lost = [*unknown, *(name for name in missing if name in own)]
        if lost:
            raise ValueError(f"{len(lost)} weights differ, {lost[0]} among them")
    except (ValueError, RuntimeError) as error:
        raise _misfit(folder, error) from error


def own_weights(model: ARFlow) -> dict[str, torch.Tensor]:
    """What a checkpoint has to hold: all but the untrained parts of a pretrained backbone."""
    state = model.state_dict()
    if not model.config.backbone:
        return state
    inherited = ("vision.", "speech.") if model.config.front_end == "tower" else ("vision.",)
    if not _merged(model):
        inherited = ("backbone.", *inherited)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    return {name: value for name, value in state.items() if name in trained or not name.startswith(inherited)}


def _merged(model: ARFlow) -> bool:
    """Whether adapters that were trained now are part of the backbone's own weights."""
    adapted = bool(model.config.backbone) and model.config.adapt == "lora"
    return adapted and not any("lora_" in name for name, _ in model.backbone.named_parameters())


def _misfit(folder: Path, error: Exception) -> BadInput:
    return BadInput(f"The checkpoint in {folder} does not fit this version: {str(error).splitlines()[0]}")
