"""A network as one of several processes holds it: whole on one, replicated (DDP), or in shards (FSDP2).

distribute ─► step: exchanging ─► act: gathered ─► deliver: whole
"""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel


def distribute(accelerator: Accelerator, network: nn.Module) -> nn.Module:
    """The network as this process trains it: as it is, replicated (DDP), or where the launcher asks for FSDP, sharded
    in place over all processes, with a unit for each block that the network's parts say not to split."""
    if accelerator.num_processes == 1:
        return network.to(accelerator.device)
    if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() != "true":
        # What conditions are encoded with is not reached by the replay: its parameters are unused.
        accelerator.ddp_handler = DistributedDataParallelKwargs(find_unused_parameters=True)
        return accelerator.prepare(network)
    for tensor in (*network.parameters(), *network.buffers()):
        torch.distributed.broadcast(tensor.data, 0)
    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    whole = {name for part in network.modules() for name in getattr(part, "_no_split_modules", None) or ()}
    for part in network.modules():
        if type(part).__name__ in whole:
            fully_shard(part, mesh=mesh, reshard_after_forward=True)
    fully_shard(network, mesh=mesh, reshard_after_forward=False)
    register_fsdp_forward_method(network, "fsdp_root_forward")
    return network


def shards(network: nn.Module) -> list[FSDPModule]:
    """Units of the network that are sharded, outermost first; none unless it was sharded."""
    return [part for part in network.modules() if isinstance(part, FSDPModule)]


@contextmanager
def gathered(network: nn.Module) -> Iterator[None]:
    """Whole weights on every process inside the block, so that acting, which calls the policy's parts by themselves
    and often, exchanges nothing: a rollout gathers them once and not once per denoising step."""
    units = shards(network)
    if units:
        network.fsdp_root_forward()  # type: ignore[operator]
    for unit in units:
        unit.set_reshard_after_forward(False, recurse=False)
        unit.unshard()
    try:
        yield
    finally:
        for unit in units:
            unit.set_reshard_after_forward(unit is not units[0], recurse=False)
            unit.reshard()


def outline(network: nn.Module) -> nn.Module:
    """The network without its numbers: what to pour gathered weights into."""
    tensors = [*network.parameters(), *network.buffers()]
    return copy.deepcopy(network, {id(tensor): _empty(tensor) for tensor in tensors})


def whole(accelerator: Accelerator, network: nn.Module, outline: nn.Module) -> nn.Module | None:
    """A plain copy of a network that may be sharded, on the main process; all processes together."""
    if not any(isinstance(parameter, DTensor) for parameter in network.parameters()):
        return copy.deepcopy(network) if accelerator.is_main_process else None
    state = {}
    for name, value in network.state_dict().items():
        full = value.full_tensor() if isinstance(value, DTensor) else value
        if accelerator.is_main_process:
            state[name] = full.cpu()
    if not accelerator.is_main_process:
        return None
    result = copy.deepcopy(outline)
    result.load_state_dict(state, assign=True)
    return result


def _empty(tensor: torch.Tensor) -> torch.Tensor:
    empty = torch.empty_like(tensor, device="meta")
    return nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty


@contextmanager
def exchanging(network: nn.Module, now: bool) -> Iterator[None]:
    """Whether this backward pass exchanges gradients, or adds to what a later one will."""
    if isinstance(network, FSDPModule):
        network.set_requires_gradient_sync(now)
        yield
    elif isinstance(network, DistributedDataParallel) and not now:
        with network.no_sync():
            yield
    else:
        yield
