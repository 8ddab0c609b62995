"""One utterance of a live session: its sound, the motion that is generated for it, and when it may begin.

    push(sound) ─► speech, 16 kHz ─ generate(), in pieces of a chunk ─► motion ─┐
              └──► sound at the rate of the session ────────────────────────────┴─► next(): one frame of both

It begins when there is enough of both that the motion will not run out before the next chunk is generated.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import Protocol

import numpy as np
import torch

from flowportrait.live.sound import SampleQueue, StreamResampler
from flowportrait.media.audio import SAMPLE_RATE, SAMPLES_PER_FRAME
from flowportrait.media.video import FPS

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
_VOICE_LEVEL = 0.02
"""Amplitude above which sound counts as a voice: -34 dB."""
_PREPARED_FRAMES = 5
"""Frames of silence before the voice at most, for which the face prepares to speak and waits: 200 ms."""
_VOICE_FRAMES = 2
"""Frames before the voice in which the face begins to take the shape of its first sound."""


class MotionSource(Protocol):
    """Interface of what turns the speech of one utterance into motion, such as ``GenerationSession``."""

    def push(self, audio: np.ndarray) -> Iterable[torch.Tensor]:
        """Take 16 kHz samples ``[n]`` and return the motion ``[t, 30]`` that they complete."""

    def finish(self) -> Iterable[torch.Tensor]:
        """Return the remaining motion."""


class Utterance:
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
        self._played_samples = 0
        self._voice_at: int | None = None

    def push(self, samples: np.ndarray, rate: int) -> None:
        """Add mono samples ``[n]`` float32."""
        self._add(self._to_speech.push(samples, rate), self._to_played.push(samples, rate))
        self.waited = 0

    def finish(self) -> None:
        """End it: what was pushed is all."""
        if not self.finished:
            self._add(self._to_speech.finish(), self._to_played.finish())
            self.finished = True

    def _add(self, speech: np.ndarray, played: np.ndarray) -> None:
        if self._voice_at is None and (loud := np.abs(played) > _VOICE_LEVEL).any():
            self._voice_at = self._played_samples + len(self.played) + int(loud.argmax())
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
    def begins_with_voice(self) -> bool:
        """Whether a voice is known to come soon after its beginning."""
        return self._voice_at is not None and self._voice_at < _PREPARED_FRAMES * self._rate // FPS

    @property
    def voice_begins(self) -> bool:
        """Whether the voice begins within the next frames, or has begun."""
        ahead = _VOICE_FRAMES * self._rate // FPS
        return self._voice_at is not None and self._voice_at < self._played_samples + ahead

    def can_start(self, ahead: int = 0) -> bool:
        """Return whether the utterance can start without running out of motion soon.

        Args:
            ahead: frames that it would be ahead of the clock.
        """
        if not self.motion:
            return False
        frames = self.pushed / SAMPLES_PER_FRAME - ahead
        fast = frames >= _FAST_START_FRAMES and frames - self.age >= _LEAD_FRAMES
        return self.finished or frames >= _START_FRAMES or fast

    @property
    def is_over(self) -> bool:
        """Whether all of it was spoken."""
        return self.generated and not self.motion

    def next(self) -> tuple[np.ndarray, np.ndarray] | None:
        """Return motion ``[30]`` and sound ``[n]`` of the next frame; None if they are not there yet."""
        self.started = self.started or self.can_start()
        size = self._rate // FPS
        has_sound = len(self.played) >= size or self.finished
        if self.started and self.motion and has_sound:
            self._played_samples += size
            return self.motion.popleft(), self.played.take(size)
        if not self.finished and len(self.speech) < self._piece:
            self.waited += 1
            if self.waited >= PATIENCE_FRAMES:
                self.finish()
        return None
