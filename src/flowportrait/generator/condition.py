"""What a generator is told before it begins."""

from __future__ import annotations

from typing import NamedTuple

import torch


class Condition(NamedTuple):
    """What is known before the first chunk: audio ``[B, N, chunk·d]`` (with an anchor, followed by where the sound puts
    the lips, ``chunk·16``) and style ``[B, hidden]`` embeddings, and the motion frame to start from ``[B, 30]``. Of a
    model that sees, style is ``[B, 1 + P, hidden]``: the portrait's P tokens follow."""

    audio: torch.Tensor
    style: torch.Tensor
    start: torch.Tensor

    def repeat(self, times: int) -> Condition:
        """Each item ``times`` times in a row: siblings of a group share one encoding."""
        return Condition(*(part.repeat_interleave(times, 0) for part in self))

    def select(self, rows: torch.Tensor) -> Condition:
        """The items at ``rows``."""
        return Condition(*(part[rows] for part in self))

    @property
    def chunks(self) -> int:
        """N, how many chunks there are to generate."""
        return self.audio.shape[1]

    @property
    def speaker(self) -> torch.Tensor:
        """The style ``[B, 1, hidden]``, added to every token."""
        return self.style[:, None] if self.style.dim() == 2 else self.style[:, :1]

    @property
    def portrait(self) -> torch.Tensor:
        """The tokens ``[B, P, hidden]`` that come before the first chunk; P is 0 for a model that does not see."""
        return self.speaker[:, :0] if self.style.dim() == 2 else self.style[:, 1:]
