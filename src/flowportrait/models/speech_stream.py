"""A stream of speech as encoded chunks and as the gates of silence.

    samples ─► frames of 40 ms ─► common loudness ─► log-mel ─► noise removal ─► front-end features ─► encoded chunks
                                        └──────────► loudness per frame ─► speech gate

Frames are levelled by the sound up to their end (``gain="running"``, the last ten seconds; the first seven frames,
a chunk and its look-ahead, share one gain), or by the whole recording (``gain="whole"``), which is then processed at
its end. The lengths of the pushed pieces change nothing but the last bits of matrix products.

The parts in order: ``SpeechStream``; ``LevelledSound``, its loudness; ``SpeechGate``, its silence.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F

from flowportrait.media.audio import SAMPLES_PER_FRAME
from flowportrait.media.mel import (
    HOP_LENGTH,
    MELS_PER_FRAME,
    frame_count,
    log_mel,
    loudness_gain,
    loudness_gain_from_power,
    normalize_loudness,
    normalize_quiet_recording,
)
from flowportrait.models.arflow import ARFlow
from flowportrait.models.enhancer import Enhancer, NoiseRemoval
from flowportrait.models.prosody_motion import VoiceFollower
from flowportrait.models.speech_encoder import FeatureStream, SpeechEncoder, StreamingWhisperFeatures, WindowedFeatures

Gain = Literal["running", "whole"]

# --- The stream --------------------------------------------------------------------------------------------------

LOOK_AHEAD_FRAMES = 3
"""Frames of sound after a chunk that must arrive before it is drawn: 120 ms."""
_CONTEXT_FRAMES = 10
"""Frames that the audio encoder looks back."""
_EXTRA_FRAMES = 8
"""Frames of a recording after the look-ahead that may be processed with a chunk."""
PORTION_SAMPLES = 128 * SAMPLES_PER_FRAME
"""Samples of a recording that are processed at once."""


def feature_stream(model: ARFlow, mel: torch.Tensor | None = None, start: int = 0) -> FeatureStream:
    """Return a stream of the model's front-end features.

    Args:
        model: the generator.
        mel: log-mel columns ``[C, 80]`` to push first, to continue another stream.
        start: position of the first of them.
    """
    stream: FeatureStream
    if isinstance(model.speech, SpeechEncoder):
        stream = StreamingWhisperFeatures(model.speech, start)
    else:
        stream = WindowedFeatures(model.audio_features, model.config.chunk, start, model.rest_style.device)
    if mel is not None:
        stream.push(mel)
    return stream


class SpeechStream:
    """A stream of speech: it takes 16 kHz samples and returns encoded chunks and the gates of their frames."""

    def __init__(
        self,
        model: ARFlow,
        style: torch.Tensor,
        enhancer: Enhancer | None = None,
        gain: Gain = "running",
        follower: VoiceFollower | None = None,
    ) -> None:
        """Prepare a stream.

        Args:
            model: the generator.
            style: speaking style ``[19]``, on which the predicted lips depend.
            enhancer: removes noise.
            gain: ``running`` to level the loudness by the sound so far, ``whole`` by the whole recording.
            follower: makes the motion follow the voice.
        """
        self.model, self.style, self.enhancer, self.gain, self.follower = model, style, enhancer, gain, follower
        self.sound, self.denoiser, self.gate = LevelledSound(), NoiseRemoval(), SpeechGate()
        self.feature_stream = feature_stream(model)
        self.samples = 0
        self.waiting = np.zeros(0, np.float32)
        """Samples that were not processed yet."""
        self.due = 0
        """Number of waiting samples that may be processed."""
        self.gates: list[float] = []
        """Gates of frames that were not drawn yet."""

    @property
    def frames(self) -> int:
        """Number of frames of the sound so far, including an incomplete last one."""
        return -(-self.samples // SAMPLES_PER_FRAME)

    @property
    def complete_chunks(self) -> int:
        """Number of chunks for which the sound so far suffices, including the look-ahead."""
        due = self.samples - len(self.waiting) + self.due
        return self._complete(max(self.sound.frames, due // SAMPLES_PER_FRAME))

    def push(self, samples: np.ndarray) -> None:
        """Take 16 kHz samples ``[N]`` float32 in [-1, 1]."""
        self.samples += len(samples)
        self.waiting = np.concatenate([self.waiting, samples.astype(np.float32, copy=False)])
        # Processed once per chunk: called for every frame, the isolator would cost two and a half times as much.
        before, now = self.samples - len(self.waiting), self.samples
        complete = self._complete(now // SAMPLES_PER_FRAME) > self._complete(before // SAMPLES_PER_FRAME)
        if complete and self.gain == "running":
            self.due = len(self.waiting)

    def finish(self) -> None:
        """Process the remaining samples at the end of the sound, with silence after them."""
        chunk = self.model.config.chunk
        if self.gain == "whole":
            self.sound.fixed_gain = loudness_gain(self.waiting)
        padded_frames = -(-self.frames // chunk) * chunk + LOOK_AHEAD_FRAMES
        self._process(np.pad(self.waiting, (0, padded_frames * SAMPLES_PER_FRAME - self.samples)), last=True)
        self.waiting, self.due = self.waiting[:0], 0
        self.gates += self.gate.finish()

    def encode(self, first: int, last: int) -> torch.Tensor:
        """Return the encoded sound ``[1, n, ·]`` of chunks ``first`` to ``last``.

        It is computed from only as much of the past as it depends on.
        """
        chunk = self.model.config.chunk
        self.process_until(last * chunk + LOOK_AHEAD_FRAMES + _EXTRA_FRAMES)
        begin = max(0, first - -(-_CONTEXT_FRAMES // chunk))
        features = self.feature_stream.features(begin * chunk, last * chunk + LOOK_AHEAD_FRAMES)
        whole = F.pad(features, (0, 0, 0, -features.shape[1] % chunk))
        condition = self.model.condition_from_features(whole, self.style[None])
        return condition.audio[:, first - begin : last - begin]

    def process_until(self, frames: float = math.inf) -> None:
        """Process due samples until ``frames`` frames are known.

        A long recording is processed in portions, so that its first frames come soon and memory stays constant. No
        portion is so short that matrix products use another algorithm, which would change the last bits.
        """
        while self.due and self.sound.frames < frames:
            count = PORTION_SAMPLES if self.due >= 2 * PORTION_SAMPLES else self.due
            self._process(self.waiting[:count])
            self.waiting, self.due = self.waiting[count:], self.due - count
            if not self.due:
                self.denoiser.settle()

    def next_gates(self) -> list[float]:
        """Return the gates of the frames of the next chunk; each is returned once."""
        chunk = self.model.config.chunk
        gates, self.gates = self.gates[:chunk], self.gates[chunk:]
        return gates

    def follow(self, motion: torch.Tensor) -> torch.Tensor:
        """Return the motion ``[chunk, 30]`` of the next chunk as the voice wants it; each is passed once."""
        return motion if self.follower is None else self.follower(motion)

    def state(self) -> dict[str, Any]:
        """Return the state of the stream."""
        return {
            "gain": self.gain, "samples": self.samples, "waiting": self.waiting, "due": self.due, "gates": self.gates,
            "mel": self.feature_stream.mel, "mel_start": self.feature_stream.start,
            "sound": vars(self.sound), "denoiser": vars(self.denoiser), "gate": vars(self.gate),
            "follower": self.follower and self.follower.state(),
        }  # fmt: skip

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from what ``state`` returned."""
        for name in ("gain", "samples", "waiting", "due", "gates"):
            setattr(self, name, state[name])
        self.feature_stream = feature_stream(self.model, state["mel"], state["mel_start"])
        for part in ("sound", "denoiser", "gate"):
            vars(getattr(self, part)).update(state[part])
        # States of before the motion followed the voice have none.
        self.follower = None
        if state.get("follower"):
            self.follower = VoiceFollower()
            self.follower.restore(state["follower"])

    def _complete(self, frames: int) -> int:
        """Return the number of chunks that a number of frames completes."""
        return (frames - LOOK_AHEAD_FRAMES) // self.model.config.chunk

    @torch.no_grad()
    def _process(self, samples: np.ndarray, last: bool = False) -> None:
        columns, loudness, levelled = self.sound.push(samples, last)
        if self.follower is not None:
            self.follower.push(levelled)
        if self.enhancer is not None:
            columns, factors = self.denoiser(self.enhancer, columns, levelled)
            loudness = [rms * factor for rms, factor in zip(loudness, factors, strict=True)]
        self.feature_stream.push(columns)
        for rms in loudness:
            self.gates += self.gate.push(rms)


