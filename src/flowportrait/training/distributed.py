"""Training on several processes, with networks that are replicated (DDP) or sharded (FSDP2).

Communication between processes:

    all_gather_object       every process passes a value      ─► every process gets all values
    run_on_main             the main process does something   ─► every process gets its result or its error
    report_errors_on_main   any process fails                 ─► the main process alone reports it

The states of a network in a training:

    distribute ─► train: gradient_sync ─► roll out: full_weights ─► save: full_copy
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

# --- Processes ---------------------------------------------------------------------------------------------------

TRACKERS = {"tensorboard": is_tensorboard_available, "wandb": is_wandb_available}

PROCESS_TIMEOUT = timedelta(hours=2)
"""How long processes wait for the slowest one; long, because a reward server may be away for a while."""


def create_accelerator(**more: Any) -> Accelerator:
    """Return the accelerator that describes the processes and the device of this one.

    Mixed precision is left to the recipe (``autocast``), whatever the launcher says.

    Args:
        **more: further arguments of ``Accelerator``.
    """
    accelerator = Accelerator(
        cpu=not torch.cuda.is_available(), mixed_precision="no",
        kwargs_handlers=[InitProcessGroupKwargs(timeout=PROCESS_TIMEOUT)], **more,
    )  # fmt: skip
    if accelerator.num_processes > 1:
        # A process that ends while the threads of its group still run is sometimes aborted.
        atexit.register(accelerator.state.destroy_process_group)
    return accelerator


def create_tracking_accelerator(track: str | None, output: Path) -> Accelerator:
    """Return the accelerator as ``create_accelerator`` does, with an experiment tracker that writes into ``output``.

    Args:
        track: ``tensorboard``, ``wandb``, or None for no tracker.
        output: the folder of the run.

    Raises:
        BadInput: an unknown tracker, or one that is not installed.
    """
    if track is None:
        return create_accelerator()
    if track not in TRACKERS:
        raise BadInput(f"--track {track} is not known: choose {' or '.join(TRACKERS)}.")
    if not TRACKERS[track]():
        raise BadInput(f"--track {track} needs the package: run 'pip install {track}'.")
    return create_accelerator(log_with=track, project_dir=str(output))


def finish_trackers(accelerator: Accelerator) -> None:
    """Close the trackers of a training that has ended.

    ``Accelerator.end_training`` would also destroy the process group. If a replicated network is freed after that, the
    process can wait for ever; here the group is destroyed when the process ends (``create_accelerator``).
    """
    for tracker in accelerator.trackers:
        tracker.finish()


def all_gather_object(accelerator: Accelerator, value: Anything) -> list[Anything]:
    """Return the values of all processes, in the order of the processes; all must call it together."""
    return gather_object([value]) if accelerator.num_processes > 1 else [value]


def run_on_main(accelerator: Accelerator, work: Callable[[], Anything]) -> Anything:
    """Do ``work`` on the main process and return its result on every process; all must call it together.

    Raises:
        BadInput: the main process raised it; likewise ``OSError``.
    """
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
def report_errors_on_main(accelerator: Accelerator, output: Path) -> Iterator[None]:
    """Report errors inside the block on the main process alone; the others exit with the code of bad input.

    Raises:
        BadInput: from inside the block, or because ``output`` could not be written.
    """
    try:
        yield
    except (BadInput, OSError) as error:
        if not accelerator.is_main_process:
            raise SystemExit(2) from None
        if isinstance(error, OSError):
            raise BadInput(f"Cannot write {error.filename or output} ({error.strerror or error}).") from error
        raise


# --- Networks ----------------------------------------------------------------------------------------------------


def distribute(accelerator: Accelerator, network: nn.Module) -> nn.Module:
    """Return the network as this process trains it.

    On one process that is the network itself; on several it is replicated (DDP), or, where the launcher asks for FSDP,
    sharded in place over all processes, with one unit for each class in ``_no_split_modules`` of the network's parts.
    """
    if accelerator.num_processes == 1:
        return network.to(accelerator.device)
    if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() != "true":
        # The replay does not run the encoders of conditions: their parameters are unused in the backward pass.
        accelerator.ddp_handler = DistributedDataParallelKwargs(find_unused_parameters=True)
        return accelerator.prepare(network)
    for tensor in (*network.parameters(), *network.buffers()):
        torch.distributed.broadcast(tensor.data, 0)
    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    unit_classes = {name for part in network.modules() for name in getattr(part, "_no_split_modules", None) or ()}
    for part in network.modules():
        if type(part).__name__ in unit_classes:
            fully_shard(part, mesh=mesh, reshard_after_forward=True)
    fully_shard(network, mesh=mesh, reshard_after_forward=False)
    register_fsdp_forward_method(network, "fsdp_root_forward")
    return network


def fsdp_units(network: nn.Module) -> list[FSDPModule]:
    """Return the FSDP units of the network, outermost first; none unless it was sharded."""
    return [part for part in network.modules() if isinstance(part, FSDPModule)]


@contextmanager
def full_weights(network: nn.Module) -> Iterator[None]:
    """Keep all weights on every process inside the block.

    A rollout calls the parts of a policy by themselves and often; with this it gathers the weights once and not once
    per denoising step.
    """
    units = fsdp_units(network)
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


def empty_copy(network: nn.Module) -> nn.Module:
    """Return a copy of the network on the ``meta`` device, without memory, to load gathered weights into."""
    tensors = [*network.parameters(), *network.buffers()]
    return copy.deepcopy(network, {id(tensor): _meta_tensor(tensor) for tensor in tensors})


def full_copy(accelerator: Accelerator, network: nn.Module, template: nn.Module) -> nn.Module | None:
    """Return an unsharded copy of a network on the main process, None on the others; all call it together.

    Args:
        accelerator: the processes.
        network: a network that may be sharded.
        template: what ``empty_copy`` returned for the network before it was distributed.
    """
    if not any(isinstance(parameter, DTensor) for parameter in network.parameters()):
        return copy.deepcopy(network) if accelerator.is_main_process else None
    state = {}
    for name, value in network.state_dict().items():
        full = value.full_tensor() if isinstance(value, DTensor) else value
        if accelerator.is_main_process:
            state[name] = full.cpu()
    if not accelerator.is_main_process:
        return None
    result = copy.deepcopy(template)
    result.load_state_dict(state, assign=True)
    return result


def _meta_tensor(tensor: torch.Tensor) -> torch.Tensor:
    empty = torch.empty_like(tensor, device="meta")
    return nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty


@contextmanager
def gradient_sync(network: nn.Module, now: bool) -> Iterator[None]:
    """Choose whether a backward pass inside the block averages gradients over the processes.

    Args:
        network: what ``distribute`` returned.
        now: False to only accumulate gradients on this process, for a later backward pass to average.
    """
    if isinstance(network, FSDPModule):
        network.set_requires_gradient_sync(now)
        yield
    elif isinstance(network, DistributedDataParallel) and not now:
        with network.no_sync():
            yield
    else:
        yield


# --- Determinism -------------------------------------------------------------------------------------------------


def use_deterministic_algorithms() -> None:
    """Make torch compute the same numbers every time.

    Without this, the last bit of a convolution's gradient on a CPU depends on the alignment of memory.
    """
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.mkldnn.set_flags(_deterministic=True)
