"""A session that never ends: what the face does and says at every frame, as a state machine on a clock.

    push(speech) ─► utterance ─ generate() ─► its motion and sound ─┐
    hear(other voice) ─────────► idle motion ───────────────────────┼─► tick(): motion and 40 ms of sound of frame n
    drive(motion of a webcam) ──────────────────────────────────────┘
    interrupt(), finish(), show_emotion(weights)

Driven motion replaces idle motion. While the face speaks, the speech moves the lips and the driver everything else: the
sound of speech leaves later than it came, with lips made for it, and those of the webcam would be ahead.

Frame n has the time n / 25 s after the start, whatever happened before, so sound and picture cannot drift apart.
``tick`` is quick; the networks run in ``generate``, which another thread may call. The session draws no pictures:
``pacing.PictureQueue`` pairs drawn pictures with the frames, and repeats the newest where one is late.

A frame leaves some time after its tick, in which it is drawn. What happens meanwhile does not wait for the next tick:
``revise`` makes the last frames anew, with an interruption or with speech that begins.

From one kind of motion to another the face moves within seven frames, the lips faster; after an interruption the lips
are at rest after four frames (160 ms). With the first sound of an utterance the lips part, before there is enough of it
to speak (``preparation.py``).
"""

from __future__ import annotations

import copy
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np

from flowportrait.errors import BadInput
from flowportrait.live.expression import EasedEmotion
from flowportrait.live.idle import IdleMotion, OtherVoice
from flowportrait.live.preparation import SpeechPreparation
from flowportrait.live.sound import StreamResampler, read_samples
from flowportrait.live.utterance import MotionSource, Utterance
from flowportrait.media.audio import SAMPLE_RATE
from flowportrait.media.video import FPS
from flowportrait.rendering.motion_basis import LOWER_FACE, MOTION_DIM

State = Literal["idle", "listening", "speaking", "interrupted"]

FADE_FRAMES = 7
"""Frames in which the face moves from one kind of motion to another: 280 ms."""
REST_FRAMES, OPENING_FRAMES = 4, 3
"""The same for the lips: when they come to rest, and when they begin to speak."""
MAX_QUEUED_SECONDS = 60.0
"""Seconds of speech that may wait to be spoken."""
MAX_REVISED = 4
"""Frames that can be made anew at most."""


