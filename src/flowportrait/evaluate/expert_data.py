"""What the sync experts learn from: every clip of a side as arrays in memory, and batches of clip pieces.

Batches hold several clips of few speakers, so that another clip's sound cannot be told apart by the voice or
the microphone, only by what the mouth does.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rich.progress import track
from scipy.ndimage import gaussian_filter1d

from flowportrait.corpus.clip import Clip
from flowportrait.errors import BadInput
from flowportrait.media.mel import MELS_PER_FRAME, SAMPLES_PER_FRAME, level, log_mel

PIECE = 28
"""Frames of a clip that a batch takes."""
SPEAKERS = 4
"""Speakers in a batch."""
LONGEST = 75
"""Longer clips are cut into items of this many frames."""


@dataclass
class Item:
    """One clip for an expert: views are equally valid inputs ``[T, …]`` (original, re-encoded), mel ``[4T,
    80]``, puppet ``[T]`` the frames a loudness-driven mouth would show, delay the frames its sound is known
    to lag."""

    name: str
    speaker: str
    views: list[torch.Tensor]
    mel: torch.Tensor
    puppet: torch.Tensor
    delay: int = 0
    kept: bool = True

    def __len__(self) -> int:
        return len(self.views[0])


def loudness(audio: np.ndarray, frames: int, smooth: float = 1.0) -> np.ndarray:
    """Smoothed RMS of 16 kHz samples per video frame ``[frames]``; ``smooth`` is a Gaussian sigma in
    frames."""
    wave = np.zeros(frames * SAMPLES_PER_FRAME)
    wave[: len(audio)] = audio[: len(wave)]
    rms = np.sqrt((wave.reshape(frames, -1) ** 2).mean(1))
    return gaussian_filter1d(rms, smooth, mode="nearest")


def mouth_opening(landmarks: np.ndarray) -> np.ndarray:
    """Inner-lip gap over the distance of the outer eye corners ``[T]`` from landmarks ``[T, 478, 3]``."""
    eyes = np.linalg.norm(landmarks[:, 33, :2] - landmarks[:, 263, :2], axis=-1)
    return np.linalg.norm(landmarks[:, 13, :2] - landmarks[:, 14, :2], axis=-1) / eyes


def loudness_puppet(clip: Clip, smooth: float = 1.0) -> np.ndarray:
    """Frames ``[T]`` of the clip itself, chosen so that the mouth is as open as the sound is loud (rank for
    rank)."""
    openness = mouth_opening(clip.landmarks)
    loud = loudness(clip.audio, len(clip), smooth)
    order = np.empty(len(clip), np.int64)
    order[np.argsort(loud, kind="stable")] = np.argsort(openness, kind="stable")
    return order


def load_items(corpus: Path, splits: Sequence[str], views: Callable[[Clip], list[torch.Tensor]]) -> list[Item]:
    """All clips of ``splits`` in a corpus made by ``flowportrait.corpus.prepare``.

    Raises:
        BadInput: no corpus there, or no clip of these splits in it.
    """
    index = corpus / "clips.jsonl"
    if not index.is_file():
        raise BadInput(f"No corpus at {corpus}: prepare one first (clips.jsonl is missing).")
    records = [json.loads(line) for line in index.read_text(encoding="utf-8").splitlines()]
    wanted = [r for r in records if r["split"] in splits and r["frames"] >= PIECE]
    if not wanted:
        raise BadInput(f"{index} lists no clip of split {' or '.join(splits)}: prepare a corpus with a split.tsv.")
    return [
        item
        for record in track(wanted, description=f"reading {'/'.join(splits)}")
        for item in _items(record, Clip.load(corpus / "clips" / f"{record['name']}.safetensors"), views)
    ]


def _items(record: dict[str, str], clip: Clip, views: Callable[[Clip], list[torch.Tensor]]) -> list[Item]:
    """Long clips become several items, so that one speaker's one long video still gives distinct pieces."""
    faces, mel = views(clip), log_mel(level(clip.audio))
    items = []
    for start in range(0, max(1, len(clip) - PIECE + 1), LONGEST):
        stop = min(start + LONGEST, len(clip))
        part = Clip(
            clip.landmarks[start:stop],
            clip.blendshapes[start:stop],
            clip.mouth[start:stop],
            clip.size,
            clip.audio[start * SAMPLES_PER_FRAME : stop * SAMPLES_PER_FRAME],
        )
        items.append(
            Item(
                f"{record['name']}@{start}",
                record["speaker"],
                [face[start:stop] for face in faces],
                mel[MELS_PER_FRAME * start : MELS_PER_FRAME * stop],
                torch.from_numpy(loudness_puppet(part, 1.5)),
            )
        )
    return items


@dataclass(frozen=True)
class Batch:
    """face ``[B, L, …]``, mel ``[B, 4L, 80]`` of the same moments, puppet ``[P, L, …]`` loudness-driven
    mouths for the first P items' sound."""

    face: torch.Tensor
    mel: torch.Tensor
    puppet: torch.Tensor


def draw_batch(items: list[Item], rng: np.random.Generator, clips: int, puppets: int) -> Batch:
    """Pieces of PIECE frames from ``clips`` clips of up to four speakers, each known delay taken out."""
    by_speaker: dict[str, list[Item]] = {}
    for item in items:
        if item.kept and len(item) - abs(item.delay) >= PIECE:
            by_speaker.setdefault(item.speaker, []).append(item)
    names = sorted(by_speaker)
    weight = np.sqrt([sum(map(len, by_speaker[name])) for name in names])
    speakers = rng.choice(len(names), size=min(SPEAKERS, len(names)), replace=False, p=weight / weight.sum())
    chosen = []
    for speaker in speakers:
        pool = by_speaker[names[speaker]]
        chosen += [pool[i] for i in rng.permutation(len(pool))[: clips // len(speakers)]]
    face, mel = [], []
    fake: list[torch.Tensor] = []
    for item in rng.permutation(np.array(chosen, object)):
        view = item.views[rng.integers(len(item.views))]
        start = max(0, -item.delay) + int(rng.integers(len(item) - abs(item.delay) - PIECE + 1))
        heard = start + item.delay
        face.append(view[start : start + PIECE])
        mel.append(item.mel[MELS_PER_FRAME * heard : MELS_PER_FRAME * (heard + PIECE)])
        if len(fake) < puppets:
            fake.append(view[item.puppet[heard : heard + PIECE]])
    return Batch(torch.stack(face), torch.stack(mel), torch.stack(fake))
