"""Write a video that says what it is.

frames ─► watermark ─► mp4, mov, webm or gif with tags ─► signed C2PA manifest, in it or beside it ─► name
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np

from flowportrait.media.audio import Sound
from flowportrait.media.output_formats import output_format
from flowportrait.media.video import FPS
from flowportrait.media.write_gif import Progress
from flowportrait.media.write_video import write_video
from flowportrait.provenance.credential import Credential
from flowportrait.provenance.manifest import detached_manifest, read_signature, sidecar_path, sign
from flowportrait.provenance.origin import Origin
from flowportrait.provenance.watermark import marked
from flowportrait.written import complete

_WORKERS = 2
"""Threads that mark frames."""


@dataclass(frozen=True)
class Provenance:
    """What is said, and who signs it."""

    origin: Origin
    credential: Credential


def publish(
    path: str | Path,
    frames: Iterable[np.ndarray],
    sound: Path | Sound | np.ndarray | None,
    provenance: Provenance | None,
    fps: Fraction | float = FPS,
    frame_total: int | None = None,
    progress: Progress | None = None,
) -> int:
    """``write_video`` with tags, watermark and manifest; without any of them where ``provenance`` is None.

    The same frames give the same pictures in the file; the manifest differs in its id and signature. A format that
    cannot carry the manifest gets it as a file beside it (``manifest.sidecar_path``).

    Args:
        path, frames, sound, fps, frame_total, progress: see ``write_video``.
        provenance: what is said and who signs.

    Returns:
        How many frames were written.

    Raises:
        BadInput: see ``write_video`` and ``sign``.
    """
    path = Path(path)
    if provenance is None:
        stale = not output_format(path).embeds_manifest and path.is_file() and _has_own_sidecar(path)
        count = write_video(path, frames, sound, fps, frame_total=frame_total, progress=progress)
        if stale:
            # It spoke of the video that was replaced.
            sidecar_path(path).unlink(missing_ok=True)
        return count
    detached: list[bytes] = []

    def finish(partial: Path) -> None:
        if output_format(partial).embeds_manifest:
            sign(partial, provenance.origin, provenance.credential)
        else:
            detached.append(detached_manifest(partial, provenance.origin, provenance.credential))

    count = write_video(
        path, marked(frames, _WORKERS), sound, fps, tags=provenance.origin.tags(), finish=finish,
        frame_total=frame_total, progress=progress,
    )  # fmt: skip
    for manifest in detached:
        with complete(sidecar_path(path)) as partial:
            partial.write_bytes(manifest)
    return count


def _has_own_sidecar(path: Path) -> bool:
    """Whether FlowPortrait's manifest of this very file lies beside it."""
    signature = read_signature(path)
    return signature.sidecar and signature.intact and "FlowPortrait" in signature.generator
