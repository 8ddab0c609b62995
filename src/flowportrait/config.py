"""Configurations are frozen dataclasses with strict keys.

``override(config, ["objective.kl_weight=0.1", "groups=4"])`` converts each value to the type of its field. An unknown
key, or a value of another type, raises ``BadInput`` with the keys or the type that would be right.

A configuration may list earlier names of its keys and values, which are then read too:

    earlier_keys = (("pieces", "rollout_chunks"),)
    earlier_values = (("aggregation", "summed", "sum_then_normalize"),)
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import json
import math
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from flowportrait.errors import BadInput
from flowportrait.files import write_json

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Config = TypeVar("Config", bound="DataclassInstance")


def override(config: Config, changes: Sequence[str]) -> Config:
    """Return a copy of ``config`` with changes ``a.b=value`` of a command line applied in order.

    Raises:
        BadInput: a change without ``=``, an unknown key, or a value that does not fit its field.
    """
    for change in changes:
        key, text = _split_setting(change)
        config = _replace_value(config, key.split("."), text, key, _parse)
    return config


def parse_setting(setting: str) -> tuple[str, Any]:
    """Return key and value of ``key=value`` without a declared type: a number, true, false, none, or else text.

    Raises:
        BadInput: there is no ``=``, or nothing before it.
    """
    key, text = _split_setting(setting)
    return key, _word(text)


def _split_setting(setting: str) -> tuple[str, str]:
    key, separator, text = setting.partition("=")
    if not separator or not key.strip():
        raise BadInput(f"A setting needs key=value, as in --set groups=4, not {setting!r}.")
    return key.strip(), text.strip()


def replace_settings(config: Config, settings: Mapping[str, Any]) -> Config:
    """Return a copy of ``config`` with new values by dotted keys: ``{"groups": 4, "objective.kl_weight": 0.1}``.

    Raises:
        BadInput: an unknown key, or a value that does not fit its field.
    """
    for full, value in settings.items():
        config = _replace_value(config, full.split("."), value, full, _convert)
    return config


def _replace_value(config: Config, path: list[str], value: Any, full: str, read: Callable[..., Any]) -> Config:
    """Return a copy with the value at ``path``; ``read(value, type, full)`` converts it to the type of its field."""
    hints, name = _fields(type(config)), _current_key(type(config), path[0])
    _check_key(name, hints, full)
    current, part = getattr(config, name), _plain(hints[name])
    if len(path) > 1:
        if current is None and isinstance(part, type) and dataclasses.is_dataclass(part):
            current = part()
        if isinstance(current, dict):
            value = {**current, ".".join(path[1:]): read(value, typing.get_args(part)[1], full)}
        elif dataclasses.is_dataclass(current) and not isinstance(current, type):
            value = _replace_value(current, path[1:], value, full, read)
        else:
            raise BadInput(f"The setting {full} does not exist: {name} has no parts; give {name} itself.")
    elif not _holds_parts(value):
        optional = type(None) in typing.get_args(hints[name])
        if dataclasses.is_dataclass(current) and isinstance(value, str) and optional and _word(value) is None:
            return dataclasses.replace(config, **{name: None})
        if dataclasses.is_dataclass(current) and isinstance(value, str):
            parts = ", ".join(f"{full}.{key}" for key in _fields(type(current)))
            raise BadInput(f"The setting {full} needs one of its parts: {parts}.")
        value = read(_current_value(type(config), name, value), hints[name], full)
    return dataclasses.replace(config, **{name: value})


def _holds_parts(value: Any) -> bool:
    """Whether a value is a dataclass, or several: a whole part of a configuration."""
    several = value if isinstance(value, tuple) and value else (value,)
    return all(dataclasses.is_dataclass(item) and not isinstance(item, type) for item in several)


def upgrade_keys(config: Any, data: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings that ``to_dict`` of any version gave, with today's keys and values.

    Args:
        config: a configuration of the same class, which lists the earlier names. It may also list ``values_before``:
            settings that are newer than some files, with the values that these files meant.
        data: the settings.
    """
    values = {}
    for key, value in data.items():
        name = _current_key(type(config), key)
        part = getattr(config, name, None)
        if part is None and isinstance(value, dict):
            kind = _plain(_fields(type(config)).get(name))
            part = kind() if isinstance(kind, type) and dataclasses.is_dataclass(kind) else None
        deep = dataclasses.is_dataclass(part) and isinstance(value, dict)
        values[name] = upgrade_keys(part, value) if deep else _current_value(type(config), name, value)
    return {**dict(getattr(config, "values_before", ())), **values}


def _current_key(kind: type, key: str) -> str:
    """Return today's name of a key that ``kind`` may list under an earlier name."""
    return key if key in _fields(kind) else dict(getattr(kind, "earlier_keys", ())).get(key, key)


def _current_value(kind: type, key: str, value: Any) -> Any:
    """Return today's name of a value of ``key`` that ``kind`` may list under an earlier name."""
    renamed = {(of, before): now for of, before, now in getattr(kind, "earlier_values", ())}
    return renamed.get((key, value), value) if isinstance(value, str) else value


def at_least(config: Any, **least: float) -> None:
    """Raise BadInput for the first field below its least value; None is always allowed.

    Raises:
        BadInput: names the key, its value and the least one.
    """
    for key, bound in least.items():
        value = getattr(config, key)
        if value is not None and value < bound:
            raise BadInput(f"{key}={value} is not possible: it must be at least {bound}.")


def to_dict(config: Any) -> dict[str, Any]:
    """Return plain values that JSON can hold, nested like the dataclasses."""
    return json.loads(json.dumps(dataclasses.asdict(config), default=str))


