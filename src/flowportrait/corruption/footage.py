"""A clip that can be damaged: pictures, sound, and what is known about the face in them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from flowportrait.errors import BadInput
from flowportrait.media.video import SAMPLES_PER_FRAME


@dataclass(frozen=True)
class Footage:
    """frames ``[T, H, W, 3]`` uint8; audio ``[640 T]`` float32 (16 kHz); landmarks ``[T, 478, 3]`` px and motion
    ``[T, 30]`` where known. Any of the four may be missing; what needs it then refuses."""

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
        """What is seen at ``moments`` ``[S]`` (frames, fractional allowed) under the sound as it is: the nearest
        picture, tracks interpolated."""
        nearest = np.rint(moments).astype(int).clip(0, len(self) - 1)
        return replace(
            self,
            frames=None if self.frames is None else self.frames[nearest],
            landmarks=_interpolated(self.landmarks, moments),
            motion=_interpolated(self.motion, moments),
        )

    def pictures(self, wanted_by: str) -> np.ndarray:
        """The frames.

        Raises:
            BadInput: there are none.
        """
        if self.frames is None:
            raise BadInput(f"'{wanted_by}' changes pictures: give the clip its frames.")
        return self.frames

    def points(self, wanted_by: str) -> np.ndarray:
        """The landmarks.

        Raises:
            BadInput: there are none.
        """
        if self.landmarks is None:
            raise BadInput(f"'{wanted_by}' must know where the face is: give the clip its landmarks.")
        return self.landmarks


def _interpolated(track: np.ndarray | None, moments: np.ndarray) -> np.ndarray | None:
    if track is None:
        return None
    low = np.floor(moments).astype(int).clip(0, len(track) - 1)
    high = (low + 1).clip(max=len(track) - 1)
    share = (moments - low).clip(0, 1).reshape(-1, *[1] * (track.ndim - 1))
    return ((1 - share) * track[low] + share * track[high]).astype(track.dtype)
