"""Adapters as diffusers reads them: ``pipeline.load_lora_weights(folder)``.

    networks.transformer.….to_q.lora_A.default.weight  ─►  transformer.….to_q.lora_A.weight

The file also says rank and alpha: without alpha, loaders take it to be the rank, and the adapter would act with another
strength than it was trained with.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

ADAPTER, PREFIX = "default", "transformer"
FILES = {
    "transformer": "pytorch_lora_weights.safetensors",
    "transformer_2": "pytorch_lora_weights_2.safetensors",
}
"""Where the adapters of a pipeline's networks are."""


def adapters_of(network: nn.Module) -> dict[str, torch.Tensor]:
    """Its adapters' weights by their names in diffusers; none without adapters."""
    return {
        name.replace(f".{ADAPTER}", ""): value.detach().cpu().contiguous()
        for name, value in network.state_dict().items()
        if ".lora_" in name
    }


def strength(network: nn.Module) -> dict[str, Any]:
    """Rank, alpha and layers of its adapters, as ``peft`` writes them."""
    from peft import LoraConfig
    from peft.tuners.lora import LoraLayer

    layers = {name: part for name, part in network.named_modules() if isinstance(part, LoraLayer)}
    first = next(iter(layers.values()))
    config = LoraConfig(r=first.r[ADAPTER], lora_alpha=first.lora_alpha[ADAPTER], target_modules=sorted(layers))
    return {key: sorted(value) if isinstance(value, set) else value for key, value in config.to_dict().items()}


def write_adapters(
    adapters: Mapping[str, Mapping[str, torch.Tensor]], networks: Mapping[str, nn.Module], folder: Path
) -> None:
    """One file per network; ``load_lora_weights`` finds the first by itself, the second one's network is said with
    ``weight_name=FILES["transformer_2"], load_into_transformer_2=True``."""
    from diffusers.loaders.lora_base import LoraBaseMixin

    for name, weights in adapters.items():
        LoraBaseMixin._save_lora_weights(
            folder, {PREFIX: dict(weights)}, {PREFIX: strength(networks[name])}, weight_name=FILES[name]
        )