# --- Loudness ----------------------------------------------------------------------------------------------------

INITIAL_FRAMES = 7
"""Frames at the beginning that share one gain."""
GAIN_BLOCKS = 1000
"""Blocks of 10 ms from whose loudness the running gain is computed."""
_INCOMPLETE = 1
"""Columns of the last frame whose window reaches past the frame."""


@dataclass
class LevelledSound:
    """Levels sound to the common loudness of speech and computes its log-mel; the fields are its state."""

    pending: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))
    """Samples of an incomplete frame, or of the first frames."""
    power: np.ndarray = field(default_factory=lambda: np.zeros(0))
    """Mean power of 10 ms blocks of the last ten seconds."""
    gain: float = 0.0
    """The gain at the end of the last frame."""
    frames: int = 0
    """Number of levelled frames."""
    tail: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))
    """Levelled samples of the last two frames."""
    fixed_gain: float | None = None
    """One gain for all of the sound, if it is known."""

    def push(self, samples: np.ndarray, last: bool = False) -> tuple[torch.Tensor, list[float], np.ndarray]:
        """Level the next samples.

        Args:
            samples: 16 kHz samples ``[N]``.
            last: whether the sound ends here; the first frames are then returned even if there are fewer than seven.

        Returns:
            New log-mel columns ``[C, 80]`` (after F frames, 4 F − 1 columns are known), and the loudness and the
            levelled samples ``[640 F]`` of new frames.
        """
        waiting = np.concatenate([self.pending, samples.astype(np.float32, copy=False)])
        count = len(waiting) // SAMPLES_PER_FRAME
        if self.frames == 0 and count < INITIAL_FRAMES and not last:
            self.pending = waiting
            return torch.zeros(0, 80), [], waiting[:0]
        self.pending = waiting[count * SAMPLES_PER_FRAME :]
        if count == 0:
            return torch.zeros(0, 80), [], waiting[:0]
        levelled = self._level(waiting[: count * SAMPLES_PER_FRAME].reshape(count, SAMPLES_PER_FRAME))
        before = len(self.tail) // SAMPLES_PER_FRAME
        sound = np.concatenate([self.tail, levelled.ravel()])
        known = max(0, self.frames * MELS_PER_FRAME - _INCOMPLETE)
        start = (self.frames - before) * MELS_PER_FRAME
        self.frames += count
        columns = log_mel(sound)[known - start : (self.frames * MELS_PER_FRAME - _INCOMPLETE) - start]
        self.tail = sound[-2 * SAMPLES_PER_FRAME :]
        loudness = np.sqrt((levelled.astype(np.float64) ** 2).mean(1))
        return columns, loudness.tolist(), levelled.ravel()

    def _level(self, frames: np.ndarray) -> np.ndarray:
        """Level frames ``[F, 640]`` to the common loudness of speech; the running gain is linear within a frame."""
        if self.fixed_gain is not None:
            return (frames * self.fixed_gain).clip(-1.0, 1.0).astype(np.float32)
        blocks = (frames.astype(np.float64).reshape(len(frames), -1, HOP_LENGTH) ** 2).mean(2)
        result = np.empty_like(frames)
        first = 0
        if self.frames == 0:
            first = min(INITIAL_FRAMES, len(frames))
            self._remember(blocks[:first].ravel())
            self.gain = loudness_gain_from_power(self.power)
            result[:first] = frames[:first] * self.gain
        ramp = np.arange(1, SAMPLES_PER_FRAME + 1) / SAMPLES_PER_FRAME
        for index in range(first, len(frames)):
            self._remember(blocks[index])
            next_gain = loudness_gain_from_power(self.power)
            result[index] = frames[index] * (self.gain + (next_gain - self.gain) * ramp)
            self.gain = next_gain
        return result.clip(-1.0, 1.0)

    def _remember(self, power: np.ndarray) -> None:
        self.power = np.concatenate([self.power, power])[-GAIN_BLOCKS:]


