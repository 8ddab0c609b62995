"""Nested tuples of tensors, one row per sample: what conditions and contexts are made of.

each(act, (a, (b, None)))  =  (act(a), (act(b), None))          named tuples keep their kind
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch


def each(act: Callable[..., torch.Tensor], first: Any, *more: Any) -> Any:
    """``act`` on every tensor, together with those in the same place of ``more``; None stays None."""
    if isinstance(first, tuple):
        parts = [each(act, *together) for together in zip(first, *more, strict=True)]
        return type(first)(*parts) if hasattr(first, "_fields") else tuple(parts)
    return None if first is None else act(first, *more)


def tensors(rows: Any) -> Iterator[torch.Tensor]:
    """All of them, in order."""
    for part in rows:
        if isinstance(part, tuple):
            yield from tensors(part)
        elif part is not None:
            yield part


def over_steps(context: Any) -> Any:
    """Contexts of chunks ``[B, N, …]`` as contexts of several states of each ``[B, N, 1, …]``."""
    return each(lambda part: part[:, :, None], context)
