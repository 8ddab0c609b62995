"""Where results go: fail before the work, not after it."""

from __future__ import annotations

import tempfile
from pathlib import Path

from flowportrait.errors import BadInput


def check_output_file(path: Path, kind: str = "mp4") -> None:
    """That a file of this kind can be written.

    Raises:
        BadInput: the folder is missing or not writable, the name is a folder, or it does not end as the kind does.
    """
    if path.suffix.lower() != f".{kind}":
        raise BadInput(f"--output {path} must end in .{kind}.")
    if path.is_dir():
        raise BadInput(f"--output {path} is a folder: give the name of an {kind} file.")
    if not path.parent.is_dir():
        raise BadInput(f"Cannot write {path}: the folder {path.parent} does not exist; create it first.")
    _try_write(path.parent, path)


def check_output_folder(path: Path) -> None:
    """As ``check_output_file``, for a folder that the command creates or fills."""
    if path.exists() and not path.is_dir():
        raise BadInput(f"--output {path} is a file: give the name of a folder.")
    existing = path
    while not existing.exists():
        existing = existing.parent
    if not existing.is_dir():
        raise BadInput(f"Cannot write {path}: {existing} is not a folder.")
    _try_write(existing, path)


def _try_write(folder: Path, wanted: Path) -> None:
    # os.access says yes to root on a read-only mount, so try it.
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise BadInput(f"Cannot write {wanted} ({error.strerror}): choose another --output.") from error
