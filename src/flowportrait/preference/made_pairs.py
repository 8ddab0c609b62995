"""Pairs made on the fly from real clips: intact against damaged, from coarse to subtle as training goes on.

    strength ~ U(lowest(p), coarse),   lowest(p) = coarse + p (subtle − coarse),   p: share of the training done

Half of the pairs have the damaged clip as A, so that the order says nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from flowportrait.corpus.motion_set import MotionClip
from flowportrait.corruption import Corruption, MotionWindow
from flowportrait.errors import BadInput
from flowportrait.media.mel import MELS_PER_FRAME
from flowportrait.preference.pairs import OPPOSITE, Aspect, Label

DIMENSIONS: tuple[Aspect, ...] = ("sync", "expression", "motion")
"""Aspects that the reward model scores."""
CODES: Mapping[Label, int] = {"A": 1, "tie": 0, "B": -1}
NOT_JUDGED = 2
FRAMES = 22
"""Of a window: what leaves room for a shift of 8 frames in clips of 1.2 s."""


@dataclass(frozen=True)
class PairBatch:
    """a, b ``[B, T, 30]`` motion under the same mel ``[B, 4T, 80]``; labels ``[B, 3]`` per dimension: 1 A, −1 B, 0 tie,
    2 not judged; points ``[B, 2, 3]`` 1–5 of a and b, NaN where there are none; kinds: what was done to the worse
    one; mel_b: b's sound where it is not a's; origins: index of the clip each pair was made from, and where in it the
    window starts."""

    a: torch.Tensor
    b: torch.Tensor
    mel: torch.Tensor
    labels: torch.Tensor
    points: torch.Tensor
    kinds: tuple[str, ...] = ()
    mel_b: torch.Tensor | None = None
    origins: tuple[tuple[int, int], ...] = ()


class PairMaker:
    """Draws pairs of windows of ``frames`` frames from clips.

    Raises:
        BadInput: no clip is long enough.
    """

    def __init__(
        self, clips: Sequence[MotionClip], damages: Mapping[str, Corruption], seed: int, frames: int = FRAMES
    ) -> None:
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

    def draw(self, batch: int, progress: float = 1.0) -> PairBatch:
        """``batch`` pairs; the damages in turn. progress: 0 coarse only … 1 everything down to subtle."""
        rows = []
        names = list(self.damages)
        offset = int(self.rng.integers(len(names)))
        for index in range(batch):
            rows.append(self._pair(names[(offset + index) % len(names)], progress))
        a, b, mel, labels, points, kinds, origins = zip(*rows, strict=True)
        return PairBatch(
            torch.tensor(np.stack(a)).float(), torch.tensor(np.stack(b)).float(), torch.stack(mel).float(),
            torch.tensor(labels), torch.tensor(np.array(points)).float(), tuple(kinds), origins=tuple(origins),
        )  # fmt: skip

    def _pair(
        self, name: str, progress: float
    ) -> tuple[np.ndarray, np.ndarray, torch.Tensor, list[int], np.ndarray, str, tuple[int, int]]:
        damage = self.damages[name]
        chosen, another = self.rng.choice(len(self.clips), 2, p=self.weights).tolist()
        clip, other = self.clips[chosen], self.clips[another]
        start = int(self.rng.integers(len(clip.motion) - self.frames + 1))
        loudness = clip.mel[: MELS_PER_FRAME * len(clip.motion)].float().mean(1).reshape(-1, MELS_PER_FRAME).mean(1)
        window = MotionWindow(clip.motion.numpy(), loudness.numpy(), other.motion.numpy(), start, self.frames)
        lowest = damage.coarse + progress * (damage.subtle - damage.coarse)
        strength = float(self.rng.uniform(lowest, damage.coarse))
        intact, worse = window.intact, damage.damage(window, strength, self.rng)
        label: Label = "A"
        points = np.full((2, len(DIMENSIONS)), 5.0)
        hurt = [dimension in damage.hurts for dimension in DIMENSIONS]
        points[1, hurt] = 3.0 - 2.0 * (strength - damage.subtle) / (damage.coarse - damage.subtle)
        if self.rng.random() < 0.5:
            intact, worse, label, points = worse, intact, OPPOSITE[label], points[::-1]
        labels = [CODES[label] if touched else CODES["tie"] for touched in hurt]
        mel = clip.mel[MELS_PER_FRAME * start : MELS_PER_FRAME * (start + self.frames)]
        return intact, worse, mel, labels, points, name, (self.places[chosen], start)
