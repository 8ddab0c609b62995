"""Rollouts that share a past: a tree is a table of whose noise is used where.

Noise is a function of its key, so siblings that own the same id up to a fork go the same way up to it, without any
bookkeeping of states. Sample i of a group takes, at fork f, the branch that is the f-th digit of i written in base
``width``; its owner id at a place is made of the digits of the forks it has passed.

    group of 4, two forks:   ──┬── 0 ──┬── 00      digits of sample 2: 1, 0
                               │       └── 01
                               └── 1 ──┬── 10
                                       └── 11
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from flowportrait.errors import BadInput
from flowportrait.flow.noise import seed_of


class Fork(NamedTuple):
    """A place where siblings part: the noise of this denoising step of this chunk is their own."""

    chunk: int
    step: int


def branches(group_size: int, forks: int) -> int:
    """How many ways every fork goes.

    Raises:
        BadInput: the group is not a power of a whole number, or too small to part that often.
    """
    width = round(group_size ** (1 / forks))
    if width < 2 or width**forks != group_size:
        raise BadInput(f"group_size={group_size} cannot part {forks} times evenly: choose a power such as {2**forks}.")
    return width


def owners(
    sample: torch.Tensor, group: torch.Tensor, group_size: int, forks: Sequence[Fork], chunks: int, steps: int
) -> torch.Tensor:
    """Ids ``[B, N, K+1]`` of whose noise sample b uses in chunk n at the start (column 0) and at step k (column
    k + 1). Without forks it is the sample's own."""
    if not forks:
        return sample[:, None, None].expand(-1, chunks, steps + 1)
    width = branches(group_size, len(forks))
    table = torch.empty(len(sample), chunks, steps + 1, dtype=torch.long)
    time = torch.arange(chunks)[:, None] * (steps + 1) + torch.arange(steps + 1)
    passed = torch.stack([time >= fork.chunk * (steps + 1) + fork.step + 1 for fork in forks]).sum(0)
    for row, (own, family) in enumerate(zip(sample.tolist(), group.tolist(), strict=True)):
        digits = [own % group_size // width ** (len(forks) - 1 - f) % width for f in range(len(forks))]
        ids = torch.tensor([seed_of(family, depth, *digits[:depth]) for depth in range(len(forks) + 1)])
        table[row] = ids[passed]
    table[:, :, 0] = table[:, :1, 0]  # later chunks start alike, so that a fork's effect is its own
    return table


def node_means(value: torch.Tensor, owner: torch.Tensor, group: torch.Tensor) -> torch.Tensor:
    """Mean of leaf values ``[B, ...]`` over the leaves of one's group with one's owner id ``[B, ...]``, at every
    place."""
    result = torch.empty_like(value)
    for family in group.unique():
        rows = (group == family).nonzero()[:, 0]
        own = owner[rows]
        same = (own[:, None] == own[None]).to(value.dtype)
        result[rows] = torch.einsum("ij...,j...->i...", same, value[rows]) / same.sum(1)
    return result
