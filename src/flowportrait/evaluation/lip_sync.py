"""Lip sync as the evaluation measures it: the sync expert, and LSE-C, LSE-D, offset and LER from its embeddings.

    score[t]    = cos( face(mouth[t … t+4]),  voice(mel[4t … 4t+19]) )
    distance[k] = mean_t ‖ face[t] − voice[t + k] ‖          LSE-D = min_k,  LSE-C = median_k − min_k,
                                                             offset = argmin_k  (frames, + = late sound)

Two small convolutional networks embed mouth and sound into one space (after SyncNet, Chung & Zisserman 2016). They were
trained by contrast: the right sound against the same clip shifted and against other clips. Nothing is zero-padded in
time: T frames give T − 4 windows, and every offset is averaged over the same mouth windows.

Offsets range over ±15 frames for videos of 3 s and more, and over ±5 for shorter ones; the two are reported separately,
as they are not comparable. LER is the share of one-second windows (the whole video if shorter) with a best offset of
more than one frame. The chance level is measured against the sound's windows in reverse order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from flowportrait.devices import cached_per_device, device_of
from flowportrait.evaluation.joins import scored_frames
from flowportrait.evaluation.motion_metrics import longest_run
from flowportrait.evaluation.tracking import VideoTracks
from flowportrait.files import shipped_weights
from flowportrait.media.mel import log_mel, normalize_loudness
from flowportrait.training.joint_embedding import JointEmbedding

MOUTH_CROP = (40, 56)
"""Height and width of the centre of the 48 × 64 mouth patch that is used; the rest is room for training jitter."""


class PixelSyncExpert(JointEmbedding):
    """Joint embedding of mouth patches and log-mel: ``DIM`` numbers of unit length per window of five frames."""

    WINDOW = 5
    DIM = 128

    def __init__(self) -> None:
        super().__init__()
        self.face = nn.Sequential(
            *_block(nn.Conv2d(self.WINDOW, 32, 5, stride=2, padding=2)),
            *_block(nn.Conv2d(32, 64, 3, stride=2, padding=1)),
            *_block(nn.Conv2d(64, 96, 3, stride=2, padding=1)),
            *_block(nn.Conv2d(96, 128, 3, stride=2, padding=1)),
            nn.Flatten(),
            nn.Dropout(0.2),
            nn.Linear(128 * 3 * 4, self.DIM),
        )
        self.voice = nn.Sequential(
            *_block(nn.Conv2d(1, 32, 3, stride=(1, 2), padding=(0, 1))),
            *_block(nn.Conv2d(32, 48, (4, 3), stride=2, padding=(0, 1))),
            *_block(nn.Conv2d(48, 96, (4, 3), stride=2, padding=(0, 1))),
            *_block(nn.Conv2d(96, 128, 3, stride=(1, 2), padding=(0, 1))),
        )
        self.voice_out = nn.Sequential(nn.Dropout(0.2), nn.Linear(128 * 5, self.DIM))
        self.log_scale = nn.Parameter(torch.tensor(2.3))

    def embed_face(self, lips: torch.Tensor) -> torch.Tensor:
        """Embed grey patches ``[B, T, 40, 56]`` or ``[B, T, 48, 64]`` of any value range as ``[B, T - 4, DIM]``."""
        top, left = ((size - crop) // 2 for size, crop in zip(lips.shape[-2:], MOUTH_CROP, strict=True))
        mouth = lips[..., top : top + MOUTH_CROP[0], left : left + MOUTH_CROP[1]].to(device_of(self)).float()
        windows = remove_shading(mouth).unfold(1, self.WINDOW, 1).movedim(-1, 2)
        batch, count = windows.shape[:2]
        flat = windows.reshape(batch * count, *windows.shape[2:])
        flat = flat / (flat.std((1, 2, 3), keepdim=True) + 0.5)
        return F.normalize(self.face(flat), dim=-1).view(batch, count, -1)

    def embed_audio(self, mel: torch.Tensor) -> torch.Tensor:
        """Embed log-mel ``[B, 4T, 80]`` as ``[B, T - 4, DIM]``; each window reads exactly its own 20 columns."""
        sound = self.voice((mel.to(device_of(self)) - 1.0)[:, None])
        return F.normalize(self.voice_out(sound.permute(0, 2, 1, 3).flatten(2)), dim=-1)

    @classmethod
    @cached_per_device
    def load(cls) -> PixelSyncExpert:
        """Load the expert that ships with the package."""
        return cls.read(shipped_weights("sync_eval/model.safetensors"))


def _block(layer: nn.Conv2d) -> list[nn.Module]:
    return [layer, nn.BatchNorm2d(layer.out_channels), nn.ReLU(inplace=True)]


def remove_shading(mouth: torch.Tensor) -> torch.Tensor:
    """Subtract from patches ``[B, T, H, W]`` their own coarse 3 × 4 picture.

    This removes side light, exposure and skin tone and keeps the lips. With unit variance per window, gain and gamma
    hardly matter either.
    """
    coarse = F.adaptive_avg_pool2d(mouth, (3, 4))
    return mouth - F.interpolate(coarse, size=mouth.shape[-2:], mode="bilinear", align_corners=False)


# --- Measuring a video ---

LONG_FRAMES, LONG_MAX_OFFSET, SHORT_MAX_OFFSET = 75, 15, 5
"""Frames from which a video is long, and the largest offset in frames of long and of short videos."""
LER_WINDOW_FRAMES = 25
"""Frames of a window of the LER."""
LER_HOP_FRAMES = 5
"""Frames between two windows of the LER."""
MAX_SYNC_OFFSET = 1
"""Largest offset in frames that counts as in sync."""
MIN_WINDOWS = 8
"""Fewest mouth windows with which a video is measured."""


@dataclass(frozen=True)
class SyncMeasurement:
    """Lip sync of one video.

    Attributes:
        distance: mean distance ``[2 reach + 1]`` at the offsets −reach … reach.
        reach: the largest offset in frames.
        windows: number of windows over which the distance is averaged.
        errors: number of one-second windows out of sync.
        ler_windows: number of one-second windows in total.
        chance: LSE-C against reversed sound.
    """

    distance: np.ndarray
    reach: int
    windows: int
    errors: int
    ler_windows: int
    chance: float

    @property
    def lse_d(self) -> float:
        """LSE-D: the smallest distance over all offsets."""
        return float(self.distance.min())

    @property
    def lse_c(self) -> float:
        """LSE-C, the confidence: the median distance minus the smallest."""
        return float(np.median(self.distance) - self.distance.min())

    @property
    def lse_c_at_zero(self) -> float:
        """LSE-C at offset zero, where generated lips should be: the median distance minus that at offset zero."""
        return float(np.median(self.distance) - self.distance[self.reach])

    @property
    def offset(self) -> int:
        """The best offset in frames; positive where the sound is late."""
        return int(self.distance.argmin()) - self.reach

    @property
    def chance_ler(self) -> float:
        """LER of random best offsets."""
        return 1 - (2 * MAX_SYNC_OFFSET + 1) / (2 * self.reach + 1)


@torch.no_grad()
def measure_sync(
    tracked: VideoTracks, expert: PixelSyncExpert | None = None, joins: Sequence[int] = ()
) -> SyncMeasurement | None:
    """Measure the lip sync of one video over its longest run of frames with a face.

    Args:
        tracked: tracks of the video.
        expert: the sync expert; the shipped one by default.
        joins: frames at which the video is joined; mouth windows near them do not count.

    Returns:
        The measurement; None if the video has no sound or the run is too short.
    """
    run = longest_run(tracked.valid)
    frames = run.stop - run.start
    reach = LONG_MAX_OFFSET if frames >= LONG_FRAMES else SHORT_MAX_OFFSET
    expert = expert or PixelSyncExpert.load()
    if not len(tracked.audio) or frames - expert.WINDOW + 1 - 2 * reach < MIN_WINDOWS:
        return None
    mel = log_mel(normalize_loudness(tracked.audio))[4 * run.start : 4 * run.stop]
    face = expert.embed_face(torch.from_numpy(tracked.mouth[run])[None])[0].cpu().numpy()
    voice = expert.embed_audio(mel[None])[0].cpu().numpy()
    counted = scored_windows(scored_frames(len(tracked), joins)[run], expert.WINDOW, reach)
    return sync_from_embeddings(face, voice, reach, counted) if counted.sum() >= MIN_WINDOWS else None


def scored_windows(scored: np.ndarray, window: int, reach: int) -> np.ndarray:
    """Return which of the inner mouth windows ``[T - window + 1 - 2 reach]`` lie in scored frames ``[T]`` alone."""
    whole: np.ndarray = np.asarray(np.lib.stride_tricks.sliding_window_view(scored, window).all(1))
    return whole[reach : len(whole) - reach]


def sync_from_embeddings(
    face: np.ndarray, voice: np.ndarray, reach: int, counted: np.ndarray | None = None
) -> SyncMeasurement:
    """Measure lip sync from unit embeddings ``[W, D]`` of the same windows of face and voice.

    Args:
        face: embeddings of mouth windows.
        voice: embeddings of sound windows.
        reach: largest offset in frames.
        counted: which of the inner mouth windows ``[W - 2 reach]`` count, at least one; all by default.
    """
    distances = offset_distances(face, voice, reach)
    counts = np.ones(len(distances), bool) if counted is None else counted
    edges = np.flatnonzero(np.diff(np.concatenate([[0], counts.astype(int), [0]])))
    stretches = [slice(int(start), int(stop)) for start, stop in edges.reshape(-1, 2)]
    long_enough = [stretch for stretch in stretches if stretch.stop - stretch.start >= MIN_WINDOWS]
    means = []
    for stretch in long_enough or stretches:
        rows = distances[stretch]
        size = min(LER_WINDOW_FRAMES, len(rows))
        means += [rows[start : start + size].mean(0) for start in range(0, len(rows) - size + 1, LER_HOP_FRAMES)]
    distances = distances[counts]
    best_offsets = np.array([int(mean.argmin()) - reach for mean in means])
    chance = offset_distances(face, voice[::-1].copy(), reach)[counts].mean(0)
    return SyncMeasurement(
        distances.mean(0),
        reach,
        len(distances),
        int((np.abs(best_offsets) > MAX_SYNC_OFFSET).sum()),
        len(means),
        float(np.median(chance) - chance.min()),
    )


def offset_distances(face: np.ndarray, voice: np.ndarray, reach: int) -> np.ndarray:
    """Return distances ``[W − 2 reach, 2 reach + 1]`` of every inner mouth window from the sound at every offset."""
    inner = slice(reach, len(face) - reach)
    sounds = np.stack([np.roll(voice, -shift, axis=0)[inner] for shift in range(-reach, reach + 1)], 1)
    return np.linalg.norm(face[inner, None] - sounds, axis=-1)
