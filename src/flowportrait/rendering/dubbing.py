"""A video with other lips, and everything else of each frame left alone.

Dubbing: give the person in a video other lips, and leave everything else of each frame alone.

    frame ──warp of mouth and jaw, interior from the model, retouching──► drawn
    result = frame + m (drawn − frame),      m = 1 around the mouth, 0 from the cheekbones up

Each frame is its own portrait, so light, colour and sharpness stay true; only what must not flicker comes
from the video as a whole and is kept in a ``MouthMemory``.

A whole video with other lips, shot by shot, at the video's own frame rate.

    motion at 25 a second ─► at the video's rate ─┐
    shot ─► its own motion, identity and mouth ───┴─► lips exchanged ─► frames

At a cut everything known about the face is forgotten: whose it is, where it is, in what light. A second person's mouth
would else be drawn into the first one's face, and a filter over time would mix the frames before and after.
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

from flowportrait.media.faces import bridge
from flowportrait.media.video import FPS, iter_frames
from flowportrait.rendering.face_regions import FACE_OVAL, bare_skin, fill
from flowportrait.rendering.footage import Footage, Progress, no_progress
from flowportrait.rendering.mesh import HeadMesh, Rasterizer, rigid_motion
from flowportrait.rendering.motion_basis import LOWER, Identity, MotionBasis
from flowportrait.rendering.mouth import Mouth, Palette, light_of, shown_teeth
from flowportrait.rendering.mouth_geometry import skin_colour
from flowportrait.rendering.retouch import Network, Retouch

_FEATHER = 0.06
_MARGIN = 0.45


@dataclass(frozen=True)
class MouthMemory:
    """What one video tells about a mouth: landmarks ``[478, 3]`` px of its most closed frame, its colours, and the
    retouching that has seen that frame."""

    closed: np.ndarray
    palette: Palette
    retouch: Retouch

    @classmethod
    def from_video(
        cls, frames: Sequence[np.ndarray], landmarks: np.ndarray, network: Network | None = None
    ) -> MouthMemory:
        """Memory of frames ``[H, W, 3]`` uint8 with landmarks ``[T, 478, 3]`` px (a sample will do)."""
        eyes = np.linalg.norm(landmarks[:, 33] - landmarks[:, 263], axis=1)
        gap = np.linalg.norm(landmarks[:, 14] - landmarks[:, 13], axis=1) / eyes
        closed = int(gap.argmin())
        skin = np.median([skin_colour(f, p) for f, p in zip(frames, landmarks, strict=True)], axis=0)
        retouch = Retouch(frames[closed], landmarks[closed], network, keep_own=False, skin=skin)
        light = light_of(frames[closed], landmarks[closed], skin)
        teeth = shown_teeth(frames, landmarks, skin) or light.teeth
        return cls(landmarks[closed].astype(np.float64), Palette(skin, light._replace(teeth=teeth)), retouch)


def redraw_mouth(
    frame: np.ndarray, landmarks: np.ndarray, target: np.ndarray, mouth_memory: MouthMemory, share: float = 1.0
) -> np.ndarray:
    """Frame ``[H, W, 3]`` uint8 with the lower face moved from ``landmarks`` to ``target`` (both ``[478,
    3]`` px).

    The two must agree in the upper face. Pixels outside mouth, jaw and the skin just around them are
    returned unchanged. share: how much of the drawing is seen.
    """
    landmarks, target = landmarks.astype(np.float64), target.astype(np.float64)
    left, top, size = _window(landmarks)
    shift = np.array([left, top, 0.0])
    crop = _cut(frame, left, top, size)
    own, goal = landmarks - shift, target - shift
    mesh = HeadMesh(crop, own, weight=np.zeros((2, 2), np.float32))
    source = Rasterizer(mesh.triangles, mesh.source, size)(mesh(goal))
    skin = bare_skin(crop, own, eyes=False)
    drawn = cv2.remap(skin, source, None, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
    closed = _carried(mouth_memory.closed, own)
    mouth = Mouth(crop, closed, keep_own=False, palette=mouth_memory.palette)
    mouth.draw(drawn, goal)
    mouth_memory.retouch.draw(drawn, goal, own)
    mask = share * _lower_face(own, goal, size)[..., None]
    mixed = np.round(crop + mask * (drawn.astype(np.float32) - crop)).clip(0, 255).astype(np.uint8)
    result = frame.copy()
    height, width = frame.shape[:2]
    x0, y0, x1, y1 = max(left, 0), max(top, 0), min(left + size, width), min(top + size, height)
    result[y0:y1, x0:x1] = mixed[y0 - top : y1 - top, x0 - left : x1 - left]
    return result


def _window(landmarks: np.ndarray) -> tuple[int, int, int]:
    """Square around the face, in whole pixels: left, top, even side."""
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


def _carried(closed: np.ndarray, own: np.ndarray) -> np.ndarray:
    """The memory's closed mouth in this frame's head pose."""
    matrix, shift = rigid_motion(closed, own)
    return closed @ matrix.T + shift


def _lower_face(own: np.ndarray, goal: np.ndarray, size: int) -> np.ndarray:
    """Weight ``[size, size]``: one over mouth, jaw and chin in both poses, feathered around them."""
    eye_line, nose = own[[33, 263], :2].mean(0), own[2, :2]
    down = own[152, :2] - eye_line
    height = float(np.linalg.norm(down))
    down = down / height
    jaw = [i for i in FACE_OVAL if (own[i, :2] - nose) @ down > -0.1 * height]
    around = np.concatenate([own[jaw, :2], goal[jaw, :2], own[[98, 327, 2], :2], goal[[61, 291], :2]])
    around = np.concatenate([around, around[: len(jaw) * 2] + 0.1 * height * down])
    hull = cv2.convexHull(around.astype(np.float32))[:, 0]
    return fill((size, size), hull, _FEATHER * height)


MEMORY_FRAMES = 50
"""How many frames of a shot its mouth is learned from, at least, where they fit into ``MEMORY_BYTES``."""

MEMORY_BYTES = 640 * 2**20

_SOON = 2.5
"""Lips come near the video's own first; only then is one picture mixed with the other, or two mouths would show."""

