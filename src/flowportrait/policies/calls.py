"""Calls of a transformer, overheard for several items or branches at once, taken apart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from flowportrait.policies.families.family import Call


def taken_apart(calls: Sequence[Call], prompted_first: bool) -> list[Call]:
    """One call per branch with one row each, the prompted one first; calls made one after the other begin with it."""
    made = []
    for call in calls:
        rows = len(call["x"] if "x" in call else call["hidden_states"])
        made += [{name: _row(value, rows, at) for name, value in call.items()} for at in range(rows)]
    together = len(calls) == 1 and len(made) > 1
    return made[::-1] if together and not prompted_first else made


def _row(value: Any, rows: int, at: int) -> Any:
    if isinstance(value, (torch.Tensor, list)) and len(value) == rows:
        return value[at : at + 1]
    return value


def is_row(value: Any) -> bool:
    """Whether an argument belongs to one item, and not to all of them."""
    return isinstance(value, torch.Tensor) and value.ndim > 0 and len(value) == 1


def alike(one: Call, other: Call) -> bool:
    """Whether two calls have the same arguments with the same values."""

    def same(a: Any, b: Any) -> bool:
        return torch.equal(a, b) if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor) else a == b

    return one.keys() == other.keys() and all(same(one[name], other[name]) for name in one)
