"""Several processes that train as one: who they are, what each says, what one decides for all, where curves go.

roll_call   every process says something     ─► all of it, to each
on_main     one process does it              ─► its result or its error, to each
"""

from __future__ import annotations

import atexit
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import (
    InitProcessGroupKwargs,
    broadcast_object_list,
    gather_object,
    is_tensorboard_available,
    is_wandb_available,
)

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
