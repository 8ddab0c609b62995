"""Files that are complete or not there: written under a temporary name beside their own, then renamed.

with complete(path) as partial:  …write partial…      ─►  path, or nothing and no trace
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


LONGEST_NAME = 255
"""Bytes of a file name on the usual file systems."""


def partial_path(path: Path, suffix: str = "") -> Path:
    """The hidden name beside ``path`` under which it is written first, no longer than file systems allow; ``suffix``
    (such as ``.mp4``) tells libraries its format by the end of the name."""
    tail = f".{os.getpid()}.partial{suffix}"
    name = f".{path.name}{tail}"
    if len(os.fsencode(name)) > LONGEST_NAME:
        name = f".{hashlib.sha256(os.fsencode(path.name)).hexdigest()[:32]}{tail}"
    return path.with_name(name)


@contextmanager
def complete(path: Path) -> Iterator[Path]:
    """A name to write to, beside ``path``; it becomes ``path`` when the block ends well, and goes when it does not.

    Raises:
        OSError: as writing and renaming do.
    """
    partial = partial_path(path)
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all."""
    with complete(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any, indent: int | None = 1) -> None:
    """Write plain values as JSON, whole or not at all."""
    write_text(path, json.dumps(value, indent=indent) + "\n")


def write_weights(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Write safetensors, whole or not at all; what is floating as float16."""
    from safetensors.torch import save_file

    halves = {name: (value.half() if value.is_floating_point() else value) for name, value in tensors.items()}
    with complete(path) as partial:
        save_file({name: value.contiguous() for name, value in halves.items()}, partial)
