"""What else the generator is told: the portrait, the intensity, and a reward that guides it.

Portraits as tokens for a generator with vision: framed alike in training and inference, encoded once.

    photo ─► picture of the face ─► vision tower ─► P tokens, before the first chunk

A training clip comes with a picture of another clip of the same person: it tells whose face it is, not what this clip's
lips are doing.

How expressive the motion is: one direction among a generator's tokens.

    token ← token + ln(intensity) · d          1: nothing is added, to the bit       1.5: brows move 1.5 times as far

The direction d is all that was learned, from windows in which speakers move brows, smile and jaw more or less than they
usually do (``train_intensity``). It was learned on ``sft`` and serves what is trained from it: what a sentence's lips
do when stays the generator's own.

Guidance by a reward of noisy latents while a chunk is drawn: bend its path, or choose among several.

    guide     v ← v − min(σ/(1−σ), most) · ∇_x Σ_d w_d r_d(x_σ, σ)      Flow-NRG (2501.13918), see ``flow.guidance``
    choose    n noises ─► n chunks ─► the one of largest Σ_d w_d r_d(x_0, 0)     pruning chunk by chunk
                                                                          (Stream-T1, 2605.04461; one survivor)

A chunk is scored as what follows the chunks before it, which the reward reads clean; it works on live sound too. The
backbone runs once however many candidates there are.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from flowportrait.data.extract import picture
from flowportrait.data.motion_dataset import MotionClip
from flowportrait.devices import read_weights
from flowportrait.errors import BadInput
from flowportrait.flow.guidance import guided
from flowportrait.flow.paths import Velocity, solve
from flowportrait.media.image import read_image
from flowportrait.media.portrait import Portrait
from flowportrait.models.arflow import ARFlow, Condition


def encode_portraits(model: ARFlow, portraits: Sequence[Portrait]) -> torch.Tensor | None:
    """Encode N portraits to tokens ``[N, P, hidden]``; None for none, and for a model without vision."""
    if not portraits or model.vision is None:
        return None
    return model.encode_portrait([picture(portrait.crop, portrait.landmarks) for portrait in portraits])


def with_portraits(model: ARFlow, corpus: Path, clips: Sequence[MotionClip]) -> list[MotionClip]:
    """Add to clips the tokens of a portrait of their speaker, upright and mirrored ``[2, P, hidden]``.

    Raises:
        BadInput: a speaker has no picture in the corpus.
    """
    speakers: dict[str, list[MotionClip]] = defaultdict(list)
    for clip in clips:
        speakers[clip.speaker].append(clip)
    found = []
    for speaker, own in speakers.items():
        paths = [corpus / "pictures" / f"{clip.name}.jpg" for clip in own]
        tokens = [_upright_and_mirrored(model, read_image(path)) for path in paths if path.is_file()]
        if not tokens:
            raise BadInput(
                f"{corpus} has no picture of {speaker}, and use_vision=true needs one: prepare the videos anew."
            )
        found += [replace(clip, portrait=tokens[(place + 1) % len(tokens)]) for place, clip in enumerate(own)]
    return found


def _upright_and_mirrored(model: ARFlow, face: np.ndarray) -> torch.Tensor:
    return model.encode_portrait([face, np.ascontiguousarray(face[:, ::-1])]).half().cpu()


LEAST, MOST = 0.6, 1.6


@lru_cache(maxsize=1)
def direction() -> torch.Tensor:
    """d ``[hidden]``."""
    return read_weights(Path(str(files("flowportrait") / "weights" / "intensity" / "model.safetensors")))["direction"]


def intensify(condition: Condition, intensity: float) -> Condition:
    """The condition of motion that is so many times as expressive as usual.

    Raises:
        BadInput: outside 0.6 to 1.6, or a generator of another width than the direction was learned for.
    """
    if intensity == 1.0:
        return condition
    if not LEAST <= intensity <= MOST:
        raise BadInput(f"intensity={intensity} is not possible: give a number from {LEAST:g} to {MOST:g}.")
    if condition.style.shape[1:] != direction().shape:
        raise BadInput("intensity was learned for the shipped generators: leave it at 1 for this checkpoint.")
    return condition._replace(style=condition.style + math.log(intensity) * direction().to(condition.style))


LatentScore = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], Any]
"""``(x [B, N, D], sigma [B, N], audio [B, N, ·], start [B, 30])`` to something with ``mean [B, N, dimensions]``, the
score of every chunk given those before it (``preferences.latent_reward.LatentReward``)."""


class GuidanceContext(NamedTuple):
    """What a chunk follows: clean latents ``[B, n, D]``, the encoded sound then and now ``[B, n + 1, ·]``, and the
    frame before all of it ``[B, 30]``."""

    latents: torch.Tensor
    audio: torch.Tensor
    start: torch.Tensor


@dataclass(frozen=True)
class Steering:
    """reward, and in the order of its dimensions the weights ``guide`` to bend by and ``choose`` to choose by."""

    reward: LatentScore
    guide: tuple[float, ...] = ()
    choose: tuple[float, ...] = ()
    candidates: int = 1
    most: float = 2.0
    """Largest σ/(1−σ): at six steps those at σ = 1 and 5/6 are clipped."""
    history_chunks: int = 7
    """Chunks before the next one that the reward is given."""

    def draw(self, velocity: Velocity, x: torch.Tensor, sigmas: torch.Tensor, past: GuidanceContext) -> torch.Tensor:
        """Latents ``[1, D]`` of the next chunk from ``candidates`` noises ``[n, D]``; with one candidate, of as many
        streams as the context and the noises are of."""
        if any(self.guide):
            velocity = guided(velocity, lambda x, sigma: self.score(x, sigma, past, self.guide), self.most)
        drawn = solve(velocity, x, sigmas)
        if self.candidates == 1:
            return drawn
        best = self.score(drawn, sigmas[-1], past, self.choose).argmax()
        return drawn[best][None]

    def score(
        self, x: torch.Tensor, sigma: torch.Tensor, past: GuidanceContext, weights: Sequence[float]
    ) -> torch.Tensor:
        """Weighted score ``[B]`` of chunks ``[B, D]`` at noise level sigma after this past."""
        batch, length = len(x), past.audio.shape[1]
        level = x.new_zeros(batch, length)
        level[:, -1] = float(sigma)
        track = torch.cat([past.latents.expand(batch, -1, -1), x[:, None]], 1)
        verdict = self.reward(track, level, past.audio.expand(batch, -1, -1), past.start.expand(batch, -1))
        return verdict.mean[:, -1].to(x) @ torch.tensor(weights, device=x.device)


def ordered_weights(weights: Mapping[str, float], dimensions: Sequence[str]) -> tuple[float, ...]:
    """Weights by name in the order of a reward's dimensions; those not named are zero."""
    return tuple(float(weights.get(name, 0.0)) for name in dimensions)
