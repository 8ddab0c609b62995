"""Who does what when several processes train one policy: groups are dealt out whole, scores are shared.

    groups 0 1 2 3 4 5  on two processes:  0 1 2 | 3 4 5

Group and sample ids are global and noise is keyed by them, so every process count draws the same samples. Credit
is computed from everybody's scores; gradients are averaged by torch, over whole weights (DDP) or shards (FSDP2).
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from statistics import median_low
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs, broadcast_object_list, gather_object
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from flowportrait.errors import BadInput
from flowportrait.posttrain.collect import join_scores
from flowportrait.reward.interface import Score

Anything = TypeVar("Anything")

WORST = frozenset({"noise_gap", "ratio/first_error", "skipped"})
"""Metrics of which the largest of any process counts."""

PATIENCE = timedelta(hours=2)
"""How long processes wait for the slowest one: a reward server may be away for a while."""


def processes(**more: Any) -> Accelerator:
    """The device of this process and its part among all; ``more`` goes to ``Accelerator``. What is rounded how is the
    recipe's to say (``autocast``), not the launcher's."""
    return Accelerator(
        cpu=not torch.cuda.is_available(), mixed_precision="no",
        kwargs_handlers=[InitProcessGroupKwargs(timeout=PATIENCE)], **more,
    )  # fmt: skip


@dataclass(frozen=True)
class Share:
    """This process's groups ``[G/W]`` among W processes."""

    groups: torch.Tensor

    @classmethod
    def of(cls, accelerator: Accelerator, groups: int, parts: int = 1) -> Share:
        """A contiguous, equal share, to be divided into ``parts`` of whole groups.

        Raises:
            BadInput: the groups cannot be dealt out evenly.
        """
        world = accelerator.num_processes
        if groups % world:
            raise BadInput(f"groups={groups} cannot be dealt out evenly to {world} processes: choose a multiple.")
        size = groups // world
        if world > 1 and size % parts:
            raise BadInput(
                f"updates={parts} takes whole groups, which {size} per process do not divide into: choose groups as a "
                f"multiple of {world * parts}."
            )
        first = accelerator.process_index * size
        return cls(torch.arange(first, first + size))

    def own_rows(self, group: torch.Tensor) -> torch.Tensor:
        """Rows of everybody's samples, given their groups ``[B]``, that are this process's."""
        return torch.isin(group, self.groups).nonzero()[:, 0]


def gather_scores(
    accelerator: Accelerator, scores: Mapping[str, Score], group: torch.Tensor
) -> tuple[dict[str, Score], torch.Tensor]:
    """Everybody's scores and their groups, in the order of the groups."""
    everyone = roll_call(accelerator, (dict(scores), group))
    return join_scores([own for own, _ in everyone]), torch.cat([own for _, own in everyone])


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


def together(
    accelerator: Accelerator, metrics: Mapping[str, float], seconds: Mapping[str, float]
) -> dict[str, float]:
    """Every process's metrics of an iteration as one: means, but the largest of errors and times; among several
    processes also who was slowest before they met, and how much slower than the middle one."""
    everyone = roll_call(accelerator, dict(metrics))
    times = roll_call(accelerator, dict(seconds))
    found: dict[str, float] = {}
    for key in dict.fromkeys(key for own in everyone for key in own):
        values = [own[key] for own in everyone if key in own]
        found[key] = max(values) if key in WORST else sum(values) / len(values)
    found |= {key: max(own[key] for own in times) for key in seconds}
    if len(times) > 1:
        alone = [own["seconds/rollout"] + own["seconds/waiting"] for own in times]
        slowest = max(range(len(alone)), key=alone.__getitem__)
        found |= {"slowest/process": slowest, "slowest/times": alone[slowest] / max(median_low(alone), 1e-9)}
    return found


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
    register_fsdp_forward_method(network, "wake")
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
        network.wake()  # type: ignore[operator]
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
