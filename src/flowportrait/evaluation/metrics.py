"""Every metric by key, with its title, direction and meaning, and the shipped results of real footage.

Metrics are grouped as the report shows them: lip sync, expression, motion, picture and identity, whole system, the
measures of THEval, and cost. Keys are used in metrics.json, results.json and tables and do not change.
"""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Any, Literal, NamedTuple

from flowportrait.evaluation.statistics import Estimate
from flowportrait.files import shipped_weights

MetricRow = dict[str, float | int | str | None]
REAL = "real"
"""Name of the system that is real footage: clips with the same file name are the ground truth."""
MetricDirection = Literal["up", "down", "real"]


class Metric(NamedTuple):
    """One metric as tables and reports show it.

    Attributes:
        key: key in files and rows.
        title: name in tables.
        better: direction: ``up``, ``down``, or ``real`` (closest to real footage).
        digits: decimals that are printed.
        meaning: one line of explanation.
        group: heading in the report.
    """

    key: str
    title: str
    better: MetricDirection
    digits: int
    meaning: str
    group: str


def _group(name: str, *rows: tuple[str, str, MetricDirection, int, str]) -> tuple[Metric, ...]:
    return tuple(Metric(*row, name) for row in rows)


SYNC_METRICS = _group(
    "Lip sync",
    ("lse_c", "LSE-C", "up", 3, "sync confidence, offsets ±15 (3 s and longer)"),
    ("sync_in_time", "LSE-C at 0", "up", 3, "median distance minus the distance at offset zero"),
    ("lse_d", "LSE-D", "down", 3, "sync distance, offsets ±15 (3 s and longer)"),
    ("offset_error", "|offset|", "down", 2, "frames between mouth and sound, offsets ±15"),
    ("lse_c_short", "LSE-C (short)", "up", 3, "sync confidence of clips under 3 s, offsets ±5"),
    ("sync_in_time_short", "LSE-C at 0 (short)", "up", 3, "the same for clips under 3 s"),
    ("lse_d_short", "LSE-D (short)", "down", 3, "sync distance of clips under 3 s, offsets ±5"),
    ("offset_error_short", "|offset| (short)", "down", 2, "frames between mouth and sound, offsets ±5"),
    ("ler", "LER", "down", 3, "share of one-second windows out of sync by more than a frame"),
    ("ler_excess", "LER over real", "down", 3, "LER minus that of the real clip of the same name"),
    ("silent_lip", "Silent lip", "down", 4, "lip gap over eye distance in silence"),
)
SYNCNET_METRICS = _group(
    "Lip sync by SyncNet",
    ("syncnet_lse_c", "SyncNet LSE-C", "up", 2, "confidence of SyncNet, offsets ±15 (3 s and longer)"),
    ("syncnet_in_time", "SyncNet LSE-C at 0", "up", 2, "median distance minus the distance at offset zero"),
    ("syncnet_lse_d", "SyncNet LSE-D", "down", 2, "distance of SyncNet, offsets ±15 (3 s and longer)"),
    ("syncnet_offset_error", "SyncNet |offset|", "down", 2, "frames between mouth and sound, offsets ±15"),
    ("syncnet_lse_c_short", "SyncNet LSE-C (short)", "up", 2, "the same for clips under 3 s, offsets ±5"),
    ("syncnet_in_time_short", "SyncNet LSE-C at 0 (short)", "up", 2, "the same for clips under 3 s"),
    ("syncnet_lse_d_short", "SyncNet LSE-D (short)", "down", 2, "the same for clips under 3 s"),
    ("syncnet_offset_error_short", "SyncNet |offset| (short)", "down", 2, "the same for clips under 3 s"),
)
TRUE_LIPS_METRICS = _group(
    "Lips against the true lips",
    ("lower_face_distance", "Lower-face distance", "down", 2, "lips and chin off the real clip, % of eye distance"),
    ("lip_motion_distance", "Lip-motion distance", "down", 2, "the same without each clip's mean shape"),
    ("opening_correlation", "Opening correlation", "up", 3, "of the lips' opening with the real clip's over time"),
    ("opening_ratio", "Opening / true", "real", 2, "spread of the opening over the real clip's; 1 is right"),
)
EXPRESSION_METRICS = _group(
    "Expression",
    ("ecs", "ECS per clip", "up", 3, "likeness of facial-action dynamics to real footage of many people"),
    ("ecs_mouth", "ECS mouth", "up", 3, "the mouth's share of it"),
    ("ecs_cheeks", "ECS cheeks", "up", 3, "the cheeks' share of it"),
    ("ecs_eyes", "ECS eyes", "up", 3, "the eyes' share of it"),
    ("ecs_brows", "ECS brows", "up", 3, "the brows' share of it"),
    ("aed", "AED", "down", 3, "expression off the real clip, standard deviations (24 coefficients)"),
    ("apd", "APD", "down", 2, "head pose off the real clip, degrees"),
    ("blink_rate", "Blinks / min", "real", 1, "lid closures per minute (3 s and longer)"),
    ("lid_motion", "Lid motion", "real", 2, "spread of the eye aperture, % of eye width"),
    ("gaze_std", "Gaze spread", "real", 2, "spread of the iris position, % of eye width"),
    ("head_range", "Head range", "real", 2, "degrees between 5th and 95th percentile"),
)
MOTION_METRICS = _group(
    "Motion",
    (
        "tfi_guarded",
        "TFI (guarded)",
        "down",
        3,
        "TFI; the worst of all clips where the amount of motion is not within 15 % of the real clip",
    ),
    ("tfi", "TFI", "down", 3, "flow power above 6 Hz in the face, (% eye distance / frame)²"),
    ("jerk", "Jerk", "real", 0, "third derivative of landmarks, eye distances / s³"),
    ("repeated", "Repeated frames", "down", 3, "share of frames that repeat the previous picture"),
    ("amplitude", "Amplitude", "real", 2, "motion of all landmarks, % of eye distance"),
    ("mouth_amplitude", "Mouth amplitude", "real", 2, "motion of the lips, % of eye distance"),
)
PICTURE_METRICS = _group(
    "Picture and identity",
    ("sharpness", "Mouth sharpness", "real", 3, "Laplacian spread over picture spread"),
    ("flicker", "Flicker", "real", 2, "jump of the cheeks' brightness between frames, levels of 255"),
    ("colour_drift", "Colour drift", "real", 2, "swing of the cheeks between warm and cool, levels of 255"),
    ("seam", "Seam", "down", 2, "strongest straight step around the face, levels; background edges count, so read "
     "it against the same clip without paste-back"),
    ("identity_kept", "Identity kept", "real", 3, "cosine of identity between later frames and the first"),
    ("csim", "CSIM", "up", 3, "cosine of identity with the real clip"),
    ("ssim", "SSIM", "up", 3, "structural similarity with the real clip, stabilised faces"),
    ("perceptual", "Perceptual distance", "down", 4, "LPIPS or its like, against the real clip, stabilised faces"),
)  # fmt: skip
WHOLE_SYSTEM_METRICS = _group(
    "Whole system",
    ("ecs_pooled", "ECS", "up", 3, "likeness of facial-action dynamics to real footage, all clips together"),
    ("e_fid", "E-FID", "down", 3, "Fréchet distance of expression coefficients from the real clips"),
    ("fid", "FID-style", "down", 3, "Fréchet distance of image features of faces from the real clips"),
    ("fvd", "FVD-style", "down", 3, "Fréchet distance of video features of faces from the real clips"),
    ("theval", "THEval-5", "up", 3, "mean of five of THEval's eight scores, 1 − |m − GT| / |GT|"),
    ("theval_8", "THEval", "up", 3, "mean of all eight of THEval's scores, where their networks are there"),
)
THEVAL_METRICS = _group(
    "THEval measures",
    ("theval_global_aesthetics", "Global aesthetics", "real", 3, "TOPIQ-IAA of whole frames"),
    ("theval_mouth_quality", "Mouth quality", "real", 2, "MUSIQ of the mouth"),
    ("theval_face_quality", "Face quality", "real", 4, "TOPIQ-face of whole frames"),
    ("theval_lip_dynamics", "Lip dynamics", "real", 3, "spread of distances between lip points, px of 256"),
    ("theval_head_motion", "Head motion", "real", 3, "spread and unsteadiness of pose, and of place in px of 256"),
    ("theval_brow_dynamics", "Brow dynamics", "real", 5, "step of the brow–eye distance over the eyes' distance"),
    ("theval_silent_lip_stability", "Silent lip stability", "real", 4, "median departure of lip opening in silence"),
    ("theval_lip_sync", "Lip–loudness", "real", 3, "mean |opening − loudness|, both from 0 to 1, where speech is"),
)
COST_METRICS = _group(
    "Cost",
    ("seconds_per_second", "Cost", "down", 2, "seconds of work per second of video, where given"),
    ("frames_per_second", "Frames / s", "up", 1, "frames made per second"),
    ("first_frame", "First frame", "down", 2, "seconds until the first frame"),
    ("peak_memory", "Peak memory", "down", 0, "MB of the process that made the videos"),
)
METRICS = (
    SYNC_METRICS
    + SYNCNET_METRICS
    + TRUE_LIPS_METRICS
    + EXPRESSION_METRICS
    + MOTION_METRICS
    + PICTURE_METRICS
    + WHOLE_SYSTEM_METRICS
    + THEVAL_METRICS
    + COST_METRICS
)
METRIC_BY_KEY = {metric.key: metric for metric in METRICS}
SHIPPED_FOOTAGE_SYSTEM = "real footage (shipped)"
"""Name of the system with the shipped results of real footage, which stand in if no real clips are given."""


@lru_cache(maxsize=1)
def shipped_reference() -> dict[str, Any]:
    """Read the shipped results of real footage: ``{"about": …, "metrics": {key: [mean, low, high, clips]}}``."""
    source = shipped_weights("sync_eval/real_footage.json")
    return json.loads(source.read_text(encoding="utf-8")) if source.is_file() else {"about": "", "metrics": {}}


def shipped_estimates() -> dict[str, Estimate]:
    """Return the shipped estimate of every metric on real footage."""
    return {key: Estimate(*values) for key, values in shipped_reference()["metrics"].items()}


def shipped_means(prefix: str) -> dict[str, float]:
    """Return the shipped means of metrics with keys that begin with ``prefix``, by key without the prefix."""
    items = shipped_reference()["metrics"].items()
    return {key.removeprefix(prefix): values[0] for key, values in items if key.startswith(prefix)}
