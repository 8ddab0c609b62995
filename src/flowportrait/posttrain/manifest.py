"""What a run was made from, so that it can be made again: ``run.json`` beside ``recipe.json``.

    python and package versions · seed · hashes of the starting weights and of every portrait and recording
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from flowportrait.checkpoints import checkpoint_folder
from flowportrait.errors import BadInput
from flowportrait.prompts import Prompt
from flowportrait.written import write_json

PACKAGES = (
    "flowportrait", "torch", "transformers", "accelerate", "peft", "numpy", "mediapipe", "opencv-contrib-python",
)  # fmt: skip
MUST_AGREE = {
    "seed": "seed", "start": "starting checkpoint", "prompts": "set of prompts", "files": "set of prompts or clips",
}  # fmt: skip

FREE = frozenset({
    "iterations", "checkpoint_every", "evaluate_every", "patience", "give_up", "micro_batch", "checkpointing",
    "offload",
})  # fmt: skip
"""Settings that do not change what is learned in an iteration."""


def manifest(start: str, prompts: Sequence[Prompt], seed: int, given: Sequence[Path] = ()) -> dict[str, Any]:
    """What is about to be run; ``given``: files of clips to learn from."""
    files = sorted({path for prompt in prompts for path in (prompt.image, prompt.audio)} | set(given))
    return {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "packages": {name: version(name) for name in PACKAGES},
        "seed": seed,
        "start": {"name": start, "sha256": _digest(checkpoint_folder(start) / "model.safetensors")},
        "prompts": {prompt.id: [prompt.image.name, prompt.audio.name] for prompt in prompts},
        "files": {path.name: _digest(path) for path in files},
    }


def write_or_compare(path: Path, current: dict[str, Any]) -> list[str]:
    """Write ``run.json``, or if it exists compare: returns what differs harmlessly (versions), in words.

    Raises:
        BadInput: a resumed run would start from other weights or see other data.
    """
    if not path.is_file():
        write_json(path, current, indent=2)
        return []
    before = json.loads(path.read_text())
    for key, what in MUST_AGREE.items():
        if before[key] != current[key]:
            raise BadInput(f"{path.parent} was begun with another {what}: resume with it, or choose another --output.")
    return [
        f"{name} was {before['packages'].get(name)}, is now {now}"
        for name, now in current["packages"].items()
        if before["packages"].get(name) != now
    ]


def changed(before: Mapping[str, Any], now: Mapping[str, Any], run: Path) -> list[str]:
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
        f"{key} was {was}, is {given}" for key, (was, given) in values.items() if was != given and key not in FREE
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
