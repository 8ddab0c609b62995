"""The class of version 0.1.

Animator.from_pretrained("rl")(image, audio) -> frames at 25 fps
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch

from flowportrait.media.portrait import Photo, Portrait
from flowportrait.models.arflow import ARFlow
from flowportrait.models.conditioning import Steering
from flowportrait.models.enhancer import Enhancer
from flowportrait.pipelines.animate import AnimatePipeline
from flowportrait.pipelines.inputs import check_duration
from flowportrait.pipelines.output import draw_frames
from flowportrait.rendering.dubbing import DubbedVideo
from flowportrait.rendering.footage import Progress, no_progress
from flowportrait.rendering.motion_filters import Controls
from flowportrait.rendering.renderer import MotionCodec


class Animator:
    """Speech to motion and motion to frames, as arrays; ``AnimatePipeline`` reads files and writes signed ones."""

    def __init__(self, generator: ARFlow, intensity: float = 1.0, enhancer: Enhancer | None = None) -> None:
        """intensity: how expressive its motion is, 0.6 to 1.6; enhancer: removes noise from what it hears."""
        self.pipeline, self.intensity = AnimatePipeline(generator, enhancer), intensity

    @classmethod
    def from_pretrained(cls, name: str | Path = "rl", intensity: float = 1.0, as_heard: bool = False) -> Animator:
        """Load a shipped checkpoint (``rl``, ``sft``) or one in a folder; ``as_heard`` leaves noise in the sound."""
        pipeline = AnimatePipeline.from_pretrained(name, denoise=not as_heard)
        return cls(pipeline.generator, intensity, pipeline.enhancer)

    @property
    def generator(self) -> ARFlow:
        """Speech to motion."""
        return self.pipeline.generator

    @property
    def enhancer(self) -> Enhancer | None:
        """Removes noise from what the generator hears; None leaves it as it is."""
        return self.pipeline.enhancer

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
        """Yield frames at 25 fps while they are made.

        Args:
            image: ``[H, W, 3]`` uint8 RGB or a ``Photo``.
            audio: samples ``[N]`` float32 at 16 kHz.
            seed: of the motion.
            size: side of the drawn face square; None draws as large as the photo's resolution asks for, up to 1024.
            crop: the face square alone, with as much around it as the photo shows; otherwise it is pasted into the
                photo, whose sides are cut to even numbers.
            name: stands for the image in messages.
            face: the N-th from the left; the largest by default.
            controls: turn blinks, head, expression and gaze up or down.

        Raises:
            BadInput: no face in the picture, or audio under 0.2 s; before the first frame is asked for.
        """
        check_duration(audio)
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
        """Yield the frames of motion that exists already, in chunks ``[t, 30]``; see ``draw_frames``."""
        return cls.show(Portrait.from_image(image, size, name, face), motion, crop=crop, live=live)

    @classmethod
    def show(
        cls, portrait: Portrait, motion: Iterable[torch.Tensor], *, crop: bool = True, live: bool = False
    ) -> Iterator[np.ndarray]:
        """``draw`` for a portrait that was found before."""
        return draw_frames(MotionCodec(portrait), motion, crop, live)

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
        """The video's frames with lips that follow ``audio`` ``[N]`` at 16 kHz; see ``AnimatePipeline.dub``."""
        return self.pipeline.dubbed_video(
            video, audio, seed=seed, intensity=self.intensity, face=face, loop=loop, progress=progress
        )

    def motion(
        self,
        audio: np.ndarray,
        *,
        seed: int = 0,
        controls: Controls | None = None,
        steering: Steering | None = None,
        portrait: Portrait | None = None,
    ) -> Iterator[torch.Tensor]:
        """Yield motion ``[≤ 4, 30]`` chunk by chunk for 16 kHz samples ``[N]``; see ``AnimatePipeline.motion``."""
        return self.pipeline.motion(
            audio, seed=seed, intensity=self.intensity, controls=controls, guidance=steering, portrait=portrait
        )

    def live(
        self,
        pieces: Iterable[np.ndarray],
        *,
        seed: int = 0,
        controls: Controls | None = None,
        steering: Steering | None = None,
        portrait: Portrait | None = None,
    ) -> Iterator[torch.Tensor]:
        """Yield motion ``[≤ 4, 30]`` while sound still comes in; see ``AnimatePipeline.stream_motion``."""
        return self.pipeline.stream_motion(
            pieces, seed=seed, intensity=self.intensity, controls=controls, guidance=steering, portrait=portrait
        )
