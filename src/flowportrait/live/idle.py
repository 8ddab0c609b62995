"""How the face moves while it does not speak: a little, always differently, with closed lips.

    head, brows   filtered noise with time constants of 0.8 and 4 s, so that no movement ever repeats
    breath        the head rises and falls a little, 14 times a minute on average, each breath of another length
    gaze          small jumps at random times
    lids          blinks at random times, 3.5 s apart on average and 2 s at least
    lips          at rest: zero motion of the lower face is this face with closed lips

A face that listens moves its head half as much, looks straight ahead, and blinks and nods at pauses of the other voice
(``pipelines/turns.py`` has the sources). All of it depends on the seed and on the number of the frame.
"""

from __future__ import annotations

import math

import numpy as np

from flowportrait.media.audio import SAMPLES_PER_FRAME
from flowportrait.media.video import FPS
from flowportrait.models.speech_stream import LevelledSound, SpeechGate
from flowportrait.pipelines.turns import BLINK_LIDS, BLINK_SECONDS, NOD_SHARE, nod_pitch
from flowportrait.rendering.motion_basis import BLINK, BROWS, GAZE, HEAD, MOTION_DIM

_TIME_CONSTANTS = np.array([[0.8], [4.0]])
"""Seconds of the quick and the slow part of the noise."""
_HEAD_AND_BROWS = [*range(BROWS.start, BROWS.stop), *range(HEAD.start, HEAD.stop)]
_AMPLITUDES = np.array([[0.06] * 4 + [0.12] * 6, [0.12] * 4 + [0.35] * 6])
"""Standard deviations of the quick and the slow part, for brows and head, in those of people who speak."""
_SHIFT_DOWN = HEAD.start + 4
"""The coefficient of the head's shift down."""
_SECONDS_BETWEEN_GLANCES, _GLANCE = 2.0, 0.35
"""Mean time between jumps of the gaze, and their standard deviation in that of people who speak."""
_SACCADE = 0.6
"""Share of the way to its new target that the gaze moves in a frame."""
_BREATH_SECONDS = (3.4, 5.2)
"""Shortest and longest duration of a breath at rest (12 to 18 a minute)."""
_BREATH_RISE, _BREATH_PITCH = -0.2, -0.08
"""Standard deviations by which the head is shifted (down is positive) and pitched at the top of a breath."""
_INHALED = 0.4
"""Share of a breath that is breathing in."""
_ATTENTION_FRAMES = 9
"""Frames in which attention rises and falls."""


