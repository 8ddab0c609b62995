"""This module defines the batch of samples that rewards score.

    motion · mel                                               always
    frames(i) · places(i)                                      rendered on demand, each frame once
    audio · portrait · transcript · reference · group · data   if they are known
    policy · condition · latents                               only inside post-training

A reward declares what it reads (its ``needs``); ``RewardBatch.has`` lists what a batch can provide. Videos of any
generator become a batch through ``RewardBatch.from_frames``:

    frames ─► 25 fps ─► tracked face ─► motion                   audio ─► levelled log-mel
                  └───► one square crop for the whole clip, ``REWARD_CROP_SIDE`` px: frames and landmarks

The crop does not move during a clip, so that all motion in it is that of the video. A clip in which the face is lost
too often gets no score from rewards that need a face.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

import cv2
import numpy as np
import torch

from flowportrait.errors import BadInput
from flowportrait.media.audio import SAMPLES_PER_FRAME
from flowportrait.media.crop import apply_affine, crop_transform
from flowportrait.media.faces import FaceTracker, TrackedFace, interpolate_missing_frames
from flowportrait.media.mel import log_mel, normalize_loudness
from flowportrait.media.video import FPS
from flowportrait.rendering.motion_basis import MOTION_DIM, MotionBasis

if TYPE_CHECKING:
    from flowportrait.media.portrait import Portrait


REWARD_CROP_SIDE = 128
"""Side in pixels of the crop; the face is about half as wide, as in a post-training rendering."""
MAX_FACELESS_SHARE = 0.2
"""Largest share of frames without a face in a clip that is scored."""

Need = Literal[
    "motion", "mel", "frames", "places", "fps", "audio", "portrait", "transcript", "reference", "group", "policy",
    "data",
]  # fmt: skip

FailureKind = Literal["no_face", "no_sound", "too_short", "unavailable", "refused", "malformed", "not_finite"]


class Failure(NamedTuple):
    """Why a sample has no score: a kind to count by, and a sentence. ``unavailable`` means that a retry may succeed."""

    kind: FailureKind
    detail: str


NO_FAILURES: Mapping[int, Failure] = MappingProxyType({})

FrameRenderer = Callable[[torch.Tensor, tuple[int, ...]], torch.Tensor]
"""A renderer ``(motion [B, T, 30], frame indices) -> frames [B, F, 3, H, W]``, float in [0, 1]."""

LandmarkLocator = Callable[[torch.Tensor, tuple[int, ...]], torch.Tensor]
"""A function ``(motion [B, T, 30], frame indices) -> landmarks [B, F, 478, 2]`` in pixels of the rendered frames."""


@dataclass
class RewardBatch:
    """A batch of B samples of T frames at 25 frames per second.

    Attributes:
        motion: motion coefficients ``[B, T, 30]``.
        mel: levelled log-mel ``[B, 4T, 80]``.
        draw: renders frames; see ``FrameRenderer``.
        place: computes landmarks; see ``LandmarkLocator``.
        audio: 16 kHz mono waveform ``[B, 640 T]``.
        portraits: one per sample.
        transcript: one text per sample.
        reference: motion ``[B, T, 30]`` of the real clip.
        group: ids of the groups ``[B]``.
        policy: the policy that made the samples, with ``contexts`` and ``velocity``.
        condition: of the policy, or a function that returns it.
        latents: clean latents ``[B, N, D]``.
        domain: which real pictures the samples are compared with; see ``rewards.interface``.
        tracking_failures: row → why no face could be tracked.
        data: samples ``[B, T, ...]`` of a generator that makes no talking faces; ``motion`` is zero then.
    """

    fps: ClassVar[int] = FPS

    motion: torch.Tensor
    mel: torch.Tensor
    draw: FrameRenderer | None = None
    place: LandmarkLocator | None = None
    audio: torch.Tensor | None = None
    portraits: Sequence[Portrait] | None = None
    transcript: Sequence[str] | None = None
    reference: torch.Tensor | None = None
    group: torch.Tensor | None = None
    policy: Any = None
    condition: Any = None
    latents: torch.Tensor | None = None
    domain: Literal["drawn", "filmed"] = "drawn"
    tracking_failures: Mapping[int, Failure] = field(default_factory=lambda: NO_FAILURES)
    data: torch.Tensor | None = None
    _drawn: dict[int, torch.Tensor] = field(default_factory=dict, repr=False)
    _placed: dict[int, torch.Tensor] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        # A renderer may provide landmarks and portraits as well.
        self.place = self.place or getattr(self.draw, "places", None)
        self.portraits = self.portraits or getattr(self.draw, "portraits", None)

    def __len__(self) -> int:
        return len(self.motion)

    @classmethod
    def from_frames(
        cls,
        frames: Sequence[np.ndarray],
        audio: Sequence[np.ndarray],
        fps: float = FPS,
        portraits: Sequence[Portrait] | None = None,
        transcript: Sequence[str] | None = None,
        group: torch.Tensor | None = None,
        faces: Sequence[TrackedFace] | None = None,
    ) -> RewardBatch:
        """Return a batch of finished videos of any generator.

        Args:
            frames: RGB frames ``[T, H, W, 3]`` uint8 of each clip.
            audio: 16 kHz mono waveform ``[N]`` of each clip, cut or padded with silence to the length of the frames.
            fps: frames per second.
            portraits: one per clip, if they are known.
            transcript: one text per clip, if they are known.
            group: ids of the groups, one per clip, if they are known.
            faces: the face track of each clip at 25 fps. Without it faces are tracked here.

        Raises:
            BadInput: there are no frames, they have another type or shape, or the clips have different lengths.
        """
        clips = [_resample_to_25_fps(_check_clip(clip, number), fps) for number, clip in enumerate(frames)]
        if len(audio) != len(clips) or not clips:
            raise BadInput(f"{len(clips)} videos with {len(audio)} sounds cannot be scored: give one sound per video.")
        if len({len(clip) for clip in clips}) > 1:
            lengths = ", ".join(sorted({f"{len(clip) / FPS:.2f} s" for clip in clips}))
            raise BadInput(f"Videos of {lengths} do not make one batch: score those of each length together.")
        optional = (("portraits", portraits), ("transcripts", transcript), ("group ids", group), ("face tracks", faces))
        for name, values in optional:
            if values is not None and len(values) != len(clips):
                raise BadInput(f"{len(values)} {name} for {len(clips)} videos: give one for each.")
        sound = np.stack([_fit_length(wave, len(clips[0])) for wave in audio])
        tracks = faces or [_track(clip) for clip in clips]
        analyzed = [_analyze_clip(clip, track) for clip, track in zip(clips, tracks, strict=True)]
        return cls(
            motion=torch.stack([clip.motion for clip in analyzed]),
            mel=torch.stack([log_mel(normalize_loudness(wave)) for wave in sound]),
            draw=RecordedFrames(
                np.stack([clip.crops for clip in analyzed]), np.stack([clip.landmarks for clip in analyzed])
            ),
            audio=torch.from_numpy(sound),
            portraits=portraits,
            transcript=transcript,
            group=group,
            domain="filmed",
            tracking_failures={row: clip.failure for row, clip in enumerate(analyzed) if clip.failure is not None},
        )

    @property
    def has(self) -> frozenset[str]:
        """Return the needs that this batch can meet."""
        optional = {
            "frames": self.draw, "places": self.place, "audio": self.audio, "portrait": self.portraits,
            "transcript": self.transcript, "reference": self.reference, "group": self.group, "data": self.data,
            "policy": None if self.latents is None else self.policy,
        }  # fmt: skip
        return frozenset({"motion", "mel", "fps"} | {need for need, value in optional.items() if value is not None})

    def frames(self, indices: tuple[int, ...]) -> torch.Tensor:
        """Return rendered frames ``[B, F, 3, H, W]`` in [0, 1]. Each is rendered once for all rewards."""
        return _cached(self.draw, self.motion, indices, self._drawn)

    def places(self, indices: tuple[int, ...]) -> torch.Tensor:
        """Return landmarks ``[B, F, 478, 2]`` in pixels of ``frames``."""
        return _cached(self.place, self.motion, indices, self._placed)

    def select(self, rows: torch.Tensor) -> RewardBatch:
        """Return the samples at ``rows`` ``[K]``. They share the rendered frames of this batch."""
        row_list = rows.tolist()
        values = {part.name: getattr(self, part.name) for part in fields(self) if not part.name.startswith("_")}
        for name, value in values.items():
            if isinstance(value, torch.Tensor):
                values[name] = value[rows]
        for name in ("portraits", "transcript"):
            if values[name] is not None:
                values[name] = [values[name][row] for row in row_list]
        if self.condition is not None:
            values["condition"] = (self.condition() if callable(self.condition) else self.condition).select(rows)
        if self.draw is not None:
            values["draw"] = lambda _, indices: self.frames(indices)[rows]
        if self.place is not None:
            values["place"] = lambda _, indices: self.places(indices)[rows]
        values["tracking_failures"] = {
            new: self.tracking_failures[old] for new, old in enumerate(row_list) if old in self.tracking_failures
        }
        return RewardBatch(**values)


def _cached(
    render: Callable[[torch.Tensor, tuple[int, ...]], torch.Tensor] | None,
    motion: torch.Tensor,
    indices: tuple[int, ...],
    cache: dict[int, torch.Tensor],
) -> torch.Tensor:
    if render is None:
        raise ValueError("this batch cannot draw")
    missing = tuple(sorted(set(indices) - set(cache)))
    if missing:
        cache.update(zip(missing, render(motion, missing).unbind(1), strict=True))
    return torch.stack([cache[index] for index in indices], 1)


# --- Finished videos ---


class _AnalyzedClip(NamedTuple):
    """One clip: motion ``[T, 30]``, crops ``[T, S, S, 3]`` uint8, landmarks in them ``[T, 478, 2]``."""

    motion: torch.Tensor
    crops: np.ndarray
    landmarks: np.ndarray
    failure: Failure | None


class RecordedFrames:
    """A renderer that returns the frames and landmarks of existing clips, one row per clip.

    Args:
        crops: frames ``[B, T, S, S, 3]`` uint8.
        landmarks: ``[B, T, 478, 2]`` in pixels of the frames.
    """

    def __init__(self, crops: np.ndarray, landmarks: np.ndarray) -> None:
        self._crops = crops
        self._landmarks = landmarks

    def __call__(self, _: torch.Tensor, indices: tuple[int, ...]) -> torch.Tensor:
        """Return the frames ``[B, F, 3, S, S]`` in [0, 1] at these indices."""
        return torch.from_numpy(self._crops[:, list(indices)]).permute(0, 1, 4, 2, 3).float() / 255

    def places(self, _: torch.Tensor, indices: tuple[int, ...]) -> torch.Tensor:
        """Return the landmarks ``[B, F, 478, 2]`` in pixels of the frames at these indices."""
        return torch.from_numpy(self._landmarks[:, list(indices)]).float()


def _check_clip(clip: np.ndarray, number: int) -> np.ndarray:
    if clip.ndim != 4 or clip.shape[-1] != 3 or clip.dtype != np.uint8 or not len(clip):
        raise BadInput(f"Video {number} is {clip.dtype} {clip.shape}: frames are RGB uint8 [T, H, W, 3].")
    return clip


def _resample_to_25_fps(clip: np.ndarray, fps: float) -> np.ndarray:
    """Return the clip at 25 fps: frame i is the frame that was shown at i / 25 s."""
    if not fps > 0:
        raise BadInput(f"{fps} frames a second are not possible: give the rate of the videos.")
    count = max(1, round(len(clip) / fps * FPS))
    return clip[np.minimum((np.arange(count) * fps / FPS + 1e-6).astype(int), len(clip) - 1)]


def _fit_length(wave: np.ndarray, frames: int) -> np.ndarray:
    fitted = np.zeros(frames * SAMPLES_PER_FRAME, np.float32)
    fitted[: len(wave)] = wave[: len(fitted)]
    return fitted


def face_failure(valid: np.ndarray) -> Failure | None:
    """Return why a clip has no score, or None if enough frames show a face (``valid`` ``[T]``)."""
    faceless_share = 1 - valid.mean()
    return (
        Failure("no_face", f"no face in {faceless_share:.0%} of {len(valid)} frames")
        if faceless_share > MAX_FACELESS_SHARE
        else None
    )


def _track(clip: np.ndarray) -> TrackedFace:
    with FaceTracker() as tracker:
        return tracker.track(clip)


def _analyze_clip(clip: np.ndarray, faces: TrackedFace, side: int = REWARD_CROP_SIDE) -> _AnalyzedClip:
    if failure := face_failure(faces.valid):
        black = np.zeros((len(clip), side, side, 3), np.uint8)
        # A placeholder face: scores of this clip are marked invalid, but computing them must not fail.
        placeholder = MotionBasis.load().canonical.numpy()[:, :2] * side / 4 + side / 2
        landmarks = np.broadcast_to(placeholder.astype(np.float32), (len(clip), *placeholder.shape))
        return _AnalyzedClip(torch.zeros(len(clip), MOTION_DIM), black, landmarks, failure)
    landmarks = interpolate_missing_frames(faces.landmarks, faces.valid)
    motion, _ = MotionBasis.load().encode(landmarks, interpolate_missing_frames(faces.blendshapes, faces.valid))
    to_crop = crop_transform(np.median(landmarks, 0), clip.shape[1:3], side)
    crops = np.stack([crop_frame(frame, to_crop, side) for frame in clip])
    return _AnalyzedClip(motion, crops, apply_affine(to_crop, landmarks)[..., :2], None)


def crop_frame(frame: np.ndarray, to_crop: np.ndarray, side: int) -> np.ndarray:
    """Return a square crop ``[side, side, 3]`` of a frame ``[H, W, 3]`` uint8.

    Args:
        frame: the frame.
        to_crop: affine transform ``[2, 3]`` from frame to crop. If it shrinks, pixels are averaged.
        side: side of the crop in pixels.
    """
    scale = float(np.sqrt(abs(np.linalg.det(to_crop[:, :2]))))
    if scale < 0.75:
        # The frame is first averaged down to about the size of the crop, since sampling alone would alias.
        shrink = np.array([int(frame.shape[1] * scale), int(frame.shape[0] * scale)]).clip(1)
        ratio = shrink / (frame.shape[1], frame.shape[0])
        frame = cv2.resize(frame, shrink.tolist(), interpolation=cv2.INTER_AREA)
        back = np.array([[1 / ratio[0], 0, 0.5 / ratio[0] - 0.5], [0, 1 / ratio[1], 0.5 / ratio[1] - 0.5], [0, 0, 1]])
        to_crop = (np.vstack([to_crop, [0, 0, 1]]) @ back)[:2]
    flags = cv2.INTER_CUBIC if scale > 1 else cv2.INTER_LINEAR
    return cv2.warpAffine(frame, to_crop, (side, side), flags=flags, borderMode=cv2.BORDER_REPLICATE)
