"""What post-training a model needs, counted on tensors without numbers: nothing is downloaded and nothing guessed.

    weights      parameters × 2 bytes (bfloat16, frozen)
    adapters     LoRA parameters × 4 bytes × (live, gradient, two moments, ref, ema)
    activations  most that is alive at once in one forward and backward pass of one sample, beside the weights; where
                 the model is guided by two branches, of both
    acting       the same without gradients;   decoding: the autoencoder's, with its weights
    trajectory   latents × 4 bytes × (x, x', noise per trained step, and the sample)

Blocks of a network are alike: peaks are counted with two and with three, and the rest is the same block again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from flowportrait.policies.models import Model
from flowportrait.policies.peak import alive, counted, peak_of
from flowportrait.training.adapter import Lora, insert

GIB = 2**30
COPIES = 6
"""Of a trained number: itself, its gradient, two moments, ``ref`` and ``ema``."""
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
STEPS = 5
"""Trained steps that a trajectory keeps."""


@dataclass(frozen=True)
class Need:
    """Bytes; parameters and adapters are numbers."""

    model: str
    size: str
    parameters: int
    adapters: int
    weights: int
    adapter_states: int
    activations: int
    acting: int
    decoding: int
    trajectory: int

    @property
    def update(self) -> int:
        """Peak of an update, one sample and one step at a time."""
        return self.weights + self.adapter_states + self.activations

    @property
    def rollout(self) -> int:
        """Peak of acting and of decoding, whichever is more."""
        return self.weights + self.adapter_states + max(self.acting, self.decoding)

    def as_dict(self) -> dict[str, Any]:
        """Everything."""
        return {**asdict(self), "update": self.update, "rollout": self.rollout}

    def __str__(self) -> str:
        return (
            f"{self.parameters / 1e9:.1f} G parameters; {self.size}: rollout {self.rollout / GIB:.0f} GiB, update "
            f"{self.update / GIB:.0f} GiB (weights {self.weights / GIB:.0f}, adapters {self.adapter_states / GIB:.1f}, "
            f"activations {self.activations / GIB:.1f}, decoding {self.decoding / GIB:.1f})"
        )


def need(model: Model, rank: int = 32, checkpointing: bool = True) -> Need:
    """Count a published model with LoRA of a rank on its attention."""
    with torch.device("meta"):
        whole = _network(model, dict(model.depth))
        parameters = sum(p.numel() for p in whole.parameters()) * model.networks
        insert(whole, Lora(rank, rank, ATTENTION), 0)
    adapters = sum(p.numel() for p in whole.parameters() if p.requires_grad) * model.networks
    updating = _deep(model, lambda depth: _pass(model, depth, rank, checkpointing, gradient=True), model.branches)
    acting = _deep(model, lambda depth: _pass(model, depth, rank, False, gradient=False))
    latents = torch.Size(model.latents).numel()
    return Need(
        model.name, model.size, parameters, adapters, 2 * parameters, 4 * COPIES * adapters, updating, acting,
        _decoding(model), 4 * latents * (3 * STEPS + 1),
    )  # fmt: skip


def _deep(model: Model, count: Callable[[dict[str, int]], int], branches: int = 1) -> int:
    """A count for the whole depth, from two and three of each kind of block: the first differs from all others. What
    blocks keep, each branch of guidance keeps; what one needs while it works, only one at a time."""
    few = dict.fromkeys(model.depth, 2)
    base = count(few)
    kept = {kind: count({**few, kind: 3}) - base for kind in model.depth}
    return base + sum(kept[kind] * (branches * blocks - 2) for kind, blocks in model.depth.items())


def _pass(model: Model, depth: dict[str, int], rank: int, checkpointing: bool, gradient: bool) -> int:
    with counted(torch.bfloat16):
        network = _network(model, depth)
        insert(network, Lora(rank, rank, ATTENTION), 0)
        if checkpointing:
            network.enable_gradient_checkpointing()  # type: ignore[operator]
        return peak_of(network.train(gradient), _call(model), gradient)


def _decoding(model: Model) -> int:
    import diffusers

    with counted(torch.bfloat16):
        vae = getattr(diffusers, model.autoencoder)(**model.autoencoder_config).eval()
        weights = sum(t.numel() * t.element_size() for t in vae.parameters())
        patch = 2 if model.autoencoder == "AutoencoderKLFlux2" else 1
        channels, *rest, high, wide = model.latents
        latents = torch.zeros(1, channels // patch**2, *rest, high * patch, wide * patch, dtype=torch.bfloat16)
        known = {t.untyped_storage()._cdata for t in (*vae.parameters(), *vae.buffers())}
        with alive(known) as most, torch.no_grad():
            vae.decode(latents)
        return weights + most()


def _network(model: Model, depth: dict[str, int]) -> nn.Module:
    import diffusers

    config = dict(model.config) | depth
    if "dual_attention_layers" in config:
        config["dual_attention_layers"] = tuple(n for n in config["dual_attention_layers"] if n < depth["num_layers"])
    return getattr(diffusers, model.network)(**config)


def _call(model: Model) -> dict[str, Any]:
    """One sample's arguments."""
    half = torch.bfloat16
    sizes = model.inputs.items()
    call: dict[str, Any] = {n: torch.zeros(1, *size, dtype=half if size else torch.float32) for n, size in sizes}
    for name in model.lists:
        call[name] = list(call[name].unbind())
    told = {n: torch.zeros(*v) if n.endswith("_ids") and isinstance(v, tuple) else v for n, v in model.told.items()}
    return call | told
