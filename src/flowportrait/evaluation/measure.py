"""All metrics of one finished video, and of a video against the real clip of the same name.

    AED = mean |expression − expression_real|      (24 coefficients, standard deviations)
    APD = mean |angle − angle_real|                (pitch, yaw, roll from each clip's median pose, degrees)
    SSIM, LPIPS: of the stabilised faces           CSIM: cosine of identity embeddings

``measure_video`` is the entry for one video, ``compare_with_real`` for a pair; the measures of THEval come first. A
metric that cannot be measured is None or missing, never a number.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy.ndimage import binary_opening

from flowportrait.errors import BadInput
from flowportrait.evaluation.field_networks import QUALITY_SLOTS
from flowportrait.evaluation.joins import (
    cut_tracks,
    join_rows,
    longest_stretch,
    mean_over_stretches,
    scored_frames,
    scored_stretches,
)
from flowportrait.evaluation.lip_sync import LONG_FRAMES, measure_sync
from flowportrait.evaluation.metrics import MetricRow
from flowportrait.evaluation.motion_metrics import (
    ACTION_GROUPS,
    DynamicsSamples,
    action_signals,
    action_signals68,
    brightness_flicker,
    colour_drift,
    count_blinks,
    dynamics_samples,
    dynamics_score,
    frame_rms,
    gaze_std,
    head_range,
    jerk,
    lid_motion,
    longest_run,
    measure_silent_lip,
    motion_amplitude,
    mouth_sharpness,
    remove_pose,
    repeated_fraction,
    seam_energy,
    shipped_quantiles,
    silent_frames,
    tfi_and_flow_power,
)
from flowportrait.evaluation.networks import (
    EvaluationNetworks,
    NetworkFeatures,
    compute_network_features,
    load_evaluation_networks,
    load_perceptual_stages,
)
from flowportrait.evaluation.tracking import VideoTracks, content_hash, track_file
from flowportrait.evaluation.true_lips import compare_lips
from flowportrait.media.video import FPS
from flowportrait.rendering.motion_basis import EXPRESSION, MotionBasis

# --- THEval (arXiv 2511.04520): the five of its eight measures that need no further network ---
#
#     score = 1 − |m − GT| / |GT|          total = mean of the scores            m, GT: means over clips
#
# | lip dynamics | mean over pairs of lip points of the temporal spread of their distance, picture scaled to 256 px |
# | head motion  | √( mean spread of pitch, yaw, roll · mean variance of their steps + mean variance of the position ) |
# | brows        | mean step between frames of the brow–eye distance over the distance of the eyes |
# | silent lip   | median distance of the lip opening from its mean in silences of 0.3 s and more |
# | lip sync     | mean | minmax(opening) − minmax(loudness) | during speech |
#
# Three measures need networks that may not be shipped: global aesthetics (TOPIQ-IAA), mouth quality (MUSIQ), face
# quality (TOPIQ-face). Without them the total is called THEval-5; ``field_networks.py`` has slots for them. Angles come
# from landmarks and not from FaceXFormer, speech from loudness and not from Silero, so values compare with the ground
# truth of the same run and not with the paper's.

THEVAL_MEASURES = ("lip_dynamics", "head_motion", "brow_dynamics", "silent_lip_stability", "lip_sync")
THEVAL_OMITTED_MEASURES = ("global aesthetics (TOPIQ-IAA)", "mouth quality (MUSIQ)", "face quality (TOPIQ-face)")
THEVAL_QUALITY_MEASURES = tuple(QUALITY_SLOTS.values())
THEVAL_TOTAL_NAME = f"THEval-{len(THEVAL_MEASURES)}"
THEVAL_SIDE = 256
"""Side in pixels to which pictures are scaled."""
SILENCE_FRAMES = 8
"""Fewest frames of a silence."""
MIN_SPEECH = 0.1
"""Smallest share of frames with speech for which lip sync is measured."""
UPPER_INNER_LIP = [191, 80, 81, 82, 13, 312, 311, 310]
LOWER_INNER_LIP = [95, 88, 178, 87, 14, 317, 402, 318]
THEVAL_LIPS = sorted(
    {61, 146, 91, 181, 84, 17, 314, 405, 321, 375, 291, 185, 40, 39, 37, 0, 267, 269, 270, 409, 78, 308, 415, 324}
    | set(UPPER_INNER_LIP)
    | set(LOWER_INNER_LIP)
)
EYE_LANDMARKS = (
    [33, 7, 163, 144, 145, 153, 154, 155, 133, 246, 161, 160, 159, 158, 157, 173],
    [263, 249, 390, 373, 374, 380, 381, 382, 362, 466, 388, 387, 386, 385, 384, 398],
)
BROW_LANDMARKS = ([46, 53, 52, 65, 55, 70, 63, 105, 66, 107], [276, 283, 282, 295, 285, 300, 293, 334, 296, 336])


def theval_measures(tracked: VideoTracks, turn: np.ndarray) -> dict[str, float]:
    """Compute the THEval measures that a clip allows.

    Args:
        tracked: tracks of the clip.
        turn: head rotation ``[V, 3]`` in degrees of the V frames with a face.

    Returns:
        The measures by name.
    """
    points = tracked.landmarks[tracked.valid][..., :2].astype(np.float64)
    if len(points) < 3:
        return {}
    points = points * (THEVAL_SIDE / float(max(tracked.size)))
    result = {
        "lip_dynamics": lip_dynamics(points[:, THEVAL_LIPS]),
        "head_motion": head_motion(turn, points.mean(1)),
        "brow_dynamics": brow_dynamics(points),
    }
    if not len(tracked.audio):
        return result
    opening, frames = lip_opening(points), len(tracked)
    silent = silent_frames(tracked.audio, frames)
    speech = ~silent
    quiet = binary_opening(silent, np.ones(SILENCE_FRAMES))[tracked.valid]
    if quiet.sum() >= 2:
        result["silent_lip_stability"] = silent_lip_stability(opening[quiet])
    valid_speech = speech[tracked.valid]
    if speech.mean() >= MIN_SPEECH and valid_speech.sum() >= 2:
        loud = frame_rms(tracked.audio, frames, 0.5)[tracked.valid]
        result["lip_sync"] = lip_loudness_difference(opening[valid_speech], loud[valid_speech])
    return result


def lip_dynamics(lips: np.ndarray) -> float:
    """Return the mean spread over time of the distances between lip points ``[T, n, 2]``, in px of a 256 px picture."""
    pairs = np.array(list(combinations(range(lips.shape[1]), 2)))
    distance = np.linalg.norm(lips[:, pairs[:, 0]] - lips[:, pairs[:, 1]], axis=-1)
    return float(distance.std(0).mean())


def head_motion(turn: np.ndarray, position: np.ndarray) -> float:
    """Return the head motion from angles ``[T, 3]`` in degrees and face positions ``[T, 2]`` in px of 256."""
    spread, steps = turn.std(0).mean(), np.diff(turn, axis=0).var(0).mean()
    return float(np.sqrt(spread * steps + position.var(0).mean()))


def brow_dynamics(points: np.ndarray) -> float:
    """Return the mean change of the brow–eye distance between frames, from landmarks ``[T, 478, 2]``."""
    eyes = [points[:, eye].mean(1) for eye in EYE_LANDMARKS]
    scale = np.linalg.norm(eyes[0] - eyes[1], axis=-1)
    heights = [
        np.linalg.norm(points[:, b].mean(1) - e, axis=-1) / scale for b, e in zip(BROW_LANDMARKS, eyes, strict=True)
    ]
    return float(np.mean([np.abs(np.diff(height)).mean() for height in heights]))


def lip_opening(points: np.ndarray) -> np.ndarray:
    """Return the mean inner-lip opening over the outer-eye distance ``[T]``, of landmarks ``[T, 478, 2]``."""
    eyes = np.linalg.norm(points[:, 33] - points[:, 263], axis=-1)
    return np.abs(points[:, UPPER_INNER_LIP, 1] - points[:, LOWER_INNER_LIP, 1]).mean(1) / eyes


def silent_lip_stability(opening: np.ndarray) -> float:
    """Return the median distance of lip openings ``[n]`` in silence from their mean."""
    return float(np.median(np.abs(opening - opening.mean())))


def lip_loudness_difference(opening: np.ndarray, loud: np.ndarray) -> float:
    """Return the mean difference of lip opening and loudness ``[n]`` during speech, both scaled to 0 … 1."""
    return float(np.abs(_min_max_scaled(opening) - _min_max_scaled(loud)).mean())


def _min_max_scaled(values: np.ndarray) -> np.ndarray:
    return (values - values.min()) / (np.ptp(values) + 1e-8)


def theval_score(measured: float, truth: float) -> float:
    """Return the score of a measure against the ground truth: 1 − |m − GT| / |GT|."""
    return 1 - abs(measured - truth) / abs(truth)


def theval_total(
    measured: dict[str, float], truth: dict[str, float], names: Sequence[str] = THEVAL_MEASURES
) -> tuple[float, dict[str, float]] | None:
    """Return the mean score of the measures that both have, and each score; None without a common measure."""
    scores = {name: theval_score(measured[name], truth[name]) for name in names if name in measured and truth.get(name)}
    return (float(np.mean(list(scores.values()))), scores) if scores else None


# --- One video ---

LIP_LANDMARKS = [61, 291, 0, 17, 13, 14, 37, 267, 84, 314, 39, 269, 181, 405]
MIN_FACE_FRAMES = 12
"""Fewest frames in a row with a face for which motion is measured."""
MIN_SOURCE_FPS = 20
"""Frame rate below which a remark explains the repeated frames."""


@dataclass(frozen=True)
class VideoMetrics:
    """The metrics of one video, and its data for metrics of a whole system.

    Attributes:
        row: the metrics by key.
        dynamics: ECS features per action group, for the pooled ECS.
        network: the face network from which the dynamics come.
        expression: coefficients ``[V, 24]`` of the V frames with a face.
        features: features of the pretrained networks.
        remarks: sentences that a reader should know about this file.
    """

    row: MetricRow
    dynamics: dict[str, DynamicsSamples] | None
    network: str
    expression: np.ndarray
    features: NetworkFeatures
    remarks: tuple[str, ...] = ()


def measure_video(
    path: Path, cache: Path | None = None, nets: EvaluationNetworks | None = None, joins: Sequence[int] = ()
) -> VideoMetrics:
    """Measure all metrics of a video file; ``flowportrait.evaluation.metrics.METRICS`` names them.

    Args:
        path: the video.
        cache: folder of cached tracks and features; nothing is cached without it.
        nets: the pretrained networks; the best installed ones by default.
        joins: frames at which the video is joined from several recordings; see ``evaluation/joins.py``.

    Raises:
        BadInput: the file is missing, cannot be decoded, or shows no face.
    """
    tracked = track_file(path, cache)
    if not tracked.valid.any():
        raise BadInput(f"{path} shows no face in any of its {len(tracked)} frames: nothing of it can be measured.")
    row: MetricRow = {
        "file": path.name,
        "frames": len(tracked),
        "frames_without_face": int((~tracked.valid).sum()),
        "has_sound": int(len(tracked.audio) > 0),
        "source_fps": float(tracked.source_fps),
    }
    nets = nets or load_evaluation_networks()
    features = compute_network_features(tracked, nets, None if cache is None else cache / content_hash(path))
    network, samples = _dynamics(tracked if not joins else longest_stretch(tracked, joins))
    row |= _sync(tracked, joins) | mean_over_stretches(tracked, joins, _stretch_metrics) | _identity_metrics(features)
    row |= nets.field.measure(path, tracked, joins) if nets.field else {}
    scores = dynamics_score(samples, shipped_quantiles(network)) if samples else None
    if scores:
        row |= {"ecs" if group == "all" else f"ecs_{group}": score for group, score in scores.items()}
    expression = expression_coefficients(tracked)[scored_frames(len(tracked), joins)[tracked.valid]]
    return VideoMetrics(row, samples, network, expression, features, _remarks(path, tracked))


def _stretch_metrics(tracked: VideoTracks) -> MetricRow:
    row = _motion_metrics(tracked) | _picture_metrics(tracked)
    measures = theval_measures(tracked, remove_pose(tracked.landmarks[tracked.valid])[1])
    return row | {f"theval_{name}": value for name, value in measures.items()}


def expression_coefficients(tracked: VideoTracks) -> np.ndarray:
    """Return the expression coefficients ``[V, 24]`` of the frames with a face, in standard deviations."""
    motion, _ = MotionBasis.load().encode(
        tracked.landmarks[tracked.valid], tracked.blendshapes[tracked.valid], smooth=False
    )
    return motion[:, EXPRESSION].numpy()


def _dynamics(tracked: VideoTracks) -> tuple[str, dict[str, DynamicsSamples] | None]:
    run = longest_run(tracked.valid)
    if len(tracked.points):
        network, groups = "dlib68", action_signals68(tracked.points[run])
    else:
        network, groups = "mediapipe", action_signals(remove_pose(tracked.landmarks[run])[0])
    samples = {group: dynamics_samples(groups[group]) for group in ACTION_GROUPS}
    return network, samples if all(samples.values()) else None


def _remarks(path: Path, tracked: VideoTracks) -> tuple[str, ...]:
    faceless, remarks = int((~tracked.valid).sum()), []
    if faceless:
        remarks.append(
            f"{path.name}: no face in {faceless} of {len(tracked)} frames; the longest stretch with one is measured"
        )
    if not len(tracked.audio):
        remarks.append(f"{path.name}: no sound, so nothing about lip sync")
    if 0 < tracked.source_fps < MIN_SOURCE_FPS:
        remarks.append(
            f"{path.name}: {float(tracked.source_fps):.3g} frames a second; pictures are repeated up to {FPS}, which "
            "repeated frames, jerk and TFI show"
        )
    return tuple(remarks)


def _sync(tracked: VideoTracks, joins: Sequence[int]) -> MetricRow:
    sync = measure_sync(tracked, joins=joins)
    if sync is None:
        return {}
    kind = "" if sync.reach > 5 else "_short"
    return {
        f"lse_d{kind}": sync.lse_d,
        f"lse_c{kind}": sync.lse_c,
        f"sync_in_time{kind}": sync.lse_c_at_zero,
        f"lse_c_chance{kind}": sync.chance,
        f"offset{kind}": sync.offset,
        f"offset_error{kind}": abs(sync.offset),
        "sync_windows": sync.windows,
        "ler": sync.errors / sync.ler_windows,
        "ler_windows": sync.ler_windows,
        "ler_chance": sync.chance_ler,
    }


def _motion_metrics(tracked: VideoTracks) -> MetricRow:
    lips, silent = measure_silent_lip(tracked.landmarks, tracked.valid, tracked.audio)
    row: MetricRow = {"silent_lip": lips, "silent_frames": silent}
    run = longest_run(tracked.valid)
    if run.stop - run.start < MIN_FACE_FRAMES:
        return row
    shape, turn = remove_pose(tracked.landmarks[run])
    row |= {
        "amplitude": motion_amplitude(shape, slice(None)),
        "mouth_amplitude": motion_amplitude(shape, LIP_LANDMARKS),
        "jerk": jerk(shape),
        "head_range": head_range(turn),
        "gaze_std": gaze_std(shape),
        "lid_motion": lid_motion(shape),
        "sharpness": mouth_sharpness(tracked.mouth[run]),
    }
    if len(shape) >= LONG_FRAMES:
        row |= {"blinks": count_blinks(shape), "blink_rate": 60 * FPS * count_blinks(shape) / len(shape)}
    tfi_and_power = tfi_and_flow_power(tracked.flow[run.start : run.stop - 1])
    if tfi_and_power:
        row |= {"tfi": tfi_and_power[0], "flow_power": tfi_and_power[1]}
    return row


def _picture_metrics(tracked: VideoTracks) -> MetricRow:
    return {
        "colour_drift": colour_drift(tracked.skin),
        "flicker": brightness_flicker(tracked.skin),
        "repeated": repeated_fraction(tracked.still),
        "seam": seam_energy(tracked.border),
    }


def _identity_metrics(features: NetworkFeatures) -> MetricRow:
    if len(features.identity) < 2:
        return {}
    return {"identity_kept": float((features.identity[1:] @ features.identity[0]).mean())}


# --- A video against the real clip of the same name ---

SQUEEZENET_FILE = "squeezenet1_1-b8a52dc0.pth"
CROP_PAIRS = 16
"""Number of crop pairs per clip that are compared."""


def compare_with_real(
    clip: VideoTracks,
    real: VideoTracks,
    features: NetworkFeatures,
    real_features: NetworkFeatures,
    joins: Sequence[int] = (),
) -> MetricRow:
    """Measure a clip against the real clip of the same name, over the frames that both have.

    A metric is left out if its network is not installed.

    Args:
        clip: tracks of the clip.
        real: tracks of the real clip.
        features: network features of the clip.
        real_features: network features of the real clip.
        joins: frames at which both are joined.
    """
    row = _compare_stretch(clip, real)
    if joins:
        stretches = [one for one in scored_stretches(len(real), joins) if one.stop <= len(clip)]
        pairs = [(one.stop - one.start, cut_tracks(clip, one), cut_tracks(real, one)) for one in stretches]
        row = join_rows([(frames, _compare_stretch(part, real_part)) for frames, part, real_part in pairs])
    if len(features.identity) and len(real_features.identity) and row.get("compared_frames"):
        middle = real_features.identity.mean(0)
        row["csim"] = float((features.identity @ (middle / np.linalg.norm(middle))).mean())
    return row


def _compare_stretch(clip: VideoTracks, real: VideoTracks) -> MetricRow:
    length = min(len(clip), len(real))
    both = clip.valid[:length] & real.valid[:length]
    row: MetricRow = {"compared_frames": int(both.sum())}
    if not both.any():
        return row
    row |= compare_lips(clip, real)
    faces = [_fill_missing_frames(expression_coefficients(t), t)[:length] for t in (clip, real)]
    row["aed"] = float(np.abs(faces[0] - faces[1])[both].mean())
    turns = [_fill_missing_frames(remove_pose(t.landmarks[t.valid])[1], t)[:length] for t in (clip, real)]
    row["apd"] = float(np.abs(turns[0] - turns[1])[both].mean())
    _, here, there = np.intersect1d(clip.crop_at, real.crop_at, return_indices=True)
    if len(here):
        chosen = np.unique(np.linspace(0, len(here) - 1, min(len(here), CROP_PAIRS)).round().astype(int))
        row |= _compare_crops(clip.crops[here[chosen]], real.crops[there[chosen]])
    return row


def _fill_missing_frames(values: np.ndarray, tracked: VideoTracks) -> np.ndarray:
    """Return values ``[V, n]`` of the frames with a face as ``[T, n]`` of all frames, NaN elsewhere."""
    whole = np.full((len(tracked), values.shape[1]), np.nan)
    whole[tracked.valid] = values
    return whole


@torch.no_grad()
def _compare_crops(generated: np.ndarray, real: np.ndarray) -> MetricRow:
    from torchmetrics.functional.image import structural_similarity_index_measure

    one, other = (torch.from_numpy(x).permute(0, 3, 1, 2).float() / 255 for x in (generated, real))
    row: MetricRow = {"ssim": float(structural_similarity_index_measure(one, other, data_range=1.0))}
    lpips = _lpips()
    if lpips is not None:
        row["perceptual"] = float(lpips(one * 2 - 1, other * 2 - 1))
    else:
        stages = load_perceptual_stages()
        row["perceptual"] = float(
            np.mean([_feature_gap(*stage) for stage in zip(stages(one), stages(other), strict=True)])
        )
    return row


def _feature_gap(one: torch.Tensor, other: torch.Tensor) -> float:
    """Return the squared distance of unit-length channel vectors, mean over positions and pictures.

    This is LPIPS (Zhang et al. 2018) without learned channel weights.
    """
    return float((F.normalize(one, dim=1) - F.normalize(other, dim=1)).square().sum(1).mean())


def perceptual_distance_name() -> str:
    """Return the name of the perceptual distance that is installed."""
    return "LPIPS (SqueezeNet)" if _lpips() else "LPIPS-style, MobileNetV2 without learned channel weights"


@lru_cache(maxsize=1)
def _lpips() -> Any:
    """Load torchmetrics' LPIPS if torchvision and its SqueezeNet weights are installed; nothing is downloaded."""
    weights = Path(torch.hub.get_dir()) / "checkpoints" / SQUEEZENET_FILE
    if importlib.util.find_spec("torchvision") is None or not weights.is_file():
        return None
    from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

    return LearnedPerceptualImagePatchSimilarity(net_type="squeeze")
