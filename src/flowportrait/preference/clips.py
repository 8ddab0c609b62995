"""The clips of preference pairs as their readers want them. Every reader comes here.

video ─► face tracked once, kept under the file's content ─► motion, log-mel
video ─► frames and sound, for models and judges that watch
motion file (.json, .csv) with its sound beside it (.wav) ─► motion, log-mel: exact, and read at once
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from flowportrait.codec.basis import MotionBasis
from flowportrait.codec.motion_file import read_motion
from flowportrait.errors import BadInput
from flowportrait.evaluation.tracking import VideoTracks, default_cache, track_file
from flowportrait.media.audio import read_audio
from flowportrait.media.bounded import LOCAL, check_clip, read_clip
from flowportrait.media.face import Faces, bridge
from flowportrait.media.mel import MELS_PER_FRAME, level, log_mel
from flowportrait.media.video import FPS
from flowportrait.reward.batch import face_failure
from flowportrait.reward.sync import SyncExpert

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
        BadInput: unreadable, or larger than ``media.bounded.LOCAL`` allows.
    """
    if path.is_file():
        check_clip(path, LOCAL)
    return track_file(path, default_cache())


def clip_features(path: Path) -> ClipFeatures:
    """Motion and log-mel of a video, or of a motion file with its sound beside it.

    Raises:
        BadInput: unreadable, silent, too short, too large (``media.bounded.LOCAL``), or without a face.
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
        BadInput: unreadable, too large (``media.bounded.LOCAL``), or without sound.
    """
    video, audio = read_clip(path)
    if audio is None:
        raise BadInput(f"{path} has no sound: lip sync cannot be told.")
    places = np.linspace(0, len(video) - 1, min(frames, len(video))).round().astype(int)
    return WatchedClip(video[places], FPS * len(places) / len(video), audio)
