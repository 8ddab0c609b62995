"""Every figure of one finished video. What cannot be measured is ``None`` and counted, never made up."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from flowportrait.codec.basis import EXPRESSION, MotionBasis
from flowportrait.errors import BadInput
from flowportrait.evaluate import steadiness, theval
from flowportrait.evaluate.behaviour import blinks, gaze_std, head_range, lid_motion, silent_lip
from flowportrait.evaluate.compare import Row
from flowportrait.evaluate.expression import Samples, dynamics, likeness, real_reference
from flowportrait.evaluate.features import Features, features
from flowportrait.evaluate.flicker import amplitude, jerk, trembling
from flowportrait.evaluate.networks import Networks, networks
from flowportrait.evaluate.offsets import LONG_FRAMES, longest_run, measure_sync
from flowportrait.evaluate.signals import GROUPS, actions, actions68, pose_free
from flowportrait.evaluate.tracked import Tracked, content_hash, track_file
from flowportrait.media.video import FPS

LIPS = [61, 291, 0, 17, 13, 14, 37, 267, 84, 314, 39, 269, 181, 405]
MIN_RUN = 12
"""Frames in a row with a face below which nothing about motion is said."""
LOWEST_FPS = 20


@dataclass(frozen=True)
class Findings:
    """row: the figures of one clip. dynamics: samples per action group, for the pooled ECS. expression ``[V, 24]``:
    coefficients of the valid frames. network: which face network the dynamics come from. features: of the pretrained
    networks. remarks: what a reader should know about this file."""

    row: Row
    dynamics: dict[str, Samples] | None
    network: str
    expression: np.ndarray
    features: Features
    remarks: tuple[str, ...] = ()


def measure(path: Path, cache: Path | None = None, nets: Networks | None = None) -> Findings:
    """All metrics of a video file (``METRICS`` in ``flowportrait.evaluate.metrics`` names and orders them).

    Raises:
        BadInput: the file is missing or cannot be decoded, or shows no face at all.
    """
    tracked = track_file(path, cache)
    if not tracked.valid.any():
        raise BadInput(f"{path} shows no face in any of its {len(tracked)} frames: nothing of it can be measured.")
    row: Row = {
        "file": path.name,
        "frames": len(tracked),
        "frames_without_face": int((~tracked.valid).sum()),
        "has_sound": int(len(tracked.audio) > 0),
        "source_fps": float(tracked.source_fps),
    }
    kept = None if cache is None else cache / content_hash(path)
    seen = features(tracked, nets or networks(), kept)
    turn = pose_free(tracked.landmarks[tracked.valid])[1]
    network, samples = _dynamics(tracked)
    row |= _sync(tracked) | _face(tracked) | _picture(tracked) | _identity(seen)
    row |= {f"theval_{name}": value for name, value in theval.measures(tracked, turn).items()}
    scores = likeness(samples, real_reference(network)) if samples else None
    if scores:
        row |= {"ecs" if group == "all" else f"ecs_{group}": score for group, score in scores.items()}
    return Findings(row, samples, network, expression(tracked), seen, _remarks(path, tracked))


def expression(tracked: Tracked) -> np.ndarray:
    """Expression coefficients ``[V, 24]`` of the frames with a face, in standard deviations of real footage."""
    motion, _ = MotionBasis.load().encode(
        tracked.landmarks[tracked.valid], tracked.blendshapes[tracked.valid], smooth=False
    )
    return motion[:, EXPRESSION].numpy()


def _dynamics(tracked: Tracked) -> tuple[str, dict[str, Samples] | None]:
    run = longest_run(tracked.valid)
    if len(tracked.points):
        network, groups = "dlib68", actions68(tracked.points[run])
    else:
        network, groups = "mediapipe", actions(pose_free(tracked.landmarks[run])[0])
    samples = {group: dynamics(groups[group]) for group in GROUPS}
    return network, samples if all(samples.values()) else None


def _remarks(path: Path, tracked: Tracked) -> tuple[str, ...]:
    lost, found = int((~tracked.valid).sum()), []
    if lost:
        found.append(
            f"{path.name}: no face in {lost} of {len(tracked)} frames; the longest stretch with one is measured"
        )
    if not len(tracked.audio):
        found.append(f"{path.name}: no sound, so nothing about lip sync")
    if 0 < tracked.source_fps < LOWEST_FPS:
        found.append(
            f"{path.name}: {float(tracked.source_fps):.3g} frames a second; pictures are repeated up to {FPS}, which "
            "repeated frames, jerk and TFI show"
        )
    return tuple(found)


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
        "lid_motion": lid_motion(shape),
        "sharpness": sharpness(tracked.mouth[run]),
    }
    if len(shape) >= LONG_FRAMES:
        row |= {"blinks": blinks(shape), "blink_rate": 60 * FPS * blinks(shape) / len(shape)}
    trembled = trembling(tracked.flow[run.start : run.stop - 1])
    if trembled:
        row |= {"tfi": trembled[0], "flow_power": trembled[1]}
    return row


def _picture(tracked: Tracked) -> Row:
    return {
        "colour_drift": steadiness.colour_drift(tracked.skin),
        "flicker": steadiness.flicker(tracked.skin),
        "repeated": steadiness.repeated(tracked.still),
        "seam": steadiness.seam_energy(tracked.border),
    }


def _identity(seen: Features) -> Row:
    if len(seen.identity) < 2:
        return {}
    return {"identity_kept": float((seen.identity[1:] @ seen.identity[0]).mean())}


def sharpness(mouth: np.ndarray) -> float:
    """Fine detail of the mouth ``[T, 48, 64]``: spread of the Laplacian over the spread of the picture, mean
    over frames."""
    ratios = [cv2.Laplacian(patch, cv2.CV_32F).std() / max(float(patch.std()), 1.0) for patch in mouth]
    return float(np.mean(ratios))
