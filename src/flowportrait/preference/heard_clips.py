"""Clips as a generator hears them: what the latent reward learns from.

motion, log-mel of a corpus clip  +  the generator's ``Condition.audio``, frame by frame, in several voices
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from flowportrait.corpus.motion_set import MotionClip
from flowportrait.generator.arflow import ARFlow, Condition
from flowportrait.generator.augment import augment
from flowportrait.generator.sampler import sample_chunks

_AT_ONCE = 64


@dataclass(frozen=True)
class HeardClip:
    """audio ``[V, T, d]`` in V voices, the own one first; lips ``[V, 2, T, 16]`` where the sound puts them for the
    speaker's own style and for the typical one (no numbers where the generator has no anchor)."""

    clip: MotionClip
    audio: torch.Tensor
    lips: torch.Tensor

    def condition(self, first: int, frames: int, chunk: int, voice: int = 0, style: int = 1) -> torch.Tensor:
        """``Condition.audio`` ``[N, chunk·(d + 16)]`` of ``frames`` frames from ``first`` on."""
        window = slice(first, first + frames)
        parts = self.audio[voice, window], self.lips[voice, style, window]
        return torch.cat([part.reshape(frames // chunk, -1) for part in parts], -1)


@torch.no_grad()
def listen(generator: ARFlow, clips: Sequence[MotionClip], voices: int = 1, seed: int = 0) -> list[HeardClip]:
    """Every clip as ``generator`` hears it, as it is and in ``voices − 1`` other voices."""
    drawn = torch.Generator().manual_seed(seed)
    found = []
    for clip in clips:
        frames = len(clip.motion)
        mel = clip.mel[: 4 * frames].float()
        sounds = torch.stack([mel, *(augment(mel[None], drawn)[0] for _ in range(voices - 1))])
        heard = generator.audio_features(sounds)
        audio = generator.audio_encoder(heard)
        lips = audio.new_zeros(voices, 2, frames, 0)
        if generator.lip_reader is not None:
            standard = generator.lip_reader(heard)
            styles = torch.stack([clip.style, generator.rest_style])
            lips = torch.stack([generator.lip_reader.lips(standard, style) for style in styles], 1)
        found.append(HeardClip(clip, audio.half(), lips.half()))
    return found


@torch.no_grad()
def rehearse(generator: ARFlow, clips: Sequence[HeardClip], seed: int = 0) -> list[HeardClip]:
    """What ``generator`` makes of the same sounds, from the same first frame: clips that the latent reward will meet in
    use, as intact as real ones."""
    chunk = generator.config.chunk
    alike: dict[int, list[int]] = defaultdict(list)
    for place, heard in enumerate(clips):
        alike[(len(heard.clip.motion) - 1) // chunk].append(place)
    found: list[HeardClip] = []
    for chunks, places in alike.items():
        for lot in (places[at : at + _AT_ONCE] for at in range(0, len(places) if chunks else 0, _AT_ONCE)):
            chosen = [clips[place] for place in lot]
            audio = torch.stack([own.condition(1, chunks * chunk, chunk) for own in chosen]).float()
            style = generator.style_in(generator.rest_style.expand(len(lot), -1))
            start = torch.stack([own.clip.motion[0] for own in chosen])
            seeds = [seed + place for place in lot]
            made = torch.cat([start[:, None], *sample_chunks(generator, Condition(audio, style, start), seeds)], 1)
            found += [
                replace(own, clip=replace(own.clip, motion=motion)) for own, motion in zip(chosen, made, strict=True)
            ]
    return found
