"""Write a video with its provenance: watermark, tags and a signed C2PA manifest.

    frames ─► watermark ─► mp4, mov, webm or gif with tags ─► signed C2PA manifest, in it or beside it ─► name

The file appears under its name when all of that is done.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np

from flowportrait.files import atomic_write
from flowportrait.media.audio import Sound
from flowportrait.media.formats import output_format
from flowportrait.media.video import FPS
from flowportrait.media.write_gif import Progress
from flowportrait.media.write_video import write_video
from flowportrait.provenance.manifest import (
    SigningCredential,
    VideoOrigin,
    build_detached_manifest,
    read_signature,
    sidecar_path,
    sign_video,
)
from flowportrait.provenance.watermark import add_watermark

_WORKERS = 2
"""Threads that add the watermark to frames."""


@dataclass(frozen=True)
class Provenance:
    """What a video states about itself.

    Attributes:
        origin: how it was made.
        credential: the certificate that signs it, None for no signature.
        watermark: whether its frames carry the watermark.
    """

    origin: VideoOrigin
    credential: SigningCredential | None
    watermark: bool = True


def write_video_with_provenance(
    path: str | Path,
    frames: Iterable[np.ndarray],
    sound: Path | Sound | np.ndarray | None,
    provenance: Provenance | None,
    fps: Fraction | float = FPS,
    frame_total: int | None = None,
    progress: Progress | None = None,
) -> int:
    """Write a video with tags, watermark and manifest; without any of them where ``provenance`` is None.

    The same frames give the same pictures in the file; the manifest differs in its id and signature. A format that
    cannot carry the manifest gets it as a file beside it (``manifest.sidecar_path``).

    Args:
        path: the file; its suffix chooses the format.
        frames: see ``write_video``.
        sound: see ``write_video``.
        fps: frames per second.
        frame_total: see ``write_video``.
        progress: see ``write_video``.
        provenance: what the video states and who signs it.

    Returns:
        How many frames were written.

    Raises:
        BadInput: see ``write_video`` and ``sign_video``.
    """
    path = Path(path)
    if provenance is None:
        stale = _has_stale_sidecar(path)
        count = write_video(path, frames, sound, fps, frame_total=frame_total, progress=progress)
        if stale:
            sidecar_path(path).unlink(missing_ok=True)
        return count
    origin, credential, watermark = provenance.origin, provenance.credential, provenance.watermark
    detached: list[bytes] = []

    def finish(partial: Path) -> None:
        if credential is None:
            return
        if output_format(partial).embeds_manifest:
            sign_video(partial, origin, credential, watermark)
        else:
            detached.append(build_detached_manifest(partial, origin, credential, watermark))

    stale = credential is None and _has_stale_sidecar(path)
    count = write_video(
        path, add_watermark(frames, _WORKERS) if watermark else frames, sound, fps, tags=origin.tags(), finish=finish,
        frame_total=frame_total, progress=progress,
    )  # fmt: skip
    if stale:
        sidecar_path(path).unlink(missing_ok=True)
    for manifest in detached:
        with atomic_write(sidecar_path(path)) as partial:
            partial.write_bytes(manifest)
    return count


def _has_stale_sidecar(path: Path) -> bool:
    """Return whether FlowPortrait's manifest of the very file that will be replaced lies beside it."""
    if output_format(path).embeds_manifest or not path.is_file():
        return False
    signature = read_signature(path)
    return signature.sidecar and signature.intact and "FlowPortrait" in signature.generator
