"""Speech that still comes in, as features, level and silence.

    samples ─► frames of 40 ms ─► common loudness ─► log-mel ─► noise removal ─► front-end features ─► encoded chunks
                                        └──────────► loudness per frame ─► speech gate

Frames are levelled by the sound up to their end (``gain="running"``, the last ten seconds; the first seven frames,
a chunk and its look-ahead, share one gain), or by the whole recording (``gain="whole"``), which is then processed at
its end. The pieces' lengths change nothing but the last bits of matrix products.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F

from flowportrait.media.mel import (
    HOP,
    MELS_PER_FRAME,
    SAMPLES_PER_FRAME,
    frame_count,
    gain,
    level,
    level_gain,
    log_mel,
    raise_quiet,
)
from flowportrait.models.arflow import ARFlow
from flowportrait.models.enhancer import Enhancer, NoiseRemoval
from flowportrait.models.speech_encoder import FeatureStream, SpeechEncoder, StreamingWhisperFeatures, WindowedFeatures

Gain = Literal["running", "whole"]

LOOK_AHEAD_FRAMES = 3
"""Frames of sound after a chunk that it waits for: 120 ms."""
_REACH_FRAMES = 10
"""Frames that the audio encoder looks back."""
_ROOM_FRAMES = 8
"""Frames after the look-ahead that the audio encoder and the gate may already know of a recording."""
PORTION = 128 * SAMPLES_PER_FRAME
"""Samples of a recording that are processed at once."""
FIRST_FRAMES = 7
"""Frames at the beginning that share one gain."""
MEMORY_BLOCKS = 1000
"""Blocks of 10 ms whose loudness the running gain remembers."""
_INCOMPLETE = 1
"""Columns of the last frame whose window reaches past it."""

QUIETEST, LOUDEST = 0.004, 0.012
"""Bounds of the loudness (RMS after levelling; speech has 0.05) below which a frame counts as a pause."""
ATTACK = (1.0, 0.75, 0.4)
"""Gate in a frame of speech, and one and two frames before it: lips open before a sound."""
HOLD, FADE = 6, 3
"""Frames after speech during which the gate stays open, and closes."""
GATE_MEMORY = 250
"""Frames of loudness that the noise floor is estimated from: ten seconds."""


def feature_stream(model: ARFlow, mel: torch.Tensor | None = None, start: int = 0) -> FeatureStream:
    """A stream of the model's front-end features that was given the columns ``mel`` from column ``start`` on."""
    stream: FeatureStream
    if isinstance(model.speech, SpeechEncoder):
        stream = StreamingWhisperFeatures(model.speech, start)
    else:
        stream = WindowedFeatures(model.audio_features, model.config.chunk, start, model.rest_style.device)
    if mel is not None:
        stream.push(mel)
    return stream


