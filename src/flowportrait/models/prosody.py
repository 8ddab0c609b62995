"""Prosody of speech that still comes in: loudness, pitch, voicing and spectral balance, by video frame and over time.

    levelled samples ─► columns of 10 ms ─► frames of 40 ms, relative to the last ten seconds  ─► accents of the moment
                                       └──► windows of 1.2 s ─► their mean so far              ─► manner of speaking

Nothing here depends on the gain of the recording: loudness is relative to the loud parts of the sound so far, pitch to
its median. A frame is known when the frame after it has arrived, so that it fits into the look-ahead of the generator.

The parts in order: columns; ``ProsodyTracker``, which makes frames and windows of them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np

from flowportrait.media.audio import SAMPLE_RATE, SAMPLES_PER_FRAME
from flowportrait.media.mel import HOP_LENGTH, MELS_PER_FRAME

# --- Columns ---------------------------------------------------------------------------------------------------------
#
#     loudness   power of 50–7600 Hz, in dB
#     pitch      semitones above 100 Hz, of the largest peak of the autocorrelation between 65 and 450 Hz
#     voicing    height of that peak, from 0 (noise) to 1 (a periodic sound)
#     tilt       power of 1–4 kHz over that below, in dB: the effort of the voice
#     balance    power of 500–1000 Hz over that of 200–500 Hz, in dB: open vowels are high

LOUDNESS, PITCH, VOICING, TILT, BALANCE = range(5)
"""Positions in a column."""
_HALF_WINDOW = 320
_POINTS = 2048
_SHORTEST, _LONGEST = SAMPLE_RATE // 450, SAMPLE_RATE // 65
_BANDS = ((50, 7600), (50, 1000), (1000, 4000), (200, 500), (500, 1000))
_FLOOR = 1e-9


def prosody_columns(samples: np.ndarray) -> np.ndarray:
    """Return the columns ``[C, 5]`` float32 of samples ``[160 (C − 1) + 640]``; column c is centred at 160 c + 320."""
    frames = np.lib.stride_tricks.sliding_window_view(samples, 2 * _HALF_WINDOW)[::HOP_LENGTH]
    window, own = _window()
    power = np.abs(np.fft.rfft(frames * window, _POINTS)) ** 2
    correlation = np.fft.irfft(power)[:, : _LONGEST + 1]
    normal = correlation[:, _SHORTEST:] / own[_SHORTEST:] / np.maximum(correlation[:, :1], _FLOOR)
    best = (normal - _octave_cost()).argmax(1)
    level = [10 * np.log10(power[:, low:high].sum(1) + _FLOOR) for low, high in _band_bins()]
    pitch = 12 * np.log2(SAMPLE_RATE / (best + _SHORTEST) / 100)
    columns = [level[0], pitch, normal[np.arange(len(best)), best], level[2] - level[1], level[4] - level[3]]
    return np.stack(columns, 1).astype(np.float32)


@lru_cache(maxsize=1)
def _window() -> tuple[np.ndarray, np.ndarray]:
    """Return the window of a column, and its own autocorrelation, which that of the sound is divided by."""
    window = np.hanning(2 * _HALF_WINDOW + 1)[:-1].astype(np.float32)
    own = np.fft.irfft(np.abs(np.fft.rfft(window, _POINTS)) ** 2)[: _LONGEST + 1]
    return window, np.maximum(own / own[0], 0.05)


@lru_cache(maxsize=1)
def _octave_cost() -> np.ndarray:
    """Return what a peak must be higher by to win over one at half its lag, which a periodic sound has as well."""
    return 0.03 * np.log2(np.arange(_SHORTEST, _LONGEST + 1) / _SHORTEST)


@lru_cache(maxsize=1)
def _band_bins() -> tuple[tuple[int, int], ...]:
    return tuple((round(low * _POINTS / SAMPLE_RATE), round(high * _POINTS / SAMPLE_RATE)) for low, high in _BANDS)


# --- Frames and windows ----------------------------------------------------------------------------------------------

FRAME_FEATURES = 5
"""Features of a frame: loudness below the loud parts (tens of dB), pitch above the median, voicing, tilt, balance."""
WINDOW_FEATURES = ("fullness", "voiced share", "pitch", "pitch range", "pitch movement", "loudness range", "pace",
                   "syllables")  # fmt: skip
"""Features of a window, see ``ProsodyTracker._window_features``."""
WINDOW_COLUMNS, _LEAST_COLUMNS = 120, 80
"""Columns of a window, and the fewest from which its features are computed."""
MEMORY_COLUMNS = 1000
"""Columns that loudness and pitch are relative to: ten seconds."""
_MOST_WINDOWS = 16.0
"""Windows after which the mean over windows forgets the first ones: twenty seconds."""
_EVERY = 4
"""Frames from one window to the next."""
_SPEECH_RANGE, _LOUDNESS_RANGE = 25.0, 30.0
"""Decibels below the loud parts within which a column is speech, and to which frames are bounded."""
_VOICED = 0.6
_SMOOTHING = np.hanning(9) / np.hanning(9).sum()


@dataclass
class ProsodyTracker:
    """Turns levelled sound into features of frames and windows; the fields are its state."""

    pending: np.ndarray = field(default_factory=lambda: np.zeros(_HALF_WINDOW - HOP_LENGTH // 2, np.float32))
    """Samples of columns that are not complete."""
    columns: np.ndarray = field(default_factory=lambda: np.zeros((0, 5), np.float32))
    """Columns of the last ten seconds, and those of the frame that is not complete."""
    incomplete: int = 0
    """Columns at the end that belong to an incomplete frame."""
    frames: int = 0
    """Frames so far."""
    mean: np.ndarray = field(default_factory=lambda: np.zeros(len(WINDOW_FEATURES)))
    """Mean features of the windows so far."""
    windows: float = 0.0
    """Their number, in lengths of a window."""

    def push(self, samples: np.ndarray) -> np.ndarray:
        """Take levelled samples ``[640 F]``, and return the features ``[f, 5]`` of the frames that they complete."""
        sound = np.concatenate([self.pending, samples])
        count = max(0, (len(sound) - 2 * _HALF_WINDOW) // HOP_LENGTH + 1)
        if not count:
            self.pending = sound
            return np.zeros((0, FRAME_FEATURES), np.float32)
        self.pending = sound[count * HOP_LENGTH :]
        new = prosody_columns(sound[: (count - 1) * HOP_LENGTH + 2 * _HALF_WINDOW])
        known, self.incomplete = len(self.columns) - self.incomplete, self.incomplete + count
        every = np.concatenate([self.columns, new])
        features = []
        while self.incomplete >= MELS_PER_FRAME:
            known += MELS_PER_FRAME
            self.incomplete -= MELS_PER_FRAME
            self.frames += 1
            features.append(self._frame_features(every[max(0, known - MEMORY_COLUMNS) : known]))
        self.columns = every[max(0, known - MEMORY_COLUMNS) :]
        return np.array(features, np.float32).reshape(-1, FRAME_FEATURES)

    def _frame_features(self, columns: np.ndarray) -> list[float]:
        """Return the features of the last frame of columns ``[C, 5]``; some frames complete a window."""
        loud = np.quantile(columns[:, LOUDNESS], 0.95)
        voiced = (columns[:, VOICING] > _VOICED) & (columns[:, LOUDNESS] > loud - _SPEECH_RANGE)
        middle = float(np.median(columns[voiced, PITCH])) if voiced.any() else 0.0
        if self.frames % _EVERY == 0 and len(columns) >= _LEAST_COLUMNS:
            self._remember(columns[-WINDOW_COLUMNS:], float(loud))
        frame, spoken = columns[-MELS_PER_FRAME:], voiced[-MELS_PER_FRAME:]
        pitch = float(np.clip(frame[spoken, PITCH].mean() - middle, -12, 12)) if spoken.any() else 0.0
        level = float(np.maximum(frame[:, LOUDNESS] - loud, -_LOUDNESS_RANGE).mean())
        tilt, balance = frame[:, TILT].mean(), frame[:, BALANCE].mean()
        share = float(spoken.mean())
        return [level / 10, pitch * share / 4, share, float(np.clip(tilt, -40, 10)) / 10,
                float(np.clip(balance, -30, 20)) / 10]  # fmt: skip

    def _remember(self, columns: np.ndarray, loud: float) -> None:
        """Add a window ``[C, 5]`` to the mean, unless it is mostly silence."""
        features = self._window_features(columns, loud)
        if features is None:
            return
        # The first window stands for all of its length, the next ones for what they add.
        share = (_EVERY * MELS_PER_FRAME if self.windows else len(columns)) / WINDOW_COLUMNS
        self.windows = min(self.windows + share, _MOST_WINDOWS)
        self.mean = self.mean + (features - self.mean) * share / self.windows

    @staticmethod
    def _window_features(columns: np.ndarray, loud: float) -> np.ndarray | None:
        """Return the features of a window ``[C, 5]``.

        They are the mean loudness of speech below its loud parts (dB), the voiced share of speech, the median and the
        standard deviation of the pitch (semitones), its change between columns, the standard deviation of loudness
        (dB), the change of the smoothed loudness between columns (dB), and its peaks in a hundred columns.
        """
        level = columns[:, LOUDNESS]
        speech = level > loud - _SPEECH_RANGE
        voiced = speech & (columns[:, VOICING] > _VOICED)
        if speech.mean() < 0.5 or voiced.sum() < 15:
            return None
        pitch = columns[voiced, PITCH]
        smooth = np.convolve(np.maximum(level, loud - _SPEECH_RANGE), _SMOOTHING, "valid")
        slope = np.diff(smooth)
        return np.array([
            level[speech].mean() - loud, voiced.sum() / speech.sum(), np.median(pitch), pitch.std(),
            np.abs(np.diff(pitch)).clip(0, 3).mean(), level[speech].std(), np.abs(slope).mean(),
            100 * (np.diff(np.sign(slope)) < 0).sum() / len(smooth),
        ])  # fmt: skip


def track_prosody(levelled: np.ndarray) -> tuple[np.ndarray, ProsodyTracker]:
    """Return the features ``[T, 5]`` of all frames of levelled samples ``[N]``, and the tracker at the end of them."""
    frames = -(-len(levelled) // SAMPLES_PER_FRAME)
    tracker = ProsodyTracker()
    padded = np.zeros((frames + 1) * SAMPLES_PER_FRAME, np.float32)
    padded[: len(levelled)] = levelled
    features = tracker.push(padded[: frames * SAMPLES_PER_FRAME])
    # The end of the sound completes its last frame; windows with silence that was never recorded are not counted.
    manner = tracker.mean, tracker.windows
    features = np.concatenate([features, tracker.push(padded[frames * SAMPLES_PER_FRAME :])])[:frames]
    tracker.mean, tracker.windows = manner
    return features, tracker
