"""Where networks run, and in which precision.

    with use_device("cuda", torch.bfloat16):      every network that is loaded inside is placed there
        ...
    place(network, device, dtype)                 one network: everything on ``device``, matrix products in ``dtype``

Below float32, the weights of linear, convolutional and recurrent layers are kept in ``dtype`` and these layers compute
in it; what is added, normalised or accumulated between them stays float32, and so do inputs and outputs of a network.
That is where the time and memory of these networks are, and it needs no change in their code.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache, wraps
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

Device = str | torch.device
"""``cpu``, ``cuda``, ``cuda:1``, … as PyTorch understands it."""

Network = TypeVar("Network", bound=nn.Module)
Loaded = TypeVar("Loaded")
_MATRIX_LAYERS = (nn.Linear, nn.modules.conv._ConvNd, nn.RNNBase)
_default: ContextVar[tuple[torch.device, torch.dtype]] = ContextVar(
    "default device", default=(torch.device("cpu"), torch.float32)
)


@contextmanager
def use_device(device: Device = "cpu", dtype: torch.dtype = torch.float32) -> Iterator[None]:
    """Place the networks that this thread loads inside the context, unless their loader is told otherwise."""
    token = _default.set((torch.device(device), dtype))
    try:
        yield
    finally:
        _default.reset(token)


def default_device(device: Device | None = None, dtype: torch.dtype | None = None) -> tuple[torch.device, torch.dtype]:
    """Device and dtype to load a network with: those given, or those of ``use_device``, or the CPU and float32."""
    where, precision = _default.get()
    return where if device is None else torch.device(device), precision if dtype is None else dtype


def place(network: Network, device: Device | None = None, dtype: torch.dtype | None = None) -> Network:
    """Move a network in place to ``device`` and let its matrix products run in ``dtype`` (see the module), by default
    as ``default_device`` says."""
    where, precision = default_device(device, dtype)
    network.to(where)
    if precision != torch.float32:
        # Attention of torch itself reads its layers' weights without calling them.
        fused = {id(layer) for part in network.modules() if isinstance(part, nn.MultiheadAttention)
                 for layer in part.modules()}  # fmt: skip
        for layer in network.modules():
            if isinstance(layer, _MATRIX_LAYERS) and id(layer) not in fused:
                _compute_in(layer, precision)
    return network


def once_per_device(load: Callable[..., Loaded]) -> Callable[..., Loaded]:
    """Let a function that loads networks take ``device`` and ``dtype`` too, and return the same object for the same
    arguments, device and dtype. Inside, ``place`` does what the caller asked for."""

    @lru_cache(maxsize=8)
    def loaded(where: tuple[torch.device, torch.dtype], *args: Any) -> Loaded:
        with use_device(*where):
            return load(*args)

    @wraps(load)
    def loader(*args: Any, device: Device | None = None, dtype: torch.dtype | None = None) -> Loaded:
        return loaded(default_device(device, dtype), *args)

    loader.cache_clear = loaded.cache_clear  # type: ignore[attr-defined]
    return loader


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """Read the tensors of a safetensors file by name, in float32."""
    from safetensors.torch import load_file

    return {name: value.float() for name, value in load_file(str(path)).items()}


def device_of(network: nn.Module) -> torch.device:
    """The device that a network's first parameter or buffer is on; the CPU for a network without any."""
    for tensors in (network.parameters(), network.buffers()):
        for tensor in tensors:
            return tensor.device
    return torch.device("cpu")


def onnx_providers(device: Device | None = None) -> list[str]:
    """The execution providers for an ONNX Runtime session on ``device``: those of its kind that the installed runtime
    has, and the CPU's after them."""
    import onnxruntime

    wanted = {"cuda": ["CUDAExecutionProvider"], "mps": ["CoreMLExecutionProvider"]}
    available = onnxruntime.get_available_providers()
    chosen = [name for name in wanted.get(default_device(device)[0].type, []) if name in available]
    return [*chosen, "CPUExecutionProvider"]


def _compute_in(layer: nn.Module, dtype: torch.dtype) -> None:
    if _cast_inputs not in layer._forward_pre_hooks.values():
        layer.register_forward_pre_hook(_cast_inputs, with_kwargs=True)
        layer.register_forward_hook(_cast_outputs)
    layer.to(dtype)


def _cast_inputs(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
    dtype = next(layer.parameters()).dtype
    return _cast(args, dtype), _cast(kwargs, dtype)


def _cast_outputs(_: nn.Module, __: Any, output: Any) -> Any:
    return _cast(output, torch.float32)


def _cast(value: Any, dtype: torch.dtype) -> Any:
    """The same nested tuples, lists and dictionaries with floating-point tensors in ``dtype``."""
    if isinstance(value, torch.Tensor):
        return value.to(dtype) if value.is_floating_point() else value
    if isinstance(value, dict):
        return {name: _cast(part, dtype) for name, part in value.items()}
    if type(value) in (tuple, list):
        return type(value)(_cast(part, dtype) for part in value)
    return value
