"""``LiveAvatar``: a live portrait for a program that has its own sound, as pairs of a picture and 40 ms of sound.

    event loop   push, hear, interrupt, finish ─► LiveSession.tick ─► PictureQueue ─► (frame, audio), 25 times a second
    a thread     DrawingSchedule: motion ─► picture with watermark, or LiveSession.generate: speech ─► motion

One thread does both, which leaves the other processor core to the program. ``LivePortrait`` is the part that avatars
of the same photo share.
"""

from __future__ import annotations

import asyncio
import time
import weakref
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import suppress
from pathlib import Path
from threading import Event, Thread

import numpy as np
import torch

from flowportrait.errors import BadInput
from flowportrait.live.driving import FaceDriver
from flowportrait.live.pacing import DrawingSchedule, PictureQueue
from flowportrait.live.session import MAX_QUEUED_SECONDS, LiveSession, State
from flowportrait.live.threads import start_thread
from flowportrait.live.utterance import MotionSource
from flowportrait.media.audio import SAMPLE_RATE
from flowportrait.media.portrait import Portrait
from flowportrait.media.video import FPS
from flowportrait.models.conditioning import encode_portraits
from flowportrait.models.prosody_motion import voice_follower
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


class LivePortrait:
    """A portrait and a generator that are ready to be live; any number of avatars in one process may share it.

    ::

        shared = LivePortrait("me.jpg", size=384)               # some seconds
        one, other = LiveAvatar(shared), LiveAvatar(shared)     # some hundredths of a second each
    """

    def __init__(
        self,
        image: ImageInput | Portrait,
        *,
        checkpoint: str | Path | AnimatePipeline = "rl",
        size: int = 384,
        denoise: bool = False,
        face: int | None = None,
    ) -> None:
        """Load the generator and prepare the portrait.

        Args:
            image: photo, painting or drawing, or a ``Portrait``.
            checkpoint: the generator as for ``AnimatePipeline.from_pretrained``, or a pipeline that is already loaded.
            size: side of the frames in pixels; a ``Portrait`` has its own.
            denoise: load what removes noise from speech, for avatars that speak a microphone.
            face: which face in the photo, counted from the left beginning at 1; the largest by default.

        Raises:
            BadInput: the photo or the checkpoint cannot be used.
        """
        self.pipeline = (
            checkpoint
            if isinstance(checkpoint, AnimatePipeline)
            else AnimatePipeline.from_pretrained(checkpoint, denoise=denoise)
        )
        self.portrait = (
            image
            if isinstance(image, Portrait)
            else Portrait.from_image(read_photo(image), size, image_display_name(image), face)
        )
        self._codec = self.pipeline.codec(self.portrait)
        self._crop = crop_to_photo(self.portrait)
        self._mark = Watermark(*self.portrait.crop.shape[:2])
        self._tokens = encode_portraits(self.pipeline.generator, [self.portrait])
        # The first utterance finds the networks ready.
        list(self.motion_source(0).push(np.zeros(SAMPLE_RATE, np.float32)))
        self.neutral_picture = self.draw(np.zeros(MOTION_DIM, np.float32))
        """The face at rest, ``[size, size, 3]`` uint8 RGB."""

    @property
    def size(self) -> int:
        """Side of the frames in pixels."""
        return len(self.portrait.crop)

    def draw(self, motion: np.ndarray) -> np.ndarray:
        """Return the picture ``[size, size, 3]`` uint8 RGB with watermark for motion ``[30]``; threads may do so at
        once."""
        picture = self._codec.renderer.draw(self._codec.landmarks(torch.from_numpy(motion)[None])[0])
        return self._mark(picture if self._crop is None else self._crop(picture))

    def motion_source(self, seed: int, intensity: float = 1.0, denoise: bool = False) -> GenerationSession:
        """Return what generates the motion of one utterance.

        Args:
            seed: random seed of the motion.
            intensity: how expressive the motion is, from 0.6 to 1.6.
            denoise: remove noise from the speech, if the pipeline has loaded what does.

        Raises:
            BadInput: the intensity is out of range.
        """
        return GenerationSession(
            self.pipeline.generator, seed, intensity=intensity, portrait=self._tokens,
            enhancer=self.pipeline.enhancer if denoise else None, follower=voice_follower("auto"),
        )  # fmt: skip


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
        image: ImageInput | Portrait | LivePortrait,
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
            image: photo, painting or drawing, a ``Portrait``, or a ``LivePortrait``; the last has its own checkpoint,
                size and face, and is ready in hundredths of a second.
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
        shared = (
            image
            if isinstance(image, LivePortrait)
            else LivePortrait(image, checkpoint=checkpoint, size=size, denoise=denoise, face=face)
        )

        def open_source(utterance: int) -> MotionSource:
            return shared.motion_source(seed + _SEED_STEP * utterance, intensity, denoise)

        open_source(0)  # A wrong intensity is noticed now, and not in a thread.
        self._draw, self._size, self._clock = shared.draw, shared.size, clock
        self._session = LiveSession(open_source, seed=seed, rate=rate, clock=clock, max_queued=max_queued)
        self._queue, self._schedule = PictureQueue(shared.neutral_picture), DrawingSchedule()
        self._closed, self._work_came = False, Event()
        self._interruptions = self._played_samples = 0
        self._driver: FaceDriver | None = None
        self._thread: Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._error: BaseException | None = None
        self._reader: weakref.ref[_FrameReader] | None = None

    @property
    def rate(self) -> int:
        """Sample rate in Hz of the sound that leaves."""
        return self._session.rate

    @property
    def size(self) -> int:
        """Side of the frames in pixels."""
        return self._size

    @property
    def played_samples(self) -> int:
        """Samples of pushed speech, at ``rate``, that have left with all pairs so far."""
        return self._played_samples

    @property
    def waiting_samples(self) -> int:
        """Samples of pushed speech, at ``rate``, that have not left and were not dropped."""
        return self._session.queued_samples + self._queue.spoken

    @property
    def state(self) -> State:
        """What the face does: ``idle``, ``listening``, ``speaking`` or ``interrupted``."""
        return self._session.state

    @property
    def late_frames(self) -> int:
        """Number of frames so far that showed an older picture because theirs was not drawn in time."""
        return self._queue.late

    @property
    def queued_seconds(self) -> float:
        """Seconds of speech that wait to be spoken."""
        return self._session.queued_seconds

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
        self._revise()
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

    def drive(self, motion: np.ndarray | None) -> None:
        """Move the face by motion ``[30]`` instead of idle motion, until the next call; None eases back to idle.

        While the face speaks, the speech moves the lips and the driver everything else. The state stays what it is.

        Raises:
            BadInput: the motion cannot be used, or the avatar is closed.
        """
        self._check_open()
        self._end_driver()
        self._session.drive(motion)

    def drive_with(self, picture: np.ndarray | None) -> None:
        """Let the face follow that of a webcam, from about the fifth picture with a face on.

        Pictures are tracked in a thread of their own, the newest one only. If the face is lost, this one eases back to
        idle within 300 ms, and follows again when it is found.

        Args:
            picture: ``[H, W, 3]`` uint8 RGB; None ends it.

        Raises:
            BadInput: the picture cannot be used, the tracker failed, or the avatar is closed.
        """
        self._check_open()
        if picture is None:
            self._end_driver()
            self._session.drive(None)
            return
        if self._driver is None:
            self._driver = FaceDriver(self._clock)
        if self._driver.error is not None:
            raise BadInput(f"The face of the webcam cannot be followed: {self._driver.error}.") from self._driver.error
        self._driver.show(picture)

    @property
    def is_driven(self) -> bool:
        """Whether a webcam or given motion moves the face now."""
        return self._session.is_driven

    def _end_driver(self) -> None:
        if self._driver is not None:
            self._driver.close()
            self._driver = None

    def show_emotion(self, weights: Mapping[str, float]) -> None:
        """Show an emotion, such as ``{"happy": 0.6}``, which takes a second to come; ``{}`` ends it as slowly.

        A face that is driven shows the driver's expression alone.

        Args:
            weights: from 0 to 1, and 1 in all, by emotion: happy, sad, angry, surprised, afraid.

        Raises:
            BadInput: a name or a weight is not possible, or the avatar is closed.
        """
        self._check_open()
        self._session.show_emotion(weights)

    @property
    def emotion(self) -> dict[str, float]:
        """The weights of the emotion that is shown, or approached."""
        return self._session.emotion

    def finish(self) -> None:
        """End the current utterance: what was pushed is spoken to its end."""
        self._session.finish()
        self._revise()
        self._work_came.set()

    def interrupt(self) -> None:
        """Stop speaking: waiting speech is dropped, and the lips come to rest within 300 ms."""
        self._interruptions += 1
        self._session.interrupt()
        self._revise()

    def _revise(self) -> None:
        """Let what has happened show in the frames that have not left, as far as they can still be drawn."""
        count = self._queue.leaving_after(self._clock() + self._schedule.redrawing_seconds)
        if count and (frames := self._session.revise(count)):
            self._queue.revise(frames)
            self._work_came.set()

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

    def frames(self) -> AsyncIterator[tuple[np.ndarray, np.ndarray]]:
        """Yield a picture and its sound 25 times a second, until the avatar is closed.

        The clock starts with the loop; a pair leaves 80 ms after its time, in which it is drawn. One loop at a time:
        the first step of another one raises ``BadInput``.

        Yields:
            Picture ``[size, size, 3]`` uint8 RGB and sound ``[1, rate / 25]`` float32.
        """
        return _FrameReader(self)

    async def _pairs(self) -> AsyncGenerator[tuple[np.ndarray, np.ndarray]]:
        self._session.restart_clock()
        self._loop = asyncio.get_running_loop()
        if self._thread is None:
            self._thread = start_thread(self._work, self.close, "live avatar")
        while not self._closed:
            await asyncio.sleep(max(0.0, self._session.next_time - self._clock()))
            if self._error is not None:
                raise self._error
            if self._closed:
                return
            if self._driver is not None:
                self._session.drive(self._driver.next())
            frame = self._session.tick()
            self._queue.add(frame, self._session.next_time + (self._queue.delay - 1) / FPS)
            self._work_came.set()
            if (pair := self._queue.leave()) is not None:
                self._played_samples += pair[0].spoken
                yield pair[1], pair[0].sound

    def close(self) -> None:
        """End ``frames`` and the thread, without waiting for either; any thread may call it, more than once.

        The end of the program waits for the thread, and closes an avatar that was not closed.
        """
        self._closed = True
        self._work_came.set()
        self._end_driver()

    async def aclose(self) -> None:
        """Close the avatar and wait until its thread has ended, which takes one drawing at most."""
        self.close()
        if self._thread is not None:
            await asyncio.to_thread(self._thread.join)

    def _check_open(self) -> None:
        if self._closed:
            raise BadInput("The avatar is closed: make a new one.")

    @property
    def drawing_seconds(self) -> float:
        """Seconds that the drawing of the latest picture took."""
        return self._schedule.last_drawing

    def _work(self) -> None:
        """Draw, generate or wait, as the schedule says; an error ends ``frames``."""
        try:
            while not self._closed:
                self._work_came.clear()
                if not self._draw_next() and not self._generate():
                    self._work_came.wait(_WAIT_SECONDS)
        except BaseException as error:
            self._error = error

    def _draw_next(self) -> bool:
        """Draw the frame whose turn it is; return whether there was one."""
        began = self._clock()
        motion_due = self._session.motion_due
        frame = self._queue.take(lambda waiting: self._schedule.next_frame(began, waiting, motion_due))
        if frame is None:
            return False
        self._queue.drawn(frame.index, self._draw(frame.motion), frame.revision)
        self._schedule.record_drawing(self._clock() - began)
        return True

    def _generate(self) -> bool:
        """Generate the next chunk of motion if possible; return whether anything was done."""
        began = self._clock()
        if not self._session.generate():
            return False
        self._schedule.record_generation(self._clock() - began)
        if self._loop is not None:
            # Speech that can begin now need not wait for the next tick.
            with suppress(RuntimeError):  # the loop has ended
                self._loop.call_soon_threadsafe(self._revise)
        return True


