"""Files that are written whole, files that ship, the user's folders, and checks that outputs do not overwrite inputs.

A file is written under a temporary name beside its own and then renamed, so that it is complete or absent:

    with atomic_write(path) as partial:
        ...                              # write to partial; afterwards the whole file is at path, or none

The folders of the user follow the XDG conventions. Where none can be written to, a temporary one is used: containers
run programs as users without a home, without a name, or with a read-only home. Outputs are checked before the work, so
that a command fails early.
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
from importlib import import_module, resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flowportrait import __version__
from flowportrait.errors import BadInput
from flowportrait.media.formats import OUTPUT_FORMATS

if TYPE_CHECKING:
    import torch


# --- Files written whole ----------------------------------------------------------------

MAX_NAME_BYTES = 255
"""Largest number of bytes in a file name on the usual file systems."""


def partial_path(path: Path, suffix: str = "") -> Path:
    """Return the hidden name beside ``path`` under which it is written first, no longer than file systems allow.

    ``suffix`` (such as ``.mp4``) is put at the end of the name, from which libraries infer the format.
    """
    tail = f".{os.getpid()}.partial{suffix}"
    name = f".{path.name}{tail}"
    if len(os.fsencode(name)) > MAX_NAME_BYTES:
        name = f".{hashlib.sha256(os.fsencode(path.name)).hexdigest()[:32]}{tail}"
    return path.with_name(name)


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a name beside ``path`` to write to; it is renamed to ``path`` if the block ends well, else removed.

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
    """Write a text file in UTF-8, whole or not at all."""
    with atomic_write(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any, indent: int | None = 1) -> None:
    """Write plain values as a JSON file, whole or not at all."""
    write_text(path, json.dumps(value, indent=indent) + "\n")


def write_weights(path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write tensors as a safetensors file, whole or not at all; floating-point ones are stored as float16.

    Args:
        path: the file.
        tensors: by name.
        metadata: texts that are stored beside them.
    """
    from safetensors.torch import save_file

    halves = {name: (value.half() if value.is_floating_point() else value) for name, value in tensors.items()}
    with atomic_write(path) as partial:
        save_file({name: value.contiguous() for name, value in halves.items()}, partial, dict(metadata or {}) or None)


# --- Files that ship --------------------------------------------------------------------


def shipped_weights(name: str = "") -> Path:
    """Return the path of a file or folder that ships in the package ``flowportrait-weights``.

    Args:
        name: path inside that package, such as ``sync_eval/model.safetensors``; empty for the folder of all.

    Raises:
        BadInput: the package is not installed, or is of another version.
    """
    return _weights_folder() / name


def current_path(path: Path) -> Path:
    """Return ``path``, or where a shipped file is now if it is named in the folder that version 0.1 had it in."""
    head, found, name = path.as_posix().rpartition("flowportrait/weights/")
    moved = bool(found) and head[-1:] in ("", "/") and not path.exists()
    return shipped_weights(name) if moved else path


@lru_cache(maxsize=1)
def _weights_folder() -> Path:
    try:
        package = import_module("flowportrait_weights")
        version, folder = package.__version__, Path(str(resources.files(package)))
    except (ModuleNotFoundError, AttributeError) as error:
        raise BadInput(
            f"The weights are not installed: run pip install flowportrait-weights=={__version__}."
        ) from error
    if version != __version__:
        raise BadInput(
            f"The installed flowportrait-weights {version} does not fit flowportrait {__version__}: "
            f"run pip install flowportrait-weights=={__version__}."
        )
    return folder


# --- Folders of the user ----------------------------------------------------------------


def cache_folder() -> Path:
    """Return ``$XDG_CACHE_HOME/flowportrait`` or ``~/.cache/flowportrait``; the folder is not created."""
    return _user_folder("XDG_CACHE_HOME", ".cache")


def config_folder() -> Path:
    """Return ``$XDG_CONFIG_HOME/flowportrait`` or ``~/.config/flowportrait``; the folder is not created."""
    return _user_folder("XDG_CONFIG_HOME", ".config")


def set_missing_environment() -> None:
    """Set a user name and a home for this process where the system has none.

    Libraries ask for them (PyTorch, Matplotlib), and fail or complain without. ONNX Runtime is also told to collect no
    usage data and to keep no device id.
    """
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
        os.environ["HOME"] = str(_temporary_folder("home"))
        Path(os.environ["HOME"]).mkdir(exist_ok=True)
    elif not _is_creatable(Path.home() / ".config" / "matplotlib"):
        os.environ.setdefault("MPLCONFIGDIR", str(cache_folder() / "matplotlib"))


def _user_folder(variable: str, below_home: str) -> Path:
    configured = os.environ.get(variable)
    try:
        base = Path(configured) if configured else Path.home() / below_home
    except RuntimeError:
        return _temporary_folder(below_home)
    folder = base / "flowportrait"
    return folder if folder.is_dir() or _is_creatable(folder) else _temporary_folder(below_home)


