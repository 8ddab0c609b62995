"""Measurements of the videos of the evaluation set, by metrics and by instruments of lip sync.

An instrument of lip sync has a ``name``, says what it ``reads``, and embeds lips and sound as unit vectors, whose
distances by offset give LSE-C at 0, the best offset and LSE-D. ``pixels`` is the expert of the evaluation; others are
named ``MODULE:NAME``: an instrument, or a function that returns one or several by name.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import torch

from benchmarks.evaluation_set import SetPiece, read_word_times
from benchmarks.power_videos import SetVideos
from flowportrait.errors import BadInput
from flowportrait.evaluation.joins import scored_frames
from flowportrait.evaluation.lip_sync import (
    LONG_FRAMES,
    LONG_MAX_OFFSET,
    MIN_WINDOWS,
    SHORT_MAX_OFFSET,
    PixelSyncExpert,
    SyncMeasurement,
    scored_windows,
    sync_from_embeddings,
)
from flowportrait.evaluation.measure import VideoMetrics, compare_with_real, measure_video
from flowportrait.evaluation.metrics import REAL, MetricRow
from flowportrait.evaluation.motion_metrics import longest_run
from flowportrait.evaluation.networks import EvaluationNetworks
from flowportrait.evaluation.tracking import VideoTracks
from flowportrait.evaluation.true_lips import closure_frames, measure_closure
from flowportrait.media.audio import SAMPLES_PER_FRAME
from flowportrait.media.mel import MELS_PER_FRAME, log_mel, normalize_loudness
from flowportrait.rendering.motion_basis import MotionBasis
from flowportrait.terminal import progress

PIXELS = "pixels"


class LipSyncInstrument(Protocol):
    """Interface of an instrument of lip sync.

    Attributes:
        name: its name in tables.
        reads: ``mouth`` for grey patches ``[T, 48, 64]``, ``landmarks`` for MediaPipe's ``[T, 478, 3]`` in pixels, or
            ``motion`` for motion ``[T, 30]``.
    """

    @property
    def name(self) -> str: ...

    @property
    def reads(self) -> str: ...

    def embed(self, lips: np.ndarray, audio: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return unit embeddings ``[W, D]`` of lips and of sound ``[640 T]`` at 16 kHz, of the same windows."""


