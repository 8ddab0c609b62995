"""This module records what a run was started with, in ``run.json``, and compares it when the run is resumed.

    python and package versions · seed · hashes of the starting weights and of every portrait and recording

Files are named by their path relative to their common folder, so that the folder may be moved, and files of the same
name in different folders are distinguished. Version 0.1 used file names alone; its manifests can still be read.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from flowportrait.errors import BadInput
from flowportrait.files import write_json
from flowportrait.models.checkpoints import checkpoint_folder

PACKAGES = (
    "flowportrait", "torch", "transformers", "accelerate", "peft", "numpy", "mediapipe", "opencv-contrib-python",
)  # fmt: skip
"""Packages of which the versions are recorded."""
REQUIRED_MATCHES = {
    "seed": "seed", "start": "starting checkpoint", "prompts": "set of prompts", "files": "set of prompts or clips",
}  # fmt: skip
"""Entries of ``run.json`` that must be the same when a run is resumed, and what they are called in messages."""

HASHED_NUMBERS = 4096
"""Smallest number of elements of a tensor that ``describe_network`` hashes; a smaller tensor is hashed completely."""

MANIFEST_VERSION = 2
"""Version of ``run.json``. A file without a version was written by FlowPortrait 0.1."""

HARMLESS_SETTINGS = frozenset({
    "iterations", "checkpoint_every", "evaluate_every", "patience", "give_up", "micro_batch", "checkpointing",
    "offload",
})  # fmt: skip
"""Settings that may change when a run is resumed, since they do not change what is learned in an iteration."""


def describe_run(
    start: Mapping[str, str], prompts: Sequence[Any], seed: int, files: Sequence[Path] = (), **more: Any
) -> dict[str, Any]:
    """Return the content of ``run.json`` for a run that is about to begin.

    Args:
        start: name and hash of the weights that the run starts from.
        prompts: ``Prompt`` objects of the built-in generator (image and audio), or ``Item`` objects of another
            generator (also text).
        seed: seed of the recipe.
        files: clips to learn from.
        **more: further entries, in which a resumed run may differ.
    """
    paths = {path for prompt in prompts for path in (prompt.image, prompt.audio) if path is not None}
    names = relative_names(paths | set(files))

    def describe(prompt: Any) -> Any:
        image, audio = (path and names[path] for path in (prompt.image, prompt.audio))
        return {"text": prompt.text, "image": image, "audio": audio} if hasattr(prompt, "text") else [image, audio]

    return {
        "manifest": MANIFEST_VERSION,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "packages": {name: version(name) for name in PACKAGES},
        "seed": seed,
        "start": dict(start),
        "prompts": {prompt.id: describe(prompt) for prompt in prompts},
        "files": file_hashes(names),
        **more,
    }


def describe_checkpoint(name: str) -> dict[str, str]:
    """Return the name and SHA-256 of a checkpoint on disk, for ``describe_run``."""
    return {"name": name, "sha256": _digest(checkpoint_folder(name) / "model.safetensors")}


def describe_network(name: str, network: nn.Module, frozen_only: bool = False) -> dict[str, str]:
    """Return the name and fingerprint of a network in memory, for ``describe_run``.

    Args:
        name: name of the network.
        network: the network. The fingerprint is a hash of the name and shape of every parameter and of up to twice
            ``HASHED_NUMBERS`` evenly spaced elements, so that 14 billion parameters take no longer than a million.
        frozen_only: leave out the parameters that will be trained, which the state of a run contains.
    """
    digest = hashlib.sha256()
    for key, weights in network.named_parameters():
        if not (frozen_only and weights.requires_grad):
            numbers = weights.detach().flatten()
            chosen = numbers[:: max(1, len(numbers) // HASHED_NUMBERS)].cpu().contiguous()
            digest.update(f"{key} {tuple(weights.shape)}".encode() + chosen.view(torch.uint8).numpy().tobytes())
    return {"name": name, "fingerprint": digest.hexdigest()}


def relative_names(paths: Iterable[Path]) -> dict[Path, str]:
    """Return a unique name of each file: its path relative to the common folder of all, with ``/`` as separator."""
    unique = sorted(set(paths))
    absolute = {path: path.absolute() for path in unique}
    try:
        folder = os.path.commonpath([path.parent for path in absolute.values()]) if unique else ""
    except ValueError:  # on Windows: files on different drives
        return {path: full.as_posix() for path, full in absolute.items()}
    return {path: full.relative_to(folder).as_posix() for path, full in absolute.items()}


def file_hashes(names: Mapping[Path, str]) -> dict[str, str]:
    """Return the SHA-256 of every file by its name."""
    return {name: _digest(path) for path, name in names.items()}


def write_or_compare_manifest(path: Path, current: dict[str, Any]) -> list[str]:
    """Write ``run.json``, or compare it with the current manifest if it exists.

    A manifest of version 0.1 is compared in the entries that it has, and then replaced by one of the current version.

    Returns:
        One sentence per harmless difference, such as the version of a package.

    Raises:
        BadInput: a resumed run would start from other weights or use other data.
    """
    if not path.is_file():
        write_json(path, current, indent=2)
        return []
    before = json.loads(path.read_text(encoding="utf-8"))
    old = "manifest" not in before
    now = _as_version_1(current) if old else current
    for key, what in REQUIRED_MATCHES.items():
        if before[key] != now[key]:
            file = "" if key in ("seed", "start") else _difference(before[key], now[key])
            raise BadInput(
                f"{path.parent} was begun with another {what}{file}: resume with it, or choose another --output."
            )
    if old:
        write_json(path, before | {key: current[key] for key in ("manifest", "prompts", "files")}, indent=2)
    differences = [
        f"{name} was {before['packages'].get(name)}, is now {now}"
        for name, now in current["packages"].items()
        if before["packages"].get(name) != now
    ]
    if "rewards" in before and before["rewards"] != current.get("rewards"):
        differences.append(f"the rewards were {before['rewards']}, are now {current.get('rewards')}")
    return differences


def _as_version_1(current: Mapping[str, Any]) -> dict[str, Any]:
    """Return a manifest as version 0.1 wrote it. Of files with the same name it has the hash of the last one."""

    def name(path: str | None) -> str:
        return (path or "").rpartition("/")[2]

    prompts = {
        key: value["text"] if isinstance(value, dict) else [name(path) for path in value]
        for key, value in current["prompts"].items()
    }
    files = {name(path): digest for path, digest in current["files"].items()}
    return {**current, "prompts": prompts, "files": files}


def _difference(before: Any, now: Any) -> str:
    """Return the first key in which two mappings differ, in brackets; empty for entries that are no mappings."""
    if not isinstance(before, dict) or not isinstance(now, dict):
        return ""
    different = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
    return f" ({different[0]} is not as it was)"


def changed_settings(before: Mapping[str, Any], now: Mapping[str, Any], run: Path) -> list[str]:
    """Return one sentence per setting that a resumed run changes, without the harmless ones.

    Args:
        before: the settings in the state, as from ``config.to_dict``.
        now: the settings of the resumed run.
        run: folder of the run, for the message.

    Raises:
        BadInput: the run was begun with another recipe.
    """
    if before["name"] != now["name"]:
        raise BadInput(
            f"{run} was begun with the recipe {before['name']}, not {now['name']}: resume it with --recipe {run}, "
            "which repeats its settings, or choose another --output."
        )
    old, new = flatten_settings(before), flatten_settings(now)
    # A setting that did not exist when the run began, or that belongs to a part that is left out, counts as None.
    values = {key: (old.get(key, "None"), new.get(key, "None")) for key in dict.fromkeys((*old, *new))}
    return [
        f"{key} was {old_value}, is {new_value}"
        for key, (old_value, new_value) in values.items()
        if old_value != new_value and key not in HARMLESS_SETTINGS
    ]


def flatten_settings(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested settings by dotted names. Values other than numbers, booleans and strings become strings."""
    result: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            result |= flatten_settings(value, f"{prefix}{key}.")
        else:
            result[prefix + key] = value if isinstance(value, (int, float, str, bool)) else str(value)
    return result


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
