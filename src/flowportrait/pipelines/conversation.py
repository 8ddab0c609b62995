"""Two speakers in one picture: their motion, their portraits and their frames.

    side by side     [ face square 1 | face square 2 ]
    one photo        photo + (drawn 1 − photo) + (drawn 2 − photo):  each changes only the area around its own face

Portraits come from two photos, or from one photo that shows both speakers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch

from flowportrait.errors import BadInput
from flowportrait.media.portrait import Photo, Portrait, find_faces
from flowportrait.models.speech_stream import speech_gate
from flowportrait.pipelines.output import draw_frames
from flowportrait.pipelines.turns import ListeningBehaviour
from flowportrait.rendering.renderer import MotionCodec

_SECOND_SPEAKER_SEED = 7919
"""Added to the seed of the second speaker, so that the two do not move alike."""


def generate_conversation_motion(
    speak: Callable[[np.ndarray, int], torch.Tensor], tracks: np.ndarray, seed: int = 0
) -> list[torch.Tensor]:
    """Generate the motion of two speakers, the first of whom sits on the left.

    Args:
        speak: function that generates motion ``[T, 30]`` from samples ``[N]`` at 16 kHz and a seed.
        tracks: speech ``[2, N]`` at 16 kHz, one row per speaker.
        seed: random seed of the first speaker.

    Returns:
        Motion ``[T, 30]`` of each speaker.

    Raises:
        BadInput: the tracks last less than 0.2 s.
    """
    gates = [speech_gate(track) for track in tracks]
    result = []
    for index, track in enumerate(tracks):
        speaker_seed = seed + _SECOND_SPEAKER_SEED * index
        listener = ListeningBehaviour(toward=1.0 - 2.0 * index, seed=speaker_seed)
        result.append(listener(speak(track, speaker_seed), gates[index], gates[1 - index]))
    return result


def find_speaker_portraits(
    photos: Sequence[np.ndarray | Photo], names: Sequence[str], size: int | None = None
) -> tuple[Portrait, Portrait]:
    """Find the faces of both speakers.

    These are the largest face of each photo, or the first two from the left if both photos are the same object.

    Raises:
        BadInput: a photo shows no face, or the only photo does not show two.
    """
    shared = photos[0] is photos[1]
    if shared:
        pixels = photos[0].video_pixels if isinstance(photos[0], Photo) else photos[0]
        if len(find_faces(pixels)) < len(photos):
            raise BadInput(
                f"{names[0]} does not show two faces that can be found: show both larger, or give one photo of each."
            )
    first, second = (
        Portrait.from_image(photo, size, name, number if shared else None)
        for number, (photo, name) in enumerate(zip(photos, names, strict=True), 1)
    )
    return first, second


def draw_side_by_side(codecs: Sequence[MotionCodec], motions: Sequence[torch.Tensor]) -> Iterator[np.ndarray]:
    """Yield frames ``[size, 2 size, 3]`` uint8 with both face squares side by side."""
    frames_of_each = [draw_frames(codec, [motion]) for codec, motion in zip(codecs, motions, strict=True)]
    return (np.hstack(pair) for pair in zip(*frames_of_each, strict=True))


def draw_in_one_photo(codecs: Sequence[MotionCodec], motions: Sequence[torch.Tensor]) -> Iterator[np.ndarray]:
    """Yield frames ``[H, W, 3]`` uint8 of the photo that shows both people, its sides cut to even numbers."""
    photo = codecs[0].portrait.image
    height, width = (side // 2 * 2 for side in photo.shape[:2])
    still = photo[:height, :width].astype(np.int16)
    frames_of_each = [draw_frames(codec, [motion], crop=False) for codec, motion in zip(codecs, motions, strict=True)]
    return (
        (still + sum(frame.astype(np.int16) - still for frame in pair)).clip(0, 255).astype(np.uint8)
        for pair in zip(*frames_of_each, strict=True)
    )
