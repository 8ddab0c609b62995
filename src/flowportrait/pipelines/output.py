"""A finished or growing video, and how it is saved and signed.

    motion (cached: 30 numbers a frame) ─► frames (drawn anew on every iteration) ─► save: watermark, write, sign

Ten minutes of video take 2 MB as motion and 12 GB as pictures, so pictures are never stored. ``MotionTrack`` and
``LazyFrames`` are the two halves of that line, ``AnimatePipelineOutput`` is the finished video, ``AnimateStream`` the
growing one, and ``draw_frames`` turns motion into frames.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import cv2
import numpy as np
import torch

from flowportrait.devices import limit_threads
from flowportrait.media.audio import SAMPLE_RATE, Sound, read_sound
from flowportrait.media.crop import FramePaster, apply_affine, largest_photo_square, resize_transform
from flowportrait.media.portrait import Portrait
from flowportrait.media.stream import SoundBuffer, write_video_stream
from flowportrait.media.video import FPS
from flowportrait.pipelines.guidance import MotionCandidate
from flowportrait.pipelines.inputs import NoProgressDisplay, ProgressDisplay
from flowportrait.provenance.manifest import VideoOrigin
from flowportrait.rendering.face_regions import FACE_OVAL, outline_mask
from flowportrait.rendering.renderer import MotionCodec

FrameFilter = Callable[[Iterator[np.ndarray]], Iterator[np.ndarray]]
"""A function through which the frames pass on their way to the file, for example to count or to stop them."""


class MotionTrack:
    """Motion chunks ``[t, 30]`` that are generated when they are first iterated, and cached."""

    def __init__(self, generate: Callable[[], Iterable[torch.Tensor]]) -> None:
        self._generate = generate
        self._chunks: list[torch.Tensor] = []
        self._source: Iterator[torch.Tensor] | None = None
        self._complete = False

    def __iter__(self) -> Iterator[torch.Tensor]:
        index = 0
        while index < len(self._chunks) or self._advance():
            yield self._chunks[index]
            index += 1

    def tensor(self) -> torch.Tensor:
        """Return all chunks as one tensor ``[T, 30]``."""
        return torch.cat(list(self))

    def _advance(self) -> bool:
        """Generate the next chunk and return whether there was one."""
        if self._complete:
            return False
        try:
            if self._source is None:
                self._source = limit_threads(self._generate())
            chunk = next(self._source, None)
        except BaseException:
            # An interrupted generator cannot continue: the next iteration starts from the beginning.
            self._source, self._chunks = None, []
            raise
        if chunk is None:
            self._complete = True
            return False
        self._chunks.append(chunk)
        return True


class LazyFrames:
    """Frames ``[H, W, 3]`` uint8 RGB that are drawn anew every time they are iterated.

    ``np.asarray(frames)`` draws all of them at once, ``[T, H, W, 3]``.

    Attributes:
        face_masks: the share ``[H, W]`` float32 of the face in every pixel of each frame, drawn when it is iterated;
            None for a dubbed video and for two speakers.
    """

    def __init__(
        self,
        draw: Callable[[], Iterator[np.ndarray]],
        count: int,
        face_masks: LazyFrames | None = None,
    ) -> None:
        self._draw, self._count, self.face_masks = draw, count, face_masks

    @classmethod
    def of_portrait(cls, codec: MotionCodec, motion: Iterable[torch.Tensor], crop: bool, count: int) -> LazyFrames:
        """Return the frames of one portrait, and the masks of its face; see ``draw_frames``."""
        masks = cls(lambda: draw_face_masks(codec, motion, crop), count)
        return cls(lambda: draw_frames(codec, motion, crop), count, masks)

    def __iter__(self) -> Iterator[np.ndarray]:
        return limit_threads(self._draw())

    def __len__(self) -> int:
        return self._count

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        stacked = np.stack(list(self))
        return stacked if dtype is None else stacked.astype(dtype, copy=False)


class AnimatePipelineOutput:
    """A talking video with its frames, sound and motion; ``save`` writes it.

    Attributes:
        frames: the frames; iterate them, or call ``np.asarray(frames)`` for all at once.
        frame_rate: exact frames per second.
        seed: random seed of the motion.
        candidates: all candidates of ``best_of`` with their scores; empty without it.
        undubbed_frames: number of frames of a dubbed video that keep their own lips; None for other videos.
        frames_without_face: number of frames without a face in the clip that drives the photo; None for other videos.
        notes: sentences that the user should read.
    """

    def __init__(
        self,
        frames: LazyFrames,
        sound: Path | Sound | np.ndarray,
        motion: Callable[[], torch.Tensor],
        seed: int,
        origin: VideoOrigin,
        *,
        frame_rate: Fraction = Fraction(FPS),
        candidates: tuple[MotionCandidate, ...] = (),
        undubbed_frames: int | None = None,
        frames_without_face: int | None = None,
        notes: tuple[str, ...] = (),
        display: ProgressDisplay | None = None,
    ) -> None:
        self.frames, self.frame_rate, self.seed = frames, frame_rate, seed
        self.candidates, self.undubbed_frames, self.notes = candidates, undubbed_frames, notes
        self.frames_without_face = frames_without_face
        self._sound, self._motion, self._origin, self._display = sound, motion, origin, display or NoProgressDisplay()

    @property
    def fps(self) -> float:
        """Frames per second."""
        return float(self.frame_rate)

    @cached_property
    def audio(self) -> Sound:
        """The sound that the video plays, with its own rate and channels."""
        if isinstance(self._sound, np.ndarray):
            return Sound(self._sound[None], SAMPLE_RATE, "mono")
        return self._sound if isinstance(self._sound, Sound) else read_sound(self._sound)

    @property
    def motion(self) -> torch.Tensor:
        """Motion ``[T, 30]`` at 25 frames per second; ``[2, T, 30]`` for a conversation."""
        return self._motion()

    def save(
        self,
        path: str | Path,
        *,
        sign: bool = True,
        watermark: bool = True,
        certificate: str | Path | None = None,
        private_key: str | Path | None = None,
        watch: FrameFilter | None = None,
    ) -> int:
        """Write the video in the format given by the file name: .mp4, .mov, .webm or .gif (without sound).

        By default the frames carry a watermark, and the file carries an AI label and a signed C2PA manifest (in a
        second file beside .webm). With both ``sign`` and ``watermark`` off there is no label either. The file appears
        only when it is complete.

        Args:
            path: the file to write.
            sign: write a signed manifest.
            watermark: put the watermark into the frames.
            certificate: PEM certificate chain to sign with; a self-signed one by default.
            private_key: PEM key of the certificate.
            watch: function through which the frames pass on their way to the file.

        Returns:
            The number of frames written.

        Raises:
            BadInput: the file cannot be written, or the certificate cannot be used.
        """
        from flowportrait.provenance.manifest import find_credential
        from flowportrait.provenance.publish import Provenance, write_video_with_provenance

        provenance = None
        if sign or watermark:
            credential = find_credential(certificate, private_key) if sign else None
            provenance = Provenance(self._origin, credential, watermark)
        frames = iter(self.frames) if watch is None else watch(iter(self.frames))
        count, progress = len(self.frames), self._display.progress
        tracked = iter(progress(frames, count, "drawing"))
        try:
            return write_video_with_provenance(path, tracked, self._sound, provenance, self.frame_rate, count, progress)
        finally:
            if isinstance(tracked, Generator):
                tracked.close()  # ends the progress bar, also after an error


class AnimateStream:
    """A talking video that is made while its speech is still arriving; iterate its frames once, or ``save`` it."""

    fps = float(FPS)

    def __init__(self, frames: Iterator[np.ndarray], tape: SoundBuffer, seed: int) -> None:
        self.seed = seed
        self._frames, self._tape = limit_threads(frames), tape

    def __iter__(self) -> Iterator[np.ndarray]:
        return self._frames

    def sound(self, frame: int) -> Sound:
        """Return the sound of a drawn frame, at most 40 ms; earlier sound is discarded."""
        return self._tape.frame(frame)

    def save(self, target: str | Path | BinaryIO, *, watermark: bool = True, watch: FrameFilter | None = None) -> int:
        """Write fragmented mp4 or live webm, which can be played while it grows, with an AI label and a watermark.

        A growing file cannot be signed.

        Args:
            target: a file name, or a binary stream to write to.
            watermark: put the watermark into the frames and the label into the file.
            watch: function through which the frames pass on their way to the file.

        Returns:
            The number of frames written; 0 if no sound arrived, and then there is no file.

        Raises:
            BadInput: the file cannot be written.
        """
        from flowportrait.provenance.watermark import add_watermark

        frames = add_watermark(self._frames) if watermark else self._frames
        frames = frames if watch is None else watch(frames)
        target = Path(target) if isinstance(target, str) else target
        return write_video_stream(
            target, frames, self._tape.frame, tags=VideoOrigin("portrait").tags() if watermark else None
        )


def draw_frames(
    codec: MotionCodec, motion: Iterable[torch.Tensor], crop: bool = True, live: bool = False
) -> Iterator[np.ndarray]:
    """Yield frames ``[H, W, 3]`` uint8 RGB for motion in chunks ``[t, 30]``.

    Args:
        codec: draws the face square.
        motion: chunks of motion.
        crop: yield the face square alone; otherwise paste it into the photo and cut the photo's sides to even numbers.
        live: yield all frames of a chunk before asking for the next one; otherwise drawing runs one chunk ahead.
    """
    finish = crop_to_photo(codec.portrait) if crop else _paste_into_photo(codec.portrait)
    if live:
        for chunk in motion:
            yield from codec.decode_all([chunk], finish)
    else:
        yield from codec.decode_all(motion, finish)


def draw_face_masks(codec: MotionCodec, motion: Iterable[torch.Tensor], crop: bool = True) -> Iterator[np.ndarray]:
    """Yield the share ``[H, W]`` float32 of the face in every pixel of the frames that ``draw_frames`` yields.

    The mask ends where the outline of the face does: at the jaw, the temples and the forehead.

    Args:
        codec: draws the face square.
        motion: chunks of motion.
        crop: masks of the face square alone; otherwise of the whole photo.
    """
    portrait = codec.portrait
    size = len(portrait.crop)
    if crop:
        shape = (size, size)
        left, top, side = largest_photo_square(portrait.to_crop, portrait.image.shape, portrait.landmarks, size)
        window = np.array([[1.0, 0.0, -left], [0.0, 1.0, -top]])
        to_frame = _compose(resize_transform((side, side), shape), window)
    else:
        shape = (portrait.image.shape[0] // 2 * 2, portrait.image.shape[1] // 2 * 2)
        to_frame = cv2.invertAffineTransform(portrait.to_crop)
    for chunk in motion:
        for landmarks in codec.landmarks(chunk):
            yield outline_mask(shape, apply_affine(to_frame, landmarks[FACE_OVAL])[:, :2])


def _compose(second: np.ndarray, first: np.ndarray) -> np.ndarray:
    """Return the affine map ``[2, 3]`` that applies ``first`` and then ``second``."""
    return second @ np.vstack([first, [0.0, 0.0, 1.0]])


def crop_to_photo(portrait: Portrait) -> Callable[[np.ndarray], np.ndarray] | None:
    """Return a function that cuts off what lies outside the photo and enlarges the rest; None if nothing does."""
    size = len(portrait.crop)
    left, top, side = largest_photo_square(portrait.to_crop, portrait.image.shape, portrait.landmarks, size)
    if side == size:
        return None
    window = np.s_[top : top + side, left : left + side]
    return lambda frame: cv2.resize(frame[window], (size, size), interpolation=cv2.INTER_CUBIC)


def _paste_into_photo(portrait: Portrait) -> Callable[[np.ndarray], np.ndarray]:
    height, width = (side // 2 * 2 for side in portrait.image.shape[:2])
    paste = FramePaster(portrait.image, portrait.to_crop, len(portrait.crop))
    return lambda frame: paste(frame)[:height, :width]
