"""Clips of preference pairs as reward models read them, batches of pairs, and the loss of a pair.

    video ─► face tracked once, cached under the file's content ─► motion, log-mel     (``read_motion_mel``)
    video ─► frames and sound, for models that watch                                   (``read_frames_and_audio``)
    motion file (.json, .csv) with its sound beside it (.wav) ─► motion, log-mel: exact and fast

With d = score of the first clip − score of the second, the likelihoods of a label are

    Bradley–Terry with ties   P(first) = σ(d − ln k)    P(second) = σ(−d − ln k)    P(tie) = (k² − 1) P(first) P(second)
    plain Bradley–Terry       P(first) = σ(d), ties unused
    regression                (score − (points − 3))² of each clip
    Thurstone with ties       P(first) = Φ((d − τ)/s)   P(second) = Φ((−d − τ)/s)   P(tie) = 1 − P(first) − P(second)

with k = 5 (VideoReward, arXiv 2501.13918, sec. 3.2; Rao & Kupper 1967). Thurstone's law (1927; ties after Glenn & David
1960) is for scores with a known uncertainty: s² is the sum of both variances.
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
from flowportrait.evaluation.tracking import VideoTracks, default_tracks_cache, track_file
from flowportrait.media.audio import read_audio
from flowportrait.media.faces import TrackedFace, interpolate_missing_frames
from flowportrait.media.mel import MELS_PER_FRAME, log_mel, normalize_loudness
from flowportrait.media.video import FPS, LOCAL_CLIP_LIMITS, check_clip_limits, read_clip
from flowportrait.preferences.dataset import PreferencePair
from flowportrait.rendering.motion_basis import MotionBasis
from flowportrait.rendering.motion_files import read_motion
from flowportrait.rewards.batch import face_failure
from flowportrait.rewards.sync import MotionSyncExpert

# --- Reading clips ---

MOTION_FILES = (".json", ".csv")
MIN_CLIP_FRAMES = MotionSyncExpert.WINDOW
"""Fewest frames of a clip that a reward model can score."""


class MotionMelClip(NamedTuple):
    """A clip for reward models of motion and sound: motion ``[T, 30]`` and log-mel ``[4T, 80]``."""

    motion: torch.Tensor
    mel: torch.Tensor


class FramesAudioClip(NamedTuple):
    """A clip for reward models that watch.

    Attributes:
        frames: evenly spaced frames ``[K, H, W, 3]`` uint8 RGB.
        fps: rate of these frames.
        audio: sound ``[N]`` of the whole clip, 16 kHz mono.
    """

    frames: np.ndarray
    fps: float
    audio: np.ndarray


def track_clip(path: Path) -> VideoTracks:
    """Return face track and sound of a video, from the cache if the same content was tracked before.

    Raises:
        BadInput: the video is unreadable, or larger than ``media.video.LOCAL_CLIP_LIMITS`` allows.
    """
    if path.is_file():
        check_clip_limits(path, LOCAL_CLIP_LIMITS)
    return track_file(path, default_tracks_cache())


def read_motion_mel(path: Path) -> MotionMelClip:
    """Read motion and log-mel of a video, or of a motion file with its sound beside it.

    Raises:
        BadInput: the clip is unreadable, silent, too short, too large (``media.video.LOCAL_CLIP_LIMITS``), or shows no
            face.
    """
    if path.suffix.lower() in MOTION_FILES:
        motion, mel = read_motion(path), log_mel(normalize_loudness(read_audio(path.with_suffix(".wav"))))
        frames = min(len(motion), len(mel) // MELS_PER_FRAME)
        return MotionMelClip(motion[:frames], mel[: MELS_PER_FRAME * frames])
    tracked = track_clip(path)
    if not len(tracked.audio):
        raise BadInput(f"{path} has no sound: lip sync cannot be judged.")
    if failure := face_failure(tracked.valid):
        raise BadInput(f"{path}: {failure.detail}.")
    if len(tracked) < MIN_CLIP_FRAMES:
        raise BadInput(f"{path} has {len(tracked)} frames: {MIN_CLIP_FRAMES} are needed.")
    landmarks, shapes = (
        interpolate_missing_frames(track, tracked.valid) for track in (tracked.landmarks, tracked.blendshapes)
    )
    return MotionMelClip(MotionBasis.load().encode(landmarks, shapes)[0], log_mel(normalize_loudness(tracked.audio)))


def track_clip_faces(path: Path) -> TrackedFace:
    """Return the face in every frame of a video, from the cache of ``track_clip``."""
    tracked = track_clip(path)
    return TrackedFace(tracked.landmarks, tracked.blendshapes, tracked.valid, tracked.valid.astype(int))


def read_frames_and_audio(path: Path, frames: int) -> FramesAudioClip:
    """Read a video for a model that watches: ``frames`` evenly spaced frames, and the sound.

    Raises:
        BadInput: the video is unreadable, too large (``media.video.LOCAL_CLIP_LIMITS``), or without sound.
    """
    video, audio = read_clip(path)
    if audio is None:
        raise BadInput(f"{path} has no sound: lip sync cannot be judged.")
    indices = np.linspace(0, len(video) - 1, min(frames, len(video))).round().astype(int)
    return FramesAudioClip(video[indices], FPS * len(indices) / len(video), audio)


# --- Batches of pairs and their loss ---

PairObjective = Literal["ties", "plain", "regression"]
TIE_PARAMETER = 5.0
"""k, the tie parameter of Bradley–Terry with ties."""
MIDDLE_POINTS = 3.0
"""Middle of the scale of points from 1 to 5."""
TIE_MARGIN = 0.9674
"""τ with Φ(−τ) = 1/6: equal scores with s = 1 tie in two of three cases, as under Bradley–Terry with k = 5."""


@dataclass(frozen=True)
class PreferenceBatch:
    """A batch of pairs for training a reward model.

    Attributes:
        first: motion ``[B, T, 30]`` of the first clips.
        second: motion ``[B, T, 30]`` of the second clips.
        mel: log-mel ``[B, 4T, 80]`` of the first clip, and of the second where ``mel_second`` is None.
        labels: ``[B, 3]`` values of ``Label`` per dimension, ``NOT_JUDGED`` where there is no label.
        points: ``[B, 2, 3]`` points from 1 to 5 of both clips, NaN where there are none.
        kinds: the damage of the worse clip, or ``stated`` where an annotator compared two clips.
        mel_second: log-mel of the second clip, if its sound differs.
        origins: for each pair the index of its source clip and the first frame of the window in it.
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
    def from_pair(cls, pair: PreferencePair[MotionMelClip]) -> PreferenceBatch:
        """Make a batch of one pair: both clips are cut to the shorter one, each with its own sound."""
        frames = min(len(clip.motion) for clip in pair.clips)
        first, second = (clip.motion[None, :frames] for clip in pair.clips)
        mel, mel_second = (clip.mel[None, : MELS_PER_FRAME * frames] for clip in pair.clips)
        labels, points = torch.tensor([pair.label_values()]), torch.tensor([pair.point_values()])
        return cls(first, second, mel, labels, points, ("stated",), mel_second)


