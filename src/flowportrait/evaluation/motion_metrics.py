"""Metrics of facial motion: signals over time, behaviour, and ECS, the likeness of expression dynamics.

    signals      landmarks ─► pose removed ─► facial actions, lids, gaze, mouth opening; sound ─► loudness, silence
    behaviour    lips in silence, blinks, gaze, head, TFI, jerk, amplitude, colours, seams
    ECS          do facial actions move as real faces do?

Lengths in a face without its pose are measured in distances of the outer eye corners. Habits such as blinks have no
best direction: they are compared with real footage.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import cv2
import numpy as np
import torch
from scipy.ndimage import binary_opening, gaussian_filter1d
from scipy.signal import find_peaks, welch

from flowportrait.files import shipped_weights
from flowportrait.media.audio import SAMPLE_RATE, SAMPLES_PER_FRAME
from flowportrait.media.colour import LUMA_601
from flowportrait.media.video import FPS
from flowportrait.rendering.motion_basis import MotionBasis, fit_pose, median_pose, pose_to_vector

# --- Signals over time ---

ACTION_GROUPS = ("mouth", "cheeks", "eyes", "brows")


def remove_pose(landmarks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Remove the head's pose from landmarks ``[T, 478, 3]`` px without NaN.

    Returns:
        The face shape ``[T, 478, 3]`` in eye distances, y down, and the head rotation ``[T, 3]`` in degrees from the
        clip's median pose.
    """
    points = torch.as_tensor(landmarks, dtype=torch.float32)
    pose = fit_pose(points, MotionBasis.load().canonical)
    turn = pose_to_vector(pose, median_pose(pose))[:, :3]
    return pose.remove(points).numpy(), np.degrees(turn.numpy())


def action_signals(shape: np.ndarray) -> dict[str, np.ndarray]:
    """Return the signals ``[T, n]`` of each action group from pose-free tracker landmarks ``[T, 478, 3]``.

    They are used if the evaluation's own face network is not installed.
    """
    y = shape[:, :, 1]

    def distance(a: int, b: int) -> np.ndarray:
        return np.linalg.norm(shape[:, a] - shape[:, b], axis=-1)

    mouth = [
        distance(13, 14),
        distance(61, 291),
        y[:, 61] + y[:, 291] - y[:, 0] - y[:, 17],
        y[:, 17],
        y[:, 152],
    ]
    return {
        "mouth": np.stack(mouth, 1),
        "cheeks": np.stack([y[:, 50], y[:, 280], y[:, 205], y[:, 425]], 1),
        "eyes": np.stack([distance(159, 145), distance(386, 374)], 1),
        "brows": np.stack([y[:, 55], y[:, 285], y[:, 105], y[:, 334], distance(55, 285)], 1),
    }


RIGID68 = [36, 39, 42, 45, 27, 28, 29, 30, 33]
"""Points that expressions do not move: eye corners, nose bridge, nose base."""


def action_signals68(points: np.ndarray) -> dict[str, np.ndarray]:
    """Return the signals ``[T, n]`` of each action group from the evaluation's own 68 points ``[T, 68, 2]`` px.

    There are no points on the cheeks: the jaw outline beside them and the wings of the nose replace them.
    """
    face = _align(points.astype(np.float64))
    x, y = face[..., 0], face[..., 1]

    def distance(a: int, b: int) -> np.ndarray:
        return np.linalg.norm(face[:, a] - face[:, b], axis=-1)

    mouth = [distance(62, 66), distance(48, 54), y[:, 48] + y[:, 54] - y[:, 51] - y[:, 57], y[:, 57], y[:, 8]]
    lids = [0.5 * (distance(37, 41) + distance(38, 40)), 0.5 * (distance(43, 47) + distance(44, 46))]
    return {
        "mouth": np.stack(mouth, 1),
        "cheeks": np.stack([x[:, 12] - x[:, 4], x[:, 13] - x[:, 3], distance(31, 35), y[:, 31] + y[:, 35]], 1),
        "eyes": np.stack(lids, 1),
        "brows": np.stack([y[:, 19], y[:, 24], y[:, 21], y[:, 22], distance(21, 22)], 1),
    }


