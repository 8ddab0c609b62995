"""The state of a training on disk, from which it can be resumed.

    state/000010.partial/  ── written, flushed ──►  state/000010/  ──►  older ones removed
        weights/       all roles' weights and the optimiser's moments by name, in shards where they are sharded
        processes/     what differs between processes: rollouts that wait to be trained on, random numbers
        progress.json  iteration, number of processes, and what the learner adds (``Learner.progress``)

Resuming finds the last complete state, whenever a process was stopped. All tensors are safetensors, so that reading a
state runs no code. States that version 0.1 wrote are read too: there ``processes`` is called ``waiting``, and
``progress.json`` names no format.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as safetensors_bytes
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException

from flowportrait.errors import BadInput
from flowportrait.training.distributed import all_gather_object
from flowportrait.training.learner import Learner
from flowportrait.training.lora import merge_adapters

STATE_FORMAT = 2
"""The value of ``format`` in ``progress.json``; files of version 0.1 have none."""
WEIGHTS, PROCESSES, PROCESSES_V1 = "weights", "processes", "waiting"


def write_state(learner: Learner, folder: Path) -> Path:
    """Write everything that a resumed training needs; all processes call it together.

    Returns:
        The folder of this iteration's state in ``folder``.

    Raises:
        OSError: some process could not write; raised on every process. The previous state is untouched.
    """
    accelerator, target = learner.accelerator, folder / f"{learner.iteration:06d}"
    partial = target.with_suffix(".partial")
    try:
        if not all(all_gather_object(accelerator, target.is_dir())):
            _on_every_process(learner, lambda: _create_folders(learner, partial))
            _on_every_process(learner, lambda: _write_process(learner, partial))
            _write_weights(learner, partial / WEIGHTS)
            _on_every_process(learner, lambda: _publish(learner, partial, target))
    except OSError:
        if accelerator.is_main_process:
            shutil.rmtree(partial, ignore_errors=True)
        raise
    if accelerator.is_main_process:
        _remove_states(folder, keep=target)
    return target


def latest_state(folder: Path) -> Path | None:
    """Return the last complete state in a folder, None if there is none."""
    complete = [path for path in folder.glob("*") if path.is_dir() and path.name.isdigit()]
    return max(complete, key=lambda path: int(path.name), default=None)


def remove_states(folder: Path) -> None:
    """Remove all states in a folder, for a training that starts from the beginning."""
    if folder.is_dir():
        _remove_states(folder, keep=None)


def read_state(learner: Learner, folder: Path) -> None:
    """Load the last complete state in ``folder`` into a learner; all processes call it together.

    The number of processes may differ from that of the training that wrote the state.

    Raises:
        BadInput: there is no state, or it belongs to another training or another model.
    """
    path = latest_state(folder)
    if path is None:
        raise BadInput(f"There is no complete state in {folder} to resume from.")
    progress = json.loads((path / "progress.json").read_text(encoding="utf-8"))
    learner.check_progress(progress, folder.parent)
    reader = dcp.HuggingFaceStorageReader(str(path / WEIGHTS))
    state = _empty_state(learner, _sizes(reader), path)
    _load(state, reader, alone=learner.accelerator.num_processes == 1)
    files = [file for name in (PROCESSES, PROCESSES_V1) for file in sorted((path / name).glob("*.safetensors"))]
    load_into_learner(learner, state, progress, [load_file(file) for file in files])


def load_into_learner(
    learner: Learner,
    state: Mapping[str, torch.Tensor],
    progress: Mapping[str, Any],
    process_states: list[dict[str, torch.Tensor]],
) -> None:
    """Put a state that was read from disk into a learner."""
    learner.load_state_dict(state)
    learner.iteration = progress["iteration"]
    learner.load_progress(progress)
    learner.load_process_states(process_states)


def read_full_weights(state: Path, kinds: tuple[str, ...]) -> dict[str, torch.Tensor]:
    """Return the unsharded tensors of some kinds (``live``, ``ema``, ``fixed``, …) in a state, by name.

    Reads on this process alone.
    """
    reader = dcp.HuggingFaceStorageReader(str(state / WEIGHTS))
    entries = reader.read_metadata().state_dict_metadata
    tensors = {
        key: torch.empty(entry.size, dtype=entry.properties.dtype)
        for key, entry in entries.items()
        if isinstance(entry, dcp.TensorStorageMetadata) and key.partition("/")[0] in kinds
    }
    _load(tensors, reader, alone=True)
    return {key.partition("/")[2]: value for key, value in tensors.items()}


def write_checkpoint(learner: Learner, folder: Path, role: str = "ema") -> None:
    """Write the weights of a role, by default the averaged ones, as a checkpoint; all processes call it together.

    Adapters are merged into the weights, unless the model saves them by themselves (``keeps_adapters``).

    Raises:
        OSError: the checkpoint could not be written; the previous one is untouched.
    """
    with learner.roles.use(role):
        model = learner.whole()
    _on_every_process(learner, lambda: _save_model(model, folder))


def _sizes(reader: dcp.HuggingFaceStorageReader) -> dict[str, torch.Size]:
    entries = reader.read_metadata().state_dict_metadata
    return {name: entry.size for name, entry in entries.items() if isinstance(entry, dcp.TensorStorageMetadata)}


def _empty_state(learner: Learner, sizes: Mapping[str, torch.Size], path: Path) -> dict[str, torch.Tensor]:
    """Return a zero tensor for every tensor of a state, sharded like the parameter that it belongs to."""
    parameters, roles, fixed = learner.roles.trained(), learner.roles.state_dict(), learner.fixed_tensors()
    expected = {f"{role}/{name}" for role, weights in roles.items() for name in weights}
    expected |= {f"fixed/{name}" for name in fixed}
    state = {}
    for key, size in sizes.items():
        kind, _, name = key.partition("/")
        expected.discard(key)
        like = fixed.get(name) if kind == "fixed" else parameters.get(name)
        if like is not None and size in (like.shape, ()):
            state[key] = torch.zeros_like(like) if size == like.shape else torch.zeros(())
        elif kind in roles or like is None:
            expected.add(key)
    if expected:
        raise BadInput(f"The state in {path} is not of this model and recipe: they differ in {min(expected)}.")
    return state


def _load(state: dict[str, torch.Tensor], reader: dcp.HuggingFaceStorageReader, alone: bool) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")
        dcp.load(state, storage_reader=reader, no_dist=alone)


def _save_model(model: nn.Module | None, folder: Path) -> None:
    if model is not None:
        try:
            to_save: Any = model if getattr(model, "keeps_adapters", False) else merge_adapters(model)
            to_save.save_pretrained(folder)
        except SafetensorError as error:  # how a full disk is reported there
            raise OSError(errno.EIO, str(error)) from error


def _create_folders(learner: Learner, partial: Path) -> None:
    if learner.accelerator.is_main_process:
        shutil.rmtree(partial, ignore_errors=True)
        (partial / WEIGHTS).mkdir(parents=True)
        (partial / PROCESSES).mkdir()


def _write_process(learner: Learner, partial: Path) -> None:
    if not partial.is_dir():
        raise OSError(f"process {learner.accelerator.process_index} does not see it; all need one shared folder")
    if tensors := learner.process_state():
        name = f"{learner.accelerator.process_index:05d}.safetensors"
        _write_flushed(partial / PROCESSES / name, safetensors_bytes(tensors))
    if learner.accelerator.is_main_process:
        progress = {
            "format": STATE_FORMAT,
            "iteration": learner.iteration,
            "processes": learner.accelerator.num_processes,
            **learner.progress(),
        }
        _write_flushed(partial / "progress.json", (json.dumps(progress, indent=2) + "\n").encode())


def _write_weights(learner: Learner, folder: Path) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")
        try:
            dcp.save(
                learner.state_dict(),
                storage_writer=dcp.HuggingFaceStorageWriter(str(folder), save_distributed=True),
                planner=dcp.DefaultSavePlanner(dedup_save_to_lowest_rank=True),
                no_dist=learner.accelerator.num_processes == 1,
            )
        except CheckpointException as error:
            first, _ = next(iter(error.failures.values()))
            raise first from error


def _publish(learner: Learner, partial: Path, target: Path) -> None:
    """Flush a written state to disk and give it its final name."""
    if learner.accelerator.is_main_process:
        for folder in (partial / WEIGHTS, partial / PROCESSES, partial):
            _flush_folder(folder)
        os.rename(partial, target)
        _flush_folder(target.parent)


def _remove_states(folder: Path, keep: Path | None) -> None:
    for other in folder.iterdir():
        if other != keep and other.name.removesuffix(".partial").isdigit():
            shutil.rmtree(other, ignore_errors=True)


def _on_every_process(learner: Learner, action: Callable[[], None]) -> None:
    """Do an action on every process; an ``OSError`` on one is raised on all."""
    local_error: OSError | None = None
    try:
        action()
    except OSError as error:
        local_error = error
    errors = all_gather_object(learner.accelerator, local_error and (local_error.errno, str(local_error)))
    first = next((error for error in errors if error), None)
    if local_error:
        raise local_error
    if first:
        raise OSError(first[0] or 0, f"on another process: {first[1]}")


def _write_flushed(path: Path, data: bytes) -> None:
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
