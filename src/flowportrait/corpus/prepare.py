"""Raw videos to a training corpus: tracked, resampled, quality-filtered, one safetensors per clip.

``clips.jsonl`` lists what was kept, ``rejected.jsonl`` what was not and why. Interrupted runs continue: clips
already in the index are skipped.
"""

from __future__ import annotations

import json
import multiprocessing
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.progress import track

from flowportrait.corpus.clip import Clip
from flowportrait.errors import BadInput
from flowportrait.media.align import mouth_patch
from flowportrait.media.audio import read_audio
from flowportrait.media.face import FaceTracker, bridge
from flowportrait.media.video import SAMPLES_PER_FRAME, iter_frames

VIDEO_SUFFIXES = {".mp4", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".m4v"}
MIN_FRAMES = 20
MIN_EYE_DISTANCE_PX = 24.0
MIN_VALID_SHARE = 0.98
MAX_FRAMES = 1500


@dataclass(frozen=True)
class Source:
    """A video to prepare: where it is, the name it gets, who speaks, which split it belongs to."""

    path: Path
    name: str
    speaker: str
    split: str


def find_sources(inputs: Sequence[Path]) -> list[Source]:
    """Videos below files and folders. A folder with a ``split.tsv`` (file, speaker, split) uses its columns;
    otherwise the parent folder's name is taken as the speaker and the split is ``train``.

    Raises:
        BadInput: an input does not exist, or nothing is found.
    """
    sources: list[Source] = []
    for given in inputs:
        if not given.exists():
            raise BadInput(f"No video or folder at {given}: check the path.")
        table = given / "split.tsv"
        if table.is_file():
            for line in table.read_text().splitlines()[1:]:
                file, speaker, split = line.split("\t")
                sources.append(Source(given / file, Path(file).with_suffix("").as_posix(), speaker, split))
            continue
        found = sorted(given.rglob("*")) if given.is_dir() else [given]
        for video in found:
            if video.suffix.lower() in VIDEO_SUFFIXES:
                name = video.relative_to(given if given.is_dir() else given.parent).with_suffix("").as_posix()
                sources.append(Source(video, name, video.parent.name, "train"))
    if not sources:
        raise BadInput(f"No videos found in {', '.join(map(str, inputs))}: give mp4, mov, mkv, webm or avi files.")
    return sources


def read_clip(path: Path) -> Clip:
    """Track one video.

    Raises:
        BadInput: unreadable, without sound, or too poor for training (reason in the message).
    """
    points, shapes, patches, size = [], [], [], (0, 0)
    with FaceTracker() as tracker:
        for index, frame in enumerate(iter_frames(path)):
            if index == MAX_FRAMES:
                break
            faces = tracker.track([frame])
            size = frame.shape[:2]
            points.append(faces.landmarks[0])
            shapes.append(faces.blendshapes[0])
            if faces.valid[0]:
                patches.append(mouth_patch(frame, faces.landmarks[0]))
            else:
                patches.append(patches[-1] if patches else np.zeros((48, 64), np.uint8))
    landmarks, blendshapes = _fill(np.array(points), np.array(shapes))
    if len(landmarks) < MIN_FRAMES:
        raise BadInput(f"{path} has {len(landmarks)} frames, fewer than {MIN_FRAMES}")
    eyes = np.linalg.norm(landmarks[:, 33, :2] - landmarks[:, 263, :2], axis=1)
    if eyes.min() < MIN_EYE_DISTANCE_PX:
        raise BadInput(f"{path} shows a face of {eyes.min():.0f} px between the eyes, under {MIN_EYE_DISTANCE_PX:.0f}")
    wave = read_audio(path)
    audio = np.zeros(len(landmarks) * SAMPLES_PER_FRAME, np.float32)
    audio[: len(wave)] = wave[: len(audio)]
    return Clip(landmarks, blendshapes, np.array(patches), np.array(size), audio)


def _fill(landmarks: np.ndarray, blendshapes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Bridge rare frames without a face by linear interpolation."""
    valid = ~np.isnan(landmarks[:, 0, 0])
    if valid.mean() < MIN_VALID_SHARE:
        raise BadInput(f"a face is seen in only {valid.mean():.0%} of the frames")
    return bridge(landmarks, valid), bridge(blendshapes, valid)


def _work(job: tuple[Source, Path]) -> dict[str, object]:
    source, target = job
    record: dict[str, object] = {"name": source.name, "speaker": source.speaker, "split": source.split}
    try:
        clip = read_clip(source.path)
    except BadInput as error:
        return record | {"rejected": str(error)}
    target.parent.mkdir(parents=True, exist_ok=True)
    clip.save(target)
    return record | {"frames": len(clip)}


def prepare(inputs: Sequence[Path], output: Path, workers: int | None = None) -> dict[str, int]:
    """Prepare every video below ``inputs`` into ``output``; return counts of kept and rejected clips."""
    sources = find_sources(inputs)
    output.mkdir(parents=True, exist_ok=True)
    done = {record["name"] for name in ("clips", "rejected") for record in _records(output / f"{name}.jsonl")}
    jobs = [(s, output / "clips" / f"{s.name}.safetensors") for s in sources if s.name not in done]
    workers = workers or os.cpu_count() or 1
    with (
        multiprocessing.get_context("spawn").Pool(workers, maxtasksperchild=50) as pool,
        (output / "clips.jsonl").open("a") as kept,
        (output / "rejected.jsonl").open("a") as rejected,
    ):
        for record in track(pool.imap(_work, jobs), description="preparing", total=len(jobs)):
            log = rejected if "rejected" in record else kept
            log.write(json.dumps(record) + "\n")
            log.flush()
    return {name: sum(1 for _ in _records(output / f"{name}.jsonl")) for name in ("clips", "rejected")}


def _records(path: Path) -> Iterator[dict[str, object]]:
    if path.is_file():
        for line in path.read_text().splitlines():
            yield json.loads(line)
