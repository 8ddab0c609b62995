"""Where results go: fail before the work, not after it, and never take the place of an input."""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from flowportrait.errors import BadInput
from flowportrait.media.output_formats import FORMATS

OUTPUTS = ("output", "motion_out")
"""Options that name what a command writes; every other path is an input."""
CHECKPOINT = "checkpoint"
"""Folder inside a run that training writes."""
_TEXTS = ("text", "title")
"""Options whose words are never paths."""


def check_inputs_kept(options: argparse.Namespace) -> None:
    """That no output of a command is one of its inputs, under whatever name: another path, a link, other case.

    ``options.updates`` names the inputs that the command is meant to write into.

    Raises:
        BadInput: one is.
    """
    updates = {*getattr(options, "updates", ()), *(("recipe", "start") if getattr(options, "resume", False) else ())}
    inputs = [
        path
        for name, value in vars(options).items()
        if name not in (*OUTPUTS, *_TEXTS) and name not in updates
        for path in _paths(value)
    ]
    for name in OUTPUTS:
        target = getattr(options, name, None)
        if isinstance(target, Path) and str(target) != "-":
            check_not_an_input(target, inputs, f"--{name.replace('_', '-')}")


def check_not_an_input(target: Path, inputs: Iterable[str | Path], flag: str = "--output") -> None:
    """That writing ``target``, a file or the folder of a run, leaves these inputs as they are.

    Raises:
        BadInput: it does not.
    """
    for path in inputs:
        if same_file(target, path) or same_file(target / CHECKPOINT, path):
            raise BadInput(f"{flag} {target} would take the place of the input {path}: give another name.")


def same_file(one: str | Path, other: str | Path) -> bool:
    """Whether two names are of one existing file or folder."""
    try:
        return os.path.samefile(one, other)
    except (OSError, ValueError):
        return False


def _paths(value: Any) -> Iterator[str | Path]:
    """What may be a path in an option's value: ``a.mp4``, ``name=a.mp4``, ``1=a.jpg,b.wav``."""
    if isinstance(value, Path):
        yield value
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from _paths(part)
    elif isinstance(value, str):
        for text in (value, value.partition("=")[2]):
            yield text
            for comma in (index for index, letter in enumerate(text) if letter == ","):
                yield from (text[:comma], text[comma + 1 :])


def check_output_file(path: Path, kind: str | None = None, flag: str = "--output") -> None:
    """That a file can be written: a video, or one of another kind.

    Args:
        path: what the user gave.
        kind: the ending without its dot; None for every format in which videos are written.
        flag: the option that names it.

    Raises:
        BadInput: the folder is missing or not writable, the name is a folder, or it does not end as the kind does.
    """
    _check_name(path)
    endings = [f".{kind}"] if kind else list(FORMATS)
    if path.suffix.lower() not in endings:
        listed = endings[0] if kind else f"{', '.join(endings[:-1])} or {endings[-1]}"
        raise BadInput(f"{flag} {path} must end in {listed}.")
    if path.is_dir():
        raise BadInput(f"{flag} {path} is a folder: give the name of a {path.suffix.lower()[1:]} file.")
    if not path.parent.is_dir():
        raise BadInput(f"Cannot write {path}: the folder {path.parent} does not exist; create it first.")
    _try_write(path.parent, path)


def check_output_folder(path: Path) -> None:
    """As ``check_output_file``, for a folder that the command creates or fills."""
    _check_name(path)
    if path.exists() and not path.is_dir():
        raise BadInput(f"--output {path} is a file: give the name of a folder.")
    existing = path
    while not existing.exists():
        existing = existing.parent
    if not existing.is_dir():
        raise BadInput(f"Cannot write {path}: {existing} is not a folder.")
    _try_write(existing, path)


def _check_name(path: Path) -> None:
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        pass
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise BadInput(f"Cannot write {path} ({reason}): choose another --output.") from error


def _try_write(folder: Path, wanted: Path) -> None:
    # os.access says yes to root on a read-only mount, so try it.
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise BadInput(f"Cannot write {wanted} ({error.strerror}): choose another --output.") from error
