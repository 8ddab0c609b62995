"""Two people in one picture.

side by side     [ face square 1 | face square 2 ]
one photo        photo + (drawn 1 − photo) + (drawn 2 − photo):  each moves only what is around its own face
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch

from flowportrait.errors import BadInput
from flowportrait.media.portrait import Photo, Portrait, find_faces
from flowportrait.models.speech_stream import speech_gate
from flowportrait.pipelines.output import draw_frames
from flowportrait.pipelines.turns import Listener
from flowportrait.rendering.renderer import MotionCodec

_SECOND_SPEAKER = 7919
"""Added to the seed for the second speaker: two people do not move alike."""


def conversation_motion(
    speak: Callable[[np.ndarray, int], torch.Tensor], tracks: np.ndarray, seed: int = 0
) -> list[torch.Tensor]:
    """Motion ``[T, 30]`` of each speaker, the first sitting on the left, for tracks ``[2, N]`` at 16 kHz.

    Args:
        speak: motion ``[T, 30]`` of who speaks, from samples ``[N]`` and a seed.
        tracks: what each of them says.
        seed: of the first speaker.

    Raises:
        BadInput: the tracks last under 0.2 s.
    """
    gates = [speech_gate(track) for track in tracks]
    result = []
    for index, track in enumerate(tracks):
        own = seed + _SECOND_SPEAKER * index
        listener = Listener(toward=1.0 - 2.0 * index, seed=own)
        result.append(listener(speak(track, own), gates[index], gates[1 - index]))
    return result


def two_portraits(
    photos: Sequence[np.ndarray | Photo], names: Sequence[str], size: int | None = None
) -> tuple[Portrait, Portrait]:
    """Find the faces of both speakers: the largest of each photo, or the first two from the left where both photos are
    the same object.

    Raises:
        BadInput: no face in a photo, or one photo of both does not show two.
    """
    shared = photos[0] is photos[1]
    if shared:
        shown = photos[0].shown if isinstance(photos[0], Photo) else photos[0]
        if len(find_faces(shown)) < len(photos):
            raise BadInput(f"{names[0]} does not show two faces: give a photo of both speakers, or one of each.")
    first, second = (
        Portrait.from_image(photo, size, name, place if shared else None)
        for place, (photo, name) in enumerate(zip(photos, names, strict=True), 1)
    )
    return first, second


def frames_side_by_side(codecs: Sequence[MotionCodec], motions: Sequence[torch.Tensor]) -> Iterator[np.ndarray]:
    """Yield frames ``[size, 2 size, 3]`` uint8 of two face squares."""
    drawn = [draw_frames(codec, [motion]) for codec, motion in zip(codecs, motions, strict=True)]
    return (np.hstack(pair) for pair in zip(*drawn, strict=True))


def frames_in_one_photo(codecs: Sequence[MotionCodec], motions: Sequence[torch.Tensor]) -> Iterator[np.ndarray]:
    """Yield frames of the photo that both people are in, its sides cut to even numbers."""
    photo = codecs[0].portrait.image
    height, width = (side // 2 * 2 for side in photo.shape[:2])
    still = photo[:height, :width].astype(np.int16)
    drawn = [draw_frames(codec, [motion], crop=False) for codec, motion in zip(codecs, motions, strict=True)]
    return (
        (still + sum(frame.astype(np.int16) - still for frame in pair)).clip(0, 255).astype(np.uint8)
        for pair in zip(*drawn, strict=True)
    )
