"""Folders of the user who runs the program, and a temporary one where there is none to write to.

Containers run programs as users without a home, without a name, or with a home that is read-only.
"""

from __future__ import annotations

import getpass
import os
import stat
import tempfile
from functools import lru_cache
from pathlib import Path


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
