"""Corruptions of clips: timing, face, picture and head.

timing    shown'[t] = shown[t + δ(t)]       δ: constant (late sound), slow wave, swapped segments, frozen frames
face      no motion, eyes that never move, a head that trembles
picture   frame'[t] = frame[t] ∗ G_σ,       frame[t] + level(t) · tint,       frame[t] + level · box
head      a skull that stretches, a neck that swings; pictures and landmarks move together

Every corruption takes a ``Footage``, a strength and a seed, and returns a damaged copy.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import cv2
import numpy as np

from flowportrait.errors import BadInput
from flowportrait.media.audio import SAMPLES_PER_FRAME
from flowportrait.media.video import FPS
from flowportrait.rendering.motion_basis import BLINK, GAZE

Seed = int | np.random.Generator
"""Seed or generator of random damage."""

WARP_SECONDS = 1.2
"""Period of ``warp_time``."""
FREEZE_SECONDS = 0.8
"""Period of ``freeze_frames``."""
EYE_OUTLINES = (
    np.array([33, 246, 161, 160, 159, 158, 157, 173, 133, 155, 154, 153, 145, 144, 163, 7]),
    np.array([263, 466, 388, 387, 386, 385, 384, 398, 362, 382, 381, 380, 374, 373, 390, 249]),
)
"""Landmarks around each eye."""
EYE_CORNER_PAIRS = ((33, 133), (263, 362))
"""Outer and inner corner of each eye."""
EYE_MARGIN = 1.5
"""Half-width of a pasted eye, in eye widths."""
PUMP_HZ = 1.0
TINT = np.array([1.0, -0.4, -0.6])
"""Colour that ``pump_colour`` adds: warmer and cooler at almost equal brightness."""
FACE_MARGIN = 0.35
"""How far the square of ``add_seam`` reaches beyond the face, in face sizes."""
STRETCH_HZ, SHAKE_HZ = 1.5, 3.0


def interpolate_track(track: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Return the values ``[S, …]`` of a track ``[T, …]`` at fractional frames ``[S]``, by linear interpolation."""
    times = times.clip(0, len(track) - 1)
    low = np.floor(times).astype(int)
    high = (low + 1).clip(max=len(track) - 1)
    share = (times - low).reshape(-1, *[1] * (track.ndim - 1))
    return (1 - share) * track[low] + share * track[high]


@dataclass(frozen=True)
class Footage:
    """The tracks of one clip of T frames; any may be missing, and a corruption that needs it then raises BadInput.

    Attributes:
        frames: ``[T, H, W, 3]`` uint8.
        audio: ``[640 T]`` float32 at 16 kHz.
        landmarks: ``[T, 478, 3]`` px.
        motion: ``[T, 30]``.
    """

    frames: np.ndarray | None
    audio: np.ndarray | None = None
    landmarks: np.ndarray | None = None
    motion: np.ndarray | None = None

    def __len__(self) -> int:
        for track in (self.frames, self.motion, self.landmarks):
            if track is not None:
                return len(track)
        return 0 if self.audio is None else len(self.audio) // SAMPLES_PER_FRAME

    def at(self, moments: np.ndarray) -> Footage:
        """Return the clip resampled at ``moments`` ``[S]`` (fractional frames).

        Pictures are the nearest ones, landmarks and motion are interpolated, and the sound stays.
        """
        nearest = np.rint(moments).astype(int).clip(0, len(self) - 1)
        return replace(
            self,
            frames=None if self.frames is None else self.frames[nearest],
            landmarks=_resampled(self.landmarks, moments),
            motion=_resampled(self.motion, moments),
        )

    def pictures(self, wanted_by: str) -> np.ndarray:
        """Return the frames ``[T, H, W, 3]``; ``wanted_by`` names the corruption in the error message.

        Raises:
            BadInput: if there are none.
        """
        if self.frames is None:
            raise BadInput(f"'{wanted_by}' changes pictures: give the clip its frames.")
        return self.frames

    def points(self, wanted_by: str) -> np.ndarray:
        """Return the landmarks ``[T, 478, 3]``; ``wanted_by`` names the corruption in the error message.

        Raises:
            BadInput: if there are none.
        """
        if self.landmarks is None:
            raise BadInput(f"'{wanted_by}' must know where the face is: give the clip its landmarks.")
        return self.landmarks


