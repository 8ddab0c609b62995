"""Identity: is it still the person of the portrait?

    identity = mean over frames of cos( e(frame), e(portrait) ),   e: the reward side's face network

As a lone reward it teaches a generator to paste the photo; weigh it beside expressiveness and cap it where real clips
of one person lie (``--set credit.caps.identity=0.9``).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from flowportrait.reward.batch import RewardBatch
from flowportrait.reward.face_net import FaceNet, align
from flowportrait.reward.interface import Score, all_valid
from flowportrait.reward.photo import shrunk
from flowportrait.reward.pixels import pair_indices
from flowportrait.reward.real import noises


@dataclass(frozen=True)
class Identity:
    """Likeness of two frames of the clip to the portrait."""

    noise: float = 0.0
    name: str = "identity"
    needs: frozenset[str] = frozenset({"frames", "places", "portrait"})
    range: tuple[float, float] = (-1.0, 1.0)

    @classmethod
    def load(cls) -> Identity:
        """With its measured noise."""
        return cls(noises().get("identity", 0.0))

    @torch.no_grad()
    def __call__(self, batch: RewardBatch) -> Score:
        assert batch.portraits is not None
        net, indices = FaceNet.load(), pair_indices(batch.motion.shape[1])[1::2]
        frames = batch.frames(indices)
        faces = align(frames.flatten(0, 1), batch.places(indices).flatten(0, 1))
        seen = net(faces).cpu().unflatten(0, frames.shape[:2])
        people = {id(portrait): portrait for portrait in batch.portraits}
        own = {key: _embedding(*shrunk(portrait, frames.shape[-1])) for key, portrait in people.items()}
        wanted = torch.stack([own[id(portrait)] for portrait in batch.portraits])
        return all_valid((seen * wanted[:, None]).sum(-1).mean(1))


def _embedding(picture: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
    return FaceNet.load()(align(picture[None], points[None]))[0].cpu()
