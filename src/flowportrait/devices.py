"""Where networks run, and in which precision.

    with use_device("cuda", torch.bfloat16):      every network that is loaded inside is placed there
        ...
    place(network, device, dtype)                 one network: everything on ``device``, matrix products in ``dtype``

Below float32, the weights of linear, convolutional and recurrent layers are kept in ``dtype`` and these layers compute
in it; what is added, normalised or accumulated between them stays float32, and so do inputs and outputs of a network.
That is where the time and memory of these networks are, and it needs no change in their code.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache, wraps
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

Device = str | torch.device
"""``cpu``, ``cuda``, ``cuda:1``, … as PyTorch understands it."""

Item = TypeVar("Item")
Network = TypeVar("Network", bound=nn.Module)
Loaded = TypeVar("Loaded")
_MATRIX_LAYERS = (nn.Linear, nn.modules.conv._ConvNd, nn.RNNBase)
_default: ContextVar[tuple[torch.device, torch.dtype]] = ContextVar(
    "default device", default=(torch.device("cpu"), torch.float32)
)


@contextmanager
def use_device(device: Device = "cpu", dtype: torch.dtype = torch.float32) -> Iterator[None]:
    """Place the networks that this thread loads inside the context, unless their loader is given another device."""
    token = _default.set((torch.device(device), dtype))
    try:
        yield
    finally:
        _default.reset(token)


def default_device(device: Device | None = None, dtype: torch.dtype | None = None) -> tuple[torch.device, torch.dtype]:
    """Return the device and dtype to load a network with: the given ones, else those of ``use_device``.

    Without either it is the CPU and float32.
    """
    default_place, default_dtype = _default.get()
    return default_place if device is None else torch.device(device), default_dtype if dtype is None else dtype


def place_network(network: Network, device: Device | None = None, dtype: torch.dtype | None = None) -> Network:
    """Move a network in place to ``device`` and run its matrix products in ``dtype``; return the network.

    Both default to those of ``default_device``. What below float32 is kept in float32 is described in the module.
    """
    target_device, target_dtype = default_device(device, dtype)
    network.to(target_device)
    if target_dtype != torch.float32:
        # PyTorch's own attention reads its layers' weights without calling the layers.
        fused = {id(layer) for part in network.modules() if isinstance(part, nn.MultiheadAttention)
                 for layer in part.modules()}  # fmt: skip
        for layer in network.modules():
            if isinstance(layer, _MATRIX_LAYERS) and id(layer) not in fused:
                _convert_layer(layer, target_dtype)
    return network


def cached_per_device(load: Callable[..., Loaded]) -> Callable[..., Loaded]:
    """Decorate a function that loads networks with ``device`` and ``dtype`` parameters and a cache.

    The same arguments, device and dtype give the same object. Inside the function ``place_network`` uses the
    caller's device.
    """

    @lru_cache(maxsize=8)
    def load_cached(placement: tuple[torch.device, torch.dtype], *args: Any) -> Loaded:
        with use_device(*placement):
            return load(*args)

    @wraps(load)
    def load_on_device(*args: Any, device: Device | None = None, dtype: torch.dtype | None = None) -> Loaded:
        return load_cached(default_device(device, dtype), *args)

    load_on_device.cache_clear = load_cached.cache_clear  # type: ignore[attr-defined]
    return load_on_device


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of a safetensors file by name, in float32."""
    from safetensors.torch import load_file

    return {name: value.float() for name, value in load_file(str(path)).items()}


def read_weights_metadata(path: Path) -> dict[str, str]:
    """Return the texts that are stored beside the tensors of a safetensors file."""
    from safetensors import safe_open

    with safe_open(str(path), "pt") as stored:
        return dict(stored.metadata() or {})


def device_of(network: nn.Module) -> torch.device:
    """Return the device of a network's first parameter or buffer; the CPU for a network without any."""
    for tensors in (network.parameters(), network.buffers()):
        for tensor in tensors:
            return tensor.device
    return torch.device("cpu")


def limit_threads(items: Iterable[Item]) -> Iterator[Item]:
    """Yield ``items``, each of which is computed while torch has one thread.

    The networks that animate are small: threads that wait for each other cost far more than they bring, six times the
    time where something else uses the processor. The number of threads is the caller's again between two items.
    """
    iterator = iter(items)
    while True:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            item = next(iterator)
        except StopIteration:
            return
        finally:
            torch.set_num_threads(threads)
        yield item


def onnx_providers(device: Device | None = None) -> list[str]:
    """Return the execution providers for an ONNX Runtime session on ``device``.

    These are the providers for its kind of device that the installed runtime has, followed by the CPU's.
    """
    import onnxruntime

    onnxruntime.disable_telemetry_events()
    providers = {"cuda": ["CUDAExecutionProvider"], "mps": ["CoreMLExecutionProvider"]}
    available = onnxruntime.get_available_providers()
    usable = [name for name in providers.get(default_device(device)[0].type, []) if name in available]
    return [*usable, "CPUExecutionProvider"]


def _convert_layer(layer: nn.Module, dtype: torch.dtype) -> None:
    """Convert a layer's weights to ``dtype``, cast its inputs to it and its outputs back to float32."""
    if _cast_inputs not in layer._forward_pre_hooks.values():
        layer.register_forward_pre_hook(_cast_inputs, with_kwargs=True)
        layer.register_forward_hook(_cast_outputs)
    layer.to(dtype)


def _cast_inputs(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
    dtype = next(layer.parameters()).dtype
    return _cast_tensors(args, dtype), _cast_tensors(kwargs, dtype)


def _cast_outputs(_: nn.Module, __: Any, output: Any) -> Any:
    return _cast_tensors(output, torch.float32)


def _cast_tensors(value: Any, dtype: torch.dtype) -> Any:
    """Return the same nested tuples, lists and dictionaries with floating-point tensors in ``dtype``."""
    if isinstance(value, torch.Tensor):
        return value.to(dtype) if value.is_floating_point() else value
    if isinstance(value, dict):
        return {name: _cast_tensors(part, dtype) for name, part in value.items()}
    if type(value) in (tuple, list):
        return type(value)(_cast_tensors(part, dtype) for part in value)
    return value
