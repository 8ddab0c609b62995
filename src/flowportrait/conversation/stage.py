"""Both speakers in one picture: side by side, or in the photo they were taken in.

side by side     [ face square 1 | face square 2 ]
one photo        photo + (drawn 1 − photo) + (drawn 2 − photo):  each moves only what is around its own face
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from flowportrait.animator import Animator
from flowportrait.codec.controls import Controls
from flowportrait.conversation.listening import Listener
from flowportrait.errors import BadInput
from flowportrait.generator.speech_stream import speech_gate
from flowportrait.media.portrait import Photo
from flowportrait.media.search import find_faces

_SECOND = 7919
"""Added to the seed for the second speaker: two people do not move alike."""


@dataclass(frozen=True)
class Person:
    """Who takes part: a photo or its pixels ``[H, W, 3]`` uint8, its name in messages, and which of its faces from the
    left."""

    image: np.ndarray | Photo
    name: str
    face: int | None = None


def performances(
    animator: Animator, tracks: np.ndarray, seed: int = 0, controls: Controls | None = None
) -> list[torch.Tensor]:
    """Motion ``[T, 30]`` of each speaker, the first sitting on the left, for tracks ``[2, N]`` at 16 kHz.

    Raises:
        BadInput: the tracks last under 0.2 s.
    """
    gates = [speech_gate(track) for track in tracks]
    result = []
    for index, track in enumerate(tracks):
        own = seed + _SECOND * index
        motion = torch.cat(list(animator.motion(track, seed=own, controls=controls)))
        listener = Listener(toward=1.0 - 2.0 * index, seed=own)
        result.append(listener(motion, gates[index], gates[1 - index]))
    return result


def side_by_side(people: list[Person], motions: list[torch.Tensor], size: int = 512) -> Iterator[np.ndarray]:
    """Yield frames ``[size, 2 size, 3]`` uint8.

    Raises:
        BadInput: no face in a photo; before the first frame is asked for.
    """
    drawn = [
        Animator.draw(one.image, [motion], size=size, name=one.name, face=one.face)
        for one, motion in zip(people, motions, strict=True)
    ]
    return (np.hstack(pair) for pair in zip(*drawn, strict=True))


def in_one_photo(people: list[Person], motions: list[torch.Tensor], size: int | None = None) -> Iterator[np.ndarray]:
    """Yield frames of the photo that both people are in, its sides cut to even numbers.

    Raises:
        BadInput: the photo does not show both faces; before the first frame is asked for.
    """
    image = people[0].image
    photo = image.shown if isinstance(image, Photo) else image
    if len(find_faces(photo)) < len(people):
        raise BadInput(f"{people[0].name} does not show two faces: give a photo of both speakers, or one of each.")
    height, width = (side // 2 * 2 for side in photo.shape[:2])
    rest = photo[:height, :width].astype(np.int16)
    drawn = [
        Animator.draw(one.image, [motion], size=size, crop=False, name=one.name, face=one.face)
        for one, motion in zip(people, motions, strict=True)
    ]
    return (
        (rest + sum(frame.astype(np.int16) - rest for frame in pair)).clip(0, 255).astype(np.uint8)
        for pair in zip(*drawn, strict=True)
    )
