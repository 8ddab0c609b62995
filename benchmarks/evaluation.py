"""The evaluation measured: whether metrics notice the damage that they are for, and how fast clips are measured."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import starmap
from pathlib import Path
from typing import Literal

import numpy as np

from benchmarks.material import spread_evenly
from benchmarks.record import Record
from benchmarks.timing import processor_seconds, stopwatch
from flowportrait.commands.options import Inputs
from flowportrait.corruption import CORRUPTIONS, Footage, corrupt
from flowportrait.data.prompts import find_videos
from flowportrait.errors import BadInput
from flowportrait.evaluation.measure import compare_with_real
from flowportrait.evaluation.measure_files import Measurements, measure_videos
from flowportrait.evaluation.metrics import MetricRow
from flowportrait.evaluation.statistics import Estimate, bootstrap_mean
from flowportrait.evaluation.tracking import VideoTracks, track_file
from flowportrait.files import check_output_folder, write_text
from flowportrait.media.audio import SAMPLES_PER_FRAME, read_audio
from flowportrait.media.faces import FaceTracker, interpolate_missing_frames
from flowportrait.media.video import iter_frames
from flowportrait.media.write_video import write_video
from flowportrait.terminal import progress


def _spread_clips(inputs: tuple[Path, ...], count: int) -> list[Path]:
    """Return ``count`` videos, evenly spaced among those that are found."""
    if not inputs or count < 1:
        raise BadInput("Give videos or folders of them, and --clips of 1 or more.")
    return spread_evenly(find_videos(inputs), count)


# --- Damage and metrics -----------------------------------------------------------------


@dataclass(frozen=True)
class CorruptionsOptions:
    """Measure whether every corruption moves its own metric and leaves the others alone.

    Real clips are damaged, written through the same codec and measured. "change" is the paired change of a metric over
    the spread of the undamaged clips, with its 95 % interval. A drawing of all changes is written to --output.
    """

    inputs: Inputs
    """Videos or folders."""
    output: Path
    """Folder of the damaged videos, of what was measured on them, and of the drawing; what is there is kept."""
    clips: int = 12
    """Videos, evenly spaced among those that are found."""
    strength: Literal["mild", "plain", "strong"] = "plain"
    """Strength of the damage."""


STRENGTHS = ("mild", "plain", "strong")
UNDAMAGED = "undamaged"
BEST = {"aed": 0.0, "ssim": 1.0, "perceptual": 0.0}
"""Metrics that compare a video with the real one, and their value for the real one itself."""
METRICS = ("sync", "ler", "ecs_mouth", "ecs_eyes", "ecs_brows", "lid_motion", "gaze_std", "head_range", "tfi", "jerk",
           "repeated", "amplitude", "sharpness", "flicker", "colour_drift", "seam", "identity_kept", *BEST)  # fmt: skip
OWN_METRICS = {
    "offset": ("sync", "ler"),
    "time-warp": ("sync", "ler"),
    "swapped segments": ("sync", "ler"),
    "frozen frames": ("repeated",),
    "jitter": ("tfi", "jerk"),
    "frozen eyes": ("lid_motion", "gaze_std"),
    "still": ("amplitude", "repeated"),
    "slowed": ("sync", "ler"),
    "blur": ("sharpness", "perceptual"),
    "colour pumping": ("colour_drift",),
    "flicker": ("flicker",),
    "seam": ("seam",),
}
SMALLEST_SPREAD = {"repeated": 0.05, "aed": 0.1, "ssim": 0.02, "perceptual": 0.02}
"""Spread of metrics that hardly differ between undamaged clips."""
MIN_CLIPS = 3

Changes = dict[str, dict[str, Estimate]]
"""Changes in spreads by damage and metric."""


def corruptions(options: CorruptionsOptions, record: Record) -> None:
    check_output_folder(options.output)
    clips, cache = _spread_clips(options.inputs, options.clips), options.output / "cache"
    if len(clips) < MIN_CLIPS:
        raise BadInput(f"{len(clips)} clips tell nothing: give {MIN_CLIPS} or more.")
    folder = options.output / f"videos_{options.strength}"
    files = _write_damaged(clips, folder, STRENGTHS.index(options.strength))
    with stopwatch() as fresh:
        measured = measure_videos(files, cache)
    with stopwatch() as again:
        measure_videos(files, cache)
    changes = _compare(_metric_rows(measured, files, cache), record)
    for damage, metrics in changes.items():
        for metric in OWN_METRICS[damage]:
            if metric not in metrics or not metrics[metric].excludes_zero:
                record.note(f"{damage} does not surely move {metric}.")
    count = sum(map(len, files.values()))
    for system, spent in (("nothing cached", fresh), ("from the cache", again)):
        record.add(system, "clips a minute", 60 * count / spent.clock, group="speed of measuring", n=count)
    write_text(options.output / f"changes_{options.strength}.svg", _draw(changes))


def _write_damaged(clips: list[Path], folder: Path, strength: int) -> dict[str, list[Path]]:
    """Write every clip in every state; files that are there are kept."""
    files: dict[str, list[Path]] = {}
    for clip in progress(clips, len(clips), "damaging"):
        footage = None
        for name in (UNDAMAGED, *CORRUPTIONS):
            path = folder / name.replace(" ", "_") / f"{clip.stem}.mp4"
            files.setdefault(name, []).append(path)
            if path.is_file():
                continue
            footage = footage or _read_footage(clip)
            path.parent.mkdir(parents=True, exist_ok=True)
            damaged = footage if name == UNDAMAGED else corrupt(footage, name, CORRUPTIONS[name].strengths[strength])
            assert damaged.frames is not None
            write_video(path, damaged.frames, damaged.audio)
    return files


def _read_footage(clip: Path) -> Footage:
    frames = np.stack(list(iter_frames(clip)))
    with FaceTracker() as tracker:
        faces = tracker.track(frames)
    audio = np.zeros(len(frames) * SAMPLES_PER_FRAME, np.float32)
    samples = read_audio(clip)[: len(audio)]
    audio[: len(samples)] = samples
    return Footage(frames, audio, interpolate_missing_frames(faces.landmarks, faces.valid))


def _metric_rows(measured: Measurements, files: dict[str, list[Path]], cache: Path) -> dict[str, dict[str, MetricRow]]:
    """Return metrics by damage and clip, with those that compare with the undamaged clip.

    ``sync`` is LSE-C at offset 0, in whichever search range it was measured.
    """
    rows: dict[str, dict[str, MetricRow]] = {}
    for name, paths in files.items():
        for path, real_path in zip(paths, files[UNDAMAGED], strict=True):
            finding, real = measured.metrics[name].get(path.stem), measured.metrics[UNDAMAGED].get(path.stem)
            if finding is None or real is None:
                continue
            row = finding.row | {"sync": finding.row.get("sync_in_time", finding.row.get("sync_in_time_short"))}
            if name != UNDAMAGED:
                tracks = track_file(path, cache), track_file(real_path, cache)
                row |= compare_with_real(*tracks, finding.features, real.features)
            rows.setdefault(name, {})[path.stem] = row
    return rows


def _compare(rows: dict[str, dict[str, MetricRow]], record: Record) -> Changes:
    changes: Changes = {}
    for damage in CORRUPTIONS:
        changes[damage] = {}
        for metric in METRICS:
            pairs = [(row.get(metric), BEST.get(metric, rows[UNDAMAGED][clip].get(metric)))
                     for clip, row in rows.get(damage, {}).items()]  # fmt: skip
            values = np.array([(float(after), float(before)) for after, before in pairs
                              if after is not None and before is not None])  # fmt: skip
            if len(values) < MIN_CLIPS:
                continue
            after, before = values.T
            gap = bootstrap_mean(after - before)
            spread = max(float(before.std()), 0.02 * abs(float(before.mean())), SMALLEST_SPREAD.get(metric, 1e-3))
            assert gap.low is not None
            assert gap.high is not None
            change = Estimate(gap.mean / spread, gap.low / spread, gap.high / spread, gap.clips)
            changes[damage][metric] = change
            system = f"{metric} (its own)" if metric in OWN_METRICS[damage] else metric
            record.add(system, "change", change, unit="spreads", group=damage)
            record.add(system, UNDAMAGED, float(before.mean()), group=damage)
            record.add(system, "damaged", float(after.mean()), group=damage)
    return changes


def _draw(changes: Changes) -> str:
    """Return the changes as a picture in SVG: numbers where they are sure, bold where damage has its own metric."""
    import matplotlib.pyplot as plt

    from flowportrait.evaluation.figures import PLOT_STYLE, to_svg

    values = np.array([[row[key].mean if key in row else np.nan for key in METRICS] for row in changes.values()])
    with plt.rc_context(PLOT_STYLE):
        figure, axis = plt.subplots(figsize=(10.5, 4.6))
        axis.imshow(np.ma.masked_invalid(values.clip(-4, 4)), cmap="RdBu_r", vmin=-4, vmax=4, aspect="auto")
        for y, (damage, row) in enumerate(changes.items()):
            for x, key in enumerate(METRICS):
                if key in row and row[key].excludes_zero:
                    weight = "bold" if key in OWN_METRICS[damage] else "normal"
                    axis.text(x, y, f"{row[key].mean:.1f}", ha="center", va="center", fontsize=7, weight=weight)
        axis.set_xticks(range(len(METRICS)), METRICS, rotation=45, ha="right")
        axis.set_yticks(range(len(changes)), list(changes))
        return to_svg(figure)


# --- Speed ------------------------------------------------------------------------------


@dataclass(frozen=True)
class ThroughputOptions:
    """Measure how many clips a minute are evaluated, all metrics together and each alone, with and without the cache.

    Alone means without the cache, so the video is decoded and the face tracked each time. One process is timed in
    processor seconds, several processes by the clock.
    """

    inputs: Inputs
    """Videos or folders."""
    clips: int = 8
    """Videos, evenly spaced among those that are found."""
    workers: int = 2
    """Processes of the measurement with several."""


def throughput(options: ThroughputOptions, record: Record) -> None:
    from flowportrait.evaluation.networks import load_evaluation_networks
    from flowportrait.media.optical_flow import best_installed_flow

    clips = _spread_clips(options.inputs, options.clips)

    def add(system: str, seconds: float) -> None:
        record.add(system, "clips a minute", 60 * len(clips) / seconds, n=len(clips))
        record.add(system, "time", 1000 * seconds / len(clips), unit="ms/clip", n=len(clips))

    load_evaluation_networks()
    with tempfile.TemporaryDirectory() as folder:
        cache = Path(folder)
        add("everything, nothing cached", processor_seconds(lambda: measure_videos({"a": clips}, cache)))
        add("everything, from the cache", processor_seconds(lambda: measure_videos({"a": clips}, cache)))
        tracked = [track_file(clip, cache) for clip in clips]
        with stopwatch() as spent:
            measure_videos({"a": clips}, cache / "other", options.workers)
        add(f"everything, nothing cached, {options.workers} processes, by the clock", spent.clock)
    record.note(f"{sum(map(len, tracked))} frames; {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; "
                f"optical flow by {best_installed_flow().name}")  # fmt: skip
    tracking = processor_seconds(lambda: list(map(_track, clips)))
    add("decoding and tracking alone", tracking)
    for name, part in _metric_parts(clips, tracked).items():
        add(f"{name}, alone", tracking + processor_seconds(part))


def _metric_parts(clips: list[Path], tracked: list[VideoTracks]) -> Mapping[str, Callable[[], object]]:
    """Return the parts of the evaluation, each as a call that measures all clips after tracking."""
    from flowportrait.evaluation.lip_sync import measure_sync
    from flowportrait.evaluation.measure import theval_measures
    from flowportrait.evaluation.motion_metrics import count_blinks, measure_silent_lip, remove_pose
    from flowportrait.evaluation.networks import EvaluationNetworks, compute_network_features, load_evaluation_networks

    nets, pairs = load_evaluation_networks(), list(zip(clips, tracked, strict=True))
    identity = EvaluationNetworks(nets.identity, None, None, None)
    likeness = EvaluationNetworks(None, nets.image, nets.texture, nets.video)

    def motion(tracks: VideoTracks) -> None:
        measure_silent_lip(tracks.landmarks, tracks.valid, tracks.audio)
        count_blinks(remove_pose(tracks.landmarks[tracks.valid])[0])

    return {
        "LSE-C/D, offset, LER": lambda: [measure_sync(t) for t in tracked],
        "TFI (optical flow)": lambda: list(starmap(_measure_flow, pairs)),
        "ECS (68 points)": lambda: list(starmap(_measure_outline, pairs)),
        "silent lip, blinks, gaze, head": lambda: list(map(motion, tracked)),
        "THEval-5": lambda: [theval_measures(t, remove_pose(t.landmarks[t.valid])[1]) for t in tracked],
        "CSIM": lambda: [compute_network_features(t, identity) for t in tracked],
        "FID- and FVD-style": lambda: [compute_network_features(t, likeness) for t in tracked],
    }


def _track(clip: Path) -> None:
    with FaceTracker() as tracker:
        tracker.track(iter_frames(clip))


def _measure_flow(clip: Path, tracks: VideoTracks) -> None:
    import cv2

    from flowportrait.evaluation.tracking import stabilizing_transforms
    from flowportrait.media.optical_flow import best_installed_flow

    matrices, method, before = stabilizing_transforms(tracks.landmarks, tracks.valid), best_installed_flow(), None
    for frame, matrix in zip(iter_frames(clip), matrices, strict=True):
        now = cv2.warpAffine(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY), matrix, (96, 96), flags=cv2.INTER_AREA)
        if before is not None:
            method.between(before, now)
        before = now


def _measure_outline(clip: Path, tracks: VideoTracks) -> None:
    from flowportrait.evaluation.motion_metrics import action_signals68
    from flowportrait.evaluation.tracking import face_boxes, find_landmarks68

    boxes = face_boxes(tracks.landmarks, tracks.valid)
    action_signals68(np.array([find_landmarks68(f, box) for f, box in zip(iter_frames(clip), boxes, strict=True)]))