def from_dict(kind: type[Config], data: dict[str, Any]) -> Config:
    """Return a configuration from what ``to_dict`` returned; missing keys take their defaults.

    Raises:
        BadInput: an unknown key or a value of another type.
    """
    if not isinstance(data, dict):
        raise BadInput(f"A configuration is an object with keys, not {type(data).__name__}.")
    hints = _fields(kind)
    values = {}
    for key, value in data.items():
        name = _current_key(kind, key)
        _check_key(name, hints, key)
        values[name] = _convert(_current_value(kind, name, value), hints[name], key)
    try:
        return kind(**values)
    except TypeError as error:
        raise BadInput(f"The configuration is incomplete: {error}.") from error


def merge(config: Config, data: dict[str, Any]) -> Config:
    """Return ``config`` with values that ``to_dict`` returned; parts keep the types that ``config`` gives them.

    Raises:
        BadInput: an unknown key or a value of another type.
    """
    kind = type(config)
    hints, values = _fields(kind), {}
    for key, value in data.items():
        name = _current_key(kind, key)
        _check_key(name, hints, key)
        values[name] = _merge_value(getattr(config, name), _current_value(kind, name, value), hints[name], key)
    return dataclasses.replace(config, **values)


def _merge_value(current: Any, value: Any, hint: Any, key: str) -> Any:
    if dataclasses.is_dataclass(current) and not isinstance(current, type) and isinstance(value, dict):
        return merge(current, value)
    if isinstance(current, tuple) and current and _holds_parts(current) and isinstance(value, (list, tuple)):
        if len(value) != len(current):
            raise BadInput(f"{key} has {len(value)} parts, and what it is read for has {len(current)}.")
        return tuple(merge(part, stored) for part, stored in zip(current, value, strict=True))
    return _convert(value, hint, key)


def save(config: Any, path: Path) -> None:
    """Write as JSON, whole or not at all."""
    write_json(path, to_dict(config), indent=2)


def load(kind: type[Config], path: Path) -> Config:
    """Read what ``save`` wrote.

    Raises:
        BadInput: no such file, not JSON, or keys that ``kind`` does not have.
    """
    try:
        return from_dict(kind, json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise BadInput(f"{path} cannot be read as a configuration: {error}.") from error


def _fields(kind: Any) -> dict[str, Any]:
    """Return the type of every field of a configuration, in order."""
    hints = typing.get_type_hints(kind)
    return {part.name: hints[part.name] for part in dataclasses.fields(kind)}


def _check_key(name: str, hints: dict[str, Any], full: str) -> None:
    if name not in hints:
        near = difflib.get_close_matches(name, hints, 1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise BadInput(f"Unknown key {full!r}: {hint}Known keys are {', '.join(hints)}.")


def _parse(text: str, hint: Any, key: str) -> Any:
    """Read a command-line word as ``hint``."""
    if _plain(hint) in (str, Path):
        return _convert(text, hint, key)
    if typing.get_origin(hint) is tuple:
        inner = text.strip("()[] ")
        return _convert([_word(part) for part in inner.split(",") if part.strip()], hint, key)
    return _convert(_word(text), hint, key)


def _word(text: str) -> Any:
    text = text.strip()
    constants = {"true": True, "false": False, "none": None, "null": None}
    if text.lower() in constants:
        return constants[text.lower()]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _plain(hint: Any) -> Any:
    """Return T for the type ``T | None``."""
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        kinds = [kind for kind in typing.get_args(hint) if kind is not type(None)]
        return kinds[0] if len(kinds) == 1 else hint
    return hint


def _convert(value: Any, hint: Any, key: str) -> Any:
    """Convert ``value`` to the type ``hint``, or raise BadInput."""
    plain = _plain(hint)
    if value is None and plain is not hint:
        return None
    if dataclasses.is_dataclass(plain) and isinstance(plain, type) and isinstance(value, dict):
        return from_dict(plain, value)
    origin = typing.get_origin(plain)
    if origin is typing.Literal:
        if value in typing.get_args(plain):
            return value
        raise BadInput(f"{key}={value} is not possible: choose one of {', '.join(map(str, typing.get_args(plain)))}.")
    if origin is tuple and isinstance(value, (list, tuple)):
        return tuple(_convert(item, typing.get_args(plain)[0], key) for item in value)
    if origin is frozenset and (several := _read_set(value)) is not None:
        return frozenset(_convert(item, typing.get_args(plain)[0], key) for item in several)
    if origin is dict and isinstance(value, dict):
        return {k: _convert(v, typing.get_args(plain)[1], key) for k, v in value.items()}
    if plain is float and isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    if plain is int and isinstance(value, int) and not isinstance(value, bool):
        return value
    if plain is bool and isinstance(value, bool):
        return value
    if plain is str and isinstance(value, str):
        return value
    if plain is Path and isinstance(value, (str, Path)):
        return Path(value)
    name = getattr(plain, "__name__", str(plain))
    raise BadInput(f"{key}={value} does not fit: it takes a value of type {name}.")


def _read_set(value: Any) -> list[Any] | None:
    """Return the elements of a set, perhaps in the form ``frozenset({'ref'})`` of ``to_dict``; None if it is none."""
    if isinstance(value, str) and value.startswith("frozenset(") and value.endswith(")"):
        try:
            return sorted(ast.literal_eval(value.removeprefix("frozenset(").removesuffix(")") or "()"))
        except (ValueError, SyntaxError):
            return None
    return list(value) if isinstance(value, (set, frozenset, list, tuple)) else None
