"""Measurements of the videos of the evaluation set, by metrics and by instruments of lip sync."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from benchmarks.evaluation_set import SetPiece, read_word_times
from benchmarks.power_videos import SetVideos
from flowportrait.errors import BadInput
from flowportrait.evaluation.lip_sync import SyncMeasurement
from flowportrait.evaluation.measure import VideoMetrics, compare_with_real, measure_video
from flowportrait.evaluation.metrics import REAL, MetricRow
from flowportrait.evaluation.networks import EvaluationNetworks
from flowportrait.evaluation.sync_instruments import SyncInstrument, measure_sync_of_file
from flowportrait.evaluation.true_lips import closure_frames, measure_closure
from flowportrait.terminal import progress


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
        instruments: instruments of lip sync by name.
    """

    def __init__(
        self, videos: SetVideos, networks: EvaluationNetworks, instruments: Mapping[str, SyncInstrument]
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
        for name, sync in measure_sync_of_file(path, self.instruments, cache, piece.joins).items():
            if sync is not None:
                metrics.row.update(instrument_row(name, sync))
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
