"""``Animator``, the class of version 0.1: a portrait and speech as arrays to frames.

    Animator.from_pretrained("rl")(image, audio)     # frames [T, H, W, 3] at 25 fps

It is kept for programs that use it and forwards everything to ``AnimatePipeline``, which reads files and writes signed
videos.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch

from flowportrait.media.portrait import Photo, Portrait
from flowportrait.models.arflow import ARFlow
from flowportrait.models.conditioning import RewardSteering
from flowportrait.models.enhancer import Enhancer
from flowportrait.pipelines.animate import AnimatePipeline
from flowportrait.pipelines.inputs import check_duration
from flowportrait.pipelines.output import draw_frames
from flowportrait.rendering.dubbing import DubbedVideo
from flowportrait.rendering.footage import Progress, no_progress
from flowportrait.rendering.motion_filters import Controls
from flowportrait.rendering.renderer import MotionCodec


class Animator:
    """Generates motion from speech and draws it on a portrait, with arrays as input and output."""

    def __init__(self, generator: ARFlow, intensity: float = 1.0, enhancer: Enhancer | None = None) -> None:
        """Wrap a generator.

        Args:
            generator: the network that generates motion from speech.
            intensity: how expressive the motion is, from 0.6 to 1.6.
            enhancer: removes noise from the speech before the generator hears it; None leaves it as it is.
        """
        self.pipeline, self.intensity = AnimatePipeline(generator, enhancer), intensity

    @classmethod
    def from_pretrained(cls, name: str | Path = "rl", intensity: float = 1.0, as_heard: bool = False) -> Animator:
        """Load a generator.

        Args:
            name: a shipped checkpoint (``rl``, ``sft``) or the folder of one.
            intensity: how expressive the motion is, from 0.6 to 1.6.
            as_heard: leave noise in the speech that the generator hears.

        Raises:
            BadInput: there is no such checkpoint.
        """
        pipeline = AnimatePipeline.from_pretrained(name, denoise=not as_heard)
        return cls(pipeline.generator, intensity, pipeline.enhancer)

    @property
    def generator(self) -> ARFlow:
        """The network that generates motion from speech."""
        return self.pipeline.generator

    @property
    def enhancer(self) -> Enhancer | None:
        """The network that removes noise from the speech, or None."""
        return self.pipeline.enhancer

    def __call__(self, image: np.ndarray, audio: np.ndarray, *, seed: int = 0, size: int = 512) -> np.ndarray:
        """Return all frames at once, ``[T, H, W, 3]`` uint8; see ``animate`` for the arguments."""
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
        """Yield frames ``[H, W, 3]`` uint8 RGB at 25 fps while they are drawn.

        Args:
            image: ``[H, W, 3]`` uint8 RGB or a ``Photo``.
            audio: samples ``[N]`` float32 at 16 kHz.
            seed: random seed of the motion.
            size: side of the drawn face square in pixels; None chooses it by the photo's resolution, up to 1024.
            crop: return the face square alone, with as much around it as the photo shows; otherwise paste it into the
                photo and cut the photo's sides to even numbers.
            name: name of the image in error messages.
            face: which face, counted from the left beginning at 1; the largest by default.
            controls: scales of blinks, head motion and expression, and the gaze direction.

        Raises:
            BadInput: the picture shows no face, or the audio is shorter than 0.2 s; raised before the first frame.
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
        """Yield the frames of existing motion, given in chunks ``[t, 30]``; see ``draw_frames``."""
        return cls.show(Portrait.from_image(image, size, name, face), motion, crop=crop, live=live)

    @classmethod
    def show(
        cls, portrait: Portrait, motion: Iterable[torch.Tensor], *, crop: bool = True, live: bool = False
    ) -> Iterator[np.ndarray]:
        """Yield the frames of existing motion for a portrait that was already found; see ``draw_frames``."""
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
        """Dub a video with speech ``[N]`` at 16 kHz and return its frames; see ``AnimatePipeline.dub``."""
        return self.pipeline.dubbed_video(
            video, audio, seed=seed, intensity=self.intensity, face=face, loop=loop, progress=progress
        )

    def motion(
        self,
        audio: np.ndarray,
        *,
        seed: int = 0,
        controls: Controls | None = None,
        steering: RewardSteering | None = None,
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
        steering: RewardSteering | None = None,
        portrait: Portrait | None = None,
    ) -> Iterator[torch.Tensor]:
        """Yield motion ``[≤ 4, 30]`` while sound is still arriving; see ``AnimatePipeline.stream_motion``."""
        return self.pipeline.stream_motion(
            pieces, seed=seed, intensity=self.intensity, controls=controls, guidance=steering, portrait=portrait
        )
