"""The columns of a comparison: name, what it is called, which way is better, how it is printed."""

from __future__ import annotations

from typing import Literal, NamedTuple


class Metric(NamedTuple):
    """better: up, down, or real (closest to real footage)."""

    key: str
    title: str
    better: Literal["up", "down", "real"]
    digits: int
    meaning: str


METRICS = (
    Metric("lse_c", "LSE-C", "up", 3, "sync confidence, offsets ±15 (3 s and longer)"),
    Metric("sync_in_time", "LSE-C at 0", "up", 3, "median distance minus the distance at offset zero"),
    Metric("lse_d", "LSE-D", "down", 3, "sync distance, offsets ±15 (3 s and longer)"),
    Metric("offset_error", "|offset|", "down", 2, "frames between mouth and sound, offsets ±15"),
    Metric("lse_c_short", "LSE-C (short)", "up", 3, "sync confidence of clips under 3 s, offsets ±5"),
    Metric("sync_in_time_short", "LSE-C at 0 (short)", "up", 3, "the same for clips under 3 s"),
    Metric("lse_d_short", "LSE-D (short)", "down", 3, "sync distance of clips under 3 s, offsets ±5"),
    Metric("offset_error_short", "|offset| (short)", "down", 2, "frames between mouth and sound, offsets ±5"),
    Metric("ler", "LER", "down", 3, "share of one-second windows out of sync by more than a frame"),
    Metric("silent_lip", "Silent lip", "down", 4, "lip gap over eye distance while nobody speaks"),
    Metric("ecs", "ECS", "up", 3, "likeness of facial-action dynamics to real footage"),
    Metric("ecs_mouth", "ECS mouth", "up", 3, "the mouth's share of ECS"),
    Metric("ecs_cheeks", "ECS cheeks", "up", 3, "the cheeks' share of ECS"),
    Metric("ecs_eyes", "ECS eyes", "up", 3, "the eyes' share of ECS"),
    Metric("ecs_brows", "ECS brows", "up", 3, "the brows' share of ECS"),
    Metric(
        "tfi_guarded",
        "TFI (guarded)",
        "down",
        3,
        "TFI; the worst seen where motion is not within 15 % of the real clip",
    ),
    Metric("tfi", "TFI", "down", 3, "flow power above 6 Hz in the face, (% eye distance / frame)²"),
    Metric("jerk", "Jerk", "real", 0, "third derivative of landmarks, eye distances / s³"),
    Metric("amplitude", "Amplitude", "real", 2, "motion of all landmarks, % of eye distance"),
    Metric("mouth_amplitude", "Mouth amplitude", "real", 2, "motion of the lips, % of eye distance"),
    Metric("blink_rate", "Blinks / min", "real", 1, "lid closures per minute (3 s and longer)"),
    Metric("gaze_std", "Gaze spread", "real", 2, "spread of the iris position, % of eye width"),
    Metric("head_range", "Head range", "real", 2, "degrees between 5th and 95th percentile"),
    Metric("sharpness", "Mouth sharpness", "up", 3, "Laplacian spread over picture spread"),
    Metric("seconds_per_second", "Cost", "down", 2, "seconds of work per second of video, where given"),
)
BY_KEY = {metric.key: metric for metric in METRICS}