def _align(points: np.ndarray) -> np.ndarray:
    """Remove the head's place, size and roll from points ``[T, 68, 2]``, in outer-eye-corner distances.

    Each frame is aligned with the clip's mean face by its rigid points (least-squares similarity).
    """
    middle = points[:, [36, 45]].mean(1, keepdims=True)
    width = np.linalg.norm(points[:, 36] - points[:, 45], axis=-1)[:, None, None]
    goal = ((points - middle) / width)[:, RIGID68].mean(0)
    goal = goal - goal.mean(0)
    centre = points[:, RIGID68].mean(1, keepdims=True)
    source = points[:, RIGID68] - centre
    power = (source**2).sum((1, 2))
    cos = (source * goal).sum((1, 2)) / power
    sin = (source[..., 0] * goal[:, 1] - source[..., 1] * goal[:, 0]).sum(1) / power
    turn = np.stack([np.stack([cos, sin], -1), np.stack([-sin, cos], -1)], 1)
    return (points - centre) @ turn


def eye_aperture(shape: np.ndarray) -> np.ndarray:
    """Return the mean lid distance over the eye width ``[T]``, from landmarks ``[T, 478, 3]``."""

    def aperture(upper: int, lower: int, outer: int, inner: int) -> np.ndarray:
        lids = np.linalg.norm(shape[:, upper, :2] - shape[:, lower, :2], axis=-1)
        return lids / np.linalg.norm(shape[:, outer, :2] - shape[:, inner, :2], axis=-1)

    return 0.5 * (aperture(159, 145, 33, 133) + aperture(386, 374, 263, 362))


def iris_positions(shape: np.ndarray) -> np.ndarray:
    """Return the iris position relative to the eye's centre over the eye width ``[T, 2]``, mean of both eyes."""

    def iris_offset(iris: int, outer: int, inner: int) -> np.ndarray:
        middle = 0.5 * (shape[:, outer, :2] + shape[:, inner, :2])
        width = np.linalg.norm(shape[:, outer, :2] - shape[:, inner, :2], axis=-1)
        return (shape[:, iris, :2] - middle) / width[:, None]

    return 0.5 * (iris_offset(468, 33, 133) + iris_offset(473, 263, 362))


def frame_rms(audio: np.ndarray, frames: int, smooth: float = 1.0) -> np.ndarray:
    """Return the RMS of 16 kHz samples per video frame ``[frames]``, smoothed by a Gaussian.

    Args:
        audio: samples ``[N]`` at 16 kHz.
        frames: number of video frames.
        smooth: sigma of the Gaussian in frames.
    """
    wave = np.zeros(frames * SAMPLES_PER_FRAME)
    wave[: len(audio)] = audio[: len(wave)]
    rms = np.sqrt((wave.reshape(frames, -1) ** 2).mean(1))
    return gaussian_filter1d(rms, smooth, mode="nearest")


def mouth_opening(landmarks: np.ndarray) -> np.ndarray:
    """Return the inner-lip gap over the distance of the outer eye corners ``[T]``, from landmarks ``[T, 478, 3]``."""
    eyes = np.linalg.norm(landmarks[:, 33, :2] - landmarks[:, 263, :2], axis=-1)
    return np.linalg.norm(landmarks[:, 13, :2] - landmarks[:, 14, :2], axis=-1) / eyes


def longest_run(valid: np.ndarray) -> slice:
    """Return the longest run of consecutive True in ``valid`` ``[T]``; an empty slice if there is none."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], valid.astype(int), [0]])))
    if not len(edges):
        return slice(0, 0)
    starts, stops = edges[::2], edges[1::2]
    longest = int((stops - starts).argmax())
    return slice(int(starts[longest]), int(stops[longest]))


# --- Behaviour ---
#
#     TFI          = Σ_{f > 6 Hz} P(f),   P: Welch power of the flow in each face cell, (% of eye distance / frame)²
#     colour drift = std_t of (R − B) on the cheeks         flicker = rms_t of the change of brightness between frames
#     seam energy  = max over straight lines around the face of | median along the line of the step across it |,
#                    minus the median over all such lines
#
# The flow of the TFI is signed, because the magnitude of a clean 4 Hz motion would appear at 8 Hz. A still face has no
# TFI either: read it beside the amplitude, or guarded (``guarded_tfi``).

SILENCE_DB = -30.0
"""Level below the clip's loud level (95th percentile of frame RMS) that counts as silence."""
QUIET_RMS = 0.001
"""RMS below which a frame is silent in any clip."""
MIN_SILENT_FRAMES = 4
"""Fewest silent frames in a row."""
BLINK_DEPTH = 0.45
"""Depth of a blink as a share of the open eye's aperture."""


