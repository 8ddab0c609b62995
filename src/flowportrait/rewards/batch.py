"""What rewards see: samples, and everything that is known about them.

    motion · mel                     always                    frames(i) · places(i)   drawn on demand, once
    audio · portrait · transcript · reference · group          when whoever made the batch knows them
    policy · condition · latents                               only inside post-training

A reward names what it reads (its ``needs``); ``has`` says what a batch can offer. A finished video of any generator
becomes a batch through ``from_frames``:

    frames ─► 25 fps ─► tracked face ─► motion                   audio ─► levelled log-mel
                  └───► one square crop for the whole clip, ``SIDE`` px: frames and landmarks

The crop stands still while the clip lasts, so that what moves in it is the video. A clip whose face is lost too often
takes part in nothing that looks at a face.
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
from flowportrait.media.crop import apply_affine, crop_transform
from flowportrait.media.faces import Faces, FaceTracker, bridge
from flowportrait.media.mel import SAMPLES_PER_FRAME, level, log_mel
from flowportrait.media.video import FPS
from flowportrait.rendering.motion_basis import MOTION_DIM, MotionBasis

if TYPE_CHECKING:
    from flowportrait.media.portrait import Portrait


SIDE = 128
"""Pixels of the square that rewards look at; the face is about half of it, as in a post-training rendering."""
LOST = 0.2
"""Largest share of frames without a face."""

Need = Literal[
    "motion", "mel", "frames", "places", "fps", "audio", "portrait", "transcript", "reference", "group", "policy",
]  # fmt: skip

FailureKind = Literal["no_face", "no_sound", "too_short", "unavailable", "refused", "malformed", "not_finite"]


class Failure(NamedTuple):
    """Why a sample has no score: a kind to count by and a sentence to read. ``unavailable`` may be tried again."""

    kind: FailureKind
    detail: str


NO_FAILURES: Mapping[int, Failure] = MappingProxyType({})

Draw = Callable[[torch.Tensor, tuple[int, ...]], torch.Tensor]
"""``(motion [B, T, 30], frame indices) -> frames [B, F, 3, H, W]`` float in [0, 1]: a small rendering."""

Place = Callable[[torch.Tensor, tuple[int, ...]], torch.Tensor]
"""``(motion [B, T, 30], frame indices) -> landmarks [B, F, 478, 2]`` in pixels of the drawn frames."""


@dataclass
class RewardBatch:
    """B samples of T frames.

    motion ``[B, T, 30]``; mel ``[B, 4T, 80]``; draw and place: see the types; audio ``[B, 640 T]`` 16 kHz mono;
    portraits, one per sample (``crop`` and its ``landmarks``); transcript, one text per sample; reference
    ``[B, T, 30]`` motion of the real clip; group ``[B]`` ids of siblings; policy with ``contexts`` and ``velocity``,
    its condition (or a function that makes it) and the clean latents ``[B, N, D]``; domain: which real pictures to
    compare with (``rewards.interface``); unseen: rows in which no face could be followed, and why.
    """

    fps: ClassVar[int] = FPS

    motion: torch.Tensor
    mel: torch.Tensor
    draw: Draw | None = None
    place: Place | None = None
    audio: torch.Tensor | None = None
    portraits: Sequence[Portrait] | None = None
    transcript: Sequence[str] | None = None
    reference: torch.Tensor | None = None
    group: torch.Tensor | None = None
    policy: Any = None
    condition: Any = None
    latents: torch.Tensor | None = None
    domain: Literal["drawn", "filmed"] = "drawn"
    unseen: Mapping[int, Failure] = field(default_factory=lambda: NO_FAILURES)
    _drawn: dict[int, torch.Tensor] = field(default_factory=dict, repr=False)
    _placed: dict[int, torch.Tensor] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        # A drawing that knows where it puts landmarks and whom it draws need not be told apart.
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
        faces: Sequence[Faces] | None = None,
    ) -> RewardBatch:
        """Finished videos of any generator.

        Args:
            frames: RGB ``[T, H, W, 3]`` uint8 of each clip.
            audio: 16 kHz mono ``[N]`` of each, cut or padded with silence to the length of the picture.
            fps: rate of the frames.
            portraits, transcript, group: one per clip, where they are known.
            faces: the face track of each clip at 25 fps, where it is known; else faces are tracked here.

        Raises:
            BadInput: no frames, another type or shape, or clips of different lengths.
        """
        clips = [_at_25(_picture(clip, place), fps) for place, clip in enumerate(frames)]
        if len(audio) != len(clips) or not clips:
            raise BadInput(f"{len(clips)} videos with {len(audio)} sounds cannot be scored: give one sound per video.")
        if len({len(clip) for clip in clips}) > 1:
            lengths = ", ".join(sorted({f"{len(clip) / FPS:.2f} s" for clip in clips}))
            raise BadInput(f"Videos of {lengths} do not make one batch: score those of each length together.")
        known = (("portraits", portraits), ("transcripts", transcript), ("group ids", group), ("face tracks", faces))
        for name, given in known:
            if given is not None and len(given) != len(clips):
                raise BadInput(f"{len(given)} {name} for {len(clips)} videos: give one for each.")
        sound = np.stack([_fitted(wave, len(clips[0])) for wave in audio])
        tracks = faces or [_track(clip) for clip in clips]
        seen = [_look(clip, track) for clip, track in zip(clips, tracks, strict=True)]
        return cls(
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

    @property
    def has(self) -> frozenset[str]:
        """Which needs this batch can meet."""
        optional = {
            "frames": self.draw, "places": self.place, "audio": self.audio, "portrait": self.portraits,
            "transcript": self.transcript, "reference": self.reference, "group": self.group,
            "policy": None if self.latents is None else self.policy,
        }  # fmt: skip
        return frozenset({"motion", "mel", "fps"} | {need for need, given in optional.items() if given is not None})

    def frames(self, indices: tuple[int, ...]) -> torch.Tensor:
        """Rendered frames ``[B, F, 3, H, W]`` in [0, 1]; each is drawn once however many rewards ask."""
        return _once(self.draw, self.motion, indices, self._drawn)

    def places(self, indices: tuple[int, ...]) -> torch.Tensor:
        """Landmarks ``[B, F, 478, 2]`` in the pixels of ``frames``."""
        return _once(self.place, self.motion, indices, self._placed)

    def select(self, rows: torch.Tensor) -> RewardBatch:
        """The samples at ``rows`` ``[K]``; they share what has been drawn."""
        chosen = rows.tolist()
        values = {part.name: getattr(self, part.name) for part in fields(self) if not part.name.startswith("_")}
        for name, value in values.items():
            if isinstance(value, torch.Tensor):
                values[name] = value[rows]
        for name in ("portraits", "transcript"):
            if values[name] is not None:
                values[name] = [values[name][row] for row in chosen]
        if self.condition is not None:
            values["condition"] = (self.condition() if callable(self.condition) else self.condition).select(rows)
        if self.draw is not None:
            values["draw"] = lambda _, indices: self.frames(indices)[rows]
        if self.place is not None:
            values["place"] = lambda _, indices: self.places(indices)[rows]
        values["unseen"] = {new: self.unseen[old] for new, old in enumerate(chosen) if old in self.unseen}
        return RewardBatch(**values)


def _once(
    make: Callable[[torch.Tensor, tuple[int, ...]], torch.Tensor] | None,
    motion: torch.Tensor,
    indices: tuple[int, ...],
    made: dict[int, torch.Tensor],
) -> torch.Tensor:
    if make is None:
        raise ValueError("this batch cannot draw")
    missing = tuple(sorted(set(indices) - set(made)))
    if missing:
        made.update(zip(missing, make(motion, missing).unbind(1), strict=True))
    return torch.stack([made[index] for index in indices], 1)


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


def face_failure(valid: np.ndarray) -> Failure | None:
    """Why a clip with a face in the frames ``valid`` ``[T]`` has no score, or None where enough of them show one."""
    lost = 1 - valid.mean()
    return Failure("no_face", f"no face in {lost:.0%} of {len(valid)} frames") if lost > LOST else None


def _track(clip: np.ndarray) -> Faces:
    with FaceTracker() as tracker:
        return tracker.track(clip)


def _look(clip: np.ndarray, faces: Faces, side: int = SIDE) -> _Seen:
    if failure := face_failure(faces.valid):
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
