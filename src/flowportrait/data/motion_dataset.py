"""A prepared corpus as training material: motion, features and style of every clip, and random windows of them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F

from flowportrait.data.corpus import read_corpus_clips
from flowportrait.errors import BadInput
from flowportrait.media.mel import log_mel, normalize_loudness
from flowportrait.rendering.motion_basis import BROWS, HEAD, LOWER_FACE, MotionBasis, mirror_matrix

TRAINING_SPLITS = ("reward", "evaluation")
"""The splits that a generator may be trained on."""


@dataclass(frozen=True)
class MotionClip:
    """A clip as training material.

    Attributes:
        motion: ``[T, 30]``.
        mel: ``[4T, 80]``.
        style: ``[19]`` of the speaker.
        portrait: ``[2, P, hidden]``, for a generator with vision, the features of the speaker's picture, upright and
            mirrored.
    """

    name: str
    speaker: str
    motion: torch.Tensor
    mel: torch.Tensor
    style: torch.Tensor
    portrait: torch.Tensor | None = None


def load_motion_clips(corpus: Path, splits: Collection[str]) -> list[MotionClip]:
    """Encode every clip of the given splits.

    Raises:
        BadInput: ``corpus`` is not a prepared corpus, or has no clip in these splits.
    """
    basis = MotionBasis.load()
    by_speaker: dict[str, list[tuple[str, torch.Tensor, torch.Tensor]]] = defaultdict(list)
    for record, clip in read_corpus_clips(corpus, splits):
        motion, _ = basis.encode(clip.landmarks, clip.blendshapes)
        by_speaker[record["speaker"]].append((record["name"], motion, log_mel(normalize_loudness(clip.audio))))
    if not by_speaker:
        raise BadInput(f"{corpus} has no clips in the splits {', '.join(splits)}: check its clips.jsonl.")
    clips = []
    for speaker, speaker_clips in by_speaker.items():
        style = motion_style(torch.cat([motion for _, motion, _ in speaker_clips]))
        clips += [MotionClip(name, speaker, motion, mel, style) for name, motion, mel in speaker_clips]
    return clips


def motion_style(motion: torch.Tensor) -> torch.Tensor:
    """Return how somebody moves ``[19]``: mean of the lower face, log amplitude of lower face, brows and head."""
    amplitudes = [motion[:, part].std(0).mean().clamp_min(0.05).log() for part in (LOWER_FACE, BROWS, HEAD)]
    return torch.cat([motion[:, LOWER_FACE].mean(0), torch.stack(amplitudes)])


TEMPO_RANGE = (0.9, 1.12)
"""Range of the tempo at which windows are played."""


class WindowSampler:
    """A sampler of random windows.

    Speakers are drawn in proportion to the square root of their footage; half of the windows are mirrored, and each is
    played at a random tempo (lips and sound alike).
    """

    def __init__(self, clips: list[MotionClip], frames: int, generator: torch.Generator) -> None:
        self.clips = [clip for clip in clips if len(clip.motion) > frames]
        if not self.clips:
            raise BadInput(f"No training clip has more than {frames} frames: prepare longer videos or set windows.")
        self.frames = frames
        self.generator = generator
        footage: dict[str, int] = defaultdict(int)
        for clip in self.clips:
            footage[clip.speaker] += len(clip.motion)
        weights = [len(clip.motion) / footage[clip.speaker] ** 0.5 for clip in self.clips]
        self.weights = torch.tensor(weights)
        self.mirror = mirror_matrix(MotionBasis.load())

    def draw(self, batch: int) -> tuple[torch.Tensor, ...]:
        """Return a batch of windows.

        Returns:
            Motion ``[B, 1 + T, 30]`` (with the frame before the window), mel ``[B, 4T, 80]`` (or the features that
            clips hold in its place, at their rate per frame), style ``[B, 19]``, and where clips have them portraits
            ``[B, P, hidden]``.
        """
        picks = torch.multinomial(self.weights, batch, replacement=True, generator=self.generator).tolist()
        motion = torch.empty(batch, 1 + self.frames, self.clips[0].motion.shape[1])
        rate = round(len(self.clips[0].mel) / len(self.clips[0].motion))
        mel = torch.empty(batch, self.frames * rate, self.clips[0].mel.shape[1])
        style = torch.stack([self.clips[pick].style for pick in picks])
        portraits = []
        for row, pick in enumerate(picks):
            clip = self.clips[pick]
            tempo = TEMPO_RANGE[0] + (TEMPO_RANGE[1] - TEMPO_RANGE[0]) * float(torch.rand((), generator=self.generator))
            length = min(round(self.frames * tempo), len(clip.motion) - 1)
            start = 1 + int(torch.randint(len(clip.motion) - length, (), generator=self.generator))
            window = clip.motion[start - 1 : start + length]
            mirrored = bool(torch.rand((), generator=self.generator) < 0.5)
            if mirrored:
                window = window @ self.mirror
                style[row, : LOWER_FACE.stop] = clip.style[: LOWER_FACE.stop] @ self.mirror[LOWER_FACE, LOWER_FACE]
            motion[row, 0], motion[row, 1:] = window[0], resample_track(window[1:], self.frames)
            sound = clip.mel[start * rate : (start + length) * rate].float()
            mel[row] = resample_track(sound, self.frames * rate)
            if clip.portrait is not None:
                portraits.append(clip.portrait[int(mirrored)].float())
        return (motion, mel, style, torch.stack(portraits)) if portraits else (motion, mel, style)


def resample_track(track: torch.Tensor, length: int) -> torch.Tensor:
    """Return ``[T, D]`` linearly interpolated to ``[length, D]``, sample centres aligned."""
    return F.interpolate(track.T[None], size=length, mode="linear", align_corners=False)[0].T
