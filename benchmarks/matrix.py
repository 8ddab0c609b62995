"""Does every corruption move its own metric and leave the others alone? And how fast is the measuring?

    python benchmarks/matrix.py --output DIR CLIP_OR_FOLDER … [--clips 12] [--strength plain]

Real clips are damaged (``flowportrait.corruption``), written through the same codec and measured. A cell is the paired
change of the metric over the spread of the undamaged clips, marked * where the 95 % interval of the change does not
hold zero. Rows and columns are printed and written to matrix.json and matrix.svg; the second pass over the same files
gives the speed with the cache.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
from rich.progress import track

from flowportrait.corruption import CORRUPTIONS, Footage, corrupt
from flowportrait.data.prompts import find_videos
from flowportrait.evaluation.api import Measurements, measure_videos
from flowportrait.evaluation.figures import PLOT_STYLE, to_svg
from flowportrait.evaluation.measure import compare_with_real
from flowportrait.evaluation.metrics import MetricRow
from flowportrait.evaluation.statistics import bootstrap_mean
from flowportrait.evaluation.tracking import track_file
from flowportrait.media.audio import read_audio
from flowportrait.media.faces import FaceTracker, interpolate_missing_frames
from flowportrait.media.video import SAMPLES_PER_FRAME, iter_frames
from flowportrait.media.write_video import write_video

STRENGTHS = ("mild", "plain", "strong")
COLUMNS = ("sync", "ler", "ecs_mouth", "ecs_eyes", "ecs_brows", "lid_motion", "gaze_std", "head_range", "tfi", "jerk",
           "repeated", "amplitude", "sharpness", "flicker", "colour_drift", "seam", "identity_kept", "aed", "ssim",
           "perceptual")  # fmt: skip
OWN = {
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
PLAIN = "undamaged"


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("inputs", type=Path, nargs="+")
    options.add_argument("--output", type=Path, required=True)
    options.add_argument("--clips", type=int, default=12)
    options.add_argument("--strength", choices=STRENGTHS, default="plain")
    given = options.parse_args()
    found = find_videos(given.inputs)
    chosen = [found[i] for i in np.unique(np.linspace(0, len(found) - 1, given.clips).astype(int))]
    files = written(chosen, given.output / f"videos_{given.strength}", STRENGTHS.index(given.strength))
    cache = given.output / "cache"
    began = time.monotonic()
    measured = measure_videos(files, cache)
    fresh = time.monotonic() - began
    began = time.monotonic()
    measure_videos(files, cache)
    again = time.monotonic() - began
    rows = with_real(measured, files, cache)
    cells = table(rows)
    count = sum(map(len, files.values()))
    speed = {
        "files": count,
        "clips a minute": round(60 * count / fresh, 1),
        "from the cache": round(60 * count / again, 1),
    }
    show(cells, speed)
    result = {"strength": given.strength, "clips": len(chosen), "cells": cells, "speed": speed}
    (given.output / f"matrix_{given.strength}.json").write_text(json.dumps(result, indent=1) + "\n")
    (given.output / f"matrix_{given.strength}.svg").write_text(drawn(cells))


def written(clips: list[Path], folder: Path, strength: int) -> dict[str, list[Path]]:
    """Every clip in every state; files that are there are kept."""
    files: dict[str, list[Path]] = {}
    for clip in track(clips, description="damaging"):
        footage = None
        for name in (PLAIN, *CORRUPTIONS):
            path = folder / name.replace(" ", "_") / f"{clip.stem}.mp4"
            files.setdefault(name, []).append(path)
            if path.is_file():
                continue
            footage = footage or read(clip)
            path.parent.mkdir(parents=True, exist_ok=True)
            made = footage if name == PLAIN else corrupt(footage, name, CORRUPTIONS[name].strengths[strength])
            assert made.frames is not None
            write_video(path, made.frames, made.audio)
    return files


def read(clip: Path) -> Footage:
    frames = np.stack(list(iter_frames(clip)))
    with FaceTracker() as tracker:
        faces = tracker.track(frames)
    wave = np.zeros(len(frames) * SAMPLES_PER_FRAME, np.float32)
    heard = read_audio(clip)[: len(wave)]
    wave[: len(heard)] = heard
    return Footage(frames, wave, interpolate_missing_frames(faces.landmarks, faces.valid))


def with_real(measured: Measurements, files: dict[str, list[Path]], cache: Path) -> dict[str, dict[str, MetricRow]]:
    """Rows with the figures that compare with the undamaged clip, and LSE-C at 0 of either reach as ``sync``."""
    rows: dict[str, dict[str, MetricRow]] = {}
    for name, paths in files.items():
        for path in paths:
            finding, real = measured.metrics[name].get(path.stem), measured.metrics[PLAIN].get(path.stem)
            if finding is None or real is None:
                continue
            row = finding.row | {"sync": finding.row.get("sync_in_time", finding.row.get("sync_in_time_short"))}
            if name != PLAIN:
                mine, truth = (track_file(p, cache) for p in (path, files[PLAIN][paths.index(path)]))
                row |= compare_with_real(mine, truth, finding.features, real.features)
            rows.setdefault(name, {})[path.stem] = row
    return rows


def table(rows: dict[str, dict[str, MetricRow]]) -> dict[str, dict[str, dict[str, float | bool]]]:
    """cells[corruption][metric]: change in spreads, whether it is sure, and both means."""
    cells: dict[str, dict[str, dict[str, float | bool]]] = {}
    for name in CORRUPTIONS:
        cells[name] = {}
        for key in COLUMNS:
            pairs = [(row.get(key), rows[PLAIN][clip].get(key)) for clip, row in rows[name].items()]
            if key in ("aed", "ssim", "perceptual"):
                best = 1.0 if key == "ssim" else 0.0
                pairs = [(after, best) for after, _ in pairs]
            known = np.array([(float(a), float(b)) for a, b in pairs if a is not None and b is not None])
            if len(known) < 3:
                continue
            gap = bootstrap_mean(known[:, 0] - known[:, 1])
            spread = max(float(known[:, 1].std()), 0.02 * abs(float(known[:, 1].mean())), SMALLEST.get(key, 1e-3))
            sure = gap.excludes_zero
            cells[name][key] = {"change": round(gap.mean / spread, 2), "sure": sure,
                                "before": round(float(known[:, 1].mean()), 4),
                                "after": round(float(known[:, 0].mean()), 4)}  # fmt: skip
    return cells


SMALLEST = {"repeated": 0.05, "aed": 0.1, "ssim": 0.02, "perceptual": 0.02}
"""Spread of metrics that hardly differ between undamaged clips."""


def show(cells: dict[str, dict[str, dict[str, float | bool]]], speed: dict[str, float]) -> None:
    print(f"{'':18s}" + "".join(f"{key[:9]:>10s}" for key in COLUMNS))
    for name, row in cells.items():
        line = "".join(
            f"{row[key]['change']:9.1f}{'*' if row[key]['sure'] else ' '}" if key in row else f"{'–':>10s}"
            for key in COLUMNS
        )
        print(f"{name:18s}{line}")
        missed = [key for key in OWN[name] if not row.get(key, {}).get("sure")]
        if missed:
            print(f"{'':18s}does not surely move {', '.join(missed)}")
    print(speed)


def drawn(cells: dict[str, dict[str, dict[str, float | bool]]]) -> str:
    import matplotlib.pyplot as plt

    values = np.array([[row.get(key, {}).get("change", np.nan) for key in COLUMNS] for row in cells.values()], float)
    with plt.rc_context(PLOT_STYLE):
        figure, axis = plt.subplots(figsize=(10.5, 4.6))
        axis.imshow(np.ma.masked_invalid(values.clip(-4, 4)), cmap="RdBu_r", vmin=-4, vmax=4, aspect="auto")
        for y, (name, row) in enumerate(cells.items()):
            for x, key in enumerate(COLUMNS):
                if key in row and row[key]["sure"]:
                    weight = "bold" if key in OWN[name] else "normal"
                    axis.text(x, y, f"{row[key]['change']:.1f}", ha="center", va="center", fontsize=7, weight=weight)
        axis.set_xticks(range(len(COLUMNS)), COLUMNS, rotation=45, ha="right")
        axis.set_yticks(range(len(cells)), list(cells))
        return to_svg(figure)


if __name__ == "__main__":
    main()
