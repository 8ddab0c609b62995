"""The main job: a portrait and speech in, talking frames out.

Animator.from_pretrained("rl")(image, audio) -> frames at 25 fps
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import cv2
import numpy as np
import torch

from flowportrait.checkpoints import load_generator
from flowportrait.codec.controls import Controls
from flowportrait.codec.dubbed_video import DubbedVideo
from flowportrait.codec.footage import Progress, no_progress, track_footage
from flowportrait.codec.motion_codec import MotionCodec
from flowportrait.errors import BadInput
from flowportrait.generator.arflow import ARFlow
from flowportrait.generator.enhancer import Enhancer, load_enhancer
from flowportrait.generator.portrait_tokens import encode_portraits
from flowportrait.generator.sampler import GenerationSession
from flowportrait.generator.steering import Steering
from flowportrait.media.audio import SAMPLE_RATE
from flowportrait.media.crop import Paste, photo_square
from flowportrait.media.mel import raise_quiet
from flowportrait.media.portrait import Photo, Portrait
from flowportrait.media.video import FPS, SAMPLES_PER_FRAME

SHORTEST_SECONDS = 0.2


class Animator:
    """A generator and a codec: speech to motion, motion to frames."""

    def __init__(self, generator: ARFlow, intensity: float = 1.0, enhancer: Enhancer | None = None) -> None:
        """intensity: how expressive its performances are, 0.6 to 1.6 (see ``generator.intensity``); enhancer: takes
        noise off what it hears (see ``generator.enhancer``)."""
        self.generator, self.intensity, self.enhancer = generator, intensity, enhancer

    @classmethod
    def from_pretrained(cls, name: str | Path = "rl", intensity: float = 1.0, as_heard: bool = False) -> Animator:
        """With a shipped checkpoint (``rl``, ``sft``) or one in a folder, and the shipped enhancer unless the sound is
        to be taken ``as_heard``."""
        return cls(load_generator(name), intensity, None if as_heard else load_enhancer())

    def __call__(self, image: np.ndarray, audio: np.ndarray, *, seed: int = 0, size: int = 512) -> np.ndarray:
        """All frames at once ``[T, H, W, 3]`` uint8; see ``animate``."""
        return np.stack(list(self.animate(image, audio, seed=seed, size=size)))

    def animate(
        self,
        image: np.ndarray | Photo,
        audio: np.ndarray,
        *,
        seed: int = 0,
        size: int | None = 512,
        crop: bool = True,
        name: str = "the photo",
        face: int | None = None,
        controls: Controls | None = None,
    ) -> Iterator[np.ndarray]:
        """Yield frames at 25 fps while they are made: ``[size, size, 3]`` uint8 RGB of the face, with as much around it
        as the photo shows, or with ``crop`` off the whole picture, the face pasted back (sides cut to even numbers).

        image ``[H, W, 3]`` uint8 RGB or a ``Photo``; audio ``[N]`` float32 at 16 kHz; ``name`` stands for the image in
        messages.
        size: None draws as large as the photo's own resolution asks for, up to 1024. face: the N-th from the left, by
        default the largest. controls: turn blinks, head, expression and gaze up or down.

        Raises:
            BadInput: no face in the picture, or audio under 0.2 s; before the first frame is asked for.
        """
        long_enough(audio)
        portrait = Portrait.from_image(image, size, name, face)
        motion = self.motion(audio, seed=seed, controls=controls, portrait=portrait)
        return self.show(portrait, motion, crop=crop)

    @classmethod
    def draw(
        cls,
        image: np.ndarray | Photo,
        motion: Iterable[torch.Tensor],
        *,
        size: int | None = 512,
        crop: bool = True,
        name: str = "the photo",
        face: int | None = None,
        live: bool = False,
    ) -> Iterator[np.ndarray]:
        """Yield the frames of a performance that exists already, chunks ``[t, 30]`` of motion; see ``animate``.

        live: the next chunk may be long in coming, so no frame waits for it; without, drawing runs a chunk ahead.
        """
        return cls.show(Portrait.from_image(image, size, name, face), motion, crop=crop, live=live)

    @classmethod
    def show(
        cls, portrait: Portrait, motion: Iterable[torch.Tensor], *, crop: bool = True, live: bool = False
    ) -> Iterator[np.ndarray]:
        """``draw`` for a portrait that was found before."""
        return cls._frames(MotionCodec(portrait), motion, crop, live)

    @staticmethod
    def _frames(codec: MotionCodec, motion: Iterable[torch.Tensor], crop: bool, live: bool) -> Iterator[np.ndarray]:
        finish = _framing(codec.portrait) if crop else _pasting(codec.portrait)
        if live:
            for chunk in motion:
                yield from codec.decode_all([chunk], finish)
        else:
            yield from codec.decode_all(motion, finish)

    def dub(
        self,
        video: Path,
        audio: np.ndarray,
        *,
        seed: int = 0,
        face: int | None = None,
        loop: bool = False,
        progress: Progress = no_progress,
    ) -> DubbedVideo:
        """The video's frames (even sides, at its own rate ``fps``) with lips that follow ``audio`` ``[N]`` at 16 kHz.

        Pose, eyes, light and background stay the video's own; frames keep their own lips where there is no face or
        something is before the mouth, see ``DubbedVideo.summary``. Past the end of the speech the lips rest.

        Args:
            face: the N-th from the left where a shot begins, by default the largest.
            loop: play the video backwards and forwards in turn until the speech ends, if it is longer; without, the
                result lasts as long as the video.
            progress: shows the work before the first frame: ``progress(items, total, what is done)`` yields the items.

        Raises:
            BadInput: unreadable video, no face in it that could be dubbed, or it or the audio under 0.2 s.
        """
        long_enough(audio)
        footage = track_footage(video, face, progress)
        seconds = len(footage) / float(footage.fps)
        if seconds < SHORTEST_SECONDS:
            raise BadInput(f"{video} lasts {seconds:.2f} s, too short to dub: a photo is given as --image.")
        count = max(len(footage), math.ceil(len(audio) * footage.fps / SAMPLE_RATE)) if loop else len(footage)
        speech = np.zeros(math.ceil(count * FPS / footage.fps) * SAMPLES_PER_FRAME, np.float32)
        speech[: len(audio)] = audio[: len(speech)]
        return DubbedVideo(footage, self.motion(speech, seed=seed), count, progress)

    def motion(
        self,
        audio: np.ndarray,
        *,
        seed: int = 0,
        controls: Controls | None = None,
        steering: Steering | None = None,
        portrait: Portrait | None = None,
    ) -> Iterator[torch.Tensor]:
        """Yield motion ``[≤ 4, 30]`` chunk by chunk for 16 kHz samples ``[N]``; in all ``frame_count(audio)`` frames.
        ``steering``: a reward that has a say in every chunk; ``portrait``: who speaks, for a generator that sees.

        Raises:
            BadInput: audio under 0.2 s.
        """
        long_enough(audio)
        return self.live([raise_quiet(audio)], seed=seed, controls=controls, steering=steering, portrait=portrait)

    def live(
        self,
        pieces: Iterable[np.ndarray],
        *,
        seed: int = 0,
        controls: Controls | None = None,
        steering: Steering | None = None,
        portrait: Portrait | None = None,
    ) -> Iterator[torch.Tensor]:
        """Yield motion ``[≤ 4, 30]`` while ``pieces`` of 16 kHz sound still come in, each chunk but its last
        frame 120 ms of sound after its end; how the sound is cut changes nothing."""
        session = GenerationSession(
            self.generator, seed, steering=steering, intensity=self.intensity, enhancer=self.enhancer,
            portrait=encode_portraits(self.generator, [portrait] if portrait else []),
        )  # fmt: skip
        controlled = controls or Controls()
        for piece in pieces:
            for motion in session.push(piece):
                yield controlled(motion)
        for motion in session.finish():
            yield controlled(motion)


def _framing(portrait: Portrait) -> Callable[[np.ndarray], np.ndarray] | None:
    """Frames without what the photo does not show, enlarged to their size again; None where it shows everything."""
    size = len(portrait.crop)
    left, top, side = photo_square(portrait.to_crop, portrait.image.shape, portrait.landmarks, size)
    if side == size:
        return None
    window = np.s_[top : top + side, left : left + side]
    return lambda frame: cv2.resize(frame[window], (size, size), interpolation=cv2.INTER_CUBIC)


def _pasting(portrait: Portrait) -> Callable[[np.ndarray], np.ndarray]:
    """Frames into the portrait's photo, sides cut to even numbers."""
    height, width = (side // 2 * 2 for side in portrait.image.shape[:2])
    paste = Paste(portrait.image, portrait.to_crop, len(portrait.crop))
    return lambda frame: paste(frame)[:height, :width]


def long_enough(audio: np.ndarray) -> None:
    """Whether 16 kHz samples ``[N]`` can be spoken, before anything else is looked at.

    Raises:
        BadInput: audio under 0.2 s.
    """
    seconds = len(audio) / SAMPLE_RATE
    if seconds < SHORTEST_SECONDS:
        raise BadInput(f"The audio lasts {seconds:.2f} s, under {SHORTEST_SECONDS} s: give a longer recording.")