@dataclass(frozen=True)
class LiveFrame:
    """One frame of a session.

    Attributes:
        index: number n of the frame; its time is n / 25 s.
        state: what the face does.
        motion: ``[30]`` float32.
        sound: the 40 ms of sound that belong to it, ``[1, rate / 25]`` float32.
        spoken: how many of its samples are pushed speech; 0 for silence and for speech that fades out.
        revision: how many times the frame was made anew.
    """

    index: int
    state: State
    motion: np.ndarray
    sound: np.ndarray
    spoken: int = 0
    revision: int = 0


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
        self._utterances: deque[Utterance] = deque()
        self._opened = self._prepared = 0
        self._driven: np.ndarray | None = None
        self._emotion = EasedEmotion()
        self._face, self._tail = _FaceState(SpeechPreparation(seed)), _NO_SOUND
        self._recent: deque[_RecentFrame] = deque(maxlen=MAX_REVISED)
        # What has happened to the face since the last tick.
        self._events: list[Callable[[_FaceState], None]] = []
        self._has_changed = self._was_interrupted = False

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
            self._utterances.append(Utterance(partial(self._open_source, self._opened), self.rate))
            self._opened += 1
        self._utterances[-1].push(mono, rate)
        first = self._utterances[0]
        if (
            self._prepared != self._opened
            and len(self._utterances) == 1
            and first.begins_with_voice
            and not first.started
        ):
            self._prepared = self._opened
            self._apply(partial(_FaceState.prepare, number=self._opened))

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

    def show_emotion(self, weights: Mapping[str, float]) -> None:
        """Show an emotion from the next frame on, which takes a second to come; no weights end it as slowly.

        A face that is driven shows the driver's expression alone.

        Args:
            weights: from 0 to 1 by emotion; see ``rendering.emotion.EMOTIONS``.

        Raises:
            BadInput: a name or a weight is not possible.
        """
        self._emotion.show(weights)

    def finish(self) -> None:
        """End the current utterance: what was pushed is spoken to its end."""
        if self._utterances:
            self._utterances[-1].finish()

    def interrupt(self) -> None:
        """Stop speaking: waiting speech is dropped, and the lips come to rest."""
        if self._utterances and self._utterances[0].started:
            self._tail = _fade_out(self._utterances[0].played.take(self.rate // FPS))
            self._was_interrupted = True
            self._apply(_FaceState.interrupt)
        elif self._utterances:
            self._apply(_FaceState.relax)
        self._utterances.clear()

    def _apply(self, event: Callable[[_FaceState], None]) -> None:
        event(self._face)
        self._events.append(event)
        self._has_changed = True

    # --- Output ---

    @property
    def emotion(self) -> dict[str, float]:
        """The weights of the emotion that is shown, or approached."""
        return self._emotion.weights

    @property
    def is_driven(self) -> bool:
        """Whether somebody's motion moves the face."""
        return self._driven is not None

    @property
    def queued_seconds(self) -> float:
        """Seconds of sound that wait to be played."""
        return self.queued_samples / self.rate

    @property
    def queued_samples(self) -> int:
        """The same in samples at ``rate``."""
        return sum(len(one.played) for one in self._utterances)

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
        before, spoken = self._face.copy(), self._next_speech()
        for utterance in self._utterances:
            utterance.age += 1
        # The idle motion goes on unseen, so that it depends on the number of the frame alone.
        idle = self._idle.next(listening and spoken is None, pause and spoken is None)
        surroundings = _Surroundings(idle, self._driven, self._emotion.next(self._driven is None), listening)
        frame = self._make(surroundings, self.index, spoken, self._tail)
        self._recent.append(_RecentFrame(frame, surroundings, before))
        self._events, self._tail = [], _NO_SOUND
        self._has_changed = self._was_interrupted = False
        self.state = frame.state
        self.index += 1
        return frame

    def revise(self, count: int) -> list[LiveFrame]:
        """Make the last frames anew if something has happened since their tick that changes them.

        After an interruption they are silent, and the lips come to rest in them. In frames without speech, the lips
        part, or the speech begins.

        Args:
            count: how many frames may be changed: those that have not left and can still be drawn.

        Returns:
            The changed frames, the earliest first; each takes the place of the one with its index.
        """
        recent = list(self._recent)[max(0, len(self._recent) - count) :]
        if not self._was_interrupted:
            while recent and any(one.frame.state == "speaking" for one in recent):
                recent.pop(0)
        speaking = 0 if self._was_interrupted else self._frames_to_start_ahead(len(recent))
        if not self._has_changed:
            recent = recent[len(recent) - speaking :]
        if not recent:
            return []
        self._has_changed = False
        self._face = recent[0].before.copy()
        for event in self._events:
            event(self._face)
        for place, one in enumerate(recent):
            if place:
                one.before = self._face.copy()
            old, tail = one.frame, one.frame.sound[0]
            if self._was_interrupted:
                tail = _NO_SOUND if place else _fade_out(tail) if old.spoken else tail
            spoken = self._next_speech() if place >= len(recent) - speaking else None
            one.frame = self._make(one.surroundings, old.index, spoken, tail, old.revision + 1)
        if self._was_interrupted:
            self._tail = _NO_SOUND
        self.state = recent[-1].frame.state
        return [one.frame for one in recent]

    def _frames_to_start_ahead(self, most: int) -> int:
        """Return how many frames before the next one the waiting utterance can start; 0 if it cannot, or has."""
        if not self._utterances or self._utterances[0].started:
            return 0
        return next((ahead for ahead in range(most, 0, -1) if self._utterances[0].can_start(ahead)), 0)

    def _next_speech(self) -> tuple[np.ndarray, np.ndarray] | None:
        """Return motion and sound of the next frame of speech; None while there is none."""
        while self._utterances and self._utterances[0].is_over:
            self._utterances.popleft()
        return self._utterances[0].next() if self._utterances else None

    def _make(
        self,
        surroundings: _Surroundings,
        index: int,
        spoken: tuple[np.ndarray, np.ndarray] | None,
        tail: np.ndarray,
        revision: int = 0,
    ) -> LiveFrame:
        """Return a frame with this speech, or with the end of what was interrupted."""
        state = self._next_state(spoken is not None, surroundings.listening)
        speaker = self._utterances[0] if spoken else None
        motion = self._face.next_motion(surroundings, None if spoken is None else spoken[0], speaker)
        sound = self._fit(tail if spoken is None else spoken[1])
        motion = motion + surroundings.emotion
        return LiveFrame(index, state, motion, sound, 0 if spoken is None else len(spoken[1]), revision)

    def _next_state(self, speaks: bool, listening: bool) -> State:
        face = self._face
        face.interrupted_frames = min(face.interrupted_frames + 1, FADE_FRAMES + 1)
        if speaks or (self._utterances and self._utterances[0].started):
            return "speaking"
        if face.interrupted_frames <= FADE_FRAMES:
            return "interrupted"
        return "listening" if listening else "idle"

    def _fit(self, sound: np.ndarray) -> np.ndarray:
        result = np.zeros((1, self.rate // FPS), np.float32)
        result[0, : len(sound)] = sound
        return result


@dataclass(frozen=True)
class _Surroundings:
    """What a frame is made of, other than speech.

    Attributes:
        idle: idle motion ``[30]``.
        driven: motion ``[30]`` of a driver, if there is one.
        emotion: what is added to the motion, ``[30]``.
        listening: whether somebody else speaks.
    """

    idle: np.ndarray
    driven: np.ndarray | None
    emotion: np.ndarray
    listening: bool


class _FaceState:
    """Where the face is, and on which way: all that a frame changes and that is restored to make it anew."""

    _DRIVER = object()
    """The source of driven motion, for crossfades."""

    def __init__(self, preparation: SpeechPreparation) -> None:
        self.preparation = preparation
        self.interrupted_frames = FADE_FRAMES
        self._motion = np.zeros(MOTION_DIM, np.float32)
        self._lips, self._rest = _Crossfade(LOWER_FACE), _Crossfade(slice(LOWER_FACE.stop, MOTION_DIM))

    def copy(self) -> _FaceState:
        """Return a copy; arrays and utterances are not copied, because nothing changes them in place."""
        result = copy.copy(self)
        result.preparation = copy.copy(self.preparation)
        result._lips, result._rest = copy.copy(self._lips), copy.copy(self._rest)
        return result

    def prepare(self, number: int) -> None:
        """Begin to prepare for an utterance."""
        self.preparation.begin(number)

    def relax(self) -> None:
        """No speech follows."""
        self.preparation.relax()

    def interrupt(self) -> None:
        """Speech was interrupted."""
        self.interrupted_frames = 0
        self.preparation.relax()

    def next_motion(
        self, surroundings: _Surroundings, spoken: np.ndarray | None, utterance: Utterance | None
    ) -> np.ndarray:
        """Return the motion of a frame: speech moves the lips, a driver the rest, or else all that it can."""
        if utterance is not None and utterance.voice_begins:
            self.preparation.release()
        speaker: object = utterance
        preparation = self.preparation.next()
        # The head goes on from where the preparation has moved it.
        rest = surroundings.idle + preparation if spoken is None else spoken
        lips, mover = (surroundings.idle if spoken is None else spoken) + preparation, speaker
        if surroundings.driven is not None:
            rest, mover = surroundings.driven, self._DRIVER
            lips = surroundings.driven if spoken is None else spoken
        lips_frames = REST_FRAMES if spoken is None else OPENING_FRAMES
        self._motion = np.concatenate([
            self._lips.next(self._motion, lips, speaker or mover, lips_frames),
            self._rest.next(self._motion, rest, mover, FADE_FRAMES),
        ])  # fmt: skip
        return self._motion


@dataclass
class _RecentFrame:
    """A frame that was made, its surroundings, and the face before it."""

    frame: LiveFrame
    surroundings: _Surroundings
    before: _FaceState


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


_NO_SOUND = np.zeros(0, np.float32)


def _fade_out(sound: np.ndarray) -> np.ndarray:
    """Return one frame of sound that ends in silence; a hard cut would click."""
    return sound * np.linspace(1, 0, len(sound), dtype=np.float32)


def _smooth(share: float) -> float:
    """Return a step from 0 to 1 that begins and ends without a jolt."""
    share = min(share, 1.0)
    return share * share * (3 - 2 * share)