def _resampled(track: np.ndarray | None, moments: np.ndarray) -> np.ndarray | None:
    return None if track is None else interpolate_track(track, moments).astype(track.dtype)


# --- Timing ----------------------------------------------------------------------------------------------------------


def offset_audio(clip: Footage, frames: float, rng: Seed = 0) -> Footage:
    """Delay the sound by ``frames`` (advance it if negative), to the nearest sample; the gap is filled with silence.

    Raises:
        BadInput: if the clip has no sound.
    """
    if clip.audio is None:
        raise BadInput("'offset' moves the sound: give the clip its audio.")
    delay = round(frames * SAMPLES_PER_FRAME)
    delayed = np.zeros_like(clip.audio)
    size = max(0, len(delayed) - abs(delay))
    delayed[max(0, delay) : max(0, delay) + size] = clip.audio[max(0, -delay) : max(0, -delay) + size]
    return replace(clip, audio=delayed)


def warp_time(clip: Footage, frames: float, rng: Seed = 0) -> Footage:
    """Let the pictures run ahead and fall behind by up to ``frames`` in slow waves (1.2 s), never backwards in time."""
    times = np.arange(len(clip), dtype=float)
    phase = np.random.default_rng(rng).uniform(0, 2 * np.pi)
    moments = times + frames * np.sin(2 * np.pi * times / (WARP_SECONDS * FPS) + phase)
    return clip.at(np.maximum.accumulate(moments).clip(0, len(clip) - 1))


def swap_segments(clip: Footage, frames: float, rng: Seed = 0) -> Footage:
    """Exchange neighbouring segments of ``frames`` frames in pairs (1 0 3 2 …); a remainder at the end stays."""
    size = round(frames)
    order = np.arange(len(clip))
    if size > 0:
        for start in range(0, len(clip) - 2 * size + 1, 2 * size):
            order[start : start + 2 * size] = np.roll(order[start : start + 2 * size], size)
    return clip.at(order.astype(float))


def freeze_frames(clip: Footage, frames: float, rng: Seed = 0) -> Footage:
    """Hold the picture for ``frames`` more frames every 0.8 s, then jump to where it should be."""
    period, hold = round(FREEZE_SECONDS * FPS), round(frames)
    times = np.arange(len(clip))
    phase = times % period
    return clip.at(np.where(phase <= hold, times - phase, times).astype(float))


def freeze_picture(clip: Footage, share: float, rng: Seed = 0) -> Footage:
    """Hold the first picture for the first ``share`` of the clip; 1 shows a photo."""
    times = np.arange(len(clip))
    return clip.at(np.where(times < share * len(clip), 0, times).astype(float))


def slow_down(clip: Footage, share: float, rng: Seed = 0) -> Footage:
    """Slow down all motion by ``share`` of its speed, so that it no longer fits the sound; 1 shows a photo."""
    return clip.at(np.arange(len(clip)) * (1.0 - share))


# --- Face ------------------------------------------------------------------------------------------------------------


def freeze_eyes(clip: Footage, share: float, rng: Seed = 0) -> Footage:
    """Paste the eyes of the first frame, moved with the head, into the first ``share`` of the clip.

    The face then neither blinks nor moves its gaze.

    Raises:
        BadInput: if the clip has frames but no landmarks.
    """
    until = round(share * len(clip))
    frames, motion, points = clip.frames, clip.motion, clip.landmarks
    if motion is not None:
        motion = motion.copy()
        motion[:until, BLINK], motion[:until, GAZE] = motion[0, BLINK], motion[0, GAZE]
    if frames is not None:
        track = clip.points("frozen eyes")
        frames = frames.copy()
        for index in range(1, until):
            for around, corners in zip(EYE_OUTLINES, EYE_CORNER_PAIRS, strict=True):
                frames[index] = _paste_eye(
                    clip.pictures("frozen eyes")[0], frames[index], track[0], track[index], around, corners
                )
    if points is not None:
        points = points.copy()
        for around, corners in zip(EYE_OUTLINES, EYE_CORNER_PAIRS, strict=True):
            for index in range(1, until):
                matrix = _similarity(points[0, corners, :2], points[index, corners, :2])
                points[index, around, :2] = points[0, around, :2] @ matrix[:, :2].T + matrix[:, 2]
    return replace(clip, frames=frames, motion=motion, landmarks=points)


