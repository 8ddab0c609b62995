"""Several processes that train as one, and networks in shards.

Several processes that train as one: who they are, what each says, what one decides for all, where curves go.

roll_call   every process says something     ─► all of it, to each
on_main     one process does it              ─► its result or its error, to each

A network as one of several processes holds it: whole on one, replicated (DDP), or in shards (FSDP2).

distribute ─► step: exchanging ─► act: gathered ─► deliver: whole

The same numbers again: what torch needs for one.
"""

from __future__ import annotations

import atexit
import copy
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import (
    DistributedDataParallelKwargs,
    InitProcessGroupKwargs,
    broadcast_object_list,
    gather_object,
    is_tensorboard_available,
    is_wandb_available,
)
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from flowportrait.errors import BadInput

Anything = TypeVar("Anything")

TRACKERS = {"tensorboard": is_tensorboard_available, "wandb": is_wandb_available}

PATIENCE = timedelta(hours=2)
"""How long processes wait for the slowest one: a reward server may be away for a while."""


def processes(**more: Any) -> Accelerator:
    """The device of this process and its part among all; ``more`` goes to ``Accelerator``. What is rounded how is the
    recipe's to say (``autocast``), not the launcher's."""
    accelerator = Accelerator(
        cpu=not torch.cuda.is_available(), mixed_precision="no",
        kwargs_handlers=[InitProcessGroupKwargs(timeout=PATIENCE)], **more,
    )  # fmt: skip
    if accelerator.num_processes > 1:
        # A process that ends with the threads of its group still running is aborted at times.
        atexit.register(accelerator.state.destroy_process_group)
    return accelerator


def tracking(track: str | None, output: Path) -> Accelerator:
    """The device and the processes, and a tracker in ``output`` if one is named.

    Raises:
        BadInput: an unknown tracker, or one that is not installed.
    """
    if track is None:
        return processes()
    if track not in TRACKERS:
        raise BadInput(f"--track {track} is not known: choose {' or '.join(TRACKERS)}.")
    if not TRACKERS[track]():
        raise BadInput(f"--track {track} needs the package: run 'pip install {track}'.")
    return processes(log_with=track, project_dir=str(output))


def roll_call(accelerator: Accelerator, own: Anything) -> list[Anything]:
    """What every process says, in the order of the processes; all must call it together."""
    return gather_object([own]) if accelerator.num_processes > 1 else [own]


def on_main(accelerator: Accelerator, work: Callable[[], Anything]) -> Anything:
    """The main process's result, for all; what it raises, all raise. All must call it together."""
    result: list[Any] = [None, None]
    if accelerator.is_main_process:
        try:
            result[0] = work()
        except (BadInput, OSError) as error:
            result[1] = error
    if accelerator.num_processes > 1:
        broadcast_object_list(result)
    if result[1] is not None:
        raise result[1]
    return result[0]


@contextmanager
def one_voice(accelerator: Accelerator, output: Path) -> Iterator[None]:
    """What the user is told, the main process tells; the others end with the exit code of bad input.

    Raises:
        BadInput: from inside, or because ``output`` could not be written.
    """
    try:
        yield
    except (BadInput, OSError) as error:
        if not accelerator.is_main_process:
            raise SystemExit(2) from None
        if isinstance(error, OSError):
            raise BadInput(f"Cannot write {error.filename or output} ({error.strerror or error}).") from error
        raise


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


def repeatable() -> None:
    """Without this a convolution's gradient on a CPU depends on where memory happens to lie, in the last bit."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.mkldnn.set_flags(_deterministic=True)
