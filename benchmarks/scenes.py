"""Clips as frames with their landmarks, and how much drawn mouths differ from true ones.

mouth error   features of FaceNet, which was not trained on any of this, unit length per place, mean squared
              distance over three maps, of the lower-face window: the formula of LPIPS without its learned weights
flicker       mean change from frame to frame between the lips
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from benchmarks.material import load_clip, mean_of_known
from benchmarks.record import Record
from flowportrait.data.corpus import corpus_records
from flowportrait.errors import BadInput
from flowportrait.evaluation.statistics import bootstrap_mean, bootstrap_ratio
from flowportrait.media.faces import FaceTracker, interpolate_missing_frames
from flowportrait.media.portrait import Portrait
from flowportrait.media.video import iter_frames
from flowportrait.rendering.face_regions import INNER_LOWER, INNER_UPPER, opening_outline, outline_mask
from flowportrait.rendering.mouth_geometry import WINDOW_HEIGHT, WINDOW_WIDTH
from flowportrait.rendering.self_reenactment import portrait_from_frame
from flowportrait.rewards.face import FaceNet


@dataclass(frozen=True)
class Scene:
    """A clip: its frames, their landmarks ``[T, 478, 3]`` in pixels and blendshapes ``[T, 52]``."""

    name: str
    frames: list[np.ndarray]
    landmarks: np.ndarray
    blendshapes: np.ndarray

    def portrait(self) -> Portrait:
        """Return the first frame as a portrait."""
        return portrait_from_frame(self.frames[0], self.landmarks[0], self.blendshapes[0], 512)

    def every_fourth(self) -> Scene:
        """Return the scene with a quarter of its frames."""
        return Scene(self.name, self.frames[::4], self.landmarks[::4], self.blendshapes[::4])


def read_scenes(corpus: Path, footage: Path, count: int, frames: int, dev: bool = True) -> Iterator[Scene]:
    """Yield clips, spread evenly over the ``dev`` speakers or over all others.

    The speaker of GRID is left out: sentences of his are in every split.
    """
    records = [r for r in corpus_records(corpus) if (r["split"] == "dev") == dev and "grid" not in r["speaker"]]
    turns: dict[str, int] = {}
    for record in records:
        turns[record["speaker"]] = record["turn"] = turns.get(record["speaker"], 0) + 1
    for record in sorted(records, key=lambda r: (r["turn"], r["speaker"]))[:count]:
        clip = load_clip(corpus, record["name"])
        pictures = list(iter_frames(footage / f"{record['name']}.mp4"))[:frames]
        end = min(len(pictures), len(clip))
        yield Scene(record["name"], pictures[:end], clip.landmarks[:end], clip.blendshapes[:end])


def track_scene(path: Path, longest: int) -> Scene:
    """Return the beginning of a video, from its first to its last frame with a face."""
    frames = [frame for _, frame in zip(range(longest), iter_frames(path), strict=False)]
    with FaceTracker() as tracker:
        faces = tracker.track(frames)
    if not faces.valid.any():
        raise BadInput(f"{path} shows no face in its first {longest} frames: give another video.")
    start, end = np.flatnonzero(faces.valid)[[0, -1]]
    part = slice(start, end + 1)
    points, shapes = (interpolate_missing_frames(v[part], faces.valid[part])
                      for v in (faces.landmarks, faces.blendshapes))  # fmt: skip
    return Scene(path.stem, frames[part], points, shapes)


def mouth_features(windows: list[np.ndarray]) -> list[torch.Tensor]:
    """Return three maps of unit vectors of mouth windows ``[72, 96, 3]`` uint8, by the shipped FaceNet."""
    images = torch.from_numpy(np.stack(windows)).permute(0, 3, 1, 2).float() / 255
    with torch.inference_mode():
        maps = FaceNet.load().features(torch.nn.functional.interpolate(images, (144, 192), mode="bicubic").clamp(0, 1))
    return [torch.nn.functional.normalize(m, dim=1) for m in maps]


def mouth_error(one: list[torch.Tensor], other: list[torch.Tensor]) -> float:
    """Return the mean squared distance of feature maps: the formula of LPIPS without its learned weights."""
    gaps = [(a - b).square().sum(1).mean((1, 2)) for a, b in zip(one, other, strict=True)]
    return float(torch.stack(gaps).mean())


def mouth_interior(points: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Return the share ``[72, 96]`` of each pixel of the window under ``matrix`` that lies between the inner lips."""
    lips = (points[chain, :2] @ matrix[:, :2].T + matrix[:, 2] for chain in (INNER_UPPER, INNER_LOWER))
    return outline_mask((WINDOW_HEIGHT, WINDOW_WIDTH), opening_outline(*lips))


def frame_change(windows: list[np.ndarray], inside: list[np.ndarray]) -> float:
    """Return the mean change of colour from one window to the next, weighted with ``inside`` ``[72, 96]``."""
    weight = np.stack(inside)[1:, ..., None]
    change = np.abs(np.diff(np.stack(windows).astype(np.float32), axis=0))
    return float((change * weight).sum() / weight.sum().clip(1))


def add_drawings(
    record: Record, results: list[dict[str, dict[str, float]]], base: str, group: str, median: bool = False
) -> None:
    """Add the figures of every system over clips; the mouth error also as a share of that of ``base``."""
    for system, figures in results[0].items():
        mouth, reference = (np.array([result[name]["mouth error"] for result in results]) for name in (system, base))
        record.add(system, "mouth error", bootstrap_mean(mouth), group=group)
        record.add(system, f"share of {base}", bootstrap_ratio(mouth, reference, 1000), group=group)
        for metric in (name for name in figures if name != "mouth error"):
            values = [result[system].get(metric) for result in results]
            value = float(np.nanmedian(np.array(values, float))) if median else mean_of_known(values)
            record.add(system, metric, value, group=group)
