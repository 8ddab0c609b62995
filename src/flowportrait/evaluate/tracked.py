"""A finished video, looked at once: everything that the metrics read. They read a ``Tracked`` and never the file.

It is cached under the file's content hash, so a file that is measured again, under whatever name, costs nothing.
"""

from __future__ import annotations

import hashlib
import os
import zipfile
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from flowportrait.errors import BadInput
from flowportrait.evaluate.optical import flow_method
from flowportrait.folders import cache_folder

FORMAT = 5
"""Part of the cache name: raised when what is stored changes."""


@dataclass(frozen=True)
class Tracked:
    """landmarks ``[T, 478, 3]`` px and blendshapes ``[T, 52]`` (NaN without a face); valid ``[T]``; points
    ``[T, 68, 2]`` px of the evaluation's own face network (empty ``[0, 68, 2]`` where it is not installed); mouth
    ``[T, 48, 64]`` uint8; flow ``[T - 1, 8, 8, 2]`` (NaN next to a missing face); crops ``[K, 128, 128, 3]`` uint8
    stabilised faces at the frames crop_at ``[K]``; skin ``[T, 3]`` mean colour of the cheeks in levels (NaN without a
    face); still ``[T - 1]`` whether the picture is the one before; border: see ``steadiness.seam_energy``; audio
    ``[640 T]`` (empty for a silent file); size ``[2]`` height and width; source_fps as the file has it."""

    landmarks: np.ndarray
    blendshapes: np.ndarray
    valid: np.ndarray
    points: np.ndarray
    mouth: np.ndarray
    flow: np.ndarray
    crops: np.ndarray
    crop_at: np.ndarray
    skin: np.ndarray
    still: np.ndarray
    border: np.ndarray
    audio: np.ndarray
    size: np.ndarray
    source_fps: np.ndarray

    def __len__(self) -> int:
        return len(self.landmarks)


def default_cache() -> Path:
    """``tracked`` in the user's cache."""
    return cache_folder() / "tracked"


def content_hash(path: Path) -> str:
    """24 hexadecimal digits of the file's SHA-256.

    Raises:
        BadInput: the file is missing.
    """
    if not path.is_file():
        raise BadInput(f"No video file at {path}: check the path.")
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()[:24]


def track_file(path: Path, cache: Path | None = None) -> Tracked:
    """Look at a video file, or read what was seen before from ``cache``.

    Raises:
        BadInput: the file is missing or cannot be decoded.
    """
    from flowportrait.evaluate.look import look

    if cache is None:
        content_hash(path)
        return look(path)
    cache.mkdir(parents=True, exist_ok=True)
    kept = cache / f"{content_hash(path)}-{FORMAT}-{flow_method().name}.npz"
    if kept.is_file():
        try:
            with np.load(kept) as stored:
                return Tracked(**{f.name: stored[f.name] for f in fields(Tracked)})
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            kept.unlink(missing_ok=True)
    tracked = look(path)
    partial = kept.with_suffix(f".{os.getpid()}.npz")
    np.savez_compressed(partial, **{f.name: getattr(tracked, f.name) for f in fields(Tracked)})
    os.replace(partial, kept)
    return tracked
