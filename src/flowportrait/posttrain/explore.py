"""Exploring through the past instead of through noise (KVPO, 2605.14278).

    history cache   ▒▒▒▒▒▒▒▒████      the nearest ``keep`` chunks as they were,
                    ▒ ▒▒  ▒▒▒▒██      of the older ones a random choice, per sample

Only the context of the chunk to come is changed; what is stored stays true, so every sample's past is its own.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch

from flowportrait.config import at_least
from flowportrait.errors import BadInput
from flowportrait.flow.noise import NoiseKey
from flowportrait.generator.arflow import ARFlow, Condition
from flowportrait.generator.arflow import Session as TrueSession


@dataclass(frozen=True)
class HistoryRouting:
    keep: int = 4
    """Chunks of the past that are left alone."""
    chunks: int = 5
    """Chunks in a row that look at a changed past, beginning at one drawn per iteration."""

    def __post_init__(self) -> None:
        at_least(self, keep=1, chunks=1)

    def session(self, policy: ARFlow, condition: Condition, sample: torch.Tensor, key: NoiseKey) -> TrueSession:
        """A session whose contexts look at a routed past where they explore.

        Raises:
            BadInput: no chunk has a past beyond what is left alone.
        """
        if condition.chunks <= self.keep + 1:
            raise BadInput(
                f"{condition.chunks} chunks leave no past to explore beyond the {self.keep} nearest: raise frames or "
                "lower explore.keep."
            )
        return RoutedSession(policy, condition, self, sample, key)


class RoutedSession(TrueSession):
    """Generation under way, exploring."""

    def __init__(
        self, policy: ARFlow, condition: Condition, routing: HistoryRouting, sample: torch.Tensor, key: NoiseKey
    ) -> None:
        super().__init__(policy, condition)
        self.routing = routing
        self.sample = sample.tolist()
        self.key = key
        last = max(1, condition.chunks - routing.chunks - routing.keep)
        self.first = routing.keep + 1 + int(key.integers(last, 1, "window"))

    def context(self) -> torch.Tensor:
        """Context of the next chunk; the true past is stored either way."""
        chunk, exploring = self.position, self.first <= self.position < self.first + self.routing.chunks
        before = copy.deepcopy(self.cache) if exploring else None
        true = super().context()
        if before is None or before.get_seq_length() <= self.routing.keep:
            return true
        kept, self.cache = self.cache, before
        for layer in self.cache.layers:
            index = self._route(layer.keys.shape[2], chunk).to(layer.keys.device).repeat(len(self.branches), 1)
            index = index[:, None, :, None].expand_as(layer.keys)
            layer.keys, layer.values = layer.keys.gather(2, index), layer.values.gather(2, index)
        routed = super().context()
        self.cache = kept
        return routed

    def _route(self, length: int, chunk: int) -> torch.Tensor:
        """Which stored chunk stands at each place ``[B, length]``."""
        rows = []
        for sample in self.sample:
            older = max(0, length - self.routing.keep)
            chosen = self.key.integers(max(1, older), older, "history", sample, chunk).sort().values
            rows.append(torch.cat([chosen, torch.arange(older, length)]))
        return torch.stack(rows)
