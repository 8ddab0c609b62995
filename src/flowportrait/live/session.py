"""A session that never ends: what the face does and says at every frame, as a state machine on a clock.

    push(speech) ─► utterance ─ generate() ─► its motion and sound ─┐
    hear(other voice) ─────────► idle motion ───────────────────────┴─► tick(): motion and 40 ms of sound of frame n
    interrupt(), finish()

Frame n has the time n / 25 s after the start, whatever happened before, so sound and picture cannot drift apart.
``tick`` is quick; the networks run in ``generate``, which another thread may call. The session draws no pictures:
``PictureQueue`` pairs drawn pictures with the frames, and repeats the newest where one is late.

From one kind of motion to another the face moves within seven frames, the lips faster; after an interruption the lips
are at rest after five frames (200 ms).
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from threading import Lock
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
REST_FRAMES, OPENING_FRAMES = 5, 3
"""The same for the lips: when they come to rest, and when they begin to speak."""
MAX_QUEUED_SECONDS = 60.0
"""Seconds of speech that may wait to be spoken."""
PATIENCE_FRAMES = 8
"""Frames without new sound after which an utterance is over, even if nobody said so."""

_START_FRAMES = 10
"""Frames of sound with which an utterance starts. A chunk needs seven; three more, so that sound that arrives as fast
as it is spoken always suffices for the next chunk."""
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
    """

    index: int
    state: State
    motion: np.ndarray
    sound: np.ndarray


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
        self.waited = 0
        """Frames since the last sound arrived."""

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
        # Read first: everything that was pushed before the end is then in the queue.
        finished = self.finished
        if self.generated or len(self.motion) >= _READY_FRAMES:
            return False
        piece = self._piece
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
    def _piece(self) -> int:
        return _PIECE if self._source else _FIRST_PIECE

    def _keep(self, chunks: Iterable[torch.Tensor]) -> None:
        for chunk in chunks:
            self.motion.extend(chunk.numpy())

    @property
    def is_over(self) -> bool:
        return self.generated and not self.motion

    def next(self) -> tuple[np.ndarray, np.ndarray] | None:
        """Return motion ``[30]`` and sound ``[n]`` of the next frame; None if they are not there yet."""
        enough = self.finished or self.pushed >= _START_FRAMES * SAMPLES_PER_FRAME
        self.started = self.started or (enough and bool(self.motion))
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
        self._shown: _Utterance | None = None
        self._faded, self._fade_start = FADE_FRAMES, self._motion
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

    def tick(self) -> LiveFrame:
        """Return the next frame; the caller calls it once for each, when ``is_due``."""
        listening, pause = self._other.next()
        while self._utterances and self._utterances[0].is_over:
            self._utterances.popleft()
        spoken = self._utterances[0].next() if self._utterances else None
        target = self._idle.next(listening, pause) if spoken is None else self._idle_behind_speech(spoken[0])
        sound = self._tail if spoken is None else spoken[1]
        self._tail = self._tail[:0]
        self.state = self._next_state(spoken is not None, listening)
        motion = self._crossfade(target, None if spoken is None else self._utterances[0])
        frame = LiveFrame(self.index, self.state, motion, self._fit(sound))
        self.index += 1
        return frame

    def _idle_behind_speech(self, motion: np.ndarray) -> np.ndarray:
        # The idle motion goes on unseen, so that it depends on the number of the frame alone.
        self._idle.next()
        return motion

    def _next_state(self, speaks: bool, listening: bool) -> State:
        self._interrupted_frames = min(self._interrupted_frames + 1, FADE_FRAMES + 1)
        if speaks or (self._utterances and self._utterances[0].started):
            return "speaking"
        if self._interrupted_frames <= FADE_FRAMES:
            return "interrupted"
        return "listening" if listening else "idle"

    def _crossfade(self, target: np.ndarray, utterance: _Utterance | None) -> np.ndarray:
        """Return the motion of this frame on the way to ``target``, the motion of an utterance or of none."""
        if utterance is not self._shown:
            self._shown, self._faded, self._fade_start = utterance, 0, self._motion
        if self._faded < FADE_FRAMES:
            self._faded += 1
            share = np.full(MOTION_DIM, _smooth(self._faded / FADE_FRAMES), np.float32)
            share[LOWER_FACE] = _smooth(self._faded / (OPENING_FRAMES if utterance else REST_FRAMES))
            target = self._fade_start + share * (target - self._fade_start)
        self._motion = target
        return target

    def _fit(self, sound: np.ndarray) -> np.ndarray:
        result = np.zeros((1, self.rate // FPS), np.float32)
        result[0, : len(sound)] = sound
        return result


def _smooth(share: float) -> float:
    """Return a step from 0 to 1 that begins and ends without a jolt."""
    share = min(share, 1.0)
    return share * share * (3 - 2 * share)


class PictureQueue:
    """Pairs frames with their pictures: a frame leaves a fixed time after its tick, with the newest picture there is.

    One thread adds frames and takes pairs, one other thread draws.
    """

    def __init__(self, first: np.ndarray, delay: int = 2) -> None:
        """Prepare a queue.

        Args:
            first: the picture that is shown until the first frame is drawn, ``[H, W, 3]``.
            delay: frames between a tick and its pair: the time for drawing.
        """
        self.delay, self.late, self.left = delay, 0, 0
        self._frames: deque[LiveFrame] = deque()
        self._pictures: deque[tuple[int, np.ndarray]] = deque([(-1, first)])
        self._lock = Lock()

    def add(self, frame: LiveFrame) -> None:
        """Add a frame that was ticked."""
        with self._lock:
            self._frames.append(frame)

    def to_draw(self, after: int) -> LiveFrame | None:
        """Return the newest frame after the one of that number; drawing an older one would only make both late."""
        with self._lock:
            return self._frames[-1] if self._frames and self._frames[-1].index > after else None

    def drawn(self, index: int, picture: np.ndarray) -> None:
        """Add the picture of a frame."""
        with self._lock:
            self._pictures.append((index, picture))

    def leave(self) -> tuple[LiveFrame, np.ndarray] | None:
        """Return the oldest frame with its picture, or with the newest there is; None while it has time to be drawn."""
        with self._lock:
            if len(self._frames) <= self.delay:
                return None
            frame = self._frames.popleft()
            while len(self._pictures) > 1 and self._pictures[1][0] <= frame.index:
                self._pictures.popleft()
            self.left += 1
            self.late += self._pictures[0][0] != frame.index
            return frame, self._pictures[0][1]
