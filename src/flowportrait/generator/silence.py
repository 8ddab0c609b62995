"""Lips rest while nobody speaks.

    lower face ← gate(t) · lower face        gate: 1 in speech, 0 from a quarter of a second after it

Training footage hardly holds silence, so the generator cannot be trusted with it; a mouth that mumbles on in a pause
is among the first things people notice. Zero motion is this face with closed lips. The gate looks two frames ahead
and never back further than ten seconds, so that it works on live sound.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from flowportrait.generator.live_sound import LiveSound
from flowportrait.media.mel import SAMPLES_PER_FRAME, frame_count, level, raise_quiet

QUIETEST, LOUDEST = 0.004, 0.012
"""Bounds of the loudness (RMS after levelling; speech has 0.05) below which a frame counts as a pause."""
ATTACK = (1.0, 0.75, 0.4)
"""Gate in a frame of speech, and one and two frames before it: lips open before a sound."""
HOLD, FADE = 6, 3
"""Frames after speech during which the gate stays open, and closes."""
MEMORY = 250


@dataclass
class SpeechGate:
    """The gate of sound that comes frame by frame; a copy of its fields is its state."""

    loudness: list[float] = field(default_factory=list)
    """Of the last ten seconds."""
    speech: list[bool] = field(default_factory=list)
    """Of frames whose gate is still to come."""
    quiet: int = HOLD + FADE
    """Frames since the last speech."""

    @property
    def waiting(self) -> int:
        """How many frames were pushed whose gate was not returned yet."""
        return len(self.speech)

    def push(self, rms: float) -> list[float]:
        """Take a frame's loudness; returns the gates that are known now (of the frame two before)."""
        self.loudness = [*self.loudness[1 - MEMORY :], rms]
        # The threshold follows the noise floor: twice the loudness that a tenth of the frames stays under.
        threshold = np.clip(2 * np.quantile(self.loudness, 0.1), QUIETEST, LOUDEST)
        self.speech.append(bool(rms > threshold))
        return [self._next()] if len(self.speech) == len(ATTACK) else []

    def finish(self) -> list[float]:
        """The gates still owed; nothing is spoken any more."""
        return [self._next() for _ in range(len(self.speech))]

    def _next(self) -> float:
        opening = max(share * spoken for share, spoken in zip(ATTACK, self.speech, strict=False))
        self.quiet = 0 if self.speech.pop(0) else self.quiet + 1
        closing = 1 - (self.quiet - HOLD) / FADE
        return float(max(opening, min(1.0, max(0.0, closing))))


def speech_gate(audio: np.ndarray, softer: list[float] | None = None) -> np.ndarray:
    """Gate ``[T]`` float32 in [0, 1] for 16 kHz samples ``[N]``, T = ``frame_count(audio)``; ``softer`` ``[T]``: the
    share of each frame's loudness that is speech."""
    frames = frame_count(audio)
    padded = np.zeros(frames * SAMPLES_PER_FRAME, np.float32)
    padded[: len(audio)] = level(audio)
    loudness = np.sqrt((padded.reshape(frames, -1).astype(np.float64) ** 2).mean(1))
    if softer is not None:
        loudness *= softer
    gate = SpeechGate()
    values = [value for rms in loudness for value in gate.push(float(rms))]
    return np.array(values + gate.finish(), np.float32)


def rest_share(audio: np.ndarray) -> float:
    """Share of the frames of 16 kHz samples ``[N]`` through which a ``GenerationSession`` keeps the lips at rest."""
    sound, gate, audio = LiveSound(), SpeechGate(), raise_quiet(audio)
    _, loudness, _ = sound.push(np.pad(audio, (0, -len(audio) % SAMPLES_PER_FRAME)), last=True)
    values = [value for rms in loudness for value in gate.push(rms)] + gate.finish()
    return sum(value == 0 for value in values) / max(1, len(values))
