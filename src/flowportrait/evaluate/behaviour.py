"""Habits of a living face: lips closed in silence, blinks, gaze, head motion. To be read against real
footage."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import binary_opening
from scipy.signal import find_peaks

from flowportrait.evaluate.expert_data import loudness, mouth_opening
from flowportrait.evaluate.signals import eye_aperture, gaze
from flowportrait.media.audio import SAMPLE_RATE
from flowportrait.media.video import FPS

SILENCE_DB = -30.0
"""Below the clip's loud level (95th percentile of frame RMS)."""
QUIET_RMS = 0.001
SILENT_RUN = 4
BLINK_DEPTH = 0.45


def silent_frames(audio: np.ndarray, frames: int) -> np.ndarray:
    """Voice activity says no: runs of at least four quiet frames ``[frames]`` bool, of 16 kHz samples."""
    level = loudness(audio, frames, 0.5)
    quiet = (level < np.quantile(level, 0.95) * 10 ** (SILENCE_DB / 20)) | (level < QUIET_RMS)
    return binary_opening(quiet, np.ones(SILENT_RUN))


def silent_lip(landmarks: np.ndarray, valid: np.ndarray, audio: np.ndarray) -> tuple[float | None, int]:
    """Mean inner-lip gap over eye distance in silence, and the silent frames it averages; ``None`` without
    any."""
    if len(audio) < SAMPLE_RATE // FPS:
        return None, 0
    silent = silent_frames(audio, len(valid)) & valid
    if not silent.any():
        return None, 0
    return float(mouth_opening(landmarks[silent]).mean()), int(silent.sum())


def blinks(shape: np.ndarray) -> int:
    """Count of lid closures: dips of the eye aperture by 45 % of its upper level and back."""
    aperture = eye_aperture(shape)
    depth = BLINK_DEPTH * np.quantile(aperture, 0.9)
    padded = np.concatenate([[aperture.max()], aperture, [aperture.max()]])
    return len(find_peaks(-padded, prominence=depth, width=(None, FPS))[0])


def lid_motion(shape: np.ndarray) -> float:
    """Spread of the eye aperture, in % of the eye width: blinks, and the small movements between them."""
    return float(100 * eye_aperture(shape).std())


def gaze_std(shape: np.ndarray) -> float:
    """Spread of the iris position, in % of the eye width, while the eyes are open."""
    aperture = eye_aperture(shape)
    looking = gaze(shape)[aperture > 0.6 * np.quantile(aperture, 0.9)]
    return float(100 * np.sqrt(looking.var(0).sum()))


def head_range(turn: np.ndarray) -> float:
    """How far the head turns, nods and tilts: 5th to 95th percentile of ``[T, 3]`` degrees, as one length."""
    return float(np.linalg.norm(np.quantile(turn, 0.95, 0) - np.quantile(turn, 0.05, 0)))
