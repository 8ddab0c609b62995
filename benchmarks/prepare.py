"""How fast videos become a corpus, and whom its sync gate turns away.

    python benchmarks/prepare.py --data FOOTAGE --corpus CORPUS [--workers 2] [--parts gate encode memory speed warm]

Speed: seconds of video per second, by the clock and by processor time over the cores used; the same without the start,
by kind of video (warm); encoding alone (decoding and tracking) in frames per second of one process, against decoding
alone; and memory after many videos, since a tracker
left open leaks. Gate: speakers the expert never heard, with their own sound, with another sentence, and with their own
sound late.
"""

from __future__ import annotations

import argparse
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import json
import resource
import shutil
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from flowportrait.data.corpus import FaceClip, SourceVideo, corpus_records
from flowportrait.data.extract import extract_clips
from flowportrait.data.prepare import PreparationConfig, prepare_corpus, prepare_video
from flowportrait.data.quality_gates import MIN_SYNC_FRAMES, QualityGates, sync_margin
from flowportrait.media.faces import FaceTracker
from flowportrait.media.video import iter_frames


def speed(footage: list[Path], workers: int) -> None:
    """Print the speed of the command on a folder of these files."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "in").mkdir()
        for path in footage:
            shutil.copy(path, folder / "in" / path.name)
        before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
        told = prepare_corpus([folder / "in"], folder / "out", PreparationConfig(workers=workers))
        elapsed, after = time.monotonic() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
        video = sum(json.loads(line)["seconds"] for line in (folder / "out" / "sources.jsonl").read_text().splitlines())
    busy = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    print(f"prepare: {video:.0f} s of video, {workers} processes, start-up included", flush=True)
    print(f"  {video / elapsed:.1f} × real time by the clock ({elapsed:.0f} s, other work on the machine included)")
    print(f"  {workers * video / busy:.1f} × real time by processor time ({busy:.0f} s over {workers} cores)")
    print(f"  {told['clips']} clips kept, rejected {told['reasons'] or 'none'}", flush=True)


def warm(groups: dict[str, list[Path]]) -> None:
    """Print the speed of one process that has begun, by kind of video, for two cores."""
    seconds, busy = 0.0, 0.0
    with tempfile.TemporaryDirectory() as name:
        first = next(iter(groups.values()))[0]
        prepare_video(SourceVideo(first, "first", "s", "train"), Path(name), PreparationConfig())
        for kind, paths in groups.items():
            started, length = time.process_time(), 0.0
            for path in paths:
                length += prepare_video(SourceVideo(path, path.stem, "s", "train"), Path(name), PreparationConfig())[1]
            spent = time.process_time() - started
            print(f"prepare, warm, {kind}: {2 * length / spent:.2f} × ({length:.0f} s of video)", flush=True)
            seconds, busy = seconds + length, busy + spent
    print(f"prepare, warm, all: {2 * seconds / busy:.2f} ×")


def encoding(path: Path, frames: int = 250) -> None:
    """Print frames per second of decoding and of decoding with tracking, by processor time of one process."""
    started = time.process_time()
    count = sum(1 for _, _ in zip(range(frames), iter_frames(path), strict=False))
    decode = (time.process_time() - started) / count
    started = time.process_time()
    with FaceTracker() as tracker:
        tracker.track(frame for _, frame in zip(range(frames), iter_frames(path), strict=False))
    encode = (time.process_time() - started) / count
    height, width = next(iter(iter_frames(path))).shape[:2]
    print(
        f"encode {width}x{height}: {1 / encode:.0f} frames/s of one core, decoding alone {1 / decode:.0f}", flush=True
    )


def memory(path: Path, repeats: int = 40) -> None:
    """Print how much the process grows per video once everything is loaded."""
    sizes = []
    for _ in range(repeats):
        extract_clips(SourceVideo(path, "a", "s", "train"), QualityGates())
        sizes.append(int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20)
    print(
        f"memory: {sizes[-1]:.0f} MB after {repeats} videos, {(sizes[-1] - sizes[9]) / (repeats - 10):+.2f} MB a video"
    )


def gate(corpus: Path) -> None:
    """Print the share of clips that the sync gate turns away."""
    records = [r for r in corpus_records(corpus) if r["split"] == "dev" and r["frames"] >= MIN_SYNC_FRAMES]
    clips = [FaceClip.load(corpus / "clips" / f"{record['name']}.safetensors") for record in records]
    least, half = QualityGates().sync, len(clips) // 2
    late = [replace(clip, audio=np.roll(clip.audio, 6 * 640)) for clip in clips]
    swapped = [
        replace(clip, audio=np.resize(clips[(place + half) % len(clips)].audio, clip.audio.shape))
        for place, clip in enumerate(clips)
    ]
    for name, group in (("own sound", clips), ("another clip's sound", swapped), ("own sound six frames late", late)):
        margins = np.array([sync_margin(clip)[0] for clip in group])
        print(f"  {name:28s} turned away {np.mean(margins < least):5.1%}   median margin {np.median(margins):.2f}")


def main() -> None:
    """Everything."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, default=os.environ.get("FLOWPORTRAIT_DATA"))
    parser.add_argument("--corpus", type=Path, help="a prepared corpus with a split dev, for the gate")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--parts", nargs="+", default=["gate", "encode", "memory", "speed", "warm"])
    options = parser.parse_args()
    clips = sorted(options.data.glob("clips/*.mp4"))
    short = [*sorted(options.data.glob("grid/*.mp4"))[::30], *sorted(options.data.glob("anchors/*.mp4"))[::60]]
    if "gate" in options.parts and options.corpus:
        print("sync gate, unseen speakers:")
        gate(options.corpus)
    if "encode" in options.parts:
        for path in clips:
            encoding(path)
    if "memory" in options.parts:
        memory(sorted(options.data.glob("anchors/*.mp4"))[0])
    if "warm" in options.parts:
        folders = {name: sorted(options.data.glob(f"{name}/*.mp4"))[::150] for name in ("anchors", "grid")}
        warm(folders | {path.stem: [path] for path in clips if "60s" not in path.name})
    if "speed" in options.parts:
        speed([path for path in clips if "60s" not in path.name] + short, options.workers)


if __name__ == "__main__":
    main()