def jitter_frames(clip: Footage, pixels: float, rng: Seed = 0) -> Footage:
    """Shift every frame and its landmarks by normal noise with a standard deviation of ``pixels`` in x and y."""
    moves = np.random.default_rng(rng).normal(0, pixels, (len(clip), 2))
    frames, points = clip.frames, clip.landmarks
    if frames is not None:
        frames = np.stack(
            [
                cv2.warpAffine(
                    frame,
                    np.array([[1, 0, x], [0, 1, y]]),
                    frame.shape[1::-1],
                    flags=cv2.INTER_CUBIC,
                    borderMode=cv2.BORDER_REPLICATE,
                )
                for frame, (x, y) in zip(frames, moves, strict=True)
            ]
        )
    if points is not None:
        points = points.copy()
        points[..., :2] += moves[:, None]
    return replace(clip, frames=frames, landmarks=points)


def _similarity(source: np.ndarray, goal: np.ndarray) -> np.ndarray:
    """Return the similarity ``[2, 3]`` that maps two points ``[2, 2]`` to two points."""
    a, b = source[1] - source[0], goal[1] - goal[0]
    cos, sin = np.array([a @ b, a[0] * b[1] - a[1] * b[0]]) / max(float(a @ a), 1e-9)
    turn = np.array([[cos, -sin], [sin, cos]])
    return np.hstack([turn, (goal[0] - turn @ source[0])[:, None]])


