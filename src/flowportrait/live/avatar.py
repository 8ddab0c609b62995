"""``LiveAvatar``: a live portrait for a program that has its own sound, as pairs of a picture and 40 ms of sound.

    event loop   push, hear, interrupt, finish ─► LiveSession.tick ─► PictureQueue ─► (frame, audio), 25 times a second
    a thread     motion ─► picture with watermark; between pictures LiveSession.generate: speech ─► motion

One thread does both, which leaves the other processor core to the program.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from threading import Event, Thread

import numpy as np
import torch

from flowportrait.errors import BadInput
from flowportrait.live.session import MAX_QUEUED_SECONDS, LiveSession, MotionSource, PictureQueue, State
from flowportrait.media.audio import SAMPLE_RATE
from flowportrait.media.portrait import Portrait
from flowportrait.models.conditioning import encode_portraits
from flowportrait.models.sampler import GenerationSession
from flowportrait.pipelines.animate import AnimatePipeline
from flowportrait.pipelines.inputs import ImageInput, image_display_name, read_photo, synthesize_speech
from flowportrait.pipelines.output import crop_to_photo
from flowportrait.provenance.watermark import Watermark
from flowportrait.rendering.motion_basis import MOTION_DIM

_SEED_STEP = 7919
"""Difference between the seeds of two utterances."""
_WAIT_SECONDS = 0.5
"""Seconds after which a waiting thread looks whether the avatar is closed."""
_ROOM_SECONDS = 0.1
"""Seconds between attempts to queue a sentence when too much speech waits."""


class LiveAvatar:
    """A portrait that idles, listens and speaks in real time; every picture has the watermark.

    ::

        avatar = LiveAvatar("me.jpg")
        avatar.push(pcm, rate=24000)
        avatar.finish()
        async for frame, audio in avatar.frames():      # [384, 384, 3] uint8, [1, 1920] float32
            show(frame), play(audio)
    """

    def __init__(
        self,
        image: ImageInput | Portrait,
        *,
        checkpoint: str | Path | AnimatePipeline = "rl",
        size: int = 384,
        seed: int = 0,
        rate: int = 48_000,
        denoise: bool = False,
        intensity: float = 1.0,
        face: int | None = None,
        max_queued: float = MAX_QUEUED_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Load the generator and prepare the portrait, which takes some seconds.

        In a running event loop, use ``await asyncio.to_thread(LiveAvatar, "me.jpg")``.

        Args:
            image: photo, painting or drawing, or a ``Portrait``.
            checkpoint: the generator as for ``AnimatePipeline.from_pretrained``, or a pipeline that is already loaded.
            size: side of the frames in pixels; a ``Portrait`` has its own.
            seed: random seed of idle and speaking motion.
            rate: sample rate in Hz of the sound that leaves, a multiple of 25.
            denoise: remove noise from the speech before the generator hears it, for speech from a microphone.
            intensity: how expressive the motion is, from 0.6 to 1.6.
            face: which face in the photo, counted from the left beginning at 1; the largest by default.
            max_queued: seconds of speech that may wait to be spoken.
            clock: returns seconds; only differences count.

        Raises:
            BadInput: the photo, the checkpoint or a setting cannot be used.
        """
        pipeline = (
            checkpoint
            if isinstance(checkpoint, AnimatePipeline)
            else AnimatePipeline.from_pretrained(checkpoint, denoise=denoise)
        )
        portrait = (
            image
            if isinstance(image, Portrait)
            else Portrait.from_image(read_photo(image), size, image_display_name(image), face)
        )
        self._codec = pipeline.codec(portrait)
        self._crop = crop_to_photo(portrait)
        self._mark = Watermark(*portrait.crop.shape[:2])
        tokens = encode_portraits(pipeline.generator, [portrait])

        def open_source(utterance: int) -> MotionSource:
            return GenerationSession(
                pipeline.generator, seed + _SEED_STEP * utterance, intensity=intensity, portrait=tokens,
                enhancer=pipeline.enhancer if denoise else None,
            )  # fmt: skip

        # A wrong intensity is noticed now, not in a thread, and the first utterance finds the networks ready.
        list(open_source(0).push(np.zeros(SAMPLE_RATE, np.float32)))
        self._clock = clock
        self._session = LiveSession(open_source, seed=seed, rate=rate, clock=clock, max_queued=max_queued)
        self._queue = PictureQueue(self._draw(np.zeros(MOTION_DIM, np.float32)))
        self._closed, self._work_came, self._drawn = False, Event(), -1
        self._interruptions = 0
        self._thread: Thread | None = None
        self._error: BaseException | None = None

    @property
    def rate(self) -> int:
        """Sample rate in Hz of the sound that leaves."""
        return self._session.rate

    @property
    def state(self) -> State:
        """What the face does: ``idle``, ``listening``, ``speaking`` or ``interrupted``."""
        return self._session.state

    @property
    def late_frames(self) -> int:
        """Number of frames so far that showed an older picture because theirs was not drawn in time."""
        return self._queue.late

    def push(self, samples: np.ndarray | bytes, rate: int) -> None:
        """Add speech to the current utterance, or begin the next one.

        Args:
            samples: 16-bit integers or floats, ``[n]``, ``[n, 2]`` or ``[2, n]``, or bytes of 16-bit mono.
            rate: sample rate in Hz.

        Raises:
            BadInput: the samples cannot be used, the avatar is closed, or too much speech waits already.
        """
        self._check_open()
        self._session.push(samples, rate)
        self._work_came.set()

    def hear(self, samples: np.ndarray | bytes, rate: int) -> None:
        """Take the voice of the other side, to which the face listens; it is not played.

        Args:
            samples: as for ``push``.
            rate: sample rate in Hz.

        Raises:
            BadInput: the samples cannot be used, or the avatar is closed.
        """
        self._check_open()
        self._session.hear(samples, rate)

    def finish(self) -> None:
        """End the current utterance: what was pushed is spoken to its end."""
        self._session.finish()
        self._work_came.set()

    def interrupt(self) -> None:
        """Stop speaking: waiting speech is dropped, and the lips come to rest within 300 ms."""
        self._interruptions += 1
        self._session.interrupt()

    async def speak(self, text: str, voice: str | None = None) -> None:
        """Speak a text sentence by sentence; returns when all of it is queued, or at an interruption.

        Args:
            text: what is said.
            voice: name of the voice; see ``AnimateRequest.voice``.

        Raises:
            BadInput: the text cannot be spoken, or the voice is not installed.
        """
        interruptions = self._interruptions
        sentences = synthesize_speech(text, voice)
        while (sound := await asyncio.to_thread(next, sentences, None)) is not None:
            seconds = sound.samples.shape[1] / sound.rate
            while not self._session.has_room(seconds) and self._interruptions == interruptions:
                await asyncio.sleep(_ROOM_SECONDS)
                self._check_open()
            if self._interruptions != interruptions:
                return
            self.push(sound.samples, sound.rate)
        self.finish()

    async def frames(self) -> AsyncIterator[tuple[np.ndarray, np.ndarray]]:
        """Yield a picture and its sound 25 times a second, until the avatar is closed.

        The clock starts with the loop; a pair leaves 80 ms after its time, in which it is drawn.

        Yields:
            Picture ``[size, size, 3]`` uint8 RGB and sound ``[1, rate / 25]`` float32.
        """
        self._check_open()
        self._session.restart_clock()
        if self._thread is None:
            self._thread = Thread(target=self._work, daemon=True, name="live avatar")
            self._thread.start()
        while not self._closed:
            await asyncio.sleep(max(0.0, self._session.next_time - self._clock()))
            if self._error is not None:
                raise self._error
            if self._closed:
                return
            self._queue.add(self._session.tick())
            self._work_came.set()
            if (pair := self._queue.leave()) is not None:
                yield pair[1], pair[0].sound

    def close(self) -> None:
        """Stop the thread; ``frames`` ends."""
        self._closed = True
        self._work_came.set()
        if self._thread is not None:
            self._thread.join(timeout=5 * _WAIT_SECONDS)

    def _check_open(self) -> None:
        if self._closed:
            raise BadInput("The avatar is closed: make a new one.")

    def _draw(self, motion: np.ndarray) -> np.ndarray:
        picture = self._codec.renderer.draw(self._codec.landmarks(torch.from_numpy(motion)[None])[0])
        return self._mark(picture if self._crop is None else self._crop(picture))

    def _work(self) -> None:
        """Draw the newest frame, or else generate motion, or else wait; an error ends ``frames``."""
        try:
            while not self._closed:
                self._work_came.clear()
                if not self._draw_next() and not self._session.generate():
                    self._work_came.wait(_WAIT_SECONDS)
        except BaseException as error:
            self._error = error

    def _draw_next(self) -> bool:
        """Draw the newest frame if it was not drawn yet; return whether it was."""
        frame = self._queue.to_draw(self._drawn)
        if frame is None:
            return False
        self._drawn = frame.index
        self._queue.drawn(frame.index, self._draw(frame.motion))
        return True
