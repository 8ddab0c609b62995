"""Dubbing: give the person in a video other lips, and leave everything else of each frame alone.

    frame ──warp of mouth and jaw, interior from the model, retouching──► drawn
    result = frame + m (drawn − frame),      m = 1 around the mouth, 0 from the cheekbones up

Each frame is its own portrait, so light, colour and sharpness stay true; only what must not flicker comes
from the video as a whole and is kept in a ``MouthMemory``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from flowportrait.codec.contours import FACE_OVAL, fill
from flowportrait.codec.mesh import HeadMesh, rigid_motion
from flowportrait.codec.mouth import Mouth
from flowportrait.codec.mouth_frame import skin_colour
from flowportrait.codec.mouth_light import light_of, shown_teeth
from flowportrait.codec.mouth_look import Palette
from flowportrait.codec.retouch import Network, Retouch
from flowportrait.codec.skin import bare_skin
from flowportrait.codec.warp import Rasterizer

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
