"""Low-rank adapters in place of all weights.

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
    """Linear layers, by the end of their name."""

    def __post_init__(self) -> None:
        at_least(self, rank=1, alpha=0)


def insert(policy: nn.Module, lora: Lora, seed: int) -> None:
    """Put adapters into ``policy`` and freeze everything else. Changes nothing until trained.

    Raises:
        BadInput: a target that no layer has.
    """
    from peft import LoraConfig, inject_adapter_in_model

    layers = [name for name, part in policy.named_modules() if isinstance(part, nn.Linear)]
    for target in lora.targets:
        if not any(f".{name}".endswith(f".{target}") for name in layers):
            names = sorted({_own_name(name) for name in layers})
            raise BadInput(f"lora.targets: no linear layer is called {target}; there are {', '.join(names)}.")
    config = LoraConfig(r=lora.rank, lora_alpha=lora.alpha, target_modules=list(lora.targets))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(config, policy)
    for name, parameter in policy.named_parameters():
        parameter.requires_grad_("lora_" in name)
        if "lora_" in name:
            # What is learned is far smaller than what a half-precision weight can be told apart by.
            parameter.data = parameter.data.float()


def _own_name(name: str) -> str:
    """The last part that is no number, with the numbers after it: ``to_out.0``."""
    parts = name.split(".")
    first = max((place for place, part in enumerate(parts) if not part.isdigit()), default=0)
    return ".".join(parts[first:])


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
