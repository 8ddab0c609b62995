"""How a face prepares to speak: when an utterance arrives its lips part and it breathes in, as people do.

    begin(number) ─► lips part, the head rises ─► held ─► release(): the voice begins, the generated motion takes over
                                                     └──► relax(): nobody speaks, the face goes back to rest

The generator needs 280 ms of speech before it can move the lips, and speech from a microphone takes 400 ms to arrive.
People move before their voice as well. At 54 onsets after a pause, of six people of the training footage, the lips had
parted by 0.032 distances of the outer eye corners (quartiles 0.017 and 0.058) between 480 and 160 ms before the voice,
in steps of up to 0.021 a frame (0.012 and 0.035). The head rose by 0.3 of its standard deviations (0.14 and 1.0) and
pitched up by 0.6 (0.19 and 1.05): ``tools/measure_speech_preparation.py``. The movement here stays within these
quartiles, and is another one for each utterance.
"""

from __future__ import annotations

import numpy as np

from flowportrait.rendering.motion_basis import HEAD, LOWER_FACE, MOTION_DIM

_LIPS = np.array([
    -26.3, 3.8, -10.6, 5.1, 14.7, 10.9, -5.4, -9.3, 14.9, 8.9, -14.3, -10.0, 7.7, 0.3, -18.3, -7.1,
])  # fmt: skip
"""Lower face of lips that part before speech, for an opening of one distance of the outer eye corners: regression over
the measured onsets."""
_OPENINGS = (0.032, 0.055)
"""Smallest and largest opening: from the median of people to their upper quartile, so that it is seen at once."""
_RISES, _PITCHES = (0.2, 0.6), (0.3, 0.9)
"""Smallest and largest rise and pitch of the head, in standard deviations."""
_PART_SHARE = 0.6
"""Share of the way that the lips move in a frame: 0.019 to 0.033 eye distances in the first."""
_INHALE_SHARE = 0.25
"""The same of the head, twice in a row: it begins slowly."""
_RELEASE_SHARE, _RELAX_SHARE = 0.5, 0.3
"""Shares in a frame of the way back, where the voice begins, and where nobody speaks."""
_CLOSED = 0.02
"""Share of the opening that nobody sees: below it the way back is over."""
_SHIFT_DOWN = HEAD.start + 4


class SpeechPreparation:
    """The preparatory movement of one face, frame by frame; its arrays are never changed in place."""

    def __init__(self, seed: int = 0) -> None:
        self._seed, self._number = seed % 2**32, -1
        self._lips, self._head = np.zeros(MOTION_DIM), np.zeros(MOTION_DIM)
        """Movement when the lips have parted and the breath is taken."""
        self._parted = self._inhaling = self._inhaled = self._aim = 0.0
        self._back = _RELAX_SHARE

    def begin(self, number: int) -> None:
        """Begin to prepare for the utterance of this number, of which the movement depends."""
        if number == self._number:
            return
        self._number, self._aim = number, 1.0
        rng = np.random.default_rng([self._seed, number, 5])
        self._lips, self._head = np.zeros(MOTION_DIM), np.zeros(MOTION_DIM)
        self._lips[LOWER_FACE] = rng.uniform(*_OPENINGS) * _LIPS
        self._head[HEAD.start], self._head[_SHIFT_DOWN] = -rng.uniform(*_PITCHES), -rng.uniform(*_RISES)

    def release(self) -> None:
        """Let the generated motion take over: the voice begins."""
        self._aim, self._back = 0.0, _RELEASE_SHARE

    def relax(self) -> None:
        """Go back to rest: nobody speaks."""
        self._aim, self._back = 0.0, _RELAX_SHARE

    def next(self) -> np.ndarray:
        """Return the movement ``[30]`` of the next frame, which is added to that of the face."""
        lips, head = (_PART_SHARE, _INHALE_SHARE) if self._aim else (self._back, self._back)
        self._parted += lips * (self._aim - self._parted)
        self._inhaling += head * (self._aim - self._inhaling)
        self._inhaled += head * (self._inhaling - self._inhaled)
        if not self._aim and self._parted < _CLOSED:
            self._parted = 0.0
        return (self._parted * self._lips + self._inhaled * self._head).astype(np.float32)
