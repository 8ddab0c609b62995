"""Dubbing: give the person in a video new lips and leave everything else of each frame unchanged.

    frame ──warp of mouth and jaw, interior from the mouth model, retouching──► drawn
    result = frame + m (drawn − frame),      m = 1 around the mouth, 0 from the cheekbones up

``redraw_mouth`` dubs one frame. Each frame is its own portrait, so light, colour and sharpness stay true; only what
must not flicker comes from the shot as a whole and is kept in a ``MouthMemory``. ``DubbedVideo`` dubs a whole video,
shot by shot, at the video's own frame rate:

    motion at 25 frames a second ─► at the video's rate ─┐
    shot ─► its own motion, identity and mouth ──────────┴─► lips exchanged ─► frames
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain, groupby, islice, pairwise

import cv2
import numpy as np
import torch

from flowportrait.media.faces import interpolate_missing_frames
from flowportrait.media.video import FPS, iter_frames
from flowportrait.rendering.face_regions import FACE_OVAL, outline_mask, skin_without_openings
from flowportrait.rendering.footage import Progress, TrackedVideo, no_progress
from flowportrait.rendering.mesh import HeadMesh, Rasterizer, rigid_motion
from flowportrait.rendering.motion_basis import LOWER_FACE, Identity, MotionBasis
from flowportrait.rendering.mouth import Mouth, MouthPalette, estimate_light, estimate_teeth_factor
from flowportrait.rendering.mouth_geometry import skin_colour
from flowportrait.rendering.retouch import Retouch, RetouchFunction

# --- One frame -------------------------------------------------------------------------------------------------------

_FEATHER = 0.06
"""Softness of the mask's edge, in distances from the eye line to the chin."""

_MARGIN = 0.45
"""Margin of the square that is redrawn, in face sizes."""


@dataclass(frozen=True)
class MouthMemory:
    """What the frames of one shot show of a mouth.

    Attributes:
        closed: landmarks ``[478, 3]`` px of the frame in which the lips are closest together.
        palette: colours of teeth and mouth interior.
        retouch: the retouching of that frame.
    """

    closed: np.ndarray
    palette: MouthPalette
    retouch: Retouch

    @classmethod
    def from_video(
        cls, frames: Sequence[np.ndarray], landmarks: np.ndarray, network: RetouchFunction | None = None
    ) -> MouthMemory:
        """Return the memory of the frames of one shot.

        Args:
            frames: frames ``[H, W, 3]`` uint8; a subset of the shot suffices.
            landmarks: their landmarks ``[T, 478, 3]`` px.
            network: the retouching network; by default the shipped one.
        """
        eyes = np.linalg.norm(landmarks[:, 33] - landmarks[:, 263], axis=1)
        gap = np.linalg.norm(landmarks[:, 14] - landmarks[:, 13], axis=1) / eyes
        closed = int(gap.argmin())
        skin = np.median([skin_colour(f, p) for f, p in zip(frames, landmarks, strict=True)], axis=0)
        retouch = Retouch(frames[closed], landmarks[closed], network, keep_photo_interior=False, skin=skin)
        light = estimate_light(frames[closed], landmarks[closed], skin)
        teeth = estimate_teeth_factor(frames, landmarks, skin) or light.teeth
        return cls(landmarks[closed].astype(np.float64), MouthPalette(skin, light._replace(teeth=teeth)), retouch)