def _is_creatable(folder: Path) -> bool:
    existing = folder
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    return existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)


@lru_cache(maxsize=2)
def _temporary_folder(name: str) -> Path:
    """Return a folder that only this user can write to: files in it, such as a signing key, are trusted later."""
    folder = Path(tempfile.gettempdir()) / f"flowportrait-{_user_id()}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        status = folder.lstat()
        private = stat.S_ISDIR(status.st_mode) and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
        trusted = os.name == "nt" or (private and status.st_uid == os.getuid())
    except OSError:
        trusted = False
    return (folder if trusted else Path(tempfile.mkdtemp(prefix="flowportrait-"))) / name.lstrip(".")


def _user_id() -> str:
    return str(os.getuid()) if hasattr(os, "getuid") else os.environ.get("USERNAME", "user")


# --- Outputs never replace inputs -------------------------------------------------------

OUTPUT_OPTIONS = ("output", "motion_out")
"""Options that name what a command writes; every other path among the options is an input."""
CHECKPOINT_FOLDER = "checkpoint"
"""Name of the folder inside a run in which training keeps its checkpoint."""
_TEXT_OPTIONS = ("text", "title")
"""Options that hold text and never a path."""


def check_outputs_are_not_inputs(options: object) -> None:
    """Check that no output of a command is one of its inputs under any name: another path, a link, other case.

    ``options.updates`` names the inputs that the command is meant to write into.

    Raises:
        BadInput: an output is an input.
    """
    updates = {*getattr(options, "updates", ()), *(("recipe", "start") if getattr(options, "resume", False) else ())}
    inputs = [
        path
        for name, value in vars(options).items()
        if name not in (*OUTPUT_OPTIONS, *_TEXT_OPTIONS) and name not in updates
        for path in _possible_paths(value)
    ]
    for name in OUTPUT_OPTIONS:
        target = getattr(options, name, None)
        if isinstance(target, Path) and str(target) != "-":
            check_output_is_not_input(target, inputs, f"--{name.replace('_', '-')}")


def check_output_is_not_input(target: Path, inputs: Iterable[str | Path], flag: str = "--output") -> None:
    """Check that writing ``target``, a file or the folder of a run, leaves ``inputs`` as they are.

    Raises:
        BadInput: it would replace one of them.
    """
    for path in inputs:
        if is_same_file(target, path) or is_same_file(target / CHECKPOINT_FOLDER, path):
            raise BadInput(f"{flag} {target} would take the place of the input {path}: give another name.")


def is_same_file(one: str | Path, other: str | Path) -> bool:
    """Return whether two names refer to one existing file or folder."""
    try:
        return os.path.samefile(one, other)
    except (OSError, ValueError):
        return False


def _possible_paths(value: Any) -> Iterator[str | Path]:
    """Yield what may be a path in an option's value: ``a.mp4``, ``name=a.mp4``, ``1=a.jpg,b.wav``."""
    if isinstance(value, Path):
        yield value
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from _possible_paths(part)
    elif isinstance(value, str):
        for text in (value, value.partition("=")[2]):
            yield text
            for comma in (index for index, letter in enumerate(text) if letter == ","):
                yield from (text[:comma], text[comma + 1 :])


# --- Outputs that can be written --------------------------------------------------------


def check_output_file(path: Path, kind: str | None = None, flag: str = "--output") -> None:
    """Check that a file of the given kind can be written.

    Args:
        path: the path that the user gave.
        kind: the suffix without its dot; None for every format in which videos are written.
        flag: the option that names the path.

    Raises:
        BadInput: the folder is missing or not writable, the name is a folder, or it has another suffix.
    """
    _check_name(path)
    endings = [f".{kind}"] if kind else list(OUTPUT_FORMATS)
    if path.suffix.lower() not in endings:
        listed = endings[0] if kind else f"{', '.join(endings[:-1])} or {endings[-1]}"
        raise BadInput(f"{flag} {path} must end in {listed}.")
    if path.is_dir():
        raise BadInput(f"{flag} {path} is a folder: give the name of a {path.suffix.lower()[1:]} file.")
    check_parent_folder(path)
    _try_write(path.parent, path)


def check_parent_folder(path: Path) -> None:
    """Check that the folder of a file exists.

    Raises:
        BadInput: it does not, or it is a file.
    """
    if path.parent.is_dir():
        return
    if path.parent.exists():
        raise BadInput(f"Cannot write {path}: {path.parent} is a file and no folder; choose another name.")
    raise BadInput(f"Cannot write {path}: the folder {path.parent} does not exist; create it first.")


def check_output_folder(path: Path) -> None:
    """Check that a folder can be created or filled by a command.

    Raises:
        BadInput: the path is a file, lies below one, or cannot be written.
    """
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


def _try_write(folder: Path, output: Path) -> None:
    # os.access returns True for root on a read-only mount, so a file is really created.
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise BadInput(f"Cannot write {output} ({error.strerror}): choose another --output.") from error
