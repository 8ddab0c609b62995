"""A session that never ends: what the face does and says at every frame, as a state machine on a clock.

    push(speech) ─► utterance ─ generate() ─► its motion and sound ─┐
    hear(other voice) ─────────► idle motion ───────────────────────┼─► tick(): motion and 40 ms of sound of frame n
    drive(motion of a webcam) ──────────────────────────────────────┘
    interrupt(), finish()

Driven motion replaces idle motion. While the face speaks, the speech moves the lips and the driver everything else: the
sound of speech leaves later than it came, with lips made for it, and those of the webcam would be ahead.

Frame n has the time n / 25 s after the start, whatever happened before, so sound and picture cannot drift apart.
``tick`` is quick; the networks run in ``generate``, which another thread may call. The session draws no pictures:
``pacing.PictureQueue`` pairs drawn pictures with the frames, and repeats the newest where one is late.

From one kind of motion to another the face moves within seven frames, the lips faster; after an interruption the lips
are at rest after four frames (160 ms).
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Literal, Protocol

import numpy as np
import torch

from flowportrait.errors import BadInput
from flowportrait.live.idle import IdleMotion, OtherVoice
from flowportrait.live.sound import SampleQueue, StreamResampler, read_samples
from flowportrait.media.audio import SAMPLE_RATE, SAMPLES_PER_FRAME
from flowportrait.media.video import FPS
from flowportrait.rendering.motion_basis import LOWER_FACE, MOTION_DIM

State = Literal["idle", "listening", "speaking", "interrupted"]

FADE_FRAMES = 7
"""Frames in which the face moves from one kind of motion to another: 280 ms."""
REST_FRAMES, OPENING_FRAMES = 4, 3
"""The same for the lips: when they come to rest, and when they begin to speak."""
MAX_QUEUED_SECONDS = 60.0
"""Seconds of speech that may wait to be spoken."""
PATIENCE_FRAMES = 8
"""Frames without new sound after which an utterance is over, even if nobody said so."""

_START_FRAMES = 10
"""Frames of sound with which an utterance starts, if they arrive as fast as they are spoken. A chunk needs seven; its
last frame waits for the next chunk, which needs eleven: a start before the ninth would run out of motion, and the
tenth is for generating and for packets that come late."""
_FAST_START_FRAMES, _LEAD_FRAMES = 7, 5
"""Frames of sound with which an utterance starts if so many more have arrived than time has passed, as from a voice
that is synthesized faster than it is spoken."""
_READY_FRAMES = 8
"""Frames of motion that are generated in advance."""
_FIRST_PIECE, _PIECE = 7 * SAMPLES_PER_FRAME, 4 * SAMPLES_PER_FRAME
"""Samples that the generator is given at once: those of one chunk, so that no call takes long."""


class MotionSource(Protocol):
    """Interface of what turns the speech of one utterance into motion, such as ``GenerationSession``."""

    def push(self, audio: np.ndarray) -> Iterable[torch.Tensor]:
        """Take 16 kHz samples ``[n]`` and return the motion ``[t, 30]`` that they complete."""

    def finish(self) -> Iterable[torch.Tensor]:
        """Return the remaining motion."""


@dataclass(frozen=True)
class LiveFrame:
    """One frame of a session.

    Attributes:
        index: number n of the frame; its time is n / 25 s.
        state: what the face does.
        motion: ``[30]`` float32.
        sound: the 40 ms of sound that belong to it, ``[1, rate / 25]`` float32.
        spoken: how many of its samples are pushed speech; 0 for silence and for speech that fades out.
    """

    index: int
    state: State
    motion: np.ndarray
    sound: np.ndarray
    spoken: int = 0


class _Utterance:
    """Speech that was pushed without an end between, its motion, and the sound that is played with it."""

    def __init__(self, open_source: Callable[[], MotionSource], rate: int) -> None:
        self._open_source, self._rate = open_source, rate
        self._source: MotionSource | None = None
        self._to_speech, self._to_played = StreamResampler(SAMPLE_RATE), StreamResampler(rate)
        self.speech, self.played = SampleQueue(), SampleQueue()
        self.motion: deque[np.ndarray] = deque()
        self.pushed = 0
        """Samples of speech so far, at 16 kHz."""
        self.finished = self.generated = self.started = False
        self.waited = self.age = 0
        """Frames since the last sound arrived, and since the first one."""

    def push(self, samples: np.ndarray, rate: int) -> None:
        self._add(self._to_speech.push(samples, rate), self._to_played.push(samples, rate))
        self.waited = 0

    def finish(self) -> None:
        if not self.finished:
            self._add(self._to_speech.finish(), self._to_played.finish())
            self.finished = True

    def _add(self, speech: np.ndarray, played: np.ndarray) -> None:
        self.pushed += len(speech)
        self.speech.add(speech)
        self.played.add(played)

    def generate(self) -> bool:
        """Generate the next chunk if it is needed and possible; return whether anything was done."""
        if not self.can_generate:
            return False
        # Read first: everything that was pushed before the end is then in the queue.
        finished, piece = self.finished, self._piece
        if len(self.speech) >= piece or (finished and len(self.speech)):
            # Opened here and not with the first sound, because it runs a network.
            self._source = self._source or self._open_source()
            self._keep(self._source.push(self.speech.take(piece)))
        elif finished:
            if self._source:
                self._keep(self._source.finish())
            self.generated = True
        else:
            return False
        return True

    @property
    def can_generate(self) -> bool:
        """Whether the next chunk is needed, and its sound is there."""
        if self.generated or len(self.motion) >= _READY_FRAMES:
            return False
        return self.finished or len(self.speech) >= self._piece

    @property
    def _piece(self) -> int:
        return _PIECE if self._source else _FIRST_PIECE

    def _keep(self, chunks: Iterable[torch.Tensor]) -> None:
        for chunk in chunks:
            self.motion.extend(chunk.numpy())

    @property
    def _has_enough(self) -> bool:
        """Whether the sound so far suffices to start without running out of motion soon."""
        frames = self.pushed / SAMPLES_PER_FRAME
        fast = frames >= _FAST_START_FRAMES and frames - self.age >= _LEAD_FRAMES
        return self.finished or frames >= _START_FRAMES or fast

    @property
    def is_over(self) -> bool:
        return self.generated and not self.motion

    def next(self) -> tuple[np.ndarray, np.ndarray] | None:
        """Return motion ``[30]`` and sound ``[n]`` of the next frame; None if they are not there yet."""
        self.started = self.started or (self._has_enough and bool(self.motion))
        size = self._rate // FPS
        has_sound = len(self.played) >= size or self.finished
        if self.started and self.motion and has_sound:
            return self.motion.popleft(), self.played.take(size)
        if not self.finished and len(self.speech) < self._piece:
            self.waited += 1
            if self.waited >= PATIENCE_FRAMES:
                self.finish()
        return None


class LiveSession:
    """A face that idles, listens, speaks and can be interrupted.

    ``push``, ``hear``, ``interrupt``, ``finish`` and ``tick`` are called by one thread; ``generate`` by that one or by
    one other.
    """

    _DRIVER = object()
    """The source of driven motion, for crossfades."""

    def __init__(
        self,
        open_source: Callable[[int], MotionSource],
        *,
        seed: int = 0,
        rate: int = 48_000,
        clock: Callable[[], float] = time.monotonic,
        max_queued: float = MAX_QUEUED_SECONDS,
    ) -> None:
        """Start a session; its frame 0 is due now.

        Args:
            open_source: returns what generates the motion of one utterance, for the number of the utterance.
            seed: random seed of the idle motion.
            rate: sample rate in Hz of the sound that leaves.
            clock: returns seconds; only differences count.
            max_queued: seconds of speech that may wait.

        Raises:
            BadInput: a frame of this rate has no whole number of samples.
        """
        if rate <= 0 or rate % FPS:
            raise BadInput(f"rate={rate} is not possible: give a multiple of {FPS}, such as 24000, 44100 or 48000.")
        self.rate, self.index = rate, 0
        self.state: State = "idle"
        self._open_source, self._clock, self._max_queued = open_source, clock, max_queued
        self._begin = clock()
        self._idle, self._other, self._to_heard = IdleMotion(seed), OtherVoice(), StreamResampler(SAMPLE_RATE)
        self._utterances: deque[_Utterance] = deque()
        self._opened = 0
        self._motion = np.zeros(MOTION_DIM, np.float32)
        self._driven: np.ndarray | None = None
        self._lips, self._rest = _Crossfade(LOWER_FACE), _Crossfade(slice(LOWER_FACE.stop, MOTION_DIM))
        self._interrupted_frames, self._tail = FADE_FRAMES, np.zeros(0, np.float32)

    # --- Input ---

    def push(self, samples: np.ndarray | bytes, rate: int) -> None:
        """Add speech to the current utterance, or begin the next one.

        Args:
            samples: 16-bit integers or floats, mono or stereo, of any length; see ``read_samples``.
            rate: sample rate in Hz.

        Raises:
            BadInput: the samples cannot be used, or too much speech waits already; nothing of them is then kept.
        """
        mono = read_samples(samples, rate)
        seconds = len(mono) / rate
        if self.queued_seconds + seconds > self._max_queued:
            raise BadInput(
                f"{self.queued_seconds + seconds:.1f} s of speech would wait, and {self._max_queued:g} s are possible: "
                "push it later, in smaller pieces."
            )
        if not self._utterances or self._utterances[-1].finished:
            self._utterances.append(_Utterance(partial(self._open_source, self._opened), self.rate))
            self._opened += 1
        self._utterances[-1].push(mono, rate)

    def hear(self, samples: np.ndarray | bytes, rate: int) -> None:
        """Take the voice of the other side, to which the face listens; it is not played.

        Args:
            samples: as for ``push``.
            rate: sample rate in Hz.

        Raises:
            BadInput: the samples cannot be used.
        """
        self._other.push(self._to_heard.push(read_samples(samples, rate), rate))

    def drive(self, motion: np.ndarray | None) -> None:
        """Let somebody's motion move the face from the next frame on, instead of idle motion; speech keeps the lips.

        Args:
            motion: ``[30]``, given again for each frame; None eases back to idle.

        Raises:
            BadInput: the motion is of another shape, or not finite.
        """
        if motion is not None:
            motion = np.asarray(motion, np.float32)
            if motion.shape != (MOTION_DIM,) or not np.isfinite(motion).all():
                raise BadInput(f"Motion of shape {motion.shape} cannot drive a face: give {MOTION_DIM} finite numbers.")
        self._driven = motion

    def finish(self) -> None:
        """End the current utterance: what was pushed is spoken to its end."""
        if self._utterances:
            self._utterances[-1].finish()

    def interrupt(self) -> None:
        """Stop speaking: waiting speech is dropped, and the lips come to rest."""
        if self._utterances and self._utterances[0].started:
            # The sound fades out over one frame, because a hard cut would click.
            tail = self._utterances[0].played.take(self.rate // FPS)
            self._tail = tail * np.linspace(1, 0, len(tail), dtype=np.float32)
            self._interrupted_frames = 0
        self._utterances.clear()

    # --- Output ---

    @property
    def is_driven(self) -> bool:
        """Whether somebody's motion moves the face."""
        return self._driven is not None

    @property
    def queued_seconds(self) -> float:
        """Seconds of sound that wait to be played."""
        return sum(len(one.played) for one in self._utterances) / self.rate

    def has_room(self, seconds: float) -> bool:
        """Return whether so much more speech may wait; a first sentence that is longer than all of it is refused."""
        return self.queued_seconds == 0 or self.queued_seconds + seconds <= self._max_queued

    def restart_clock(self) -> None:
        """Make the next frame due now."""
        self._begin = self._clock() - self.index / FPS

    @property
    def next_time(self) -> float:
        """Time of the next frame on the clock."""
        return self._begin + self.index / FPS

    @property
    def is_due(self) -> bool:
        """Whether the time of the next frame has come."""
        return self._clock() >= self.next_time

    def generate(self) -> bool:
        """Run the networks for one chunk of speech, if one is needed; return whether anything was done."""
        return any(utterance.generate() for utterance in list(self._utterances))

    @property
    def motion_due(self) -> float | None:
        """Time at which the next chunk of motion is needed; None if none can be generated now."""
        reserve = 0
        for utterance in list(self._utterances):
            reserve += len(utterance.motion)
            if utterance.can_generate:
                return self.next_time + reserve / FPS
        return None

    def tick(self) -> LiveFrame:
        """Return the next frame; the caller calls it once for each, when ``is_due``."""
        listening, pause = self._other.next()
        while self._utterances and self._utterances[0].is_over:
            self._utterances.popleft()
        spoken = self._utterances[0].next() if self._utterances else None
        for utterance in self._utterances:
            utterance.age += 1
        # The idle motion goes on unseen, so that it depends on the number of the frame alone.
        idle = self._idle.next(listening and spoken is None, pause and spoken is None)
        self.state = self._next_state(spoken is not None, listening)
        self._motion = self._next_motion(idle, None if spoken is None else spoken[0])
        sound = self._tail if spoken is None else spoken[1]
        self._tail = self._tail[:0]
        frame = LiveFrame(
            self.index, self.state, self._motion, self._fit(sound), 0 if spoken is None else len(spoken[1])
        )
        self.index += 1
        return frame

    def _next_motion(self, idle: np.ndarray, spoken: np.ndarray | None) -> np.ndarray:
        """Return the motion of this frame: speech moves the lips, a driver the rest, or else all that it can."""
        speaker: object = None if spoken is None else self._utterances[0]
        target = idle if spoken is None else spoken
        lips, rest, mover = target, target, speaker
        if self._driven is not None:
            rest, mover = self._driven, self._DRIVER
            lips = self._driven if spoken is None else spoken
        lips_frames = REST_FRAMES if spoken is None else OPENING_FRAMES
        return np.concatenate([
            self._lips.next(self._motion, lips, speaker or mover, lips_frames),
            self._rest.next(self._motion, rest, mover, FADE_FRAMES),
        ])  # fmt: skip

    def _next_state(self, speaks: bool, listening: bool) -> State:
        self._interrupted_frames = min(self._interrupted_frames + 1, FADE_FRAMES + 1)
        if speaks or (self._utterances and self._utterances[0].started):
            return "speaking"
        if self._interrupted_frames <= FADE_FRAMES:
            return "interrupted"
        return "listening" if listening else "idle"

    def _fit(self, sound: np.ndarray) -> np.ndarray:
        result = np.zeros((1, self.rate // FPS), np.float32)
        result[0, : len(sound)] = sound
        return result


class _Crossfade:
    """The way of one part of the motion from one source to the next."""

    def __init__(self, part: slice) -> None:
        self._part = part
        self._source: object = None
        self._faded = FADE_FRAMES
        self._start = np.zeros(0, np.float32)

    def next(self, current: np.ndarray, target: np.ndarray, source: object, frames: int) -> np.ndarray:
        """Return this part of the next motion.

        Args:
            current: motion ``[30]`` of the frame before.
            target: motion ``[30]`` of the source.
            source: what moves the face; a fade begins where it is another one than before.
            frames: length of the fade.
        """
        if source is not self._source:
            self._source, self._faded, self._start = source, 0, current[self._part]
        if self._faded >= FADE_FRAMES:
            return target[self._part]
        self._faded += 1
        share = np.float32(_smooth(self._faded / frames))
        return self._start + share * (target[self._part] - self._start)


def _smooth(share: float) -> float:
    """Return a step from 0 to 1 that begins and ends without a jolt."""
    share = min(share, 1.0)
    return share * share * (3 - 2 * share)