def _paste_eye(
    source: np.ndarray,
    frame: np.ndarray,
    source_points: np.ndarray,
    frame_points: np.ndarray,
    around: np.ndarray,
    corners: tuple[int, int],
) -> np.ndarray:
    """Return ``frame`` with one eye of ``source`` blended over its own, aligned by the eye's corners."""
    matrix = _similarity(source_points[list(corners), :2], frame_points[list(corners), :2])
    height, width = frame.shape[:2]
    middle = frame_points[list(corners), :2].mean(0)
    reach = EYE_MARGIN * np.linalg.norm(frame_points[corners[0], :2] - frame_points[corners[1], :2])
    if not np.isfinite(reach):
        return frame
    left, top = np.floor(middle - reach).astype(int).clip(0)
    right, bottom = np.ceil(middle + reach).astype(int).clip(max=[width, height])
    if right <= left or bottom <= top:
        return frame
    local = matrix.copy()
    local[:, 2] -= (left, top)
    box = (int(right - left), int(bottom - top))
    moved = cv2.warpAffine(source, local, box, flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
    y, x = np.mgrid[top:bottom, left:right]
    distance = np.hypot((x - middle[0]) / reach, (y - middle[1]) / (0.6 * reach)) * 2
    weight = (1.8 - distance).clip(0, 0.5)[..., None] / 0.5
    result = frame.copy()
    under = result[top:bottom, left:right]
    result[top:bottom, left:right] = (weight * moved + (1 - weight) * under).round().astype(np.uint8)
    return result


# --- Picture ---------------------------------------------------------------------------------------------------------


def blur_frames(clip: Footage, sigma: float, rng: Seed = 0) -> Footage:
    """Blur every frame with a Gaussian of ``sigma`` pixels."""
    if sigma <= 0:
        return clip
    frames = np.stack([cv2.GaussianBlur(frame, (0, 0), sigma) for frame in clip.pictures("blur")])
    return replace(clip, frames=frames)


def pump_colour(clip: Footage, levels: float, rng: Seed = 0) -> Footage:
    """Swing the white balance between warm and cool once a second, by ``levels`` of 255."""
    frames = clip.pictures("colour pumping")
    swing = levels * np.sin(2 * np.pi * PUMP_HZ * np.arange(len(frames)) / FPS)
    return replace(clip, frames=np.stack([_add_levels(f, s * TINT) for f, s in zip(frames, swing, strict=True)]))


def add_flicker(clip: Footage, levels: float, rng: Seed = 0) -> Footage:
    """Add normal noise with a standard deviation of ``levels`` of 255 to the brightness of every frame."""
    frames = clip.pictures("flicker")
    off = np.random.default_rng(rng).normal(0, levels, len(frames))
    return replace(clip, frames=np.stack([_add_levels(f, np.full(3, s)) for f, s in zip(frames, off, strict=True)]))


def add_seam(clip: Footage, levels: float, rng: Seed = 0) -> Footage:
    """Brighten a fixed square around the face by ``levels`` of 255, with the hard border of a careless paste-back.

    Raises:
        BadInput: if the clip has no landmarks.
    """
    frames, points = clip.pictures("seam"), clip.points("seam")
    left, top, right, bottom = paste_square(points, frames.shape[1:3])
    frames = frames.copy()
    inside = frames[:, top:bottom, left:right]
    frames[:, top:bottom, left:right] = (inside + levels).round().clip(0, 255).astype(np.uint8)
    return replace(clip, frames=frames)


def paste_square(points: np.ndarray, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Return the square (left, top, right, bottom) px around the mean face, inside a frame of ``size`` (H, W)."""
    face = np.nanmean(points[..., :2], axis=0)
    low, high = face.min(0), face.max(0)
    reach = (0.5 + FACE_MARGIN) * float((high - low).max())
    middle = (low + high) / 2
    left, top = np.maximum(middle - reach, 2).astype(int)
    right, bottom = np.minimum(middle + reach, np.array(size[::-1]) - 2).astype(int)
    return int(left), int(top), int(right), int(bottom)


def _add_levels(frame: np.ndarray, levels: np.ndarray) -> np.ndarray:
    return (frame + levels).round().clip(0, 255).astype(np.uint8)


# --- Head ------------------------------------------------------------------------------------------------------------


def stretch_head(clip: Footage, share: float, rng: Seed = 0) -> Footage:
    """Stretch and narrow the face by ``share`` of its width, 1.5 times a second."""
    width = 1 + share * _oscillation(len(clip), STRETCH_HZ)
    return _transform(clip, [np.array([[w, 0.0], [0.0, 1.0]]) for w in width], "stretched")


def shake_head(clip: Footage, degrees: float, rng: Seed = 0) -> Footage:
    """Rotate the picture by ``degrees`` to either side and back, three times a second."""
    angles = np.radians(degrees) * _oscillation(len(clip), SHAKE_HZ)
    return _transform(clip, [np.array([[np.cos(a), -np.sin(a)], [np.sin(a), np.cos(a)]]) for a in angles], "whipped")


def _oscillation(frames: int, hertz: float) -> np.ndarray:
    return np.sin(2 * np.pi * hertz * np.arange(frames) / FPS)


def _transform(clip: Footage, linear: list[np.ndarray], name: str) -> Footage:
    """Return the clip with a linear map about the middle of the face applied to each frame."""
    points = clip.points(name)
    middle = points[..., :2].mean((0, 1))
    matrices = [np.hstack([m, (middle - m @ middle)[:, None]]) for m in linear]
    frames = clip.frames
    if frames is not None:
        frames = np.stack([
            cv2.warpAffine(frame, m, frame.shape[1::-1], flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
            for frame, m in zip(frames, matrices, strict=True)
        ])  # fmt: skip
    moved = points.copy()
    for index, m in enumerate(matrices):
        moved[index, :, :2] = points[index, :, :2] @ m[:, :2].T + m[:, 2]
    return replace(clip, frames=frames, landmarks=moved)