def silent_frames(audio: np.ndarray, frames: int) -> np.ndarray:
    """Return which video frames are silent ``[frames]``: at least four quiet frames in a row, for 16 kHz samples."""
    level = frame_rms(audio, frames, 0.5)
    quiet = (level < np.quantile(level, 0.95) * 10 ** (SILENCE_DB / 20)) | (level < QUIET_RMS)
    return binary_opening(quiet, np.ones(MIN_SILENT_FRAMES))


def measure_silent_lip(landmarks: np.ndarray, valid: np.ndarray, audio: np.ndarray) -> tuple[float | None, int]:
    """Measure the inner-lip gap in silence.

    Args:
        landmarks: ``[T, 478, 3]`` px.
        valid: ``[T]`` whether a frame shows a face.
        audio: samples ``[N]`` at 16 kHz.

    Returns:
        The mean gap over the eye distance (None without silence), and the number of silent frames.
    """
    if len(audio) < SAMPLE_RATE // FPS:
        return None, 0
    silent = silent_frames(audio, len(valid)) & valid
    if not silent.any():
        return None, 0
    return float(mouth_opening(landmarks[silent]).mean()), int(silent.sum())


def count_blinks(shape: np.ndarray) -> int:
    """Count lid closures: dips of the eye aperture by 45 % of its open level and back."""
    aperture = eye_aperture(shape)
    depth = BLINK_DEPTH * np.quantile(aperture, 0.9)
    padded = np.concatenate([[aperture.max()], aperture, [aperture.max()]])
    return len(find_peaks(-padded, prominence=depth, width=(None, FPS))[0])


def lid_motion(shape: np.ndarray) -> float:
    """Return the standard deviation of the eye aperture in % of the eye width: blinks and small lid movements."""
    return float(100 * eye_aperture(shape).std())


def gaze_std(shape: np.ndarray) -> float:
    """Return the spread of the iris position in % of the eye width, while the eyes are open."""
    aperture = eye_aperture(shape)
    looking = iris_positions(shape)[aperture > 0.6 * np.quantile(aperture, 0.9)]
    return float(100 * np.sqrt(looking.var(0).sum()))


def head_range(turn: np.ndarray) -> float:
    """Return the range of head rotation: the length of the 5th to 95th percentile range of ``[T, 3]`` degrees."""
    return float(np.linalg.norm(np.quantile(turn, 0.95, 0) - np.quantile(turn, 0.05, 0)))


JITTER_CUTOFF_HZ = 6.0
"""Frequency above which motion counts as jitter."""
WELCH_SEGMENT_FRAMES = 28
"""Frames of a segment of Welch's method."""
AMPLITUDE_TOLERANCE = 0.15
"""Largest relative deviation of the motion amplitude from the real clip's that ``guarded_tfi`` accepts."""


def tfi_and_flow_power(flow: np.ndarray) -> tuple[float, float] | None:
    """Return the TFI and the total flow power, in ``(%/frame)²``, of a flow ``[N, 8, 8, 2]``; None below a second."""
    if len(flow) < FPS:
        return None
    series = flow.reshape(len(flow), -1)
    frequency, power = welch(series, fs=FPS, nperseg=min(WELCH_SEGMENT_FRAMES, len(flow)), detrend="constant", axis=0)
    step = frequency[1] - frequency[0]
    mean = power.mean(1)
    return float(mean[frequency > JITTER_CUTOFF_HZ].sum() * step), float(mean.sum() * step)


def guarded_tfi(tfi: float, power: float, real_power: float, worst: float) -> float:
    """Return ``tfi``, or ``worst`` if the motion amplitude (root of the power) is over 15 % off the real clip's."""
    ratio = np.sqrt(power / max(real_power, 1e-12))
    return tfi if abs(ratio - 1) <= AMPLITUDE_TOLERANCE else worst