class SpeechStream:
    """One voice: 16 kHz samples in, encoded chunks and the gates of their frames out."""

    def __init__(
        self,
        model: ARFlow,
        style: torch.Tensor,
        enhancer: Enhancer | None = None,
        gain: Gain = "running",
    ) -> None:
        """style: ``[19]``, which the lip anchor depends on; enhancer: removes noise."""
        self.model, self.style, self.enhancer, self.gain = model, style, enhancer, gain
        self.sound, self.denoiser, self.gate = LevelledSound(), NoiseRemoval(), SpeechGate()
        self.feature_stream = feature_stream(model)
        self.samples = 0
        self.waiting = np.zeros(0, np.float32)
        """Samples that were not processed yet."""
        self.due = 0
        """How many of them are to be processed."""
        self.gates: list[float] = []
        """Gates of frames that were not drawn yet."""

    @property
    def frames(self) -> int:
        """Frames that the sound so far spans, the last one begun."""
        return -(-self.samples // SAMPLES_PER_FRAME)

    @property
    def complete_chunks(self) -> int:
        """Chunks that the sound so far completes, look-ahead and all."""
        due = self.samples - len(self.waiting) + self.due
        return self._complete(max(self.sound.frames, due // SAMPLES_PER_FRAME))

    def push(self, samples: np.ndarray) -> None:
        """Take 16 kHz samples ``[N]`` float32 in [-1, 1]."""
        self.samples += len(samples)
        self.waiting = np.concatenate([self.waiting, samples.astype(np.float32, copy=False)])
        # Processed when a chunk is complete: called for every frame, the isolator costs two and a half times as much.
        before, now = self.samples - len(self.waiting), self.samples
        complete = self._complete(now // SAMPLES_PER_FRAME) > self._complete(before // SAMPLES_PER_FRAME)
        if complete and self.gain == "running":
            self.due = len(self.waiting)

    def finish(self) -> None:
        """The sound is over: process what is left, with silence after it."""
        chunk = self.model.config.chunk
        if self.gain == "whole":
            self.sound.fixed_gain = level_gain(self.waiting)
        wanted = -(-self.frames // chunk) * chunk + LOOK_AHEAD_FRAMES
        self._process(np.pad(self.waiting, (0, wanted * SAMPLES_PER_FRAME - self.samples)), last=True)
        self.waiting, self.due = self.waiting[:0], 0
        self.gates += self.gate.finish()

    def encode(self, first: int, last: int) -> torch.Tensor:
        """Encoded sound of chunks ``first`` to ``last`` ``[1, n, ·]``, from no more past than reaches them."""
        chunk = self.model.config.chunk
        self.process_until(last * chunk + LOOK_AHEAD_FRAMES + _ROOM_FRAMES)
        begin = max(0, first - -(-_REACH_FRAMES // chunk))
        features = self.feature_stream.features(begin * chunk, last * chunk + LOOK_AHEAD_FRAMES)
        whole = F.pad(features, (0, 0, 0, -features.shape[1] % chunk))
        condition = self.model.condition_from_features(whole, self.style[None])
        return condition.audio[:, first - begin : last - begin]

    def process_until(self, frames: float = math.inf) -> None:
        """Process what is due until so many frames are known: a long recording portion by portion, so that its first
        frames come soon and memory stays flat. No portion is so short that matrix products take another path, which
        would change the last bits."""
        while self.due and self.sound.frames < frames:
            count = PORTION if self.due >= 2 * PORTION else self.due
            self._process(self.waiting[:count])
            self.waiting, self.due = self.waiting[count:], self.due - count
            if not self.due:
                self.denoiser.settle()

    def next_gates(self) -> list[float]:
        """The gates of the next chunk's frames, each returned once."""
        chunk = self.model.config.chunk
        gates, self.gates = self.gates[:chunk], self.gates[chunk:]
        return gates

    def state(self) -> dict[str, Any]:
        """Where the stream stands."""
        return {
            "gain": self.gain, "samples": self.samples, "waiting": self.waiting, "due": self.due, "gates": self.gates,
            "mel": self.feature_stream.mel, "mel_start": self.feature_stream.start,
            "sound": vars(self.sound), "denoiser": vars(self.denoiser), "gate": vars(self.gate),
        }  # fmt: skip

    def restore(self, state: dict[str, Any]) -> None:
        """Go on where another stream stood."""
        for name in ("gain", "samples", "waiting", "due", "gates"):
            setattr(self, name, state[name])
        self.feature_stream = feature_stream(self.model, state["mel"], state["mel_start"])
        for part in ("sound", "denoiser", "gate"):
            vars(getattr(self, part)).update(state[part])

    def _complete(self, frames: int) -> int:
        """Chunks that the sound of so many frames completes."""
        return (frames - LOOK_AHEAD_FRAMES) // self.model.config.chunk

    @torch.no_grad()
    def _process(self, samples: np.ndarray, last: bool = False) -> None:
        columns, loudness, levelled = self.sound.push(samples, last)
        if self.enhancer is not None:
            columns, factors = self.denoiser(self.enhancer, columns, levelled)
            loudness = [rms * factor for rms, factor in zip(loudness, factors, strict=True)]
        self.feature_stream.push(columns)
        for rms in loudness:
            self.gates += self.gate.push(rms)


@dataclass
class LevelledSound:
    """Sound at speech's common loudness and its log-mel; the fields are its state."""

    pending: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))
    """Samples of a frame under way, or of the first frames."""
    power: np.ndarray = field(default_factory=lambda: np.zeros(0))
    """Mean power of 10 ms blocks of the last ten seconds."""
    gain: float = 0.0
    """The gain at the end of the last frame."""
    frames: int = 0
    """Frames levelled."""
    tail: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))
    """Levelled samples of the last two frames."""
    fixed_gain: float | None = None
    """One gain for all of the sound, where that is known."""

    def push(self, samples: np.ndarray, last: bool = False) -> tuple[torch.Tensor, list[float], np.ndarray]:
        """Take 16 kHz samples ``[N]``; returns the new log-mel columns ``[C, 80]``, and the loudness and levelled
        samples ``[640 F]`` of new frames.

        After F frames, 4 F − 1 columns are known. ``last`` releases the first frames even if they are fewer than
        seven.
        """
        waiting = np.concatenate([self.pending, samples.astype(np.float32, copy=False)])
        count = len(waiting) // SAMPLES_PER_FRAME
        if self.frames == 0 and count < FIRST_FRAMES and not last:
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
        """Frames ``[F, 640]`` at speech's common loudness; within a frame the running gain moves linearly."""
        if self.fixed_gain is not None:
            return (frames * self.fixed_gain).clip(-1.0, 1.0).astype(np.float32)
        blocks = (frames.astype(np.float64).reshape(len(frames), -1, HOP) ** 2).mean(2)
        result = np.empty_like(frames)
        first = 0
        if self.frames == 0:
            first = min(FIRST_FRAMES, len(frames))
            self._remember(blocks[:first].ravel())
            self.gain = gain(self.power)
            result[:first] = frames[:first] * self.gain
        ramp = np.arange(1, SAMPLES_PER_FRAME + 1) / SAMPLES_PER_FRAME
        for index in range(first, len(frames)):
            self._remember(blocks[index])
            wanted = gain(self.power)
            result[index] = frames[index] * (self.gain + (wanted - self.gain) * ramp)
            self.gain = wanted
        return result.clip(-1.0, 1.0)

    def _remember(self, power: np.ndarray) -> None:
        self.power = np.concatenate([self.power, power])[-MEMORY_BLOCKS:]


@dataclass
class SpeechGate:
    """How far the lips may move, frame by frame: 1 in speech, 0 from a quarter of a second after it.

    Training footage hardly holds silence, so the generator cannot learn it, and a mouth that mumbles on in a pause is
    among the first things people notice. Zero motion of the lower face is this face with closed lips. The gate looks
    two frames ahead and never back further than ten seconds, so that it works on live sound. The fields are its state.
    """

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
        self.loudness = [*self.loudness[1 - GATE_MEMORY :], rms]
        # The threshold follows the noise floor: twice the loudness that a tenth of the frames stays under.
        threshold = np.clip(2 * np.quantile(self.loudness, 0.1), QUIETEST, LOUDEST)
        self.speech.append(bool(rms > threshold))
        return [self._next()] if len(self.speech) == len(ATTACK) else []

    def finish(self) -> list[float]:
        """The gates of the last frames; nothing is spoken after them."""
        return [self._next() for _ in range(len(self.speech))]

    def _next(self) -> float:
        opening = max(share * spoken for share, spoken in zip(ATTACK, self.speech, strict=False))
        self.quiet = 0 if self.speech.pop(0) else self.quiet + 1
        closing = 1 - (self.quiet - HOLD) / FADE
        return float(max(opening, min(1.0, max(0.0, closing))))


def speech_gate(audio: np.ndarray) -> np.ndarray:
    """Gate ``[T]`` float32 in [0, 1] for 16 kHz samples ``[N]``, T = ``frame_count(audio)``."""
    frames = frame_count(audio)
    padded = np.zeros(frames * SAMPLES_PER_FRAME, np.float32)
    padded[: len(audio)] = level(audio)
    loudness = np.sqrt((padded.reshape(frames, -1).astype(np.float64) ** 2).mean(1))
    gate = SpeechGate()
    values = [value for rms in loudness for value in gate.push(float(rms))]
    return np.array(values + gate.finish(), np.float32)


def closed_lips_share(audio: np.ndarray) -> float:
    """Share of the frames of 16 kHz samples ``[N]`` in which a ``Sampler`` keeps the lips closed."""
    sound, gate, audio = LevelledSound(), SpeechGate(), raise_quiet(audio)
    _, loudness, _ = sound.push(np.pad(audio, (0, -len(audio) % SAMPLES_PER_FRAME)), last=True)
    values = [value for rms in loudness for value in gate.push(rms)] + gate.finish()
    return sum(value == 0 for value in values) / max(1, len(values))
