"""Training pairs of intact and damaged motion, made from a corpus.

    strength ~ U(lowest(p), coarse),   lowest(p) = coarse + p (subtle − coarse),   p: share of the training done

The order of the two clips is random. For the latent reward the same pairs are encoded in a generator's latent space,
with the generator's audio condition:

    motion of a window ─► chunks after the first frame ─► clean latents,   both clips under the same sound
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch

from flowportrait.corruption import Corruption, MotionWindow
from flowportrait.data.motion_dataset import MotionClip
from flowportrait.errors import BadInput
from flowportrait.media.mel import MELS_PER_FRAME
from flowportrait.models.arflow import ARFlow, SpeechCondition
from flowportrait.models.backbone import ChunkSpace
from flowportrait.models.sampler import sample_chunks
from flowportrait.models.training_clips import augment_mel
from flowportrait.preferences.clips import PreferenceBatch
from flowportrait.preferences.dataset import DIMENSIONS, MAX_POINTS, Label

# --- Pairs of motion ---

WINDOW_FRAMES = 22
"""Frames of a window, which leave room for a shift of 8 frames in clips of 1.2 s."""
SHORT_WINDOW_CHUNKS, LONG_WINDOW_CHUNKS = 5, 13
"""Chunks of a latent window: one that fits clips of 1.2 s, and one that covers the latent reward's whole history."""
_GENERATION_BATCH = 64


class DamagedPairSampler:
    """Draws pairs of windows from clips, one window of each pair damaged."""

    def __init__(
        self, clips: Sequence[MotionClip], damages: Mapping[str, Corruption], seed: int, frames: int = WINDOW_FRAMES
    ) -> None:
        """Prepare a sampler.

        Args:
            clips: real clips; those of speakers with many clips are drawn less often.
            damages: corruptions of motion by name.
            seed: random seed.
            frames: frames per window.

        Raises:
            BadInput: no clip is long enough.
        """
        self.frames = frames
        self.places = [place for place, clip in enumerate(clips) if len(clip.motion) >= frames + 2]
        self.clips = [clips[place] for place in self.places]
        if not self.clips:
            raise BadInput(f"No clip has {frames + 2} frames or more: preference pairs need longer clips.")
        self.damages = dict(damages)
        self.rng = np.random.default_rng(seed)
        counts: dict[str, int] = {}
        for clip in self.clips:
            counts[clip.speaker] = counts.get(clip.speaker, 0) + 1
        weights = np.array([counts[clip.speaker] ** -0.5 for clip in self.clips])
        self.weights = weights / weights.sum()

    def draw(self, batch: int, progress: float = 1.0) -> PreferenceBatch:
        """Draw pairs with the damages in turn.

        Args:
            batch: number of pairs.
            progress: 0 for coarse damage only, up to 1 for all strengths down to subtle.
        """
        names = list(self.damages)
        offset = int(self.rng.integers(len(names)))
        rows = [self._pair(names[(offset + index) % len(names)], progress) for index in range(batch)]
        first, second, mel, labels, points, kinds, origins = zip(*rows, strict=True)
        return PreferenceBatch(
            torch.tensor(np.stack(first)).float(), torch.tensor(np.stack(second)).float(), torch.stack(mel).float(),
            torch.tensor(labels), torch.tensor(np.array(points)).float(), tuple(kinds), origins=tuple(origins),
        )  # fmt: skip

    def _pair(
        self, name: str, progress: float
    ) -> tuple[np.ndarray, np.ndarray, torch.Tensor, list[float], np.ndarray, str, tuple[int, int]]:
        damage = self.damages[name]
        chosen, another = self.rng.choice(len(self.clips), 2, p=self.weights).tolist()
        clip, other = self.clips[chosen], self.clips[another]
        start = int(self.rng.integers(len(clip.motion) - self.frames + 1))
        loudness = clip.mel[: MELS_PER_FRAME * len(clip.motion)].float().mean(1).reshape(-1, MELS_PER_FRAME).mean(1)
        window = MotionWindow(clip.motion.numpy(), loudness.numpy(), other.motion.numpy(), start, self.frames)
        lowest = damage.coarse + progress * (damage.subtle - damage.coarse)
        strength = float(self.rng.uniform(lowest, damage.coarse))
        first, second, label = window.intact, damage.damage(window, strength, self.rng), Label.FIRST
        points = np.full((2, len(DIMENSIONS)), MAX_POINTS)
        hurt = [dimension in damage.hurts for dimension in DIMENSIONS]
        points[1, hurt] = 3.0 - 2.0 * (strength - damage.subtle) / (damage.coarse - damage.subtle)
        if self.rng.random() < 0.5:
            first, second, label, points = second, first, label.opposite, points[::-1]
        labels = [label.value if is_hurt else Label.TIE.value for is_hurt in hurt]
        mel = clip.mel[MELS_PER_FRAME * start : MELS_PER_FRAME * (start + self.frames)]
        return first, second, mel, labels, points, name, (self.places[chosen], start)


