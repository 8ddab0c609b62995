"""Low-rank adapters (LoRA, Hu et al. 2106.09685), trained in place of all weights.

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
class LoraSettings:
    """The settings of low-rank adapters."""

    rank: int = 8
    """Rank of the adapters."""
    alpha: float = 16.0
    """Scale of the adapters: their output is multiplied by alpha / rank."""
    targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    """Ends of the names of the linear layers that get adapters."""

    def __post_init__(self) -> None:
        at_least(self, rank=1, alpha=0)


def insert_adapters(policy: nn.Module, lora: LoraSettings, seed: int) -> None:
    """Put adapters into ``policy`` and freeze everything else; the outputs stay the same until they are trained.

    Raises:
        BadInput: a target matches no linear layer.
    """
    from peft import LoraConfig, inject_adapter_in_model

    layers = [name for name, part in policy.named_modules() if isinstance(part, nn.Linear)]
    for target in lora.targets:
        if not any(f".{name}".endswith(f".{target}") for name in layers):
            names = sorted({_layer_name(name) for name in layers})
            raise BadInput(f"lora.targets: no linear layer is called {target}; there are {', '.join(names)}.")
    config = LoraConfig(r=lora.rank, lora_alpha=lora.alpha, target_modules=list(lora.targets))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(config, policy)
    for name, parameter in policy.named_parameters():
        parameter.requires_grad_("lora_" in name)
        if "lora_" in name:
            # Updates are far smaller than the spacing of numbers in half precision.
            parameter.data = parameter.data.float()


def _layer_name(name: str) -> str:
    """Return the last part of a name that is no number, with the numbers after it: ``to_out.0``."""
    parts = name.split(".")
    first = max((place for place, part in enumerate(parts) if not part.isdigit()), default=0)
    return ".".join(parts[first:])


def merge_adapters(policy: nn.Module) -> nn.Module:
    """Return a copy of ``policy`` with its adapters added into the weights; without adapters, a plain copy."""
    from peft.tuners.lora import LoraLayer

    result = copy.deepcopy(policy)
    for name, part in list(result.named_modules()):
        if isinstance(part, LoraLayer):
            part.merge()
            parent, _, attribute = name.rpartition(".")
            setattr(result.get_submodule(parent), attribute, part.get_base_layer())
    return result
