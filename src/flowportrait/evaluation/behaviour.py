"""Metrics of how a face behaves: lips in silence, blinks, gaze, head, trembling, and a picture that holds still.

    TFI          = Σ_{f > 6 Hz} P(f),   P: Welch power of the flow in each face cell, (% of eye distance / frame)²
    colour drift = std_t of (R − B) on the cheeks           flicker = rms_t of the jump of brightness between frames
    seam energy  = max over straight lines around the face of | median along the line of the step across it |,
                   minus the median over all such lines

The flow of the TFI is signed, because the magnitude of a clean 4 Hz motion would show at 8 Hz. A still face has no
TFI either: read it beside the amplitude, or guarded (``guarded_tfi``). Habits such as blinks are read against real
footage.
"""

from __future__ import annotations

import cv2
import numpy as np
from scipy.ndimage import binary_opening
from scipy.signal import find_peaks, welch

from flowportrait.evaluation.signals import (
    eye_aperture,
    gaze,
    loudness,
    mouth_opening,
)
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


CUTOFF_HZ = 6.0
SEGMENT = 28
AMPLITUDE_TOLERANCE = 0.15


def tfi_and_flow_power(flow: np.ndarray) -> tuple[float, float] | None:
    """TFI and the total flow power ``(%/frame)²`` of ``[N, 8, 8, 2]``, or ``None`` below a second of
    motion."""
    if len(flow) < FPS:
        return None
    series = flow.reshape(len(flow), -1)
    frequency, power = welch(series, fs=FPS, nperseg=min(SEGMENT, len(flow)), detrend="constant", axis=0)
    step = frequency[1] - frequency[0]
    mean = power.mean(1)
    return float(mean[frequency > CUTOFF_HZ].sum() * step), float(mean.sum() * step)


def guarded_tfi(tfi: float, power: float, real_power: float, worst: float) -> float:
    """``tfi``, or ``worst`` when the motion amplitude (root of the power) is over 15 % away from the real
    clip's."""
    ratio = np.sqrt(power / max(real_power, 1e-12))
    return tfi if abs(ratio - 1) <= AMPLITUDE_TOLERANCE else worst


def jerk(shape: np.ndarray) -> float:
    """Mean third derivative of pose-free landmarks ``[T, 478, 3]``, in eye distances / s³."""
    return float(np.linalg.norm(np.diff(shape[..., :2], 3, axis=0), axis=-1).mean() * FPS**3)


def amplitude(shape: np.ndarray, points: slice | list[int]) -> float:
    """How much landmarks move about their own mean: RMS in % of the eye distance."""
    moving = shape[:, points, :2]
    return float(100 * np.sqrt(((moving - moving.mean(0)) ** 2).sum(-1).mean()))


def colour_drift(skin: np.ndarray) -> float | None:
    """Levels by which the cheeks ``[T, 3]`` swing between warm and cool; ``None`` below half a second."""
    warm = skin[:, 0] - skin[:, 2]
    warm = warm[np.isfinite(warm)]
    return float(warm.std()) if len(warm) > 12 else None


def brightness_flicker(skin: np.ndarray) -> float | None:
    """Root mean square jump of the cheeks' brightness from frame to frame, in levels."""
    steps = np.diff(skin @ np.array([0.299, 0.587, 0.114]))
    steps = steps[np.isfinite(steps)]
    return float(np.sqrt((steps**2).mean())) if len(steps) > 12 else None


def repeated_fraction(still: np.ndarray) -> float | None:
    """Share of frames that show the picture before again."""
    return float(still.mean()) if len(still) else None


def seam_energy(border: np.ndarray) -> float | None:
    """Levels of the strongest straight step around the face over what straight lines there show anyway."""
    return float(border[0] - border[1]) if border[0] > 0 else None


def sharpness(mouth: np.ndarray) -> float:
    """Fine detail of the mouth ``[T, 48, 64]``: spread of the Laplacian over the spread of the picture, mean
    over frames."""
    ratios = [cv2.Laplacian(patch, cv2.CV_32F).std() / max(float(patch.std()), 1.0) for patch in mouth]
    return float(np.mean(ratios))
