"""What post-training a model needs, counted on tensors without numbers: nothing is downloaded and nothing guessed.

    weights      parameters × 2 bytes (bfloat16, frozen)
    adapters     LoRA parameters × 4 bytes × (live, gradient, two moments, ref, ema)
    activations  most that is alive at once in one forward and backward pass of one sample, beside the weights; where
                 the model is guided by two branches, of both
    acting       the same without gradients;   decoding: the autoencoder's, with its weights
    trajectory   latents × 4 bytes × (x, x', noise per trained step, and the sample)

Blocks of a network are alike: peaks are counted with two and with three, and the rest is the same block again. Every
storage is counted from its creation until it is released; attention counts as a fused kernel, which keeps no matrix of
all pairs.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from flowportrait.policies.models import PublishedModel
from flowportrait.training.adapter import Lora, insert

GIB = 2**30
COPIES = 6
"""Of a trained number: itself, its gradient, two moments, ``ref`` and ``ema``."""
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
STEPS = 5
"""Trained steps that a trajectory keeps."""


@dataclass(frozen=True)
class MemoryNeed:
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


def count_memory(model: PublishedModel, rank: int = 32, checkpointing: bool = True) -> MemoryNeed:
    """Count a published model with LoRA of a rank on its attention."""
    with torch.device("meta"):
        whole = _network(model, dict(model.depth))
        parameters = sum(p.numel() for p in whole.parameters()) * model.networks
        insert(whole, Lora(rank, rank, ATTENTION), 0)
    adapters = sum(p.numel() for p in whole.parameters() if p.requires_grad) * model.networks
    updating = _for_whole_depth(
        model, lambda depth: _pass(model, depth, rank, checkpointing, gradient=True), model.branches
    )
    acting = _for_whole_depth(model, lambda depth: _pass(model, depth, rank, False, gradient=False))
    latents = torch.Size(model.latents).numel()
    return MemoryNeed(
        model.name, model.size, parameters, adapters, 2 * parameters, 4 * COPIES * adapters, updating, acting,
        _decoding(model), 4 * latents * (3 * STEPS + 1),
    )  # fmt: skip


def _for_whole_depth(model: PublishedModel, count: Callable[[dict[str, int]], int], branches: int = 1) -> int:
    """A count for the whole depth, from two and three of each kind of block: the first differs from all others. What
    blocks keep, each branch of guidance keeps; what one needs while it works, only one at a time."""
    few = dict.fromkeys(model.depth, 2)
    base = count(few)
    kept = {kind: count({**few, kind: 3}) - base for kind in model.depth}
    return base + sum(kept[kind] * (branches * blocks - 2) for kind, blocks in model.depth.items())


def _pass(model: PublishedModel, depth: dict[str, int], rank: int, checkpointing: bool, gradient: bool) -> int:
    with without_memory(torch.bfloat16):
        network = _network(model, depth)
        insert(network, Lora(rank, rank, ATTENTION), 0)
        if checkpointing:
            network.enable_gradient_checkpointing()  # type: ignore[operator]
        return peak_bytes(network.train(gradient), _call(model), gradient)


def _decoding(model: PublishedModel) -> int:
    import diffusers

    with without_memory(torch.bfloat16):
        vae = getattr(diffusers, model.autoencoder)(**model.autoencoder_config).eval()
        weights = sum(t.numel() * t.element_size() for t in vae.parameters())
        patch = 2 if model.autoencoder == "AutoencoderKLFlux2" else 1
        channels, *rest, high, wide = model.latents
        latents = torch.zeros(1, channels // patch**2, *rest, high * patch, wide * patch, dtype=torch.bfloat16)
        known = {t.untyped_storage()._cdata for t in (*vae.parameters(), *vae.buffers())}
        with count_storages(known) as most, torch.no_grad():
            vae.decode(latents)
        return weights + most()


def _network(model: PublishedModel, depth: dict[str, int]) -> nn.Module:
    import diffusers

    config = dict(model.config) | depth
    if "dual_attention_layers" in config:
        config["dual_attention_layers"] = tuple(n for n in config["dual_attention_layers"] if n < depth["num_layers"])
    return getattr(diffusers, model.network)(**config)


def _call(model: PublishedModel) -> dict[str, Any]:
    """One sample's arguments."""
    half = torch.bfloat16
    sizes = model.inputs.items()
    call: dict[str, Any] = {n: torch.zeros(1, *size, dtype=half if size else torch.float32) for n, size in sizes}
    for name in model.lists:
        call[name] = list(call[name].unbind())
    for name, value in model.arguments.items():
        call[name] = torch.zeros(*value) if name.endswith("_ids") and isinstance(value, tuple) else value
    return call