_BLOCK = 64
"""Frames whose landmarks are computed together."""

_BACKWARD_BYTES = 256 * 2**20
"""What a video that is played backwards may hold of its pictures at a time."""


class DubbedVideo:
    """The frames of a video ``[H, W, 3]`` uint8 RGB (even sides) with the lower face of other motion; iterate it as
    often as ``lips`` can be iterated.

    Args:
        footage: the tracked video.
        lips: motion ``[t, 30]`` at 25 frames a second, chunk by chunk; held where it ends before the video.
        count: how many frames; past its end the video plays backwards, then forwards again. By default the video's own.
        progress: shows that mouths are being learned, before the first frame is asked for.
        network: the retouching network, the shipped one on the processor by default.

    Attributes:
        fps: the video's own frame rate.
        lips: the motion that was given.
    """

    def __init__(
        self,
        footage: Footage,
        lips: Iterable[torch.Tensor],
        count: int | None = None,
        progress: Progress = no_progress,
        network: Network | None = None,
    ) -> None:
        self.fps = footage.fps
        self._footage, self.lips = footage, lips
        self._order = pendulum(len(footage), len(footage) if count is None else count)
        self._mouths = _learn_mouths(footage, progress, network)

    def __len__(self) -> int:
        return len(self._order)

    @property
    def undubbed_frames(self) -> int:
        """How many frames keep their own lips."""
        return int((self._footage.share[self._order] == 0).sum())

    def summary(self) -> str | None:
        """One sentence on how many frames keep their own lips and why; None if all have new ones."""
        return self._footage.summary(self._order)

    def __iter__(self) -> Iterator[np.ndarray]:
        pictures, lips = _play(self._footage, self._order), at_rate(self.lips, self.fps)
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
        for frame, goal in zip(frames, face.target(frames, lips), strict=True):
            picture, share, points = next(pictures), float(face.share[frame]), face.landmarks[frame]
            if share > 0:
                goal = points + share * (goal - points)
                picture = redraw_mouth(picture, points, goal, mouth, min(1.0, _SOON * share))
            yield _even(picture)