class _FrameReader:
    """The loop over the frames of an avatar, of which there is one at a time.

    It is no generator because a loop that was left would hold the avatar until the event loop has closed it.
    """

    def __init__(self, avatar: LiveAvatar) -> None:
        self._avatar = avatar
        self._pairs: AsyncGenerator[tuple[np.ndarray, np.ndarray]] | None = None

    def __aiter__(self) -> _FrameReader:
        return self

    async def __anext__(self) -> tuple[np.ndarray, np.ndarray]:
        if self._pairs is None:
            self._pairs = self._begin()
        try:
            return await anext(self._pairs)
        except BaseException:
            self._release()
            raise

    async def aclose(self) -> None:
        """End the loop, so that another one may begin."""
        self._release()
        if self._pairs is not None:
            await self._pairs.aclose()

    def _begin(self) -> AsyncGenerator[tuple[np.ndarray, np.ndarray]]:
        avatar = self._avatar
        avatar._check_open()
        if avatar._reader is not None and avatar._reader() is not None:
            raise BadInput("Another loop reads the frames of this avatar: end it first, or make one avatar for each.")
        avatar._reader = weakref.ref(self)
        return avatar._pairs()

    def _release(self) -> None:
        if self._avatar._reader is not None and self._avatar._reader() is self:
            self._avatar._reader = None