# --- Silence -----------------------------------------------------------------------------------------------------

MIN_THRESHOLD, MAX_THRESHOLD = 0.004, 0.012
"""Bounds of the loudness (RMS after levelling; speech has 0.05) below which a frame counts as a pause."""
OPENING_GATES = (1.0, 0.75, 0.4)
"""Gate in a frame of speech, and one and two frames before it: lips open before a sound."""
HOLD_FRAMES, FADE_FRAMES = 6, 3
"""Frames after speech during which the gate stays open, and then closes."""
NOISE_FLOOR_FRAMES = 250
"""Frames of loudness from which the noise floor is estimated: ten seconds."""


@dataclass
class SpeechGate:
    """The factor of lip motion at each frame: 1 in speech, 0 from a quarter of a second after it.

    Training footage contains almost no silence, so that the generator cannot learn it, and lips that go on moving in a
    pause are among the first things people notice. Zero motion of the lower face is this face with closed lips. The
    gate looks two frames ahead and at most ten seconds back, so that it works on live sound. The fields are its state.
    """

    loudness: list[float] = field(default_factory=list)
    """Loudness of the frames of the last ten seconds."""
    speech: list[bool] = field(default_factory=list)
    """Whether there is speech in each frame whose gate was not returned yet."""
    quiet: int = HOLD_FRAMES + FADE_FRAMES
    """Frames since the last speech."""

    @property
    def waiting(self) -> int:
        """Number of pushed frames whose gate was not returned yet."""
        return len(self.speech)

    def push(self, rms: float) -> list[float]:
        """Take the loudness of a frame, and return the gates that are known now (that of the frame two before)."""
        self.loudness = [*self.loudness[1 - NOISE_FLOOR_FRAMES :], rms]
        # The threshold follows the noise floor: twice the loudness that a tenth of the frames stays under.
        threshold = min(max(2 * _tenth(self.loudness), MIN_THRESHOLD), MAX_THRESHOLD)
        self.speech.append(bool(rms > threshold))
        return [self._next()] if len(self.speech) == len(OPENING_GATES) else []

    def finish(self) -> list[float]:
        """Return the gates of the last frames, with silence after them."""
        return [self._next() for _ in range(len(self.speech))]

    def _next(self) -> float:
        opening = max(share * spoken for share, spoken in zip(OPENING_GATES, self.speech, strict=False))
        self.quiet = 0 if self.speech.pop(0) else self.quiet + 1
        closing = 1 - (self.quiet - HOLD_FRAMES) / FADE_FRAMES
        return float(max(opening, min(1.0, max(0.0, closing))))