class IdleMotion:
    """The motion of a face that does not speak, frame by frame."""

    def __init__(self, seed: int = 0) -> None:
        # One generator for each part, so that a nod or an early blink does not change the other movements.
        self._head_rng, self._gaze_rng, self._blink_rng, self._nod_rng, self._breath_rng = (
            np.random.default_rng([seed % 2**32, part]) for part in range(5)
        )
        pole = np.exp(-1 / (FPS * _TIME_CONSTANTS))
        self._step = 1 - pole
        # The standard deviation of white noise after two of these filters.
        deviation = self._step**2 * np.sqrt((1 + pole**2) / (1 - pole**2) ** 3)
        self._gain = _AMPLITUDES / deviation
        self._first = np.zeros_like(_AMPLITUDES)
        self._second = np.zeros_like(_AMPLITUDES)
        self._gaze, self._gaze_target, self._next_glance = np.zeros(2), np.zeros(2), 0
        self._lids, self._nod = np.zeros(0), np.zeros(0)
        self._breath, self._breath_step = 0.0, 1 / (FPS * _BREATH_SECONDS[1])
        self._frame, self._attention = 0, 0.0
        self._last_blink, self._next_blink = 0, self._blink_interval()

    def next(self, listening: bool = False, pause: bool = False) -> np.ndarray:
        """Return the motion ``[30]`` of the next frame.

        Args:
            listening: whether somebody else speaks.
            pause: whether a pause of the other voice begins at this frame.
        """
        change = 1 / _ATTENTION_FRAMES if listening else -1 / _ATTENTION_FRAMES
        self._attention = min(1.0, max(0.0, self._attention + change))
        motion = np.zeros(MOTION_DIM, np.float32)
        self._first += self._step * (self._head_rng.standard_normal(_AMPLITUDES.shape) - self._first)
        self._second += self._step * (self._first - self._second)
        motion[_HEAD_AND_BROWS] = (self._gain * self._second).sum(0)
        motion[HEAD] *= 1 - 0.5 * self._attention
        motion[GAZE] = self._move_gaze() * (1 - self._attention)
        if pause and not len(self._nod) and self._nod_rng.random() < NOD_SHARE:
            self._nod = nod_pitch().numpy()
        if len(self._nod):
            motion[HEAD.start] += self._nod[0]
            self._nod = self._nod[1:]
        breath = self._breathe()
        motion[HEAD.start] += _BREATH_PITCH * breath
        motion[_SHIFT_DOWN] += _BREATH_RISE * breath
        motion[BLINK] = self._move_lids(pause)
        self._frame += 1
        return motion

    def _breathe(self) -> float:
        """Return how far the chest is raised at this frame, from 0 to 1."""
        self._breath += self._breath_step
        if self._breath >= 1:
            self._breath -= 1
            self._breath_step = 1 / (FPS * self._breath_rng.uniform(*_BREATH_SECONDS))
        share = self._breath / _INHALED if self._breath < _INHALED else (1 - self._breath) / (1 - _INHALED)
        return 0.5 - 0.5 * math.cos(math.pi * share)

    def _move_gaze(self) -> np.ndarray:
        if self._frame >= self._next_glance:
            self._gaze_target = self._gaze_rng.normal(0, _GLANCE, 2)
            self._next_glance = self._frame + round(FPS * (0.3 + self._gaze_rng.exponential(_SECONDS_BETWEEN_GLANCES)))
        self._gaze = self._gaze + _SACCADE * (self._gaze_target - self._gaze)
        return self._gaze

    def _move_lids(self, pause: bool) -> float:
        rested = self._frame - self._last_blink >= FPS * BLINK_SECONDS[0] / 2
        if self._frame >= self._next_blink or (pause and rested):
            self._lids, self._last_blink = BLINK_LIDS.numpy(), self._frame
            self._next_blink = self._frame + self._blink_interval()
        closure, self._lids = (float(self._lids[0]), self._lids[1:]) if len(self._lids) else (0.0, self._lids)
        return closure

    def _blink_interval(self) -> int:
        shortest, mean = BLINK_SECONDS[0], sum(BLINK_SECONDS) / 2
        return round(FPS * (shortest + self._blink_rng.exponential(mean - shortest)))


_LONGEST_WAIT = 25
"""Frames of the other voice that wait at most; older ones are forgotten."""
_LATE_FRAMES = 8
"""Frames for which the other voice may be late without a pause."""
_HOLD_FRAMES = 2 * FPS
"""Frames after the other voice in which the face still listens."""


class OtherVoice:
    """Finds speech and pauses in the voice of the other side."""

    def __init__(self) -> None:
        self._sound, self._gate = LevelledSound(), SpeechGate()
        self._gates: list[float] = []
        self._spoken, self._quiet, self._missing = False, _HOLD_FRAMES, 0

    def push(self, samples: np.ndarray) -> None:
        """Take samples ``[n]`` float32 at 16 kHz; of more than a second, the last second counts."""
        _, loudness, _ = self._sound.push(samples[-_LONGEST_WAIT * SAMPLES_PER_FRAME :])
        for rms in loudness:
            self._gates += self._gate.push(rms)
        self._gates = self._gates[-_LONGEST_WAIT:]

    def next(self) -> tuple[bool, bool]:
        """Return whether the face listens at the next frame, and whether a pause of the other voice begins there."""
        # Packets may be late: speech is over only if nothing arrives for a while.
        self._missing = 0 if self._gates else self._missing + 1
        spoken = self._gates.pop(0) > 0 if self._gates else self._spoken and self._missing < _LATE_FRAMES
        pause, self._spoken = self._spoken and not spoken, spoken
        self._quiet = 0 if spoken else min(self._quiet + 1, _HOLD_FRAMES)
        return self._quiet < _HOLD_FRAMES, pause
