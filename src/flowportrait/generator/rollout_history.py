"""Training on a history that the generator sampled itself: the remedy for a generator that only ever saw real motion.

    y      the generator's motion over a long window, sampled as in use         r   real motion of those sentences
    goal   g[t+k] = r[t+k] + ρ^k (y[t] − r[t]),   k = 1 … chunk                real motion, approached from where it is

A chunk follows what the generator itself sampled (no gradient runs through it; Self Forcing, 2506.08009, trains on own
rollouts too, but against a critic), and learns to come back from there to what a person does: lips within frames, the
head within seconds (ρ). With ρ = 1 the head would never be called back, with ρ = 0 it would learn to jump. Clips are
short, so that windows are joined from a speaker's clips by the same formula; they reach past the attention's window,
and the cache need not be emptied.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from functools import partial

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

HistoryBatch = tuple[torch.Tensor, ...]
"""start ``[B, 30]``, history and goal ``[B, N, chunk, 30]``, audio features, style, and portraits for vision."""


def approach_real(real: torch.Tensor, offset: torch.Tensor) -> torch.Tensor:
    """Approach real motion ``[..., K, 30]`` from ``offset`` ``[..., 30]`` beside the frame before it."""
    frames = torch.arange(1, real.shape[-2] + 1)
    return real + offset[..., None, :] * RETURN ** frames[:, None]


def concatenate_clips(clips: list[MotionClip], frames: int, seed: int) -> list[MotionClip]:
    """Join clips of each speaker in a random order, without a jump, to clips of more than ``frames`` frames."""
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
                clip = replace(clip, motion=approach_real(clip.motion, parts[-1].motion[-1] - clip.motion[0]))
            parts.append(clip)
            if sum(len(part.motion) for part in parts) > 1.25 * frames:
                motion = torch.cat([part.motion for part in parts])
                features = torch.cat([part.mel[: len(part.motion)] for part in parts])
                found.append(replace(clip, motion=motion, mel=features))
                parts = []
    return found


class RolloutHistory:
    """Training batches of long windows after a history that the generator drew itself, or after the real one."""

    def __init__(
        self, clips: list[MotionClip], frames: int, batch: int, sampled: bool, generator: torch.Generator
    ) -> None:
        """sampled: the history is the generator's own motion; otherwise it is the real one (teacher forcing)."""
        self.sampler = WindowSampler(concatenate_clips(clips, frames, 0), frames, generator)
        self.batch, self.sampled, self.generator = batch, sampled, generator
        self.current: HistoryBatch | None = None
        self.left = 0

    def __call__(self, model: ARFlow) -> HistoryBatch:
        """The next batch; each is returned ``REUSE`` times."""
        if self.current is None or not self.left:
            self.current, self.left = self._draw(model), REUSE
        self.left -= 1
        return self.current

    @torch.no_grad()
    def _draw(self, model: ARFlow) -> HistoryBatch:
        motion, features, style, *portrait = self.sampler.draw(self.batch)
        start, real = motion[:, 0], motion[:, 1:].unflatten(1, (-1, model.config.chunk))
        history = real
        if self.sampled:
            device = model.rest_style.device
            tokens = [part.to(device) for part in portrait]
            history = self._rollout(model, model.condition_from_features(features, style, start, None, *tokens)).cpu()
        sampled_before = torch.cat([start[:, None], history[:, :-1, -1]], 1)
        real_before = torch.cat([start[:, None], real[:, :-1, -1]], 1)
        return start, history, approach_real(real, sampled_before - real_before), features, style, *portrait

    def _rollout(self, model: ARFlow, condition: Condition) -> torch.Tensor:
        """The generator's motion ``[B, N, chunk, 30]``, with a cache that is never emptied."""
        horizon = model.config.horizon
        model.config = replace(model.config, horizon=condition.chunks + 1)
        session, chunks = model.session(condition), []
        sigmas = shifted(STEPS, model.config.shift)
        for _ in range(condition.chunks):
            noise = torch.randn(self.batch, model.latent_dim, generator=self.generator).to(condition.start)
            velocity = partial(model.velocity, context=session.context())
            chunks.append(session.append(solve(velocity, model.begin(noise), sigmas)))
        model.config = replace(model.config, horizon=horizon)
        return torch.stack(chunks, 1)