class PixelInstrument:
    """The expert of the evaluation, which reads mouth pixels."""

    name, reads = PIXELS, "mouth"

    @torch.no_grad()
    def embed(self, lips: np.ndarray, audio: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Embed mouth patches and sound."""
        expert = PixelSyncExpert.load()
        mel = log_mel(normalize_loudness(audio))[: MELS_PER_FRAME * len(lips)]
        face = expert.embed_face(torch.from_numpy(np.ascontiguousarray(lips))[None])[0]
        return face.cpu().numpy(), expert.embed_audio(mel[None])[0].cpu().numpy()


def load_instruments(words: Iterable[str]) -> list[LipSyncInstrument]:
    """Return instruments from words that are each ``pixels`` or ``MODULE:NAME``.

    Raises:
        BadInput: there is no such module or name, or what is there is no instrument.
    """
    found: list[LipSyncInstrument] = []
    for word in words:
        if word == PIXELS:
            found.append(PixelInstrument())
            continue
        module, colon, name = word.partition(":")
        try:
            loaded: Any = getattr(importlib.import_module(module), name) if colon else None
        except (ImportError, AttributeError) as error:
            raise BadInput(f"The instrument {word} cannot be loaded ({error}): write MODULE:NAME.") from error
        loaded = loaded() if callable(loaded) and not hasattr(loaded, "embed") else loaded
        loaded = loaded() if isinstance(loaded, type) else loaded
        several = list(loaded.values()) if isinstance(loaded, Mapping) else [loaded]
        if not all(hasattr(one, "embed") and hasattr(one, "reads") and hasattr(one, "name") for one in several):
            raise BadInput(f"{word} is no instrument of lip sync: write pixels, or MODULE:NAME of one.")
        found += several
    return found


def measure_with_instrument(
    instrument: LipSyncInstrument, tracked: VideoTracks, joins: Sequence[int] = ()
) -> SyncMeasurement | None:
    """Measure lip sync with an instrument over the longest run of frames with a face; None if too few windows count.

    Raises:
        BadInput: the instrument reads what tracks do not have.
    """
    run = longest_run(tracked.valid)
    lips = _lips(instrument, tracked, run)
    reach = LONG_MAX_OFFSET if len(lips) >= LONG_FRAMES else SHORT_MAX_OFFSET
    audio = tracked.audio[SAMPLES_PER_FRAME * run.start : SAMPLES_PER_FRAME * run.stop]
    if not len(audio) or len(lips) < 2 * reach + MIN_WINDOWS:
        return None
    face, voice = instrument.embed(lips, audio)
    if len(face) - 2 * reach < MIN_WINDOWS:
        return None
    counted = scored_windows(scored_frames(len(tracked), joins)[run], len(lips) - len(face) + 1, reach)
    return sync_from_embeddings(face, voice, reach, counted) if counted.sum() >= MIN_WINDOWS else None


def _lips(instrument: LipSyncInstrument, tracked: VideoTracks, run: slice) -> np.ndarray:
    if instrument.reads == "mouth":
        return tracked.mouth[run]
    if instrument.reads == "landmarks":
        return tracked.landmarks[run]
    if instrument.reads == "motion":
        return MotionBasis.load().encode(tracked.landmarks[run], tracked.blendshapes[run], smooth=False)[0].numpy()
    raise BadInput(
        f"The instrument {instrument.name} reads {instrument.reads}: it can read mouth, landmarks or motion."
    )


@dataclass
class SetMeasurements:
    """What was measured: rows by system and piece, and all of a video by system and piece."""

    rows: dict[str, dict[str, MetricRow]] = field(default_factory=dict)
    videos: dict[str, dict[str, VideoMetrics]] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)


class SetMeter:
    """Measures videos of the set.

    Args:
        videos: the videos.
        networks: the networks of the evaluation.
        instruments: instruments of lip sync.
    """

    def __init__(
        self, videos: SetVideos, networks: EvaluationNetworks, instruments: Sequence[LipSyncInstrument]
    ) -> None:
        self.videos, self.networks, self.instruments = videos, networks, instruments

    def measure(self, pieces: Sequence[SetPiece], systems: Sequence[str], real: bool = True) -> SetMeasurements:
        """Measure every piece that all systems have; with ``real`` also against the speaker's footage."""
        found = SetMeasurements({s: {} for s in systems}, {s: {} for s in systems})
        for piece in progress(pieces, len(pieces), "measuring"):
            missing = [system for system in systems if not self.videos.path(system, piece.name).is_file()]
            if missing:
                found.left_out[piece.name] = f"there is no video of {missing[0]} yet"
                continue
            try:
                measured = {system: self.measure_one(system, piece) for system in systems}
            except BadInput as error:
                found.left_out[piece.name] = str(error)
                continue
            for system, metrics in measured.items():
                row = metrics.row
                if real and system != REAL:
                    ours, theirs = (self.videos.tracks(name, piece.name) for name in (system, REAL))
                    row = row | compare_with_real(ours, theirs, metrics.features, measured[REAL].features, piece.joins)
                found.rows[system][piece.name], found.videos[system][piece.name] = row, metrics
        return found

    def measure_one(self, system: str, piece: SetPiece) -> VideoMetrics:
        """Measure one video with the metrics, the closure of the lips where words are known, and the instruments."""
        path, cache = self.videos.path(system, piece.name), self.videos.output / "tracks"
        metrics = measure_video(path, cache, self.networks, piece.joins)
        tracked = self.videos.tracks(system, piece.name)
        words = read_word_times(self.videos.footage, piece)
        metrics.row.update(measure_closure(tracked, closure_frames(words), piece.joins))
        for instrument in self.instruments:
            sync = measure_with_instrument(instrument, tracked, piece.joins)
            if sync is not None:
                metrics.row.update(instrument_row(instrument.name, sync))
        return metrics


def instrument_row(name: str, sync: SyncMeasurement) -> MetricRow:
    """Return what an instrument measured, by key."""
    return {
        f"{name}: C at 0": sync.lse_c_at_zero,
        f"{name}: C": sync.lse_c,
        f"{name}: |offset|": abs(sync.offset),
        f"{name}: D": sync.lse_d,
        f"{name}: C of reversed sound": sync.chance,
    }


def window_piece(piece: SetPiece, start: int, frames: int) -> SetPiece:
    """Return the part of a long piece that begins at frame ``start``, with its joins counted from there."""

    parts, place = [], 0
    for part in piece.parts:
        first, last = max(place, start), min(place + part.frames, start + frames)
        if last > first:
            parts.append(replace(part, first=part.first + first - place, frames=last - first))
        place += part.frames
    return replace(piece, parts=tuple(parts))
