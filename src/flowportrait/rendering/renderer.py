"""Rendering: one portrait photo drawn in any pose and expression.

``Renderer`` draws landmarks:

    frame = retouch( skin (mesh warp of the person)  in front of the backdrop
                     +  eyeballs between the lids  +  mouth interior between the lips )

Landmarks equal to those of the portrait give the photo back. ``MotionCodec`` converts between video and the motion
of 30 numbers per frame:

    encode: video → landmarks → motion [T, 30]        decode: motion → landmarks of this face → warped portrait
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from typing import Protocol

import cv2
import numpy as np
import torch

from flowportrait.media.faces import TrackedFace
from flowportrait.media.portrait import Portrait
from flowportrait.media.video import map_in_order
from flowportrait.rendering.face_regions import EYES, head_weight, segment_person, skin_without_openings
from flowportrait.rendering.head_range import HeadRange
from flowportrait.rendering.layers import Backdrop, EyeLayer, FarSideLayer, still_background
from flowportrait.rendering.lids import LidRange
from flowportrait.rendering.matting import refine_matte
from flowportrait.rendering.mesh import HeadMesh, Rasterizer, UpsampledPicture, face_triangles, rigid_motion
from flowportrait.rendering.motion_basis import Identity, MotionBasis
from flowportrait.rendering.mouth import Mouth
from flowportrait.rendering.mouth_geometry import MouthFrame, MouthOpening
from flowportrait.rendering.neutral_portrait import portrait_identity
from flowportrait.rendering.retouch import Retouch, RetouchFunction

_TOLERANCE = 1e-3
"""Pixels within which a crop ends at the top of its photo."""

_AHEAD = 4
"""Number of frames in progress at once: one chunk of motion."""


class MouthInterior(Protocol):
    """Interface of an object that draws the inside of a mouth."""

    def draw(self, frame: np.ndarray, target: np.ndarray, opening: MouthOpening | None = None) -> None:
        """Draw into a frame ``[S, S, 3]`` uint8 in place, for landmarks ``[478, 3]`` px and their opening."""


class Renderer:
    """Draws one portrait: prepared once (in about a second), then called with any number of frames.

    For example:

        renderer = Renderer(Portrait.from_image(read_image("photo.jpg")))
        frames = list(renderer(landmarks))          # [T, 478, 3] -> T x [512, 512, 3]

    Args:
        portrait: who is drawn. Landmarks are always in pixels of ``portrait.crop``.
        size: side S of the frames in pixels, by default that of the crop.
        retouch: whether the retouching network is applied to the lower face.
        workers: number of threads that draw frames at once.
        network: the retouching network; by default the shipped one on the CPU.
    """

    def __init__(
        self,
        portrait: Portrait,
        size: int | None = None,
        retouch: bool = True,
        workers: int = 2,
        network: RetouchFunction | None = None,
    ) -> None:
        crop = portrait.crop
        self._scale = 1.0 if size is None else size / crop.shape[0]
        if self._scale != 1.0:
            crop = cv2.resize(crop, (size, size), interpolation=cv2.INTER_AREA)
        landmarks = self._scaled(portrait.landmarks)
        free_top = _ends_at_top(portrait)
        mask = segment_person(crop, landmarks)
        weight = head_weight(mask, landmarks, crop.shape[0], free_top)
        self._mesh = HeadMesh(crop, landmarks, weight, cut_off=mask[0] > 0 if free_top else None)
        self._eyes = [EyeLayer(crop, landmarks, side) for side in range(len(EYES))]
        self._mouth_frame = MouthFrame(landmarks)
        self.mouth: MouthInterior = Mouth(crop, landmarks)
        self._retouch = Retouch(crop, landmarks, network) if retouch else None
        self._workers = workers
        skin = skin_without_openings(crop, landmarks)
        self._free_top = free_top
        self.show(Backdrop(skin, *_separate(_Pictures(skin, mask, weight))))
        far_side = FarSideLayer(self._mesh, skin)
        self._far_side = far_side if far_side.needed else None

    def show(self, picture: Backdrop) -> None:
        """Draw the face in this picture, whose person has the pose of the portrait's crop."""
        self.picture = picture
        self._rasterizer = Rasterizer(
            self._mesh.triangles, self._mesh.source, len(picture.extent),
            share=self._mesh.vertices_around(picture.extent), free_top=self._free_top, times=UpsampledPicture.TIMES,
            fine=len(face_triangles()),
        )  # fmt: skip

    def __call__(
        self, landmarks: Iterable[np.ndarray], finish: Callable[[np.ndarray], np.ndarray] | None = None
    ) -> Iterator[np.ndarray]:
        """Yield a frame ``[S, S, 3]`` uint8 RGB for each of ``landmarks`` ``[478, 3]``, in crop pixels.

        ``finish`` is applied to each frame in the thread that drew it.
        """
        draw = self.draw if finish is None else lambda points: finish(self.draw(points))
        return map_in_order(draw, landmarks, self._workers, _AHEAD)

    def draw(self, landmarks: np.ndarray) -> np.ndarray:
        """Return one frame ``[S, S, 3]`` uint8 RGB for landmarks ``[478, 3]`` in crop pixels."""
        target = self._scaled(landmarks)
        skull = rigid_motion(self._mesh.landmarks, target)
        opening = self._mouth_frame.opening(target, skull)
        vertices = self._mesh(target, skull)
        frame = self.picture.draw(self._rasterizer.source_map(vertices))
        if self._far_side is not None:
            self._far_side.draw(frame, vertices)
        for eye in self._eyes:
            eye.draw(frame, target)
        self.mouth.draw(frame, target, opening)
        if self._retouch is not None:
            self._retouch.draw(frame, target, opening=opening)
        return frame

    def _scaled(self, landmarks: np.ndarray) -> np.ndarray:
        points = np.asarray(landmarks, np.float64) * self._scale
        # Pixel centres, not corners, carry integer coordinates.
        points[..., :2] += 0.5 * (self._scale - 1)
        return points