# --- Pairs of latents ---


@dataclass(frozen=True)
class ConditionedClip:
    """A corpus clip with the audio condition of a generator for every frame.

    Attributes:
        clip: motion and log-mel.
        audio: features ``[V, T, d]`` in V voices, the speaker's own one first.
        lips: lip positions ``[V, 2, T, 16]`` predicted from the sound, for the speaker's own style and for the neutral
            one; the last dimension is empty if the generator has no anchor.
    """

    clip: MotionClip
    audio: torch.Tensor
    lips: torch.Tensor

    def condition(self, first: int, frames: int, chunk: int, voice: int = 0, style: int = 1) -> torch.Tensor:
        """Return ``SpeechCondition.audio`` ``[N, chunk·(d + 16)]`` of ``frames`` frames from ``first`` on."""
        window = slice(first, first + frames)
        parts = self.audio[voice, window], self.lips[voice, style, window]
        return torch.cat([part.reshape(frames // chunk, -1) for part in parts], -1)


@torch.no_grad()
def add_audio_conditions(
    generator: ARFlow, clips: Sequence[MotionClip], voices: int = 1, seed: int = 0
) -> list[ConditionedClip]:
    """Compute the audio condition of clips, in their own voice and in ``voices − 1`` augmented voices."""
    rng = torch.Generator().manual_seed(seed)
    conditioned = []
    for clip in clips:
        frames = len(clip.motion)
        mel = clip.mel[: MELS_PER_FRAME * frames].float()
        sounds = torch.stack([mel, *(augment_mel(mel[None], rng)[0] for _ in range(voices - 1))])
        features = generator.audio_features(sounds)
        audio = generator.audio_encoder(features)
        lips = audio.new_zeros(voices, 2, frames, 0)
        if generator.lip_reader is not None:
            standard = generator.lip_reader(features)
            styles = torch.stack([clip.style, generator.rest_style])
            lips = torch.stack([generator.lip_reader.lips(standard, style) for style in styles], 1)
        conditioned.append(ConditionedClip(clip, audio.half(), lips.half()))
    return conditioned


@torch.no_grad()
def generate_clips(generator: ARFlow, clips: Sequence[ConditionedClip], seed: int = 0) -> list[ConditionedClip]:
    """Generate clips for the same sounds from the same first frames.

    The latent reward sees such clips in use, so training counts them as intact, like real ones.
    """
    chunk = generator.config.chunk
    by_length: dict[int, list[int]] = defaultdict(list)
    for index, conditioned in enumerate(clips):
        by_length[(len(conditioned.clip.motion) - 1) // chunk].append(index)
    generated: list[ConditionedClip] = []
    for chunks, indices in by_length.items():
        for rows in (
            indices[at : at + _GENERATION_BATCH] for at in range(0, len(indices) if chunks else 0, _GENERATION_BATCH)
        ):
            chosen = [clips[index] for index in rows]
            audio = torch.stack(
                [conditioned_clip.condition(1, chunks * chunk, chunk) for conditioned_clip in chosen]
            ).float()
            style = generator.style_in(generator.rest_style.expand(len(rows), -1))
            start = torch.stack([conditioned_clip.clip.motion[0] for conditioned_clip in chosen])
            seeds = [seed + index for index in rows]
            motions = torch.cat(
                [start[:, None], *sample_chunks(generator, SpeechCondition(audio, style, start), seeds)], 1
            )
            generated += [
                replace(conditioned_clip, clip=replace(conditioned_clip.clip, motion=motion))
                for conditioned_clip, motion in zip(chosen, motions, strict=True)
            ]
    return generated


class LatentPairBatch(NamedTuple):
    """A batch of pairs of intact and damaged clips in latent space.

    Attributes:
        first: clean latents ``[B, N, chunk·30]`` of the first clips.
        second: clean latents ``[B, N, chunk·30]`` of the second clips.
        start_first: frames ``[B, 30]`` before the first clips.
        start_second: frames ``[B, 30]`` before the second clips.
        audio: the generator's audio condition ``[B, N, ·]``, the same for both clips.
        mel: log-mel ``[B, 4T, 80]`` of their frames.
        labels: ``[B, 3]`` as in ``PreferenceBatch``; every pair is judged.
        intact_is_first: ``[B]`` whether the first clip is the intact one.
        kinds: the damage of the other clip.
    """

    first: torch.Tensor
    second: torch.Tensor
    start_first: torch.Tensor
    start_second: torch.Tensor
    audio: torch.Tensor
    mel: torch.Tensor
    labels: torch.Tensor
    intact_is_first: torch.Tensor
    kinds: tuple[str, ...]

    def all_clips(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return latents, audio condition and start frames ``[2B, …]`` of all first clips, then of all second ones."""
        latents, starts = torch.cat([self.first, self.second]), torch.cat([self.start_first, self.start_second])
        return latents, torch.cat([self.audio] * 2), starts

    def intact(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return latents and start frames ``[B, …]`` of the intact clips."""
        chosen = self.intact_is_first[:, None]
        return (
            torch.where(chosen[..., None], self.first, self.second),
            torch.where(chosen, self.start_first, self.start_second),
        )


class LatentPairSampler:
    """Draws pairs of intact and damaged clips in latent space."""

    def __init__(
        self,
        clips: Sequence[ConditionedClip],
        space: ChunkSpace,
        damages: Mapping[str, Corruption],
        seed: int,
        chunks: int = SHORT_WINDOW_CHUNKS,
        vary: bool = True,
    ) -> None:
        """Prepare a sampler.

        Args:
            clips: clips with the audio condition of the generator.
            space: the generator's latent space.
            damages: corruptions of motion by name.
            seed: random seed.
            chunks: chunks per window.
            vary: draw voice and style of the audio condition; otherwise they are as in a live session.

        Raises:
            BadInput: no clip is long enough.
        """
        self.clips, self.space, self.vary = clips, space, vary
        motion = [conditioned.clip for conditioned in clips]
        self.sampler = DamagedPairSampler(motion, damages, seed, frames=1 + chunks * space.chunk)

    def draw(self, batch: int, progress: float = 1.0) -> LatentPairBatch:
        """Draw pairs; see ``DamagedPairSampler.draw`` for the arguments."""
        pairs, rng, chunk = self.sampler.draw(batch, progress), self.sampler.rng, self.space.chunk
        frames = self.sampler.frames - 1
        audio = []
        for clip, start in pairs.origins:
            conditioned = self.clips[clip]
            voice, style = (int(rng.integers(len(conditioned.audio))), int(rng.integers(2))) if self.vary else (0, 1)
            audio.append(conditioned.condition(start + 1, frames, chunk, voice, style))
        return LatentPairBatch(
            self._encode(pairs.first), self._encode(pairs.second), pairs.first[:, 0], pairs.second[:, 0],
            torch.stack(audio).float(), pairs.mel[:, MELS_PER_FRAME:], pairs.labels,
            (pairs.points[:, 0] > pairs.points[:, 1]).any(1), pairs.kinds,
        )  # fmt: skip

    def _encode(self, motion: torch.Tensor) -> torch.Tensor:
        chunks = motion[:, 1:].unflatten(1, (-1, self.space.chunk))
        return self.space.encode(chunks, motion[:, : -1 : self.space.chunk])
