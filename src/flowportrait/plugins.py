"""Plugins: parts that other packages and scripts add, found as entry points or named as ``MODULE:NAME``.

A package announces what it adds in its ``pyproject.toml``; the names then appear beside the built-in ones everywhere:

    [project.entry-points."flowportrait.rewards"]
    loudness = "my_package.rewards:Loudness"
"""

from __future__ import annotations

import importlib
import os
import re
import sys
from collections.abc import Iterable
from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Literal

from flowportrait.errors import BadInput

Group = Literal["rewards", "recipes", "judges", "voices", "policies"]

_REFERENCE = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")


def is_reference(name: str) -> bool:
    """Return whether ``name`` has the form ``MODULE:NAME``."""
    return _REFERENCE.fullmatch(name) is not None


def load_reference(name: str) -> Any:
    """Import and return the object that ``MODULE:NAME`` refers to; modules in the working directory are found too.

    Raises:
        BadInput: the module cannot be imported, or it has no such name.
    """
    module, _, attribute = name.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        target: Any = importlib.import_module(module)
        for part in attribute.split("."):
            target = getattr(target, part)
    except ImportError as error:
        raise BadInput(f"{name} cannot be imported ({error}): give MODULE:NAME as Python would find it.") from error
    except AttributeError as error:
        raise BadInput(f"{name} does not exist ({error}): give MODULE:NAME as Python would find it.") from error
    return target


def plugin_names(group: Group) -> list[str]:
    """Return the names that installed packages add to a group, in alphabetical order."""
    return sorted(_installed(group))


def load_plugin(group: Group, name: str, built_in: Iterable[str] = ()) -> Any:
    """Return the object behind a name that is not built in: an entry point of the group, or ``MODULE:NAME``.

    Args:
        group: the kind of part that is asked for.
        name: an entry point's name, or ``MODULE:NAME``.
        built_in: names that come with the package, for the message.

    Raises:
        BadInput: no part has this name (the message lists those that exist), or it cannot be imported.
    """
    if is_reference(name):
        return load_reference(name)
    entry = _installed(group).get(name)
    if entry is None:
        choices = ", ".join([*built_in, *plugin_names(group)])
        kind = {"policies": "policy"}.get(group, group[:-1])
        raise BadInput(f"No {kind} named {name!r}: choose from {choices}, or give MODULE:NAME.")
    try:
        return entry.load()
    except (ImportError, AttributeError) as error:
        where = f" of the package {entry.dist.name}" if entry.dist else ""
        raise BadInput(f"{entry.value}{where} cannot be imported ({error}): update or remove the package.") from error


@lru_cache
def _installed(group: Group) -> dict[str, EntryPoint]:
    return {entry.name: entry for entry in entry_points(group=f"flowportrait.{group}")}


def clear_plugin_cache() -> None:
    """Clear the cache of entry points, so that they are looked up again after a package was installed or removed."""
    _installed.cache_clear()