def pair_loss(
    objective: PairObjective, first: torch.Tensor, second: torch.Tensor, labels: torch.Tensor, points: torch.Tensor
) -> torch.Tensor:
    """Return the mean loss over the judged entries, a scalar.

    Args:
        objective: the likelihood; see the formulas above.
        first: scores ``[B, D]`` of the first clips.
        second: scores ``[B, D]`` of the second clips.
        labels: ``[B, D]`` values of ``Label``, NaN where nobody judged.
        points: ``[B, 2, D]`` of both clips, NaN where there are none.
    """
    # Unknown entries are replaced by numbers, because NaN times the zero gradient of the mask would be NaN.
    difference = first - second
    if objective == "regression":
        known = points.isfinite()
        squared_error = (
            torch.stack([first, second], 1) - (torch.where(known, points, MIDDLE_POINTS) - MIDDLE_POINTS)
        ).square()
        return squared_error[known].mean() if known.any() else squared_error.sum() * 0
    known = labels.isfinite()
    labels = torch.where(known, labels, 0.5)
    if objective == "plain":
        known = labels != 0.5
        loss = -F.logsigmoid(difference * (2 * labels - 1))
    else:
        loss = -choice_log_probs(bradley_terry_log_probs(difference), labels)
    return loss[known].mean() if known.any() else loss.sum() * 0


def choice_log_probs(log_probs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Select the ln P ``[…]`` of the labels from ln P of first, tie, second ``[…, 3]``."""
    return log_probs.gather(-1, (2 * (1 - labels)).long()[..., None])[..., 0]


def bradley_terry_log_probs(difference: torch.Tensor, k: float = TIE_PARAMETER) -> torch.Tensor:
    """Return ln P of first, tie, second ``[…, 3]`` for score differences ``[…]`` under Bradley–Terry with ties."""
    win = F.logsigmoid(difference - math.log(k))
    loss = F.logsigmoid(-difference - math.log(k))
    return torch.stack([win, math.log(k**2 - 1) + win + loss, loss], -1)


def thurstone_log_probs(difference: torch.Tensor, variance: torch.Tensor, margin: torch.Tensor | float) -> torch.Tensor:
    """Return ln P of first, tie, second ``[…, 3]`` under Thurstone's law with ties.

    Args:
        difference: score differences ``[…]``.
        variance: s² ``[…]``, the sum of both variances.
        margin: τ.
    """
    std = variance.sqrt()
    distance = difference.abs()
    win = torch.special.log_ndtr((difference - margin) / std)
    loss = torch.special.log_ndtr((-difference - margin) / std)
    # Φ(u) − Φ(l), computed in the lower tail, where both are small and exact.
    upper = torch.special.log_ndtr((margin - distance) / std)
    lower = torch.special.log_ndtr((-margin - distance) / std)
    tie = upper + torch.log1p(-(lower - upper).clamp_max(-1e-6).exp())
    return torch.stack([win, tie, loss], -1)
