"""All metrics of one finished video, and of a video against the real clip of the same name.

AED = mean |expression − expression_real|      (24 coefficients, standard deviations)
APD = mean |angle − angle_real|                (pitch, yaw, roll from each clip's median pose, degrees)
SSIM, LPIPS: of the stabilised faces           CSIM: cosine of identity embeddings

A metric that cannot be measured is None or missing, never a number.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from flowportrait.codec.basis import EXPRESSION, MotionBasis
from flowportrait.errors import BadInput
from flowportrait.evaluation import theval
from flowportrait.evaluation.behaviour import (
    amplitude,
    blinks,
    brightness_flicker,
    colour_drift,
    gaze_std,
    head_range,
    jerk,
    lid_motion,
    repeated_fraction,
    seam_energy,
    sharpness,
    silent_lip,
    tfi_and_flow_power,
)
from flowportrait.evaluation.expression import Samples, dynamics_samples, dynamics_score, shipped_quantiles
from flowportrait.evaluation.lip_sync import LONG_FRAMES, measure_sync
from flowportrait.evaluation.metrics import Row
from flowportrait.evaluation.networks import ClipFeatures, Networks, clip_features, load_networks, perceptual_stages
from flowportrait.evaluation.signals import GROUPS, action_signals, action_signals68, longest_run, remove_pose
from flowportrait.evaluation.tracking import VideoTracks, content_hash, track_file
from flowportrait.media.video import FPS

LIPS = [61, 291, 0, 17, 13, 14, 37, 267, 84, 314, 39, 269, 181, 405]
MIN_RUN = 12
"""Fewer frames in a row with a face have no metrics of motion."""
LOWEST_FPS = 20


@dataclass(frozen=True)
class VideoMetrics:
    """Metrics of one video, and what metrics of a whole system need of it.

    Attributes:
        row: the metrics by key.
        dynamics: samples per action group, for the pooled ECS.
        network: the face network that the dynamics come from.
        expression: ``[V, 24]`` coefficients of the V frames with a face.
        features: of the pretrained networks.
        remarks: what a reader should know about this file.
    """

    row: Row
    dynamics: dict[str, Samples] | None
    network: str
    expression: np.ndarray
    features: ClipFeatures
    remarks: tuple[str, ...] = ()


def measure_video(path: Path, cache: Path | None = None, nets: Networks | None = None) -> VideoMetrics:
    """All metrics of a video file (``METRICS`` in ``flowportrait.evaluation.metrics`` names and orders them).

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
    features = clip_features(tracked, nets or load_networks(), None if cache is None else cache / content_hash(path))
    turn = remove_pose(tracked.landmarks[tracked.valid])[1]
    network, samples = _dynamics(tracked)
    row |= _sync(tracked) | _face(tracked) | _picture(tracked) | _identity(features)
    row |= {f"theval_{name}": value for name, value in theval.measures(tracked, turn).items()}
    scores = dynamics_score(samples, shipped_quantiles(network)) if samples else None
    if scores:
        row |= {"ecs" if group == "all" else f"ecs_{group}": score for group, score in scores.items()}
    return VideoMetrics(row, samples, network, expression_coefficients(tracked), features, _remarks(path, tracked))


def expression_coefficients(tracked: VideoTracks) -> np.ndarray:
    """Expression coefficients ``[V, 24]`` of the frames with a face, in standard deviations of real footage."""
    motion, _ = MotionBasis.load().encode(
        tracked.landmarks[tracked.valid], tracked.blendshapes[tracked.valid], smooth=False
    )
    return motion[:, EXPRESSION].numpy()


def _dynamics(tracked: VideoTracks) -> tuple[str, dict[str, Samples] | None]:
    run = longest_run(tracked.valid)
    if len(tracked.points):
        network, groups = "dlib68", action_signals68(tracked.points[run])
    else:
        network, groups = "mediapipe", action_signals(remove_pose(tracked.landmarks[run])[0])
    samples = {group: dynamics_samples(groups[group]) for group in GROUPS}
    return network, samples if all(samples.values()) else None


def _remarks(path: Path, tracked: VideoTracks) -> tuple[str, ...]:
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


def _sync(tracked: VideoTracks) -> Row:
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


