"""How many clips a minute are measured, all together and metric by metric, with and without the cache.

    python benchmarks/throughput.py CLIP_OR_FOLDER … [--clips 8] [--workers 2]

Metric by metric means: measured alone, without the cache, so the video is decoded and the face tracked each time. One
process is timed in CPU seconds, which other work on the machine does not change; several processes by the clock.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from flowportrait.data.prompts import find_videos
from flowportrait.evaluation.api import measure_videos
from flowportrait.evaluation.lip_sync import measure_sync
from flowportrait.evaluation.measure import theval_measures
from flowportrait.evaluation.motion_metrics import action_signals68, count_blinks, measure_silent_lip, remove_pose
from flowportrait.evaluation.networks import EvaluationNetworks, compute_network_features, load_evaluation_networks
from flowportrait.evaluation.tracking import face_boxes, find_landmarks68, stabilizing_transforms, track_file
from flowportrait.media.faces import FaceTracker
from flowportrait.media.optical_flow import best_installed_flow
from flowportrait.media.video import iter_frames


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("inputs", type=Path, nargs="+")
    options.add_argument("--clips", type=int, default=8)
    options.add_argument("--workers", type=int, default=2)
    given = options.parse_args()
    found = find_videos(given.inputs)
    clips = [found[i] for i in np.unique(np.linspace(0, len(found) - 1, given.clips).astype(int))]
    load_evaluation_networks()
    with tempfile.TemporaryDirectory() as folder:
        cache = Path(folder)
        fresh, again = (seconds(lambda: measure_videos({"a": clips}, cache)) for _ in range(2))
        tracked = [track_file(clip, cache) for clip in clips]
        began = time.monotonic()
        measure_videos({"a": clips}, cache / "other", given.workers)
        parallel = time.monotonic() - began
    frames = sum(map(len, tracked))
    print(f"{len(clips)} clips, {frames} frames, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, "
          f"flow by {best_installed_flow().name}")  # fmt: skip
    show("everything, nothing cached", fresh, len(clips))
    show(f"everything, nothing cached, {given.workers} processes, by the clock", parallel, len(clips))
    show("everything, from the cache", again, len(clips))
    look = seconds(lambda: [follow(clip) for clip in clips])
    show("decoding and tracking alone", look, len(clips))
    nets = load_evaluation_networks()
    parts: dict[str, Callable[[], object]] = {
        "LSE-C/D, offset, LER": lambda: [measure_sync(t) for t in tracked],
        "TFI (flow)": lambda: [flow(clip, t) for clip, t in zip(clips, tracked, strict=True)],
        "ECS (68 points)": lambda: [outline(clip, t) for clip, t in zip(clips, tracked, strict=True)],
        "silent lip, blinks, gaze, head": lambda: [
            (measure_silent_lip(t.landmarks, t.valid, t.audio), count_blinks(remove_pose(t.landmarks[t.valid])[0]))
            for t in tracked
        ],
        "THEval-5": lambda: [theval_measures(t, remove_pose(t.landmarks[t.valid])[1]) for t in tracked],
        "CSIM": lambda: [
            compute_network_features(t, EvaluationNetworks(nets.identity, None, None, None)) for t in tracked
        ],
        "FID- and FVD-style": lambda: [
            compute_network_features(t, EvaluationNetworks(None, nets.image, nets.texture, nets.video)) for t in tracked
        ],
    }
    for name, part in parts.items():
        show(f"{name}, alone", look + seconds(part), len(clips))


def follow(clip: Path) -> None:
    with FaceTracker() as tracker:
        tracker.track(iter_frames(clip))


def flow(clip: Path, tracked: object) -> None:
    import cv2

    matrices, method, before = stabilizing_transforms(tracked.landmarks, tracked.valid), best_installed_flow(), None  # type: ignore[attr-defined]
    for frame, matrix in zip(iter_frames(clip), matrices, strict=True):
        now = cv2.warpAffine(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY), matrix, (96, 96), flags=cv2.INTER_AREA)
        if before is not None:
            method.between(before, now)
        before = now


def outline(clip: Path, tracked: object) -> None:
    around = face_boxes(tracked.landmarks, tracked.valid)  # type: ignore[attr-defined]
    action_signals68(np.array([find_landmarks68(f, box) for f, box in zip(iter_frames(clip), around, strict=True)]))


def seconds(work: Callable[[], object]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began


def show(what: str, took: float, clips: int) -> None:
    print(f"  {what:48s} {60 * clips / took:8.1f} clips a minute   {1000 * took / clips:7.0f} ms a clip")


if __name__ == "__main__":
    main()