def _tenth(values: list[float]) -> float:
    """Return the number that a tenth of ``values`` is below: ``np.quantile(values, 0.1)``, in a tenth of the time."""
    ordered, place = sorted(values), 0.1 * (len(values) - 1)
    first = int(place)
    low, high, share = ordered[first], ordered[min(first + 1, len(values) - 1)], place - first
    # As NumPy rounds: from the nearer of the two.
    return low + (high - low) * share if share < 0.5 else high - (high - low) * (1 - share)


def speech_gate(audio: np.ndarray) -> np.ndarray:
    """Return the gates ``[T]`` float32 in [0, 1] of a recording ``[N]`` at 16 kHz, T = ``frame_count(audio)``."""
    frames = frame_count(audio)
    padded = np.zeros(frames * SAMPLES_PER_FRAME, np.float32)
    padded[: len(audio)] = normalize_loudness(audio)
    loudness = np.sqrt((padded.reshape(frames, -1).astype(np.float64) ** 2).mean(1))
    gate = SpeechGate()
    values = [value for rms in loudness for value in gate.push(float(rms))]
    return np.array(values + gate.finish(), np.float32)


def closed_lips_share(audio: np.ndarray) -> float:
    """Return the share of the frames of 16 kHz samples ``[N]`` in which a ``Sampler`` keeps the lips closed."""
    sound, gate, audio = LevelledSound(), SpeechGate(), normalize_quiet_recording(audio)
    _, loudness, _ = sound.push(np.pad(audio, (0, -len(audio) % SAMPLES_PER_FRAME)), last=True)
    values = [value for rms in loudness for value in gate.push(rms)] + gate.finish()
    return sum(value == 0 for value in values) / max(1, len(values))
