"""The most bytes alive at once in a pass through a network, counted on tensors without numbers.

    with counted(bfloat16): network = …        peak_of(network, {"hidden_states": …}, gradient=True) ─► bytes

Every storage that comes into being is counted until it is let go of; attention counts as a fused kernel, which keeps
no matrix of all pairs.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def peak_of(network: nn.Module, call: Mapping[str, Any], gradient: bool) -> int:
    """Most bytes alive at once in a pass through a network ``network(**call)``, beside its weights and inputs."""
    weights = {t.untyped_storage()._cdata for t in (*network.parameters(), *network.buffers())}
    with alive(weights) as most, torch.set_grad_enabled(gradient):
        made = network(**call)
        if gradient:
            out = [t for t in tree_leaves(made) if isinstance(t, torch.Tensor) and t.requires_grad]
            torch.stack([t.float().square().mean() for t in out]).sum().backward()
    network.zero_grad(set_to_none=True)
    return most()


@contextmanager
def alive(known: set[int]) -> Iterator[Any]:
    """Count storages that come into being inside the block, except ``known`` ones; yields the most bytes at once."""
    watch = _Alive(known)
    with watch:
        yield lambda: watch.most


class _Alive(TorchDispatchMode):
    def __init__(self, known: set[int]) -> None:
        super().__init__()
        self.held = dict.fromkeys(known, 0)
        self.now = self.most = 0
        self.inverted: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = self._made(func, args, kwargs or {})
        for tensor in tree_leaves(made):
            if isinstance(tensor, torch.Tensor):
                self._see(tensor.untyped_storage())
        return made

    def _made(self, func: Any, args: Any, kwargs: Any) -> Any:
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
        made = func(*args, **kwargs)
        if name == "aten::bitwise_not":
            self.inverted.add(made.untyped_storage()._cdata)
        return made

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
def counted(kind: torch.dtype) -> Iterator[None]:
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
        made = query.new_empty(*query.shape[:-1], value.shape[-1])
        ctx.save_for_backward(query, key, value, made)
        return made

    @staticmethod
    def backward(ctx: Any, *gradient: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(torch.empty_like(part) for part in ctx.saved_tensors[:3])


def _is_mask(indices: Any) -> bool:
    first = indices[0] if isinstance(indices, list) and indices else None
    return isinstance(first, torch.Tensor) and first.dtype == torch.bool
