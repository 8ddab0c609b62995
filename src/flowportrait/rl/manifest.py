"""What a run was started with.

    python and package versions · seed · hashes of the starting weights and of every portrait and recording

Files are named by their path below the folder that holds all of them, so that a whole folder may be moved and two
recordings of one name in different folders are two. Version 0.1 had file names alone; its manifests are still read.
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
from flowportrait.models.arflow import checkpoint_folder

PACKAGES = (
    "flowportrait", "torch", "transformers", "accelerate", "peft", "numpy", "mediapipe", "opencv-contrib-python",
)  # fmt: skip
MUST_AGREE = {
    "seed": "seed", "start": "starting checkpoint", "prompts": "set of prompts", "files": "set of prompts or clips",
}  # fmt: skip

HASHED_NUMBERS = 4096
"""Numbers of a tensor that ``network_start`` looks at, at least."""

FORMAT = 2
"""Version of ``run.json``; one without it is of version 0.1."""

HARMLESS_SETTINGS = frozenset({
    "iterations", "checkpoint_every", "evaluate_every", "patience", "give_up", "micro_batch", "checkpointing",
    "offload",
})  # fmt: skip
"""Settings that do not change what is learned in an iteration."""


def manifest(
    start: Mapping[str, str], prompts: Sequence[Any], seed: int, files: Sequence[Path] = (), **more: Any
) -> dict[str, Any]:
    """Describe a run that is about to begin.

    Args:
        start: name and hash of the weights that it starts from.
        prompts: ``Prompt``s of our generator (image and audio) or ``Item``s of another one (text, too).
        seed: the recipe's.
        files: clips to learn from.
        more: what else should be known of the run; a resumed run may differ in it.
    """
    paths = {path for prompt in prompts for path in (prompt.image, prompt.audio) if path is not None}
    names = relative_names(paths | set(files))

    def described(prompt: Any) -> Any:
        image, audio = (path and names[path] for path in (prompt.image, prompt.audio))
        return {"text": prompt.text, "image": image, "audio": audio} if hasattr(prompt, "text") else [image, audio]

    return {
        "manifest": FORMAT,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "packages": {name: version(name) for name in PACKAGES},
        "seed": seed,
        "start": dict(start),
        "prompts": {prompt.id: described(prompt) for prompt in prompts},
        "files": file_hashes(names),
        **more,
    }


def checkpoint_start(name: str) -> dict[str, str]:
    """Name and SHA-256 of a checkpoint on disk, for ``manifest``."""
    return {"name": name, "sha256": _digest(checkpoint_folder(name) / "model.safetensors")}


def network_start(name: str, network: nn.Module, frozen_only: bool = False) -> dict[str, str]:
    """Name and fingerprint of a network in memory, for ``manifest``.

    Args:
        name: what the network is called.
        network: whose parameters are hashed: of every tensor its name, its shape and up to twice ``HASHED_NUMBERS``
            evenly spaced numbers, so that 14 billion parameters take no longer than a million.
        frozen_only: leave out the parameters that will be trained; a run's state holds those.
    """
    found = hashlib.sha256()
    for key, weights in network.named_parameters():
        if not (frozen_only and weights.requires_grad):
            numbers = weights.detach().flatten()
            chosen = numbers[:: max(1, len(numbers) // HASHED_NUMBERS)].cpu().contiguous()
            found.update(f"{key} {tuple(weights.shape)}".encode() + chosen.view(torch.uint8).numpy().tobytes())
    return {"name": name, "fingerprint": found.hexdigest()}


def relative_names(paths: Iterable[Path]) -> dict[Path, str]:
    """A name of each file by which no other of them is called: its path below their common folder, with ``/``."""
    known = sorted(set(paths))
    whole = {path: path.absolute() for path in known}
    try:
        folder = os.path.commonpath([path.parent for path in whole.values()]) if known else ""
    except ValueError:  # on Windows: files on different drives
        return {path: place.as_posix() for path, place in whole.items()}
    return {path: place.relative_to(folder).as_posix() for path, place in whole.items()}


def file_hashes(names: Mapping[Path, str]) -> dict[str, str]:
    """SHA-256 of every file by its name."""
    return {name: _digest(path) for path, name in names.items()}


def write_or_compare(path: Path, current: dict[str, Any]) -> list[str]:
    """Write ``run.json``, or if it exists compare: returns what differs harmlessly (versions), in words.

    A manifest of version 0.1 is compared by what it holds and then replaced by one of this version, which tells files
    of one name apart.

    Raises:
        BadInput: a resumed run would start from other weights or see other data.
    """
    if not path.is_file():
        write_json(path, current, indent=2)
        return []
    before = json.loads(path.read_text(encoding="utf-8"))
    old = "manifest" not in before
    now = _as_version_1(current) if old else current
    for key, what in MUST_AGREE.items():
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
    """A manifest as version 0.1 wrote it: of files of one name it kept the hash of the last."""

    def name(path: str | None) -> str:
        return (path or "").rpartition("/")[2]

    prompts = {
        key: value["text"] if isinstance(value, dict) else [name(path) for path in value]
        for key, value in current["prompts"].items()
    }
    files = {name(path): digest for path, digest in current["files"].items()}
    return {**current, "prompts": prompts, "files": files}


def _difference(before: Any, now: Any) -> str:
    """The first thing by which two entries differ, in brackets, where they have parts with names."""
    if not isinstance(before, dict) or not isinstance(now, dict):
        return ""
    different = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
    return f" ({different[0]} is not as it was)"


def changed_settings(before: Mapping[str, Any], now: Mapping[str, Any], run: Path) -> list[str]:
    """What a resumed run's settings, as ``config.to_dict`` gives them, differ in from those of its state, in words.

    Raises:
        BadInput: it was begun with another recipe.
    """
    if before["name"] != now["name"]:
        raise BadInput(
            f"{run} was begun with the recipe {before['name']}, not {now['name']}: resume it with --recipe {run}, "
            "which repeats its settings, or choose another --output."
        )
    old, new = flat(before), flat(now)
    # A setting that a run did not know yet, or whose part is left out, is none.
    values = {key: (old.get(key, "None"), new.get(key, "None")) for key in dict.fromkeys((*old, *new))}
    return [
        f"{key} was {was}, is {given}"
        for key, (was, given) in values.items()
        if was != given and key not in HARMLESS_SETTINGS
    ]


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by dotted names; what is neither a number nor a truth value is text."""
    result: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            result |= flat(value, f"{prefix}{key}.")
        else:
            result[prefix + key] = value if isinstance(value, (int, float, str, bool)) else str(value)
    return result


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
