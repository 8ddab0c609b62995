"""Further inputs of the generator besides sound and style: a portrait, an intensity, and a reward that guides it.

portrait     photo ─► crop of the face ─► vision tower ─► P tokens before the first chunk
intensity    token ← token + ln(intensity) · d
steering     follow a reward's gradient while a chunk is drawn, or choose the best of several candidates
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from flowportrait.data.face_tracks import face_thumbnail
from flowportrait.data.motion_dataset import MotionClip
from flowportrait.devices import read_weights
from flowportrait.errors import BadInput
from flowportrait.files import shipped_weights
from flowportrait.flow.guidance import guided_velocity
from flowportrait.flow.schedules import VelocityField, solve_ode
from flowportrait.media.image import read_image
from flowportrait.media.portrait import Portrait
from flowportrait.models.arflow import ARFlow, SpeechCondition

# --- Portraits as tokens -----------------------------------------------------------------------------------------
#
# For generators with vision. Faces are framed alike in training and inference, and encoded once. A training clip comes
# with a picture from another clip of the same person, which shows whose face it is but not what this clip's lips do.


def encode_portraits(model: ARFlow, portraits: Sequence[Portrait]) -> torch.Tensor | None:
    """Encode N portraits as tokens ``[N, P, hidden]``; None for no portraits and for a model without vision."""
    if not portraits or model.vision is None:
        return None
    return model.encode_portrait([face_thumbnail(portrait.crop, portrait.landmarks) for portrait in portraits])


def add_portraits(model: ARFlow, corpus: Path, clips: Sequence[MotionClip]) -> list[MotionClip]:
    """Return the clips with tokens of a portrait of their speaker, as it is and mirrored ``[2, P, hidden]``.

    Raises:
        BadInput: a speaker has no picture in the corpus.
    """
    speakers: dict[str, list[MotionClip]] = defaultdict(list)
    for clip in clips:
        speakers[clip.speaker].append(clip)
    result = []
    for speaker, speaker_clips in speakers.items():
        paths = [corpus / "pictures" / f"{clip.name}.jpg" for clip in speaker_clips]
        tokens = [_encode_with_mirror(model, read_image(path)) for path in paths if path.is_file()]
        if not tokens:
            raise BadInput(
                f"{corpus} has no picture of {speaker}, and use_vision=true needs one: prepare the videos anew."
            )
        result += [
            replace(clip, portrait=tokens[(index + 1) % len(tokens)]) for index, clip in enumerate(speaker_clips)
        ]
    return result


def _encode_with_mirror(model: ARFlow, face: np.ndarray) -> torch.Tensor:
    return model.encode_portrait([face, np.ascontiguousarray(face[:, ::-1])]).half().cpu()


# --- Intensity ---------------------------------------------------------------------------------------------------
#
#     token ← token + ln(intensity) · d       at 1 nothing is added, to the bit; at 1.5 brows move 1.5 times as far
#
# Only the direction d is learned, from windows in which speakers move brows, smile and jaw more or less than they
# usually do (``train_intensity``). It was learned on ``sft`` and serves generators trained from it; the timing of the
# lips stays that of the generator.

MIN_INTENSITY, MAX_INTENSITY = 0.6, 1.6
"""Range of the intensity."""


@lru_cache(maxsize=1)
def intensity_direction() -> torch.Tensor:
    """Return the direction d ``[hidden]`` of expressive motion in the space of tokens."""
    return read_weights(shipped_weights("intensity/model.safetensors"))["direction"]


def apply_intensity(condition: SpeechCondition, intensity: float) -> SpeechCondition:
    """Return the condition of motion that is ``intensity`` times as expressive as usual.

    Raises:
        BadInput: the intensity is outside 0.6 to 1.6, or the generator has another width than the direction.
    """
    if intensity == 1.0:
        return condition
    if not MIN_INTENSITY <= intensity <= MAX_INTENSITY:
        raise BadInput(
            f"intensity={intensity} is not possible: give a number from {MIN_INTENSITY:g} to {MAX_INTENSITY:g}."
        )
    if condition.style.shape[1:] != intensity_direction().shape:
        raise BadInput("intensity was learned for the shipped generators: leave it at 1 for this checkpoint.")
    return condition._replace(style=condition.style + math.log(intensity) * intensity_direction().to(condition.style))


# --- Steering by a reward ----------------------------------------------------------------------------------------
#
# A reward that reads noisy latents guides the drawing of a chunk, also on live sound:
#
#     guide     v ← v − min(σ/(1−σ), max_factor) · ∇_x Σ_d w_d r_d(x_σ, σ)      Flow-NRG (2501.13918), ``flow.guidance``
#     choose    n noises ─► n chunks ─► the one of largest Σ_d w_d r_d(x_0, 0)     pruning chunk by chunk
#                                                                            (Stream-T1, 2605.04461; one survivor)
#
# A chunk is scored as the continuation of the chunks before it, which the reward reads without noise. The backbone runs
# once, whatever the number of candidates.

LatentScore = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], Any]
"""A reward ``(x [B, N, D], sigma [B, N], audio [B, N, ·], start [B, 30])``, which returns an object with ``mean
[B, N, dimensions]``: the score of every chunk given those before it (``preferences.latent_reward.LatentReward``)."""


class GuidanceContext(NamedTuple):
    """The n chunks before the next one, as a reward reads them.

    Attributes:
        latents: their clean latents ``[B, n, D]``.
        audio: the encoded sound of these chunks and of the next ``[B, n + 1, ·]``.
        start: the motion frame before all of them ``[B, 30]``.
    """

    latents: torch.Tensor
    audio: torch.Tensor
    start: torch.Tensor


@dataclass(frozen=True)
class RewardSteering:
    """Settings of guidance by a reward while chunks are drawn. Weights are in the order of the reward's dimensions."""

    reward: LatentScore
    guide: tuple[float, ...] = ()
    """Weights of the gradient that bends the path of a chunk."""
    choose: tuple[float, ...] = ()
    """Weights of the score that chooses among candidates."""
    candidates: int = 1
    """Chunks to draw, of which the best is chosen."""
    max_factor: float = 2.0
    """Largest factor σ/(1−σ); with six steps those at σ = 1 and 5/6 are clipped."""
    history_chunks: int = 7
    """Number of previous chunks that the reward is given."""

    def draw(
        self, velocity: VelocityField, x: torch.Tensor, sigmas: torch.Tensor, past: GuidanceContext
    ) -> torch.Tensor:
        """Draw the latents of the next chunk.

        Args:
            velocity: the generator's velocity field.
            x: noise ``[n, D]``, one row for each candidate of a single stream; with one candidate, one row per stream.
            sigmas: noise levels ``[K + 1]`` from 1 to 0.
            past: the chunks before.

        Returns:
            Latents ``[1, D]`` of the best candidate, or with one candidate ``[n, D]``.
        """
        if any(self.guide):
            velocity = guided_velocity(
                velocity, lambda x, sigma: self.score(x, sigma, past, self.guide), self.max_factor
            )
        samples = solve_ode(velocity, x, sigmas)
        if self.candidates == 1:
            return samples
        best = self.score(samples, sigmas[-1], past, self.choose).argmax()
        return samples[best][None]

    def score(
        self, x: torch.Tensor, sigma: torch.Tensor, past: GuidanceContext, weights: Sequence[float]
    ) -> torch.Tensor:
        """Return the weighted score ``[B]`` of chunks ``[B, D]`` at noise level sigma, which follow ``past``."""
        batch, length = len(x), past.audio.shape[1]
        level = x.new_zeros(batch, length)
        level[:, -1] = float(sigma)
        track = torch.cat([past.latents.expand(batch, -1, -1), x[:, None]], 1)
        scores = self.reward(track, level, past.audio.expand(batch, -1, -1), past.start.expand(batch, -1))
        return scores.mean[:, -1].to(x) @ torch.tensor(weights, device=x.device)


def ordered_weights(weights: Mapping[str, float], dimensions: Sequence[str]) -> tuple[float, ...]:
    """Return weights by name as a tuple in the order of a reward's dimensions, with zero for those not named."""
    return tuple(float(weights.get(name, 0.0)) for name in dimensions)
