"""Finished videos as a batch: what users of another generator have is frames and sound, and rewards want no more.

    frames ─► 25 fps ─► tracked face ─► motion                   audio ─► levelled log-mel
                  └───► one square crop for the whole clip, ``SIDE`` px: frames and landmarks

The crop stands still while the clip lasts, so that what moves in it is the video. A clip whose face is lost too often
takes part in nothing that looks at a face.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
import torch

from flowportrait.codec.basis import MOTION_DIM, MotionBasis
from flowportrait.errors import BadInput
from flowportrait.media.crop import apply_affine, crop_transform
from flowportrait.media.face import FaceTracker, bridge
from flowportrait.media.mel import SAMPLES_PER_FRAME, level, log_mel
from flowportrait.media.portrait import Portrait
from flowportrait.media.video import FPS
from flowportrait.reward.batch import Failure, RewardBatch

SIDE = 128
"""Pixels of the square that rewards look at; the face is about half of it, as in a post-training rendering."""
LOST = 0.2
"""Largest share of frames without a face."""


class _Seen(NamedTuple):
    """One clip looked at: motion ``[T, 30]``, crops ``[T, S, S, 3]`` uint8, landmarks in them ``[T, 478, 2]``."""

    motion: torch.Tensor
    crops: np.ndarray
    landmarks: np.ndarray
    failure: Failure | None


class Recorded:
    """Drawing by looking up: frames and landmarks of clips that exist. One row per clip."""

    def __init__(self, crops: np.ndarray, landmarks: np.ndarray) -> None:
        self._crops = crops
        self._landmarks = landmarks

    def __call__(self, _: torch.Tensor, indices: tuple[int, ...]) -> torch.Tensor:
        """Frames ``[B, F, 3, S, S]`` in [0, 1]."""
        return torch.from_numpy(self._crops[:, list(indices)]).permute(0, 1, 4, 2, 3).float() / 255

    def places(self, _: torch.Tensor, indices: tuple[int, ...]) -> torch.Tensor:
        """Landmarks ``[B, F, 478, 2]`` in pixels of the frames."""
        return torch.from_numpy(self._landmarks[:, list(indices)]).float()


def from_frames(
    frames: Sequence[np.ndarray],
    audio: Sequence[np.ndarray],
    fps: float = FPS,
    portraits: Sequence[Portrait] | None = None,
    transcript: Sequence[str] | None = None,
    group: torch.Tensor | None = None,
    side: int = SIDE,
) -> RewardBatch:
    """See ``RewardBatch.from_frames``. Sound is cut or padded with silence to the length of the picture."""
    clips = [_at_25(_picture(clip, place), fps) for place, clip in enumerate(frames)]
    if len(audio) != len(clips) or not clips:
        raise BadInput(f"{len(clips)} videos with {len(audio)} sounds cannot be scored: give one sound per video.")
    if len({len(clip) for clip in clips}) > 1:
        lengths = ", ".join(sorted({f"{len(clip) / FPS:.2f} s" for clip in clips}))
        raise BadInput(f"Videos of {lengths} do not make one batch: score those of each length together.")
    for name, given in (("portraits", portraits), ("transcripts", transcript), ("group ids", group)):
        if given is not None and len(given) != len(clips):
            raise BadInput(f"{len(given)} {name} for {len(clips)} videos: give one for each.")
    sound = np.stack([_fitted(wave, len(clips[0])) for wave in audio])
    seen = [_look(clip, side) for clip in clips]
    return RewardBatch(
        motion=torch.stack([clip.motion for clip in seen]),
        mel=torch.stack([log_mel(level(wave)) for wave in sound]),
        draw=Recorded(np.stack([clip.crops for clip in seen]), np.stack([clip.landmarks for clip in seen])),
        audio=torch.from_numpy(sound),
        portraits=portraits,
        transcript=transcript,
        group=group,
        domain="filmed",
        unseen={row: clip.failure for row, clip in enumerate(seen) if clip.failure is not None},
    )


def _picture(clip: np.ndarray, place: int) -> np.ndarray:
    if clip.ndim != 4 or clip.shape[-1] != 3 or clip.dtype != np.uint8 or not len(clip):
        raise BadInput(f"Video {place} is {clip.dtype} {clip.shape}: frames are RGB uint8 [T, H, W, 3].")
    return clip


def _at_25(clip: np.ndarray, fps: float) -> np.ndarray:
    """Frame i is what was on screen at i / 25 s."""
    if not fps > 0:
        raise BadInput(f"{fps} frames a second are not possible: give the rate of the videos.")
    count = max(1, round(len(clip) / fps * FPS))
    return clip[np.minimum((np.arange(count) * fps / FPS + 1e-6).astype(int), len(clip) - 1)]


def _fitted(wave: np.ndarray, frames: int) -> np.ndarray:
    fitted = np.zeros(frames * SAMPLES_PER_FRAME, np.float32)
    fitted[: len(wave)] = wave[: len(fitted)]
    return fitted


def _look(clip: np.ndarray, side: int) -> _Seen:
    with FaceTracker() as tracker:
        faces = tracker.track(clip)
    lost = 1 - faces.valid.mean()
    if lost > LOST:
        failure = Failure("no_face", f"no face in {lost:.0%} of {len(clip)} frames")
        black = np.zeros((len(clip), side, side, 3), np.uint8)
        # Some face somewhere: whatever is measured on it is marked invalid, but it should be measurable.
        anywhere = MotionBasis.load().canonical.numpy()[:, :2] * side / 4 + side / 2
        landmarks = np.broadcast_to(anywhere.astype(np.float32), (len(clip), *anywhere.shape))
        return _Seen(torch.zeros(len(clip), MOTION_DIM), black, landmarks, failure)
    landmarks = bridge(faces.landmarks, faces.valid)
    motion, _ = MotionBasis.load().encode(landmarks, bridge(faces.blendshapes, faces.valid))
    to_crop = crop_transform(np.median(landmarks, 0), clip.shape[1:3], side)
    crops = np.stack([cropped(frame, to_crop, side) for frame in clip])
    return _Seen(motion, crops, apply_affine(to_crop, landmarks)[..., :2], None)


def cropped(frame: np.ndarray, to_crop: np.ndarray, side: int) -> np.ndarray:
    """Square view ``[side, side, 3]`` of a frame ``[H, W, 3]`` uint8 under ``to_crop`` ``[2, 3]``, averaged where it
    shrinks."""
    scale = float(np.sqrt(abs(np.linalg.det(to_crop[:, :2]))))
    if scale < 0.75:
        # Averaged down to about the wanted size first: sampling alone would alias.
        shrink = np.array([int(frame.shape[1] * scale), int(frame.shape[0] * scale)]).clip(1)
        ratio = shrink / (frame.shape[1], frame.shape[0])
        frame = cv2.resize(frame, shrink.tolist(), interpolation=cv2.INTER_AREA)
        back = np.array([[1 / ratio[0], 0, 0.5 / ratio[0] - 0.5], [0, 1 / ratio[1], 0.5 / ratio[1] - 0.5], [0, 0, 1]])
        to_crop = (np.vstack([to_crop, [0, 0, 1]]) @ back)[:2]
    flags = cv2.INTER_CUBIC if scale > 1 else cv2.INTER_LINEAR
    return cv2.warpAffine(frame, to_crop, (side, side), flags=flags, borderMode=cv2.BORDER_REPLICATE)
