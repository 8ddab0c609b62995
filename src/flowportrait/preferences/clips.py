"""Clips of pairs as their readers want them, batches of pairs, and the loss of a pair.

The clips of preference pairs as their readers want them. Every reader comes here.

video ─► face tracked once, kept under the file's content ─► motion, log-mel
video ─► frames and sound, for models and judges that watch
motion file (.json, .csv) with its sound beside it (.wav) ─► motion, log-mel: exact, and read at once

A batch of pairs and what it teaches, with d = score of the first clip − score of the second.

    Bradley–Terry with ties   P(first) = σ(d − ln k)    P(second) = σ(−d − ln k)    P(tie) = (k² − 1) P(first) P(second)
    plain Bradley–Terry       P(first) = σ(d), ties unused
    regression                (score − (points − 3))² of each clip
    Thurstone with ties       P(first) = Φ((d − τ)/s)   P(second) = Φ((−d − τ)/s)   P(tie) = 1 − P(first) − P(second)

with k = 5 (VideoReward, arXiv 2501.13918, sec. 3.2; Rao & Kupper 1967). Thurstone's law (1927; ties after Glenn & David
1960) is for scores that know how uncertain they are: s² is the sum of both variances.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from flowportrait.errors import BadInput
from flowportrait.evaluation.tracking import VideoTracks, default_cache, track_file
from flowportrait.media.audio import read_audio
from flowportrait.media.faces import Faces, bridge
from flowportrait.media.mel import MELS_PER_FRAME, level, log_mel
from flowportrait.media.video import FPS, LOCAL, check_clip, read_clip
from flowportrait.preferences.dataset import PreferencePair
from flowportrait.rendering.motion_basis import MotionBasis
from flowportrait.rendering.motion_files import read_motion
from flowportrait.rewards.batch import face_failure
from flowportrait.rewards.sync import SyncExpert

MOTION_FILES = (".json", ".csv")
SHORTEST = SyncExpert.WINDOW
"""Frames of a clip that a reward model can score."""


class ClipFeatures(NamedTuple):
    """What can be learned from without looking: motion ``[T, 30]`` and log-mel ``[4T, 80]``."""

    motion: torch.Tensor
    mel: torch.Tensor


class WatchedClip(NamedTuple):
    """Evenly spaced frames ``[K, H, W, 3]`` uint8 at ``fps``, and the sound ``[N]`` 16 kHz mono of the whole clip."""

    frames: np.ndarray
    fps: float
    audio: np.ndarray


def track_clip(path: Path) -> VideoTracks:
    """Face track and sound of a video; a video that was tracked before, under whatever name, is not tracked again.

    Raises:
        BadInput: unreadable, or larger than ``media.video.LOCAL`` allows.
    """
    if path.is_file():
        check_clip(path, LOCAL)
    return track_file(path, default_cache())


def clip_features(path: Path) -> ClipFeatures:
    """Motion and log-mel of a video, or of a motion file with its sound beside it.

    Raises:
        BadInput: unreadable, silent, too short, too large (``media.video.LOCAL``), or without a face.
    """
    if path.suffix.lower() in MOTION_FILES:
        motion, mel = read_motion(path), log_mel(level(read_audio(path.with_suffix(".wav"))))
        frames = min(len(motion), len(mel) // MELS_PER_FRAME)
        return ClipFeatures(motion[:frames], mel[: MELS_PER_FRAME * frames])
    tracked = track_clip(path)
    if not len(tracked.audio):
        raise BadInput(f"{path} has no sound: lip sync cannot be told.")
    if failure := face_failure(tracked.valid):
        raise BadInput(f"{path}: {failure.detail}.")
    if len(tracked) < SHORTEST:
        raise BadInput(f"{path} has {len(tracked)} frames: {SHORTEST} are needed.")
    landmarks, shapes = (bridge(track, tracked.valid) for track in (tracked.landmarks, tracked.blendshapes))
    return ClipFeatures(MotionBasis.load().encode(landmarks, shapes)[0], log_mel(level(tracked.audio)))


def clip_faces(path: Path) -> Faces:
    """The face in every frame of a video, tracked once as in ``track_clip``."""
    tracked = track_clip(path)
    return Faces(tracked.landmarks, tracked.blendshapes, tracked.valid, tracked.valid.astype(int))


def watch_clip(path: Path, frames: int) -> WatchedClip:
    """A video as a multimodal model watches it: ``frames`` of its frames, and its sound.

    Raises:
        BadInput: unreadable, too large (``media.video.LOCAL``), or without sound.
    """
    video, audio = read_clip(path)
    if audio is None:
        raise BadInput(f"{path} has no sound: lip sync cannot be told.")
    places = np.linspace(0, len(video) - 1, min(frames, len(video))).round().astype(int)
    return WatchedClip(video[places], FPS * len(places) / len(video), audio)


Objective = Literal["ties", "plain", "regression"]
K = 5.0
MIDDLE = 3.0
"""Middle of the scale of points."""
MARGIN = 0.9674
"""τ from Φ(−τ) = 1/6: two equal scores of unit s tie in two of three cases, as under Bradley–Terry with k = 5."""


@dataclass(frozen=True)
class PreferenceBatch:
    """Pairs of clips as the reward model is trained on them.

    Attributes:
        first, second: motion ``[B, T, 30]`` of both clips.
        mel: log-mel ``[B, 4T, 80]`` of the first clip, and of the second where ``mel_second`` is None.
        labels: ``[B, 3]`` values of ``Label`` per dimension, ``NOT_JUDGED`` where there is none.
        points: ``[B, 2, 3]`` 1 to 5 of both clips, NaN where there are none.
        kinds: the damage of the worse clip, or ``stated`` where an annotator compared two clips.
        mel_second: log-mel of the second clip where it has another sound.
        origins: index of the clip each pair was made from, and the window's first frame in it.
    """

    first: torch.Tensor
    second: torch.Tensor
    mel: torch.Tensor
    labels: torch.Tensor
    points: torch.Tensor
    kinds: tuple[str, ...] = ()
    mel_second: torch.Tensor | None = None
    origins: tuple[tuple[int, int], ...] = ()

    @classmethod
    def from_pair(cls, pair: PreferencePair[ClipFeatures]) -> PreferenceBatch:
        """A batch of one row: both clips cut to the shorter one, each with its own sound."""
        frames = min(len(clip.motion) for clip in pair.clips)
        first, second = (clip.motion[None, :frames] for clip in pair.clips)
        mel, mel_second = (clip.mel[None, : MELS_PER_FRAME * frames] for clip in pair.clips)
        labels, points = torch.tensor([pair.label_values()]), torch.tensor([pair.point_values()])
        return cls(first, second, mel, labels, points, ("stated",), mel_second)


def pair_loss(
    objective: Objective, first: torch.Tensor, second: torch.Tensor, labels: torch.Tensor, points: torch.Tensor
) -> torch.Tensor:
    """Mean loss over the judged entries, a scalar.

    Args:
        objective: see the module.
        first, second: scores ``[B, D]`` of both clips.
        labels: ``[B, D]`` values of ``Label``, NaN where nobody judged.
        points: ``[B, 2, D]`` of both clips, NaN where there are none.
    """
    # What is unknown must be a number too: NaN times the zero gradient of the mask would be NaN.
    difference = first - second
    if objective == "regression":
        known = points.isfinite()
        wrong = (torch.stack([first, second], 1) - (torch.where(known, points, MIDDLE) - MIDDLE)).square()
        return wrong[known].mean() if known.any() else wrong.sum() * 0
    known = labels.isfinite()
    labels = torch.where(known, labels, 0.5)
    if objective == "plain":
        known = labels != 0.5
        loss = -F.logsigmoid(difference * (2 * labels - 1))
    else:
        loss = -choice_log_probs(bradley_terry_log_probs(difference), labels)
    return loss[known].mean() if known.any() else loss.sum() * 0


def choice_log_probs(log_probs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The ln P ``[…]`` of the labels, out of ln P of first, tie, second ``[…, 3]``."""
    return log_probs.gather(-1, (2 * (1 - labels)).long()[..., None])[..., 0]


def bradley_terry_log_probs(difference: torch.Tensor, k: float = K) -> torch.Tensor:
    """ln P of first, tie, second ``[…, 3]`` for score differences ``[…]``."""
    win = F.logsigmoid(difference - math.log(k))
    loss = F.logsigmoid(-difference - math.log(k))
    return torch.stack([win, math.log(k**2 - 1) + win + loss, loss], -1)


def thurstone_log_probs(difference: torch.Tensor, variance: torch.Tensor, margin: torch.Tensor | float) -> torch.Tensor:
    """ln P of first, tie, second ``[…, 3]`` for score differences, s² and τ ``[…]``."""
    spread = variance.sqrt()
    apart = difference.abs()
    win = torch.special.log_ndtr((difference - margin) / spread)
    loss = torch.special.log_ndtr((-difference - margin) / spread)
    # Φ(u) − Φ(l) on the side where both are small enough to be exact.
    upper = torch.special.log_ndtr((margin - apart) / spread)
    lower = torch.special.log_ndtr((-margin - apart) / spread)
    tie = upper + torch.log1p(-(lower - upper).clamp_max(-1e-6).exp())
    return torch.stack([win, tie, loss], -1)