class _ShotFace:
    """The face of one shot: landmarks ``[t, 478, 3]`` px without gaps, and the share ``[t]`` of new lips it takes."""

    def __init__(self, footage: Footage, shot: slice) -> None:
        faces, usable = footage.faces, footage.usable[shot]
        # What the tracker makes of a face that something is before says nothing about the person.
        known = usable if usable.any() else faces.valid[shot]
        self.landmarks, self.share = bridge(faces.landmarks[shot], known), footage.share[shot]
        self._basis = MotionBasis.load()
        self._own: torch.Tensor
        self._identity: Identity
        self._own, self._identity = self._basis.encode(self.landmarks, bridge(faces.blendshapes[shot], known))

    def target(self, frames: np.ndarray, lips: torch.Tensor) -> np.ndarray:
        """Landmarks ``[n, 478, 3]`` px of ``frames`` ``[n]`` (numbers in the shot) with the lower face of ``lips``
        ``[n, 30]``."""
        own = self._own[torch.from_numpy(frames)]
        spoken = own.clone()
        spoken[:, LOWER] = lips[:, LOWER]
        # What the basis cannot express of the tracked face stays as tracked: only the difference is applied.
        moved = self._basis.decode(spoken, self._identity) - self._basis.decode(own, self._identity)
        result: np.ndarray = self.landmarks[frames] + moved.numpy()
        return result


def at_rate(chunks: Iterable[torch.Tensor], fps: Fraction) -> Iterator[torch.Tensor]:
    """Motion ``[30]`` frame by frame at ``fps`` from chunks ``[t, 30]`` at 25 a second, the last one held without end.

    Each frame gets the motion of its middle. Between two given frames motion runs on a monotone cubic (Fritsch and
    Carlson 1980): lips that meet in one of them do not pass through each other beside it. At 25 frames a second the
    motion passes unchanged.
    """
    rows = (row for chunk in chunks for row in chunk)
    first = next(rows)
    known, start, ended = [first, first], -1, False
    number = 0
    while True:
        place = (number + Fraction(1, 2)) * FPS / fps - Fraction(1, 2)
        before = int(place // 1)
        while start + len(known) < before + 3:
            row = None if ended else next(rows, None)
            ended = row is None
            known.append(known[-1] if row is None else row)
        drop = max(0, before - 1 - start)
        known, start = known[drop:], start + drop
        # Before the first frame there is as much of it as is asked for.
        four = [known[max(before + step - start, 0)] for step in (-1, 0, 1, 2)]
        yield _between(four, float(place - before))
        number += 1


def _between(four: list[torch.Tensor], t: float) -> torch.Tensor:
    if t == 0:
        return four[1]
    slopes = [after - before for before, after in pairwise(four)]
    a, b = (_monotone(*pair) for pair in pairwise(slopes))
    rise = slopes[1]
    return four[1] + t * (a + t * (3 * rise - 2 * a - b + t * (a + b - 2 * rise)))


def _monotone(before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
    """Slope where two pieces meet: their harmonic mean, zero where they run against each other."""
    product = before * after
    return torch.where(product > 0, 2 * product / (before + after).where(product > 0, torch.ones(())), 0.0)


def pendulum(frames: int, count: int) -> np.ndarray:
    """Numbers ``[count]`` of frames played forwards and backwards in turn, the first and the last once each time."""
    place = np.arange(count) % max(2 * frames - 2, 1)
    return np.minimum(place, 2 * frames - 2 - place) if frames > 1 else np.zeros(count, int)


def _play(footage: Footage, order: np.ndarray) -> Iterator[np.ndarray]:
    """Pictures of a video in the given order, each the neighbour of the one before; few of them are held."""
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


def _play_backwards(footage: Footage, first: int, last: int) -> Iterator[np.ndarray]:
    """Pictures number ``first`` down to ``last``, read piece by piece."""
    stop, size = first + 1, 1
    while stop > last:
        start = max(last, stop - size)
        piece = list(islice(iter_frames(footage.video, footage.fps, start), stop - start))
        size = max(1, _BACKWARD_BYTES // piece[0].nbytes)
        yield from reversed(piece)
        stop = start


def _learn_mouths(footage: Footage, progress: Progress, network: Network | None = None) -> list[MouthMemory | None]:
    """What each shot tells about its mouth; None for shots that take no new lips."""
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
        kept = [frame for index, frame in zip(range(len(usable)), frames, strict=False) if index in sampled]
        if not footage.share[shot].any():
            result.append(None)
            continue
        landmarks = footage.faces.landmarks[shot][sampled].astype(np.float32)
        result.append(MouthMemory.from_video(kept, landmarks, network))
    for _ in frames:
        pass
    return result


def _even(frame: np.ndarray) -> np.ndarray:
    return frame[: frame.shape[0] // 2 * 2, : frame.shape[1] // 2 * 2]
