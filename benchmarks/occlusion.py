"""Is what is before a mouth seen, and nothing else? ``python benchmarks/occlusion.py FOOTAGE``.

Clips of people whom the network has not seen (``dev``), every third frame. Rows: the clips as they are, where every
alarm is false unless one looks and finds something (``--sheet`` shows the frames with the largest shares); and each
kind of drawn thing before their mouths, by how much of mouth and jaw it covers: ``dubbing`` keeps a frame's own lips
from a share of ``OCCLUDED_SHARE`` on. Photos (``portraits``, ``celebamask``, ``london``) are judged one by one, as
``animate``
does.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import tyro
from rich.console import Console
from rich.progress import track
from rich.table import Table
from tools.occluders import SHAPES, add_occluder
from tools.train_occlusion import split_files

from flowportrait.media.faces import FaceTracker
from flowportrait.media.image import read_image
from flowportrait.media.occlusion import COVERED_THRESHOLD, OCCLUSION_VIEW, OcclusionDetector, covered_lower_face_share
from flowportrait.media.video import iter_frames
from flowportrait.rendering.footage import OCCLUDED_SHARE, occluded_frames

CLIPS, PHOTOS = ("talkvid", "hdtf", "celebv", "clips", "anchors", "grid"), ("celebamask", "london")
STEP = 3
SMALL = 0.15
"""Share of mouth and jaw under which a drawn thing is hardly before them."""


@dataclass(frozen=True)
class Options:
    """What is measured."""

    data: tyro.conf.Positional[Path]
    # folder with split.tsv
    most: int = 60
    # clips of one kind; those of GRID are other sentences of a man whom the network has seen
    photos: int = 170
    sheet: Path | None = None
    # PNG: the frames that look covered most, to be looked at
    seed: int = 0


@dataclass(frozen=True)
class Face:
    """One face as the network is shown it."""

    view: np.ndarray
    landmarks: np.ndarray
    share: float


def look(picture: np.ndarray, tracker: FaceTracker, detector: OcclusionDetector) -> Face | None:
    """The largest face of a picture."""
    found = tracker.detect(picture)
    if not found:
        return None
    points = found[0][0]
    return Face(OCCLUSION_VIEW.cut(picture, points), points, detector.covered_share(picture, points))


def read_clip(path: Path, detector: OcclusionDetector) -> list[Face]:
    """Faces of every third frame."""
    faces = []
    with FaceTracker() as tracker:
        for index, frame in enumerate(iter_frames(path)):
            if index % STEP == 0 and (face := look(frame, tracker, detector)) is not None:
                faces.append(face)
    return faces


def detection(faces: list[Face], detector: OcclusionDetector, seed: int) -> Table:
    """How many drawn things are found, by kind and by how much they cover."""
    rng = np.random.default_rng(seed)
    table = Table("thing", "covers 15–30 %", "30–60 %", "over 60 %", title="found, of drawn things that cover so much")
    for kind in SHAPES:
        found: dict[int, list[bool]] = defaultdict(list)
        for _ in range(400):
            face, other = (faces[i] for i in rng.integers(len(faces), size=2))
            picture, alpha = add_occluder(
                face.view.astype(np.float32), OCCLUSION_VIEW, rng, other.view.astype(np.float32), kind
            )
            covers = covered_lower_face_share(alpha, face.landmarks)
            share = detector.covered_share_of_view(picture.clip(0, 255).astype(np.uint8), face.landmarks)
            if covers > SMALL:
                found[int(covers > 0.3) + int(covers > 0.6)].append(share > OCCLUDED_SHARE)
        cells = [f"{np.mean(found[b]):.1%} of {len(found[b])}" if found[b] else "–" for b in range(3)]
        table.add_row(kind, *cells)
    return table


def main(options: Options) -> None:
    """Measure and print."""
    cv2.setNumThreads(1)
    detector = OcclusionDetector()
    files = {folder: split_files(options.data, folder, dev=True) for folder in (*CLIPS, *PHOTOS)}
    files["portraits"] = sorted((options.data / "portraits").iterdir())
    for folder in CLIPS:
        files[folder] = files[folder][:: max(1, -(-len(files[folder]) // options.most))]
    table = Table("clips", "frames", "frames kept", "clips with any", title="as they are")
    everything: list[Face] = []
    for folder in CLIPS:
        clips = [read_clip(path, detector) for path in track(files[folder], folder, console=Console(stderr=True))]
        kept = [occluded_frames(np.array([face.share for face in clip])) for clip in clips if clip]
        frames = np.concatenate(kept)
        table.add_row(f"{folder} ({len(kept)})", str(len(frames)), f"{frames.sum()} ({frames.mean():.2%})",
                      ", ".join(p.name for p, k in zip(files[folder], kept, strict=False) if k.any()))  # fmt: skip
        everything += [face for clip in clips for face in clip]
    with FaceTracker(still=True) as tracker:
        for folder in ("portraits", *PHOTOS):
            pictures = files[folder][: options.photos]
            faces = [f for p in pictures if (f := look(read_image(p), tracker, detector)) is not None]
            alarms = sum(face.share > COVERED_THRESHOLD for face in faces)
            table.add_row(f"{folder}, photos", str(len(faces)), f"{alarms} ({alarms / len(faces):.2%})", "")
            everything += faces
    Console(width=130).print(table, detection(everything, detector, options.seed))
    if options.sheet:
        worst = sorted(everything, key=lambda face: -face.share)[:96]
        views = [cv2.resize(face.view, (128, 128), interpolation=cv2.INTER_CUBIC) for face in worst]
        for view, face in zip(views, worst, strict=True):
            cv2.putText(view, f"{face.share:.2f}", (4, 14), cv2.FONT_HERSHEY_SIMPLEX, 0.45, (255, 255, 0))
        rows = [np.hstack(views[start : start + 12]) for start in range(0, len(views) - 11, 12)]
        cv2.imwrite(str(options.sheet), np.vstack(rows)[..., ::-1])


if __name__ == "__main__":
    main(tyro.cli(Options))
