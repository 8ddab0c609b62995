"""Files that are complete or not there, folders of the user, and inputs that are never overwritten.

Files that are complete or not there: written under a temporary name beside their own, then renamed.

with complete(path) as partial:  …write partial…      ─►  path, or nothing and no trace

Folders of the user who runs the program, and a temporary one where there is none to write to.

Containers run programs as users without a home, without a name, or with a home that is read-only.

Where results go: fail before the work, not after it, and never take the place of an input.
"""

from __future__ import annotations

import getpass
import hashlib
import json
import os
import stat
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flowportrait.errors import BadInput
from flowportrait.media.formats import FORMATS

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


def cache_folder() -> Path:
    """``$XDG_CACHE_HOME/flowportrait`` or ``~/.cache/flowportrait``; not created."""
    return _user_folder("XDG_CACHE_HOME", ".cache")


def config_folder() -> Path:
    """``$XDG_CONFIG_HOME/flowportrait`` or ``~/.config/flowportrait``; not created."""
    return _user_folder("XDG_CONFIG_HOME", ".config")


def complete_environment() -> None:
    """Give this process a user name and a home where the system knows none: libraries ask for them (PyTorch,
    Matplotlib), and fail or complain without. ONNX Runtime collects no usage data and keeps no device id."""
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    try:
        getpass.getuser()
    except (KeyError, OSError, ImportError):
        os.environ["USER"] = f"user{_user_id()}"
    try:
        missing = not Path.home().is_dir()
    except (RuntimeError, OSError):
        missing = True
    if missing:
        os.environ["HOME"] = str(_temporary("home"))
        Path(os.environ["HOME"]).mkdir(exist_ok=True)
    elif not _can_be_made(Path.home() / ".config" / "matplotlib"):
        os.environ.setdefault("MPLCONFIGDIR", str(cache_folder() / "matplotlib"))


def _user_folder(variable: str, below_home: str) -> Path:
    given = os.environ.get(variable)
    try:
        base = Path(given) if given else Path.home() / below_home
    except RuntimeError:
        return _temporary(below_home)
    folder = base / "flowportrait"
    return folder if folder.is_dir() or _can_be_made(folder) else _temporary(below_home)


def _can_be_made(folder: Path) -> bool:
    existing = folder
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    return existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)


@lru_cache(maxsize=2)
def _temporary(name: str) -> Path:
    """A folder that belongs to this user alone: what lies in it is believed later, such as a signing key."""
    folder = Path(tempfile.gettempdir()) / f"flowportrait-{_user_id()}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
        private = stat.S_ISDIR(found.st_mode) and not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
        trusted = os.name == "nt" or (private and found.st_uid == os.getuid())
    except OSError:
        trusted = False
    return (folder if trusted else Path(tempfile.mkdtemp(prefix="flowportrait-"))) / name.lstrip(".")


def _user_id() -> str:
    return str(os.getuid()) if hasattr(os, "getuid") else os.environ.get("USERNAME", "user")


OUTPUTS = ("output", "motion_out")
"""Options that name what a command writes; every other path is an input."""
CHECKPOINT = "checkpoint"
"""Folder inside a run that training writes."""
_TEXTS = ("text", "title")
"""Options whose words are never paths."""


def check_inputs_kept(options: object) -> None:
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
