"""What the pretrained networks say about one clip, cached beside its ``Tracked``."""

from __future__ import annotations

import hashlib
import os
import zipfile
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from flowportrait.evaluate.networks import Networks
from flowportrait.evaluate.tracked import Tracked

WHO = 3
"""Crops per clip that the identity network looks at."""
SEEN = 12
"""Crops per clip that the image network looks at."""
FILM = 16


@dataclass(frozen=True)
class Features:
    """identity ``[≤3, D]`` unit length; image ``[≤12, D]``; video ``[1, D]``; first frame in row 0 of identity. Empty
    where a network is not installed or no face was seen."""

    identity: np.ndarray
    image: np.ndarray
    video: np.ndarray


def features(tracked: Tracked, nets: Networks, kept: Path | None = None) -> Features:
    """Features of one clip; read from and written to the file ``kept``, whose name gets the networks' names."""
    if kept is not None:
        names = hashlib.sha256("|".join(nets.names().values()).encode()).hexdigest()[:8]
        kept = kept.with_name(f"{kept.name}-{names}.npz")
        if kept.is_file():
            try:
                with np.load(kept) as stored:
                    return Features(**{f.name: stored[f.name] for f in fields(Features)})
            except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
                kept.unlink(missing_ok=True)
    found = _ask(tracked.crops, nets)
    if kept is not None:
        partial = kept.with_suffix(f".{os.getpid()}.npz")
        np.savez_compressed(partial, **{f.name: getattr(found, f.name) for f in fields(Features)})
        os.replace(partial, kept)
    return found


def _ask(crops: np.ndarray, nets: Networks) -> Features:
    nothing = np.zeros((0, 0), np.float32)
    if not len(crops):
        return Features(nothing, nothing, nothing)
    identity = nets.identity(crops[_spread(len(crops), WHO)]) if nets.identity else nothing
    image = nets.image(crops[_spread(len(crops), SEEN)]) if nets.image else nothing
    video = nothing
    if nets.video and len(crops) >= FILM:
        video = nets.video.clip(crops[:FILM])
    elif nets.texture and len(crops) > 3:
        series = nets.texture(crops[:FILM])
        change = np.sqrt((np.diff(series, axis=0) ** 2).mean(0))
        video = np.log(np.concatenate([series.std(0), change]) + 1e-3)[None]
    return Features(identity, image, video)


def _spread(count: int, wanted: int) -> np.ndarray:
    return np.unique(np.linspace(0, count - 1, min(count, wanted)).round().astype(int))