def peak_bytes(network: nn.Module, call: Mapping[str, Any], gradient: bool) -> int:
    """Most bytes alive at once in a pass through a network ``network(**call)``, beside its weights and inputs."""
    weights = {t.untyped_storage()._cdata for t in (*network.parameters(), *network.buffers())}
    with count_storages(weights) as most, torch.set_grad_enabled(gradient):
        output = network(**call)
        if gradient:
            out = [t for t in tree_leaves(output) if isinstance(t, torch.Tensor) and t.requires_grad]
            torch.stack([t.float().square().mean() for t in out]).sum().backward()
    network.zero_grad(set_to_none=True)
    return most()


@contextmanager
def count_storages(known: set[int]) -> Iterator[Any]:
    """Count storages that come into being inside the block, except ``known`` ones; yields the most bytes at once."""
    watch = _StorageCounter(known)
    with watch:
        yield lambda: watch.most


class _StorageCounter(TorchDispatchMode):
    def __init__(self, known: set[int]) -> None:
        super().__init__()
        self.held = dict.fromkeys(known, 0)
        self.now = self.most = 0
        self.inverted: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = self._result(func, args, kwargs or {})
        for tensor in tree_leaves(output):
            if isinstance(tensor, torch.Tensor):
                self._see(tensor.untyped_storage())
        return output

    def _result(self, func: Any, args: Any, kwargs: Any) -> Any:
        """The result. Where it would depend on numbers, a mask selects everything, its inverse nothing, and a condition
        is false."""
        name, masked = func.name(), len(args) > 1 and _is_mask(args[1]) and args[0].is_meta
        if name == "aten::_local_scalar_dense" and args[0].is_meta:
            return 0
        if "index_put" in name and masked:
            return args[0]
        if name == "aten::index.Tensor" and masked:
            rows = 0 if args[1][0].untyped_storage()._cdata in self.inverted else len(args[0])
            return args[0].new_empty(rows, *args[0].shape[1:])
        output = func(*args, **kwargs)
        if name == "aten::bitwise_not":
            self.inverted.add(output.untyped_storage()._cdata)
        return output

    def _see(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key not in self.held:
            self.held[key] = storage.nbytes()
            self.now += storage.nbytes()
            self.most = max(self.most, self.now)
            weakref.finalize(storage, self._let_go, key)

    def _let_go(self, key: int) -> None:
        self.now -= self.held.pop(key, 0)
        self.inverted.discard(key)


@contextmanager
def without_memory(kind: torch.dtype) -> Iterator[None]:
    """Tensors that have a shape and a type and no memory, of this kind where none is said."""
    before, attention = torch.get_default_dtype(), nn.functional.scaled_dot_product_attention
    torch.set_default_dtype(kind)
    nn.functional.scaled_dot_product_attention = _fused
    try:
        with torch.device("meta"):
            yield
    finally:
        torch.set_default_dtype(before)
        nn.functional.scaled_dot_product_attention = attention


def _fused(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
    """Attention that keeps its inputs and its output and never the matrix of all pairs, as every fused kernel does."""
    return _Attention.apply(query, key, value)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        output = query.new_empty(*query.shape[:-1], value.shape[-1])
        ctx.save_for_backward(query, key, value, output)
        return output

    @staticmethod
    def backward(ctx: Any, *gradient: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(torch.empty_like(part) for part in ctx.saved_tensors[:3])


def _is_mask(indices: Any) -> bool:
    first = indices[0] if isinstance(indices, list) and indices else None
    return isinstance(first, torch.Tensor) and first.dtype == torch.bool
