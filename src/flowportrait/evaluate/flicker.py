"""TFI: what trembles faster than faces do. Power of the *signed* stabilised optical flow above a fixed
cut-off.

    TFI = Σ_{f > 6 Hz} P(f),   P: Welch power of the flow in each face cell, (% of eye distance / frame)²

Signed, because the magnitude of a clean 4 Hz motion would show at 8 Hz. A still face has none of it either:
read it beside the amplitude, or guarded (``guarded_tfi``).
"""

from __future__ import annotations

import numpy as np
from scipy.signal import welch

from flowportrait.media.video import FPS

CUTOFF_HZ = 6.0
SEGMENT = 28
AMPLITUDE_TOLERANCE = 0.15


def trembling(flow: np.ndarray) -> tuple[float, float] | None:
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