def redraw_mouth(
    frame: np.ndarray, landmarks: np.ndarray, target: np.ndarray, mouth_memory: MouthMemory, share: float = 1.0
) -> np.ndarray:
    """Return a frame ``[H, W, 3]`` uint8 with its lower face moved from ``landmarks`` to ``target``.

    Pixels outside mouth, jaw and the skin just around them are returned unchanged.

    Args:
        frame: the frame of the video.
        landmarks: its landmarks ``[478, 3]`` px.
        target: the wanted landmarks ``[478, 3]`` px, equal to ``landmarks`` in the upper face.
        mouth_memory: what the shot shows of the mouth.
        share: opacity of the drawn mouth, from 0 to 1.
    """
    landmarks, target = landmarks.astype(np.float64), target.astype(np.float64)
    left, top, size = _window(landmarks)
    shift = np.array([left, top, 0.0])
    crop = _cut(frame, left, top, size)
    source_points, target_points = landmarks - shift, target - shift
    mesh = HeadMesh(crop, source_points, weight=np.zeros((2, 2), np.float32))
    source = Rasterizer(mesh.triangles, mesh.source, size)(mesh(target_points))
    skin = skin_without_openings(crop, source_points, eyes=False)
    drawn = cv2.remap(skin, source, None, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
    closed = _align_closed_mouth(mouth_memory.closed, source_points)
    mouth = Mouth(crop, closed, keep_photo_interior=False, palette=mouth_memory.palette)
    mouth.draw(drawn, target_points)
    mouth_memory.retouch.draw(drawn, target_points, source_points)
    mask = share * _lower_face_mask(source_points, target_points, size)[..., None]
    mixed = np.round(crop + mask * (drawn.astype(np.float32) - crop)).clip(0, 255).astype(np.uint8)
    result = frame.copy()
    height, width = frame.shape[:2]
    x0, y0, x1, y1 = max(left, 0), max(top, 0), min(left + size, width), min(top + size, height)
    result[y0:y1, x0:x1] = mixed[y0 - top : y1 - top, x0 - left : x1 - left]
    return result


def _window(landmarks: np.ndarray) -> tuple[int, int, int]:
    """Return the square around the face in whole pixels: left, top and an even side."""
    low, high = landmarks[:, :2].min(0), landmarks[:, :2].max(0)
    size = 2 * int(np.ceil((high - low).max() * (1 + _MARGIN) / 2))
    corner = np.floor((low + high - size) / 2).astype(int)
    return int(corner[0]), int(corner[1]), size


def _cut(frame: np.ndarray, left: int, top: int, size: int) -> np.ndarray:
    height, width = frame.shape[:2]
    if left >= 0 and top >= 0 and left + size <= width and top + size <= height:
        return np.ascontiguousarray(frame[top : top + size, left : left + size])
    ys, xs = np.arange(top, top + size).clip(0, height - 1), np.arange(left, left + size).clip(0, width - 1)
    return np.ascontiguousarray(frame[np.ix_(ys, xs)])


def _align_closed_mouth(closed: np.ndarray, landmarks: np.ndarray) -> np.ndarray:
    """Return the landmarks of the memory's closed mouth in the head pose of this frame."""
    matrix, shift = rigid_motion(closed, landmarks)
    return closed @ matrix.T + shift


def _lower_face_mask(source: np.ndarray, target: np.ndarray, size: int) -> np.ndarray:
    """Return a mask ``[size, size]`` that is one over mouth, jaw and chin in both poses and feathered around them."""
    eye_line, nose = source[[33, 263], :2].mean(0), source[2, :2]
    down = source[152, :2] - eye_line
    height = float(np.linalg.norm(down))
    down = down / height
    jaw = [i for i in FACE_OVAL if (source[i, :2] - nose) @ down > -0.1 * height]
    points = np.concatenate([source[jaw, :2], target[jaw, :2], source[[98, 327, 2], :2], target[[61, 291], :2]])
    points = np.concatenate([points, points[: len(jaw) * 2] + 0.1 * height * down])
    hull = cv2.convexHull(points.astype(np.float32))[:, 0]
    return outline_mask((size, size), hull, _FEATHER * height)


# --- A whole video ---------------------------------------------------------------------------------------------------
#
# At a cut everything that is known about the face is discarded: its identity, pose and light. The mouth of one person
# would otherwise be drawn into the face of another, and a filter over time would mix the frames before and after.

MEMORY_FRAMES = 50
"""Number of frames of a shot from which its mouth is learned, at least, as long as they fit into ``MEMORY_BYTES``."""

MEMORY_BYTES = 640 * 2**20
"""Memory for the frames from which a mouth is learned."""

_OPACITY_GAIN = 2.5
"""Where new lips fade out, they first move towards the video's own lips; only below a share of 1 / 2.5 is the
drawing blended with the frame. Blending lips that are further apart would show two mouths."""

_BLOCK = 64
"""Frames whose landmarks are computed together."""

_BACKWARD_BYTES = 256 * 2**20
"""Memory for the frames of a video that is played backwards."""


class DubbedVideo:
    """The frames of a video with new lips.

    Iterating it yields frames ``[H, W, 3]`` uint8 RGB with even sides; it can be iterated as often as ``lips`` can.

    Args:
        footage: the tracked video.
        lips: motion ``[t, 30]`` at 25 frames a second, chunk by chunk; its last frame is held if it ends before the
            video.
        count: number of frames, by default that of the video; beyond its end the video plays backwards, then forwards
            again.
        progress: shows the progress of learning the mouths, which is done in the constructor.
        network: the retouching network; by default the shipped one on the CPU.

    Attributes:
        fps: frame rate of the video.
        lips: the motion of the new lips.
    """

    def __init__(
        self,
        footage: TrackedVideo,
        lips: Iterable[torch.Tensor],
        count: int | None = None,
        progress: Progress = no_progress,
        network: RetouchFunction | None = None,
    ) -> None:
        self.fps = footage.fps
        self._footage, self.lips = footage, lips
        self._order = ping_pong_order(len(footage), len(footage) if count is None else count)
        self._mouths = _learn_mouths(footage, progress, network)

    def __len__(self) -> int:
        return len(self._order)

    @property
    def undubbed_frames(self) -> int:
        """Number of frames that keep their own lips."""
        return int((self._footage.share[self._order] == 0).sum())

    def summary(self) -> str | None:
        """Return one sentence on how many frames keep their own lips and why; None if all have new ones."""
        return self._footage.summary(self._order)

    def __iter__(self) -> Iterator[np.ndarray]:
        pictures, lips = _play(self._footage, self._order), resample_motion(self.lips, self.fps)
        shot_of = np.searchsorted(self._footage.starts, self._order, side="right") - 1
        shots = list(self._footage.shots())
        for number, places in groupby(range(len(self._order)), key=lambda place: shot_of[place]):
            mouth = self._mouths[number]
            face = None if mouth is None else _ShotFace(self._footage, shots[number])
            while block := list(islice(places, _BLOCK)):
                spoken = torch.stack(list(islice(lips, len(block)))).to("cpu", torch.float32)
                if mouth is None or face is None:
                    yield from (_even(next(pictures)) for _ in block)
                    continue
                yield from self._draw(face, mouth, self._order[block] - shots[number].start, spoken, pictures)

    def _draw(
        self,
        face: _ShotFace,
        mouth: MouthMemory,
        frames: np.ndarray,
        lips: torch.Tensor,
        pictures: Iterator[np.ndarray],
    ) -> Iterator[np.ndarray]:
        for frame, target in zip(frames, face.target(frames, lips), strict=True):
            picture, share, points = next(pictures), float(face.share[frame]), face.landmarks[frame]
            if share > 0:
                target = points + share * (target - points)
                picture = redraw_mouth(picture, points, target, mouth, min(1.0, _OPACITY_GAIN * share))
            yield _even(picture)


class _ShotFace:
    """The face of one shot: landmarks ``[t, 478, 3]`` px without gaps, and its share ``[t]`` of new lips per frame."""

    def __init__(self, footage: TrackedVideo, shot: slice) -> None:
        faces, usable = footage.faces, footage.usable[shot]
        # Landmarks of an occluded face are unreliable and left out where possible.
        known = usable if usable.any() else faces.valid[shot]
        self.landmarks, self.share = interpolate_missing_frames(faces.landmarks[shot], known), footage.share[shot]
        self._basis = MotionBasis.load()
        self._motion: torch.Tensor
        self._identity: Identity
        self._motion, self._identity = self._basis.encode(
            self.landmarks, interpolate_missing_frames(faces.blendshapes[shot], known)
        )

    def target(self, frames: np.ndarray, lips: torch.Tensor) -> np.ndarray:
        """Return the landmarks of frames with new lips, ``[n, 478, 3]`` px.

        Args:
            frames: numbers of the frames in the shot ``[n]``.
            lips: motion that gives the lower face ``[n, 30]``.
        """
        original = self._motion[torch.from_numpy(frames)]
        dubbed = original.clone()
        dubbed[:, LOWER_FACE] = lips[:, LOWER_FACE]
        # Only the difference is applied, so that details of the tracked face outside the basis are kept.
        change = self._basis.decode(dubbed, self._identity) - self._basis.decode(original, self._identity)
        result: np.ndarray = self.landmarks[frames] + change.numpy()
        return result


# --- Frame rates and the order of frames -----------------------------------------------------------------------------


def resample_motion(chunks: Iterable[torch.Tensor], fps: Fraction) -> Iterator[torch.Tensor]:
    """Yield motion ``[30]`` frame by frame at ``fps`` from chunks ``[t, 30]`` at 25 frames a second.

    The last frame is repeated without end.

    Each frame gets the motion at its middle. Between two input frames motion follows a monotone cubic (Fritsch and
    Carlson 1980), so lips that meet in one of them do not overshoot and cross beside it. At 25 frames a second the
    motion passes unchanged.
    """
    rows = (row for chunk in chunks for row in chunk)
    first = next(rows)
    window, start, ended = [first, first], -1, False
    number = 0
    while True:
        time = (number + Fraction(1, 2)) * FPS / fps - Fraction(1, 2)
        before = int(time // 1)
        while start + len(window) < before + 3:
            row = None if ended else next(rows, None)
            ended = row is None
            window.append(window[-1] if row is None else row)
        drop = max(0, before - 1 - start)
        window, start = window[drop:], start + drop
        # The first frame is repeated before the beginning.
        four = [window[max(before + step - start, 0)] for step in (-1, 0, 1, 2)]
        yield _monotone_cubic(four, float(time - before))
        number += 1


def _monotone_cubic(four: list[torch.Tensor], t: float) -> torch.Tensor:
    """Return the value between the middle two of four samples, at ``t`` in [0, 1)."""
    if t == 0:
        return four[1]
    slopes = [after - before for before, after in pairwise(four)]
    a, b = (_monotone_slope(*pair) for pair in pairwise(slopes))
    rise = slopes[1]
    return four[1] + t * (a + t * (3 * rise - 2 * a - b + t * (a + b - 2 * rise)))


def _monotone_slope(before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
    """Return the slope at a sample: the harmonic mean of the two secants, zero where their signs differ."""
    product = before * after
    return torch.where(product > 0, 2 * product / (before + after).where(product > 0, torch.ones(())), 0.0)


def ping_pong_order(frames: int, count: int) -> np.ndarray:
    """Return frame numbers ``[count]`` of a video of ``frames`` frames that is played forwards and backwards in turn.

    The first and the last frame are shown once at each turn.
    """
    phase = np.arange(count) % max(2 * frames - 2, 1)
    return np.minimum(phase, 2 * frames - 2 - phase) if frames > 1 else np.zeros(count, int)


def _play(footage: TrackedVideo, order: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the frames of a video in the given order, in which neighbours differ by one; few are held in memory."""
    place = 0
    while place < len(order):
        forwards = place + 1 >= len(order) or order[place + 1] > order[place]
        step = 1 if forwards else -1
        turn = place + 1
        while turn < len(order) and order[turn] - order[turn - 1] == step:
            turn += 1
        first, last = int(order[place]), int(order[turn - 1])
        if forwards:
            yield from islice(iter_frames(footage.video, footage.fps, first), last - first + 1)
        else:
            yield from _play_backwards(footage, first, last)
        place = turn


def _play_backwards(footage: TrackedVideo, first: int, last: int) -> Iterator[np.ndarray]:
    """Yield the frames ``first`` down to ``last``, read in blocks."""
    stop, size = first + 1, 1
    while stop > last:
        start = max(last, stop - size)
        block = list(islice(iter_frames(footage.video, footage.fps, start), stop - start))
        size = max(1, _BACKWARD_BYTES // block[0].nbytes)
        yield from reversed(block)
        stop = start


def _learn_mouths(
    footage: TrackedVideo, progress: Progress, network: RetouchFunction | None = None
) -> list[MouthMemory | None]:
    """Return the mouth memory of each shot; None for shots without new lips."""
    shots = list(footage.shots())
    result: list[MouthMemory | None] = []
    frames = iter(progress(iter_frames(footage.video, footage.fps), len(footage), "learning the mouth"))
    first = next(frames)
    frames = chain([first], frames)
    for shot in shots:
        usable = footage.usable[shot]
        count = int(usable.sum())
        step = max(1, count // MEMORY_FRAMES, math.ceil(count * first.nbytes / MEMORY_BYTES))
        sampled = np.flatnonzero(usable)[::step]
        pictures = [frame for index, frame in zip(range(len(usable)), frames, strict=False) if index in sampled]
        if not footage.share[shot].any():
            result.append(None)
            continue
        landmarks = footage.faces.landmarks[shot][sampled].astype(np.float32)
        result.append(MouthMemory.from_video(pictures, landmarks, network))
    for _ in frames:
        pass
    return result


def _even(frame: np.ndarray) -> np.ndarray:
    """Return the frame cut to even sides, as video encoders need."""
    return frame[: frame.shape[0] // 2 * 2, : frame.shape[1] // 2 * 2]
