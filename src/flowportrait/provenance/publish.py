"""Write a video that says what it is.

frames ─► watermark ─► H.264 + tags in the container ─► signed C2PA manifest ─► name
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from flowportrait.media.write_video import write_video
from flowportrait.provenance.credential import Credential
from flowportrait.provenance.manifest import sign
from flowportrait.provenance.origin import Origin
from flowportrait.provenance.watermark import marked

_WORKERS = 2
"""Threads that mark frames."""


@dataclass(frozen=True)
class Provenance:
    """What is said, and who signs it."""

    origin: Origin
    credential: Credential


def publish(
    path: str | Path, frames: Iterable[np.ndarray], audio: np.ndarray | None, provenance: Provenance | None
) -> int:
    """``write_video`` with tags, watermark and manifest; without any of them where ``provenance`` is None.

    Frames ``[H, W, 3]`` uint8 RGB, audio ``[N]`` at 16 kHz; returns how many frames were written. The same frames give
    the same pictures in the file; the manifest differs in its id and signature.

    Raises:
        BadInput: see ``write_video`` and ``sign``.
    """
    if provenance is None:
        return write_video(path, frames, audio)
    return write_video(
        path,
        marked(frames, _WORKERS),
        audio,
        tags=provenance.origin.tags(),
        finish=lambda partial: sign(partial, provenance.origin, provenance.credential),
    )
