"""Learning to go on from its own past: the remedy for a generator that only ever saw real ones.

    y      own motion over a long window, drawn as it is delivered             r   real motion of those sentences
    goal   g[t+k] = r[t+k] + ρ^k (y[t] − r[t]),   k = 1 … chunk                real motion, approached from where it is

The history a chunk is given is what the generator itself drew (no gradient runs through it; Self Forcing, 2506.08009,
trains on own rollouts too, but against a critic), and what it is to learn from there is to come back to what a person
does: lips within frames, the head within seconds (ρ). With ρ = 1 an own head would never be called back, with ρ = 0 it
would learn to jump. Clips are short, so that windows are strung together from a speaker's clips by the same formula;
they reach past the attention's window, and nothing need start afresh.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace

import torch

from flowportrait.codec.basis import BROWS, HEAD, LOWER, MOTION_DIM
from flowportrait.corpus.motion_set import MotionClip, WindowSampler
from flowportrait.flow.schedule import shifted
from flowportrait.flow.solver import solve
from flowportrait.generator.arflow import ARFlow, Condition

RETURN = torch.full((MOTION_DIM,), 0.7)
"""ρ, what is left after a frame of the distance to real motion."""
RETURN[LOWER], RETURN[BROWS], RETURN[HEAD] = 0.6, 0.9, 0.97
STEPS = 4
"""Sampling steps of the history."""
REUSE = 6
"""Gradient steps taken on one history, each with noise of its own."""

Lesson = tuple[torch.Tensor, ...]
"""start ``[B, 30]``, history and goal ``[B, N, chunk, 30]``, what is heard, style, and portraits if it sees."""


def rejoin(real: torch.Tensor, offset: torch.Tensor) -> torch.Tensor:
    """Real motion ``[..., K, 30]`` approached from ``offset`` ``[..., 30]`` beside the frame before it."""
    frames = torch.arange(1, real.shape[-2] + 1)
    return real + offset[..., None, :] * RETURN ** frames[:, None]


def strung(clips: list[MotionClip], frames: int, seed: int) -> list[MotionClip]:
    """Clips of more than ``frames`` frames, each several of one speaker's in a random order, without a jump."""
    speakers: dict[str, list[MotionClip]] = defaultdict(list)
    for clip in clips:
        speakers[clip.speaker].append(clip)
    generator = torch.Generator().manual_seed(seed)
    found = []
    for own in speakers.values():
        parts: list[MotionClip] = []
        for place in torch.randperm(len(own), generator=generator).tolist():
            clip = own[place]
            if parts:
                clip = replace(clip, motion=rejoin(clip.motion, parts[-1].motion[-1] - clip.motion[0]))
            parts.append(clip)
            if sum(len(part.motion) for part in parts) > 1.25 * frames:
                motion = torch.cat([part.motion for part in parts])
                heard = torch.cat([part.mel[: len(part.motion)] for part in parts])
                found.append(replace(clip, motion=motion, mel=heard))
                parts = []
    return found


class OwnHistory:
    """Long windows with the generator's own motion as history, or (``own`` off) with the real one."""

    def __init__(self, clips: list[MotionClip], frames: int, batch: int, own: bool, generator: torch.Generator) -> None:
        self.sampler = WindowSampler(strung(clips, frames, 0), frames, generator)
        self.batch, self.own, self.generator = batch, own, generator
        self.lesson: Lesson | None = None
        self.left = 0

    def __call__(self, model: ARFlow) -> Lesson:
        """What to learn from next."""
        if self.lesson is None or not self.left:
            self.lesson, self.left = self._draw(model), REUSE
        self.left -= 1
        return self.lesson

    @torch.no_grad()
    def _draw(self, model: ARFlow) -> Lesson:
        motion, heard, style, *portrait = self.sampler.draw(self.batch)
        start, real = motion[:, 0], motion[:, 1:].unflatten(1, (-1, model.config.chunk))
        history = self._perform(model, model.condition_on(heard, style, start, None, *portrait)) if self.own else real
        own_before = torch.cat([start[:, None], history[:, :-1, -1]], 1)
        real_before = torch.cat([start[:, None], real[:, :-1, -1]], 1)
        return start, history, rejoin(real, own_before - real_before), heard, style, *portrait

    def _perform(self, model: ARFlow, condition: Condition) -> torch.Tensor:
        """Own motion ``[B, N, chunk, 30]``, never afresh."""
        horizon = model.config.horizon
        model.config = replace(model.config, horizon=condition.chunks + 1)
        session, drawn = model.session(condition), []
        sigmas = shifted(STEPS, model.config.shift)
        for _ in range(condition.chunks):
            context = session.context()
            x = model.begin(torch.randn(self.batch, model.latent_dim, generator=self.generator))
            drawn.append(session.append(solve(_velocity(model, context), x, sigmas)))
        model.config = replace(model.config, horizon=horizon)
        return torch.stack(drawn, 1)


def _velocity(model: ARFlow, context: torch.Tensor) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    return lambda x, sigma: model.velocity(x, sigma, context)
