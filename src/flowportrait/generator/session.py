"""Generation under way: contexts come one by one while the latents come into being, with the backbone's KV cache."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from flowportrait.generator.condition import Condition

if TYPE_CHECKING:
    from flowportrait.generator.arflow import ARFlow


class Session:
    """Generation under way: ``context`` of the next chunk, then ``append`` its latents; repeat. ``extend`` adds sound
    that was not there at the start."""

    def __init__(self, model: ARFlow, condition: Condition) -> None:
        self.model = model
        self.branches = model.branches(condition)
        self.position = 0
        self.dropped = 0
        self.last = condition.start
        self._start_afresh()

    def _start_afresh(self) -> None:
        """Forget everything but the last frame."""
        self.cache = self.model.backbone.new_cache()
        if self.branches[0].portrait.shape[1]:
            self.model.backbone(torch.cat([branch.portrait for branch in self.branches]), self.cache)
        self.previous = self.last[:, None].expand(-1, self.model.config.chunk, -1)

    def extend(self, audio: torch.Tensor) -> None:
        """More embedded audio ``[B, n, ·]`` after what is there; what was used up is let go."""
        heard = self.branches[0]
        left = heard.audio[:, self.position - self.dropped :]
        self.dropped = self.position
        self.branches = self.model.branches(heard._replace(audio=torch.cat([left, audio], 1)))

    def context(self) -> torch.Tensor:
        """Context of the next chunk ``[B, G, C]``. Call once per chunk."""
        now = slice(self.position - self.dropped, self.position - self.dropped + 1)
        embedded = self.model.embed_motion(self.previous)
        heard = [branch._replace(audio=branch.audio[:, now]) for branch in self.branches]
        # All branches in one pass: what a small decoder costs is hardly more for two rows than for one.
        states = self.model.backbone(torch.cat([self.model.tokens(branch, embedded) for branch in heard]), self.cache)
        told = [
            self.model.told(state, branch, self.last[:, None])[:, 0]
            for state, branch in zip(states.chunk(len(heard)), heard, strict=True)
        ]
        return torch.stack(told, -2)

    def append(self, latents: torch.Tensor) -> torch.Tensor:
        """Accept the chunk's clean latents ``[B, chunk·30]``; returns its motion ``[B, chunk, 30]``."""
        return self.accept(self.model.space.decode(latents, self.last))

    def accept(self, motion: torch.Tensor) -> torch.Tensor:
        """Go on after this motion ``[B, chunk, 30]`` of the chunk whose context was asked for last."""
        self.previous, self.last = motion, motion[:, -1]
        self.position += 1
        if self.position % self.model.config.horizon == 0:
            self._start_afresh()
        return motion