def jerk(shape: np.ndarray) -> float:
    """Return the mean third derivative of pose-free landmarks ``[T, 478, 3]``, in eye distances / s³."""
    return float(np.linalg.norm(np.diff(shape[..., :2], 3, axis=0), axis=-1).mean() * FPS**3)


def motion_amplitude(shape: np.ndarray, points: slice | list[int]) -> float:
    """Return the motion of landmarks about their own mean: RMS in % of the eye distance.

    Args:
        shape: pose-free landmarks ``[T, 478, 3]``.
        points: the landmarks that count.
    """
    moving = shape[:, points, :2]
    return float(100 * np.sqrt(((moving - moving.mean(0)) ** 2).sum(-1).mean()))


def colour_drift(skin: np.ndarray) -> float | None:
    """Return the variation of the cheeks' colour ``[T, 3]`` between warm and cool, in levels; None below 0.5 s."""
    warm = skin[:, 0] - skin[:, 2]
    warm = warm[np.isfinite(warm)]
    return float(warm.std()) if len(warm) > 12 else None


def brightness_flicker(skin: np.ndarray) -> float | None:
    """Return the RMS change of the cheeks' brightness between frames, in levels, from colours ``[T, 3]``."""
    steps = np.diff(skin @ LUMA_601)
    steps = steps[np.isfinite(steps)]
    return float(np.sqrt((steps**2).mean())) if len(steps) > 12 else None


def repeated_fraction(still: np.ndarray) -> float | None:
    """Return the share of frames that repeat the previous picture; None for a single frame."""
    return float(still.mean()) if len(still) else None


def seam_energy(border: np.ndarray) -> float | None:
    """Return the strongest straight step around the face minus the median step of such lines, in levels."""
    return float(border[0] - border[1]) if border[0] > 0 else None


def mouth_sharpness(mouth: np.ndarray) -> float:
    """Return the sharpness of mouth patches ``[T, 48, 64]``: the mean of std(Laplacian) / std(patch)."""
    ratios = [cv2.Laplacian(patch, cv2.CV_32F).std() / max(float(patch.std()), 1.0) for patch in mouth]
    return float(np.mean(ratios))


# --- ECS: the likeness of expression dynamics to real footage ---
#
#     score = 1 − W₁(video, real) / IQR(real)        (not below −1)
#
# per action group (mouth, cheeks, eyes, brows), mean of (a) amplitude and speed together: four projections of their
# joint distribution (sliced Wasserstein), and (b) autocorrelation at 0.2–0.6 s, and at 1 and 2 s where the video is
# long enough. All over windows of 1.2 s.
#
# ``clip_ecs`` compares one clip with footage of many speakers; as one person differs from the average, even real
# clips stay
# well below 1. ``pooled_ecs`` compares all clips of a system together with the real clips of the same prompts (or the
# shipped footage): there real footage split in half reaches the ceiling, and noise with the same marginals does not.

DYNAMICS_WINDOW, DYNAMICS_HOP = 30, 15
"""Frames of a window, and between two windows."""
SHORT_LAGS, LONG_LAGS = (5, 10, 15), (25, 50)
DYNAMICS_LONG_WINDOW = 75
QUANTILES = np.linspace(0.005, 0.995, 100)
DynamicsSamples = dict[str, np.ndarray]
"""Samples ``[n]`` by feature."""
DynamicsReference = dict[str, dict[str, list[float]]]
"""Quantiles by action group and feature."""


