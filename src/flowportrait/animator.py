"""The main job: a portrait and speech in, talking frames out.

    Animator.from_pretrained("rl")(image, audio) -> frames at 25 fps
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from flowportrait.checkpoints import load_generator
from flowportrait.codec.motion_codec import MotionCodec
from flowportrait.errors import BadInput
from flowportrait.generator.arflow import ARFlow
from flowportrait.generator.sample import generate
from flowportrait.media.audio import SAMPLE_RATE
from flowportrait.media.mel import MELS_PER_FRAME, frame_count, level, log_mel
from flowportrait.media.portrait import Portrait

SHORTEST_SECONDS = 0.2


class Animator:
    """A generator and a codec: speech to motion, motion to frames."""

    def __init__(self, generator: ARFlow) -> None:
        self.generator = generator

    @classmethod
    def from_pretrained(cls, name: str | Path = "rl") -> Animator:
        """With a shipped checkpoint (``rl``, ``sft``) or one in a folder."""
        return cls(load_generator(name))

    def __call__(self, image: np.ndarray, audio: np.ndarray, *, seed: int = 0, size: int = 512) -> np.ndarray:
        """All frames at once ``[T, H, W, 3]`` uint8; see ``animate``."""
        return np.stack(list(self.animate(image, audio, seed=seed, size=size)))

    def animate(
        self, image: np.ndarray, audio: np.ndarray, *, seed: int = 0, size: int = 512, crop: bool = True
    ) -> Iterator[np.ndarray]:
        """Yield frames ``[size, size, 3]`` uint8 RGB at 25 fps while they are made.

        image ``[H, W, 3]`` uint8 RGB; audio ``[N]`` float32 at 16 kHz. With ``crop`` off the face is pasted back
        into the full picture, frames then have its size (sides cut to even numbers).

        Raises:
            BadInput: no face in the picture, or audio under 0.2 s.
        """
        portrait = Portrait.from_image(image, size)
        motion = self.motion(audio, seed=seed)
        return self._draw(MotionCodec(portrait), motion, crop)

    def _draw(self, codec: MotionCodec, motion: Iterator[torch.Tensor], crop: bool) -> Iterator[np.ndarray]:
        from flowportrait.media.crop import paste_back

        portrait = codec.portrait
        height, width = (side // 2 * 2 for side in portrait.image.shape[:2])
        for chunk in motion:
            for frame in codec.decode(chunk):
                if crop:
                    yield frame
                else:
                    yield paste_back(portrait.image, frame, portrait.to_crop)[:height, :width]

    def motion(self, audio: np.ndarray, *, seed: int = 0) -> Iterator[torch.Tensor]:
        """Yield motion ``[≤ 4, 30]`` chunk by chunk for 16 kHz samples ``[N]``; in all ``frame_count(audio)`` frames.

        Raises:
            BadInput: audio under 0.2 s.
        """
        if len(audio) < SHORTEST_SECONDS * SAMPLE_RATE:
            raise BadInput(
                f"The audio lasts {len(audio) / SAMPLE_RATE:.2f} s, under {SHORTEST_SECONDS} s: give a longer recording."
            )
        frames, chunk = frame_count(audio), self.generator.config.chunk
        padded = -(-frames // chunk) * chunk
        mel = log_mel(level(audio))
        silence = torch.zeros(1, mel.shape[1]) + mel.min()
        mel = torch.cat([mel, silence.expand(padded * MELS_PER_FRAME - len(mel), -1)])
        with torch.no_grad():
            condition = self.generator.condition(mel[None])
        return self._chunks(generate(self.generator, condition, [seed]), frames)

    @staticmethod
    def _chunks(chunks: Iterator[torch.Tensor], frames: int) -> Iterator[torch.Tensor]:
        done = 0
        for chunk in chunks:
            yield chunk[0, : frames - done]
            done += chunk.shape[1]

