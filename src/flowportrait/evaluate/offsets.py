"""Lip sync of a finished video: distance between mouth and sound against the time offset between them.

    distance[k] = mean_t ‖ face[t] − voice[t + k] ‖          LSE-D = min_k,  LSE-C = median_k − min_k,
                                                             offset = argmin_k  (frames, + = late sound)

Offsets reach ±15 frames on videos of 3 s and more and ±5 on shorter ones, which are reported apart: the two
are not comparable. Every offset is averaged over the same mouth windows, so none is zero-padded. LER is the
share of one-second windows (the whole video if shorter) whose best offset is more than one frame from zero.
Chance: the same figures against the sound's windows in reverse order.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from flowportrait.evaluate.sync import SyncExpert
from flowportrait.evaluate.tracked import Tracked
from flowportrait.media.mel import level, log_mel

LONG_FRAMES, LONG_REACH, SHORT_REACH = 75, 15, 5
SECOND = 25
HOP = 5
TOLERANCE = 1
MIN_WINDOWS = 8


@dataclass(frozen=True)
class LipSync:
    """distance ``[2 reach + 1]`` per offset −reach … reach; windows it averages; errors of ``ler_windows``
    one-second windows; chance is the LSE-C against reversed sound."""

    distance: np.ndarray
    reach: int
    windows: int
    errors: int
    ler_windows: int
    chance: float

    @property
    def lse_d(self) -> float:
        return float(self.distance.min())

    @property
    def lse_c(self) -> float:
        return float(np.median(self.distance) - self.distance.min())

    @property
    def in_time(self) -> float:
        """Like LSE-C, but at offset zero, where generated speech belongs: out of time earns nothing."""
        return float(np.median(self.distance) - self.distance[self.reach])

    @property
    def offset(self) -> int:
        return int(self.distance.argmin()) - self.reach

    @property
    def chance_ler(self) -> float:
        """LER of a best offset drawn at random."""
        return 1 - (2 * TOLERANCE + 1) / (2 * self.reach + 1)


@torch.no_grad()
def measure_sync(tracked: Tracked, expert: SyncExpert | None = None) -> LipSync | None:
    """Lip sync of one video over its longest run of frames with a face; ``None`` without sound or when that
    run is too short."""
    run = longest_run(tracked.valid)
    frames = run.stop - run.start
    reach = LONG_REACH if frames >= LONG_FRAMES else SHORT_REACH
    expert = expert or SyncExpert.load()
    if not len(tracked.audio) or frames - expert.WINDOW + 1 - 2 * reach < MIN_WINDOWS:
        return None
    mel = log_mel(level(tracked.audio))[4 * run.start : 4 * run.stop]
    face = expert.embed_face(torch.from_numpy(tracked.mouth[run])[None])[0].cpu().numpy()
    voice = expert.embed_audio(mel[None])[0].cpu().numpy()
    return sync_from_embeddings(face, voice, reach)


def sync_from_embeddings(face: np.ndarray, voice: np.ndarray, reach: int) -> LipSync:
    """From unit embeddings ``[W, D]`` of the same windows."""
    table = offset_distances(face, voice, reach)
    size = min(SECOND, len(table))
    pieces = [table[start : start + size].mean(0) for start in range(0, len(table) - size + 1, HOP)]
    best = np.array([int(piece.argmin()) - reach for piece in pieces])
    chance = offset_distances(face, voice[::-1].copy(), reach).mean(0)
    return LipSync(
        table.mean(0),
        reach,
        len(table),
        int((np.abs(best) > TOLERANCE).sum()),
        len(pieces),
        float(np.median(chance) - chance.min()),
    )


def offset_distances(face: np.ndarray, voice: np.ndarray, reach: int) -> np.ndarray:
    """``[W − 2 reach, 2 reach + 1]``: distance of each inner mouth window from the sound at each offset."""
    inner = slice(reach, len(face) - reach)
    sounds = np.stack([np.roll(voice, -shift, axis=0)[inner] for shift in range(-reach, reach + 1)], 1)
    return np.linalg.norm(face[inner, None] - sounds, axis=-1)


def longest_run(valid: np.ndarray) -> slice:
    """The longest stretch of consecutive True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], valid.astype(int), [0]])))
    if not len(edges):
        return slice(0, 0)
    starts, stops = edges[::2], edges[1::2]
    longest = int((stops - starts).argmax())
    return slice(int(starts[longest]), int(stops[longest]))
