"""Low-rank adapters (LoRA, 2106.09685) in place of all weights, through ``peft``.

    W x  ─►  W x + (α/r)·B A x,      only A and B are trained; B starts at zero
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import nn

from flowportrait.config import at_least
from flowportrait.errors import BadInput


@dataclass(frozen=True)
class Lora:
    rank: int = 8
    alpha: float = 16.0
    targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    """Linear layers, by the last part of their name."""

    def __post_init__(self) -> None:
        at_least(self, rank=1, alpha=0)


def insert(policy: nn.Module, lora: Lora, seed: int) -> None:
    """Put adapters into ``policy`` and freeze everything else. Changes nothing until trained.

    Raises:
        BadInput: a target that no layer has.
    """
    from peft import LoraConfig, inject_adapter_in_model

    names = {name.rpartition(".")[2] for name, part in policy.named_modules() if isinstance(part, nn.Linear)}
    if unknown := [target for target in lora.targets if target not in names]:
        raise BadInput(f"lora.targets: no linear layer is called {unknown[0]}; there are {', '.join(sorted(names))}.")
    config = LoraConfig(r=lora.rank, lora_alpha=lora.alpha, target_modules=list(lora.targets))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(config, policy)
    for name, parameter in policy.named_parameters():
        parameter.requires_grad_("lora_" in name)


def merged(policy: nn.Module) -> nn.Module:
    """A copy of ``policy`` with its adapters added into the weights; without adapters, a plain copy."""
    from peft.tuners.lora import LoraLayer

    result = copy.deepcopy(policy)
    for name, part in list(result.named_modules()):
        if isinstance(part, LoraLayer):
            part.merge()
            parent, _, own = name.rpartition(".")
            setattr(result.get_submodule(parent), own, part.get_base_layer())
    return result
