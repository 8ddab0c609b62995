"""Every figure of one finished video. What cannot be measured is ``None`` and counted, never made up."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from flowportrait.evaluate.behaviour import blinks, gaze_std, head_range, silent_lip
from flowportrait.evaluate.expression import ecs
from flowportrait.evaluate.flicker import amplitude, jerk, trembling
from flowportrait.evaluate.offsets import LONG_FRAMES, longest_run, measure_sync
from flowportrait.evaluate.signals import actions, pose_free
from flowportrait.evaluate.tracked import Tracked, track_file
from flowportrait.media.video import FPS

Row = dict[str, float | int | str | None]

LIPS = [61, 291, 0, 17, 13, 14, 37, 267, 84, 314, 39, 269, 181, 405]
MIN_RUN = 12
"""Frames in a row with a face below which nothing about motion is said."""


def measure(path: Path, cache: Path | None = None) -> Row:
    """All metrics of a video file (``METRICS`` in ``flowportrait.evaluate.metrics`` names and orders them).

    Raises:
        BadInput: the file is missing or cannot be decoded.
    """
    tracked = track_file(path, cache)
    row: Row = {
        "file": path.name,
        "frames": len(tracked),
        "frames_without_face": int((~tracked.valid).sum()),
        "has_sound": int(len(tracked.audio) > 0),
    }
    return row | _sync(tracked) | _face(tracked)


def _sync(tracked: Tracked) -> Row:
    found = measure_sync(tracked)
    if found is None:
        return {}
    kind = "" if found.reach > 5 else "_short"
    return {
        f"lse_d{kind}": found.lse_d,
        f"lse_c{kind}": found.lse_c,
        f"sync_in_time{kind}": found.in_time,
        f"lse_c_chance{kind}": found.chance,
        f"offset{kind}": found.offset,
        f"offset_error{kind}": abs(found.offset),
        "sync_windows": found.windows,
        "ler": found.errors / found.ler_windows,
        "ler_windows": found.ler_windows,
        "ler_chance": found.chance_ler,
    }


def _face(tracked: Tracked) -> Row:
    lips, silent = silent_lip(tracked.landmarks, tracked.valid, tracked.audio)
    row: Row = {"silent_lip": lips, "silent_frames": silent}
    run = longest_run(tracked.valid)
    if run.stop - run.start < MIN_RUN:
        return row
    shape, turn = pose_free(tracked.landmarks[run])
    row |= {
        "amplitude": amplitude(shape, slice(None)),
        "mouth_amplitude": amplitude(shape, LIPS),
        "jerk": jerk(shape),
        "head_range": head_range(turn),
        "gaze_std": gaze_std(shape),
        "sharpness": sharpness(tracked.mouth[run]),
    }
    if len(shape) >= LONG_FRAMES:
        row |= {"blinks": blinks(shape), "blink_rate": 60 * FPS * blinks(shape) / len(shape)}
    expression = ecs(actions(shape))
    if expression:
        row |= {"ecs" if group == "all" else f"ecs_{group}": score for group, score in expression.items()}
    trembled = trembling(tracked.flow[run.start : run.stop - 1])
    if trembled:
        row |= {"tfi": trembled[0], "flow_power": trembled[1]}
    return row


def sharpness(mouth: np.ndarray) -> float:
    """Fine detail of the mouth ``[T, 48, 64]``: spread of the Laplacian over the spread of the picture, mean
    over frames."""
    ratios = [cv2.Laplacian(patch, cv2.CV_32F).std() / max(float(patch.std()), 1.0) for patch in mouth]
    return float(np.mean(ratios))
