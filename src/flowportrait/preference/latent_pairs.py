"""Made pairs in a generator's latent space, with what it hears.

motion of a window ─► chunks after the frame before ─► clean latents,   both clips under the same sound
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch

from flowportrait.corruption import Corruption
from flowportrait.generator.chunk_space import ChunkSpace
from flowportrait.media.mel import MELS_PER_FRAME
from flowportrait.preference.heard_clips import HeardClip
from flowportrait.preference.made_pairs import PairMaker

SHORT, LONG = 5, 13
"""Chunks of a window: what fits clips of 1.2 s, and what shows the latent reward all that it looks back on."""


class LatentPairs(NamedTuple):
    """a, b ``[B, N, chunk·30]`` clean latents after the frames start_a, start_b ``[B, 30]``; heard ``[B, N, ·]``; mel
    ``[B, 4T, 80]`` of their frames; labels ``[B, 3]`` as in ``PairBatch``; intact_is_a ``[B]``; kinds: what was done to
    the other one."""

    a: torch.Tensor
    b: torch.Tensor
    start_a: torch.Tensor
    start_b: torch.Tensor
    heard: torch.Tensor
    mel: torch.Tensor
    labels: torch.Tensor
    intact_is_a: torch.Tensor
    kinds: tuple[str, ...]

    def both(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Latents, sound and first frames of all a, then all b ``[2B, …]``."""
        return torch.cat([self.a, self.b]), torch.cat([self.heard] * 2), torch.cat([self.start_a, self.start_b])

    def intact(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Latents and first frames of the intact clips ``[B, …]``."""
        left = self.intact_is_a[:, None]
        return torch.where(left[..., None], self.a, self.b), torch.where(left, self.start_a, self.start_b)


class LatentPairMaker:
    """Draws pairs; voice and style of what is heard at random, or as heard live (``vary`` off).

    Raises:
        BadInput: no clip is long enough.
    """

    def __init__(
        self,
        clips: Sequence[HeardClip],
        space: ChunkSpace,
        damages: Mapping[str, Corruption],
        seed: int,
        chunks: int = SHORT,
        vary: bool = True,
    ) -> None:
        self.clips, self.space, self.vary = clips, space, vary
        self.maker = PairMaker([heard.clip for heard in clips], damages, seed, frames=1 + chunks * space.chunk)

    def draw(self, batch: int, progress: float = 1.0) -> LatentPairs:
        """``batch`` pairs; progress as in ``PairMaker.draw``."""
        pairs, rng, chunk = self.maker.draw(batch, progress), self.maker.rng, self.space.chunk
        frames = self.maker.frames - 1
        heard = []
        for clip, start in pairs.origins:
            own = self.clips[clip]
            voice, style = (int(rng.integers(len(own.audio))), int(rng.integers(2))) if self.vary else (0, 1)
            heard.append(own.condition(start + 1, frames, chunk, voice, style))
        return LatentPairs(
            self._encode(pairs.a), self._encode(pairs.b), pairs.a[:, 0], pairs.b[:, 0], torch.stack(heard).float(),
            pairs.mel[:, MELS_PER_FRAME:], pairs.labels, (pairs.points[:, 0] > pairs.points[:, 1]).any(1), pairs.kinds,
        )  # fmt: skip

    def _encode(self, motion: torch.Tensor) -> torch.Tensor:
        chunks = motion[:, 1:].unflatten(1, (-1, self.space.chunk))
        return self.space.encode(chunks, motion[:, : -1 : self.space.chunk])