def dynamics_samples(signals: np.ndarray) -> DynamicsSamples:
    """Compute the ECS features of one group's signals ``[T, n]``.

    These are four projections of (log amplitude, log speed), and autocorrelations by lag.
    """
    spread: list[np.ndarray] = []
    lags: dict[int, list[np.ndarray]] = {lag: [] for lag in (*SHORT_LAGS, *LONG_LAGS)}
    for start in range(0, len(signals) - DYNAMICS_WINDOW + 1, DYNAMICS_HOP):
        piece = signals[start : start + DYNAMICS_WINDOW]
        amplitude = np.linalg.norm(piece - np.median(piece, 0), axis=1)[1:]
        speed = np.linalg.norm(np.diff(piece, axis=0), axis=1)
        spread.append(np.log(np.stack([amplitude, speed], 1) + 1e-4))
        for lag in SHORT_LAGS:
            lags[lag].append(autocorrelation(piece, lag))
    for start in range(0, len(signals) - DYNAMICS_LONG_WINDOW + 1, DYNAMICS_HOP):
        for lag in LONG_LAGS:
            lags[lag].append(autocorrelation(signals[start : start + DYNAMICS_LONG_WINDOW], lag))
    samples: DynamicsSamples = {}
    if spread:
        pairs = np.concatenate(spread)
        for angle in (0, 45, 90, 135):
            turn = np.radians(angle)
            samples[f"spread {angle}"] = pairs @ np.array([np.cos(turn), np.sin(turn)])
    return samples | {f"lag {lag}": np.concatenate(values) for lag, values in lags.items() if values}


def autocorrelation(piece: np.ndarray, lag: int) -> np.ndarray:
    """Return the normalised autocorrelation ``[n]`` of each column of ``[T, n]``; zero for a constant column."""
    centred = piece - piece.mean(0)
    power = (centred**2).mean(0)
    product = (centred[lag:] * centred[:-lag]).mean(0)
    return np.where(power > 1e-12, product / np.maximum(power, 1e-12), 0.0)


def compute_reference_quantiles(samples: Sequence[DynamicsSamples]) -> dict[str, list[float]]:
    """Return the reference of one group: the quantiles of the pooled samples by feature."""
    names = sorted({name for sample in samples for name in sample})
    return {
        name: [
            round(float(q), 5) for q in np.quantile(np.concatenate([s[name] for s in samples if name in s]), QUANTILES)
        ]
        for name in names
    }


@lru_cache(maxsize=1)
def read_dynamics_reference() -> dict[str, Any]:
    """Read the reference that ``tools.fit_evaluation_reference`` measured on the footage of training speakers."""
    source = shipped_weights("sync_eval/expression_reference.json")
    return json.loads(source.read_text(encoding="utf-8"))


def shipped_quantiles(network: str) -> DynamicsReference:
    """Return the shipped quantiles of real footage, as a face network (``dlib68`` or ``mediapipe``) measures them."""
    return read_dynamics_reference()["groups"][network]


def clip_ecs(groups: dict[str, np.ndarray], reference: DynamicsReference) -> dict[str, float] | None:
    """Return the ECS of one clip per action group and their mean (``all``); None below 1.2 s.

    Args:
        groups: signals ``[T, n]`` by action group.
        reference: quantiles of real footage.
    """
    return dynamics_score({group: dynamics_samples(groups[group]) for group in ACTION_GROUPS}, reference)


def pooled_ecs(clips: Sequence[dict[str, DynamicsSamples]], reference: DynamicsReference) -> dict[str, float] | None:
    """Return the ECS of all clips of a system together; see ``clip_ecs``."""
    pooled = {
        group: {
            name: np.concatenate([clip[group][name] for clip in clips if name in clip[group]])
            for name in sorted({name for clip in clips for name in clip[group]})
        }
        for group in ACTION_GROUPS
    }
    return dynamics_score(pooled, reference)


def dynamics_score(samples: dict[str, DynamicsSamples], reference: DynamicsReference) -> dict[str, float] | None:
    """Return 1 − W₁ / IQR per action group and their mean (``all``); None if a group has no common feature."""
    scores: dict[str, float] = {}
    for group in ACTION_GROUPS:
        parts: dict[str, list[float]] = {}
        for name, values in samples[group].items():
            if name not in reference[group]:
                continue
            real = np.array(reference[group][name])
            iqr = max(float(np.quantile(real, 0.75) - np.quantile(real, 0.25)), 1e-9)
            gap = np.abs(np.quantile(values, QUANTILES) - real).mean()
            parts.setdefault(name.split()[0], []).append(max(-1.0, 1 - gap / iqr))
        if not parts:
            return None
        scores[group] = float(np.mean([np.mean(values) for values in parts.values()]))
    return scores | {"all": float(np.mean([scores[group] for group in ACTION_GROUPS]))}