def _face(tracked: VideoTracks) -> Row:
    lips, silent = silent_lip(tracked.landmarks, tracked.valid, tracked.audio)
    row: Row = {"silent_lip": lips, "silent_frames": silent}
    run = longest_run(tracked.valid)
    if run.stop - run.start < MIN_RUN:
        return row
    shape, turn = remove_pose(tracked.landmarks[run])
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
    trembled = tfi_and_flow_power(tracked.flow[run.start : run.stop - 1])
    if trembled:
        row |= {"tfi": trembled[0], "flow_power": trembled[1]}
    return row


def _picture(tracked: VideoTracks) -> Row:
    return {
        "colour_drift": colour_drift(tracked.skin),
        "flicker": brightness_flicker(tracked.skin),
        "repeated": repeated_fraction(tracked.still),
        "seam": seam_energy(tracked.border),
    }


def _identity(features: ClipFeatures) -> Row:
    if len(features.identity) < 2:
        return {}
    return {"identity_kept": float((features.identity[1:] @ features.identity[0]).mean())}


SQUEEZENET = "squeezenet1_1-b8a52dc0.pth"
CROP_PAIRS = 16
"""Pairs of crops per clip that are compared."""


def compare_with_real(clip: VideoTracks, real: VideoTracks, features: ClipFeatures, real_features: ClipFeatures) -> Row:
    """Metrics of a clip against the real clip of the same name, over the frames that both have.

    A metric is left out where its network is not installed.
    """
    length = min(len(clip), len(real))
    both = clip.valid[:length] & real.valid[:length]
    row: Row = {"compared_frames": int(both.sum())}
    if not both.any():
        return row
    faces = [_track(expression_coefficients(t), t)[:length] for t in (clip, real)]
    row["aed"] = float(np.abs(faces[0] - faces[1])[both].mean())
    turns = [_track(remove_pose(t.landmarks[t.valid])[1], t)[:length] for t in (clip, real)]
    row["apd"] = float(np.abs(turns[0] - turns[1])[both].mean())
    if len(features.identity) and len(real_features.identity):
        middle = real_features.identity.mean(0)
        row["csim"] = float((features.identity @ (middle / np.linalg.norm(middle))).mean())
    _, here, there = np.intersect1d(clip.crop_at, real.crop_at, return_indices=True)
    if len(here):
        chosen = np.unique(np.linspace(0, len(here) - 1, min(len(here), CROP_PAIRS)).round().astype(int))
        row |= _pictures(clip.crops[here[chosen]], real.crops[there[chosen]])
    return row


def _track(values: np.ndarray, tracked: VideoTracks) -> np.ndarray:
    """Values of the valid frames on the whole clip, NaN elsewhere."""
    whole = np.full((len(tracked), values.shape[1]), np.nan)
    whole[tracked.valid] = values
    return whole


@torch.no_grad()
def _pictures(mine: np.ndarray, real: np.ndarray) -> Row:
    from torchmetrics.functional.image import structural_similarity_index_measure

    one, other = (torch.from_numpy(x).permute(0, 3, 1, 2).float() / 255 for x in (mine, real))
    row: Row = {"ssim": float(structural_similarity_index_measure(one, other, data_range=1.0))}
    lpips = _lpips()
    if lpips is not None:
        row["perceptual"] = float(lpips(one * 2 - 1, other * 2 - 1))
    else:
        stages = perceptual_stages()
        row["perceptual"] = float(
            np.mean([_feature_gap(*stage) for stage in zip(stages(one), stages(other), strict=True)])
        )
    return row


def _feature_gap(one: torch.Tensor, other: torch.Tensor) -> float:
    """Squared distance of channel vectors of unit length, mean over places and pictures (Zhang et al. 2018, without
    learned channel weights)."""
    return float((F.normalize(one, dim=1) - F.normalize(other, dim=1)).square().sum(1).mean())


def perceptual_name() -> str:
    """Name of the distance that ``perceptual`` is here."""
    return "LPIPS (SqueezeNet)" if _lpips() else "LPIPS-style, MobileNetV2 without learned channel weights"


@lru_cache(maxsize=1)
def _lpips() -> Any:
    """torchmetrics' LPIPS where torchvision and its SqueezeNet weights are on this machine; nothing is downloaded."""
    weights = Path(torch.hub.get_dir()) / "checkpoints" / SQUEEZENET
    if importlib.util.find_spec("torchvision") is None or not weights.is_file():
        return None
    from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

    return LearnedPerceptualImagePatchSimilarity(net_type="squeeze")
