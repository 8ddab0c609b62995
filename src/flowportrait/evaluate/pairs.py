"""A clip held against the real clip of the same name, moment by moment.

AED = mean |expression − expression_real|      (24 coefficients, standard deviations)
APD = mean |angle − angle_real|                (pitch, yaw, roll from each clip's median pose, degrees)
SSIM, LPIPS: of the stabilised faces           CSIM: cosine of identity embeddings
"""

from __future__ import annotations

import importlib.util
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from flowportrait.evaluate.compare import Row
from flowportrait.evaluate.features import Features
from flowportrait.evaluate.measure import expression
from flowportrait.evaluate.networks import perceptual_stages
from flowportrait.evaluate.signals import pose_free
from flowportrait.evaluate.tracked import Tracked

SQUEEZENET = "squeezenet1_1-b8a52dc0.pth"
MOST = 16
"""Pairs of crops per clip."""


def against_real(clip: Tracked, real: Tracked, seen: Features, seen_real: Features) -> Row:
    """Everything that needs the real clip; a metric whose network is missing is left out. Clips of different lengths
    are compared as far as both go."""
    length = min(len(clip), len(real))
    both = clip.valid[:length] & real.valid[:length]
    row: Row = {"compared_frames": int(both.sum())}
    if not both.any():
        return row
    row["aed"] = float(
        np.abs(_track(expression(clip), clip)[:length] - _track(expression(real), real)[:length])[both].mean()
    )
    turns = [_track(pose_free(t.landmarks[t.valid])[1], t)[:length] for t in (clip, real)]
    row["apd"] = float(np.abs(turns[0] - turns[1])[both].mean())
    if len(seen.identity) and len(seen_real.identity):
        middle = seen_real.identity.mean(0)
        row["csim"] = float((seen.identity @ (middle / np.linalg.norm(middle))).mean())
    _, here, there = np.intersect1d(clip.crop_at, real.crop_at, return_indices=True)
    if len(here):
        chosen = np.unique(np.linspace(0, len(here) - 1, min(len(here), MOST)).round().astype(int))
        row |= _pictures(clip.crops[here[chosen]], real.crops[there[chosen]])
    return row


def _track(values: np.ndarray, tracked: Tracked) -> np.ndarray:
    """Values of the valid frames back on the whole clip, NaN elsewhere."""
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
    """Which perceptual distance ``perceptual`` is."""
    return "LPIPS (SqueezeNet)" if _lpips() else "LPIPS-style, MobileNetV2 without learned channel weights"


@lru_cache(maxsize=1)
def _lpips() -> Any:
    """torchmetrics' LPIPS where torchvision and its SqueezeNet weights are on this machine; nothing is downloaded."""
    weights = Path(torch.hub.get_dir()) / "checkpoints" / SQUEEZENET
    if importlib.util.find_spec("torchvision") is None or not weights.is_file():
        return None
    from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

    return LearnedPerceptualImagePatchSimilarity(net_type="squeeze")