class _Pictures:
    """Arrays that are the same key of a cache if they have the same content."""

    def __init__(self, *arrays: np.ndarray) -> None:
        self.arrays = arrays
        digest = hashlib.blake2b()
        for array in arrays:
            digest.update(str(array.shape).encode() + np.ascontiguousarray(array).tobytes())
        self._digest = digest.digest()

    def __hash__(self) -> int:
        return hash(self._digest)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Pictures) and self._digest == other._digest


@lru_cache(maxsize=8)
def _separate(pictures: _Pictures) -> tuple[np.ndarray, np.ndarray]:
    """Return matte and continued background of a portrait, which take a second; one that was drawn before has them."""
    skin, mask, weight = pictures.arrays
    matte = refine_matte(skin, mask)
    behind = still_background(skin, matte, weight)
    for array in (matte, behind):
        array.setflags(write=False)
    return matte, behind


def _ends_at_top(portrait: Portrait) -> bool:
    """Return whether the crop ends at the top of the photo, so that its top border need not match anything above it."""
    scale, offset = portrait.to_crop[1, 1:]
    return bool(offset > 0.5 * scale - 0.5 - _TOLERANCE)


class MotionCodec:
    """Converts between video and motion for one portrait, and draws it in motion."""

    def __init__(
        self,
        portrait: Portrait,
        size: int | None = None,
        basis: MotionBasis | None = None,
        retouch: bool = True,
        network: RetouchFunction | None = None,
    ) -> None:
        """Prepare a portrait.

        Args:
            portrait: who is drawn.
            size: side S of the frames in pixels, by default that of the crop.
            basis: the motion basis; by default the shipped one.
            retouch: whether the retouching network is applied to the lower face.
            network: the retouching network; by default the shipped one on the CPU.
        """
        self.portrait = portrait
        self.basis = basis or MotionBasis.load()
        self.identity = portrait_identity(self.basis, portrait)
        photo = self.identity.pose.remove(torch.as_tensor(portrait.landmarks[None]))[0]
        self._lids = LidRange(self.basis, self.identity, photo)
        self._head_range = HeadRange(self.basis, portrait.landmarks)
        self.renderer = Renderer(portrait, size, retouch, network=network)

    def encode(self, faces: TrackedFace) -> tuple[torch.Tensor, Identity]:
        """Return the motion ``[T, 30]`` and the identity of a tracked video."""
        return self.basis.encode(faces.landmarks, faces.blendshapes)

    def landmarks(self, motion: torch.Tensor) -> np.ndarray:
        """Return the landmarks of this face ``[T, 478, 3]`` in crop pixels, for motion ``[T, 30]``."""
        drawn = self._head_range(self._lids(motion.to("cpu", torch.float32)))
        return self.basis.decode(drawn, self.identity).numpy()

    def decode(self, motion: torch.Tensor) -> Iterator[np.ndarray]:
        """Yield frames ``[S, S, 3]`` uint8 for motion ``[T, 30]``."""
        return self.decode_all([motion])

    def decode_all(
        self, chunks: Iterable[torch.Tensor], finish: Callable[[np.ndarray], np.ndarray] | None = None
    ) -> Iterator[np.ndarray]:
        """Yield frames ``[S, S, 3]`` uint8, each after ``finish``, for motion in chunks ``[t, 30]``.

        Frames of a chunk are drawn while the next chunk is requested, so a frame can be returned one chunk late.
        """
        return self.renderer((points for chunk in chunks for points in self.landmarks(chunk)), finish)
