"""A run's state on disk: one folder per state, complete or not there at all, whatever the number of processes.

    state/000010.partial/  ── written, flushed ──►  state/000010/  ──►  older ones removed
        weights/       all roles' weights and the optimiser's moments by name, in shards where they are sharded
        waiting/       rollouts of each process that wait to be trained on
        progress.json  iteration, updates, processes, recipe

Whatever stops a process at whatever moment, the last complete state is what resuming finds. Tensors are safetensors
throughout, so that reading a state runs no code.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as packed
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException

from flowportrait.config import to_dict
from flowportrait.errors import BadInput
from flowportrait.posttrain import backlog
from flowportrait.posttrain.manifest import changed
from flowportrait.posttrain.recipe import FIRST_VERSION
from flowportrait.posttrain.trainer import Trainer
from flowportrait.terminal import say
from flowportrait.training.adapter import merged
from flowportrait.training.processes import roll_call


def write(trainer: Trainer, folder: Path) -> Path:
    """Everything a resumed run needs; all processes together. Returns where the state of this iteration is.

    Raises:
        OSError: some process could not write; raised on every process. The state before is untouched.
    """
    accelerator, target = trainer.accelerator, folder / f"{trainer.iteration:06d}"
    partial = target.with_suffix(".partial")
    try:
        if not all(roll_call(accelerator, target.is_dir())):
            _together(trainer, lambda: _begin(trainer, partial))
            _together(trainer, lambda: _write_own(trainer, partial))
            _save_weights(trainer, partial / "weights")
            _together(trainer, lambda: _finish(trainer, partial, target))
    except OSError:
        if accelerator.is_main_process:
            shutil.rmtree(partial, ignore_errors=True)
        raise
    if accelerator.is_main_process:
        for other in folder.iterdir():
            if other != target and other.name.removesuffix(".partial").isdigit():
                shutil.rmtree(other, ignore_errors=True)
    return target


def latest(folder: Path) -> Path | None:
    """The last complete state in a folder."""
    complete = [path for path in folder.glob("*") if path.is_dir() and path.name.isdigit()]
    return max(complete, key=lambda path: int(path.name), default=None)


def read(trainer: Trainer, folder: Path) -> None:
    """Continue from the last complete state, on however many processes, with the noise keys and the kernel that it
    began with (``Recipe.version``); other settings than its own print a warning.

    Raises:
        BadInput: there is none, or it is another recipe's, or of another model.
    """
    path = latest(folder)
    if path is None:
        raise BadInput(f"There is no complete state in {folder} to resume from.")
    progress = json.loads((path / "progress.json").read_text(encoding="utf-8"))
    before = {"version": FIRST_VERSION, **progress["recipe"]}
    trainer.recipe = replace(trainer.recipe, version=before["version"])
    for change in changed(before, to_dict(trainer.recipe), folder.parent):
        say(f"Warning: {change}, from iteration {progress['iteration']} on.")
    reader = dcp.HuggingFaceStorageReader(str(path / "weights"))
    found = reader.read_metadata().state_dict_metadata
    sizes = {name: entry.size for name, entry in found.items() if isinstance(entry, dcp.TensorStorageMetadata)}
    state = _blank(trainer, sizes, path)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")
        dcp.load(state, storage_reader=reader, no_dist=trainer.accelerator.num_processes == 1)
    trainer.load_state_dict(state, progress["iteration"], progress["updates"])
    parts = [load_file(file) for file in sorted((path / "waiting").glob("*.safetensors"))]
    if parts and trainer.recipe.stale:
        waiting = backlog.unpack(parts, trainer.share.groups, trainer.any_condition(), trainer.device)
        trainer.waiting = waiting[-trainer.recipe.stale :]


def deliver(trainer: Trainer, folder: Path, role: str = "ema") -> None:
    """The averaged weights as a checkpoint to use, adapters merged unless the policy keeps them apart; all processes
    together.

    Raises:
        OSError: it could not be written; the one before is untouched.
    """
    with trainer.roles.use(role):
        policy = trainer.whole()
    _together(trainer, lambda: _save_whole(policy, folder))


def _blank(trainer: Trainer, sizes: Mapping[str, torch.Size], path: Path) -> dict[str, torch.Tensor]:
    """Room for every tensor of a state, sharded like what it belongs to."""
    parameters, roles = trainer.roles.trained(), trainer.roles.state_dict()
    expected = {f"{role}/{name}" for role, weights in roles.items() for name in weights}
    state = {}
    for key, size in sizes.items():
        kind, _, name = key.partition("/")
        expected.discard(key)
        if name in parameters and size in (parameters[name].shape, ()):
            state[key] = torch.zeros_like(parameters[name]) if size == parameters[name].shape else torch.zeros(())
        elif kind in roles or name not in parameters:
            expected.add(key)
    if expected:
        raise BadInput(f"The state in {path} is not of this model and recipe: they differ in {min(expected)}.")
    return state


def _save_whole(policy: nn.Module | None, folder: Path) -> None:
    if policy is not None:
        try:
            own: Any = policy if getattr(policy, "keeps_adapters", False) else merged(policy)
            own.save_pretrained(folder)
        except SafetensorError as error:  # how a full disk is reported there
            raise OSError(errno.EIO, str(error)) from error


def _begin(trainer: Trainer, partial: Path) -> None:
    if trainer.accelerator.is_main_process:
        shutil.rmtree(partial, ignore_errors=True)
        (partial / "weights").mkdir(parents=True)
        (partial / "waiting").mkdir()


def _write_own(trainer: Trainer, partial: Path) -> None:
    if not partial.is_dir():
        raise OSError(f"process {trainer.accelerator.process_index} does not see it; all need one shared folder")
    if waiting := backlog.pack(trainer.waiting):
        _flushed(partial / "waiting" / f"{trainer.accelerator.process_index:05d}.safetensors", packed(waiting))
    if trainer.accelerator.is_main_process:
        progress = {
            "iteration": trainer.iteration,
            "updates": trainer.updates,
            "processes": trainer.accelerator.num_processes,
            "recipe": to_dict(trainer.recipe),
        }
        _flushed(partial / "progress.json", (json.dumps(progress, indent=2) + "\n").encode())


def _save_weights(trainer: Trainer, folder: Path) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")
        try:
            dcp.save(
                trainer.state_dict(),
                storage_writer=dcp.HuggingFaceStorageWriter(str(folder), save_distributed=True),
                planner=dcp.DefaultSavePlanner(dedup_save_to_lowest_rank=True),
                no_dist=trainer.accelerator.num_processes == 1,
            )
        except CheckpointException as error:
            first, _ = next(iter(error.failures.values()))
            raise first from error


def _finish(trainer: Trainer, partial: Path, target: Path) -> None:
    if trainer.accelerator.is_main_process:
        for folder in (partial / "weights", partial / "waiting", partial):
            _flush_folder(folder)
        os.rename(partial, target)
        _flush_folder(target.parent)


def _together(trainer: Trainer, act: Callable[[], None]) -> None:
    """Do it on every process; what fails on one fails on all."""
    failed: OSError | None = None
    try:
        act()
    except OSError as error:
        failed = error
    said = roll_call(trainer.accelerator, failed and (failed.errno, str(failed)))
    first = next((own for own in said if own), None)
    if failed:
        raise failed
    if first:
        raise OSError(first[0] or 0, f"on another process: {first[1]}")


def _flushed(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _flush_folder(path: Path) -> None:
    if os.name == "nt":  # where folders cannot be opened, and renames are written through
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
