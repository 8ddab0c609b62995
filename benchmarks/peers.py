"""Nine published results of other systems beside ours on the same portraits and sound."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
import torch

from benchmarks.material import use_one_thread, write_picture
from benchmarks.record import Record
from flowportrait.errors import BadInput
from flowportrait.evaluation.lip_sync import SHORT_MAX_OFFSET, PixelSyncExpert, sync_from_embeddings
from flowportrait.evaluation.statistics import bootstrap_mean
from flowportrait.media.audio import SAMPLES_PER_FRAME, read_audio
from flowportrait.media.crop import mouth_patch
from flowportrait.media.faces import FaceTracker
from flowportrait.media.mel import log_mel, normalize_loudness
from flowportrait.media.portrait import Portrait
from flowportrait.media.video import FPS, iter_frames
from flowportrait.pipelines.animate import AnimatePipeline
from flowportrait.rendering.motion_basis import MotionBasis, fit_pose
from flowportrait.rendering.renderer import MotionCodec

COLUMNS, TILE = 7, 192
"""Moments on a sheet, and the side of a picture on it in pixels."""
THEIRS = "published"


@dataclass(frozen=True)
class PeersOptions:
    """Put published results of other systems beside ours, and measure both by the same tracker.

    The first frame of each file is the portrait and its sound the speech. Opening: distance of the inner-lip points 13
    and 14 after pose normalisation, in distances of the outer eye corners, tracked in the finished frames; amplitude:
    its standard deviation over the clip; jerk: mean absolute third difference of the opening. Sync is by the expert of
    the evaluation (LSE-C at offset 0). Sheets show the moments at which their mouths are widest, and the opening over
    time. The style plain is the generator alone, as before motion followed the voice.
    """

    data: Path
    """Footage with peers/."""
    output: Path
    """Folder of the sheets; what was tracked in published files is kept there."""
    checkpoints: tuple[str, ...] = ("rl",)
    """Generators."""
    styles: tuple[str, ...] = ("plain", "auto")
    """Manners of speaking."""
    seconds: float = 6
    """How much of each file is used."""
    size: int = 320
    """Side of the drawn square in pixels."""
    seed: int = 0
    """Random seed of the motion."""


@dataclass
class Result:
    """Frames of one system, what is tracked in them, and the figures of that."""

    frames: list[np.ndarray]
    opening: np.ndarray
    sync: float


def peers(options: PeersOptions, record: Record) -> None:
    """Animate every portrait, write its sheet, and add the table."""
    use_one_thread()
    paths = sorted((options.data / "peers").glob("*.mp4"))
    if not paths:
        raise BadInput(f"No videos in {options.data / 'peers'}: give footage that has published results.")
    pipelines = {name: AnimatePipeline.from_pretrained(name) for name in options.checkpoints}
    figures: dict[str, list[tuple[float, float, float]]] = {}
    for path in paths:
        count = round(options.seconds * FPS)
        published = list(islice(iter_frames(path), count))
        sound = read_audio(path)[: len(published) * SAMPLES_PER_FRAME]
        results = {THEIRS: examine(published, sound)}
        codec = MotionCodec(Portrait.from_image(published[0], options.size, path.name))
        for name, pipeline in pipelines.items():
            for style in options.styles:
                motion = torch.cat(list(pipeline.motion(sound, seed=options.seed, style=style)))
                results[f"{name}/{style}"] = examine(list(codec.decode(motion)), sound)
        for system, result in results.items():
            row = (float(result.opening.std()), float(np.abs(np.diff(result.opening, 3)).mean()), result.sync)
            figures.setdefault(system, []).append(row)
            record.add(system, "amplitude", row[0], group=path.stem)
            record.add(system, "sync", row[2], group=path.stem)
        write_picture(options.output / f"{path.stem}.png", draw_sheet(results))
    their_amplitudes = np.array([row[0] for row in figures[THEIRS]])
    for system, rows in figures.items():
        columns = np.array(rows).T
        for metric, values in zip(("amplitude", "jerk", "sync"), columns, strict=True):
            record.add(system, metric, bootstrap_mean(values), group="all")
        record.add(system, "amplitude / theirs", columns[0].mean() / their_amplitudes.mean(), group="all")


def examine(frames: list[np.ndarray], sound: np.ndarray) -> Result:
    """Track the frames of a video, and measure the opening of the lips and the sync with its sound."""
    with FaceTracker() as tracker:
        faces = tracker.track(frames)
    if not faces.valid.all():
        raise BadInput(f"{int((~faces.valid).sum())} frames show no face: leave this file out.")
    basis = MotionBasis.load()
    points = torch.as_tensor(faces.landmarks, dtype=torch.float32)
    shape = fit_pose(points, basis.canonical).remove(points)
    opening = (shape[:, 14] - shape[:, 13]).norm(dim=-1).numpy()
    mouths = np.array([mouth_patch(frame, mesh) for frame, mesh in zip(frames, faces.landmarks, strict=True)])
    mel = log_mel(normalize_loudness(sound))[: 4 * len(frames)]
    expert = PixelSyncExpert.load()
    with torch.no_grad():
        face = expert.embed_face(torch.from_numpy(mouths)[None, : len(mel) // 4])[0]
        voice = expert.embed_audio(mel[None])[0]
    sync = sync_from_embeddings(face.numpy(), voice.numpy(), SHORT_MAX_OFFSET).lse_c_at_zero
    return Result(frames, opening, float(sync))


def draw_sheet(results: dict[str, Result]) -> np.ndarray:
    """Return a picture: a row for each system at the moments at which the first one opens its mouth, and the opening
    over time."""
    moments = widest_moments(next(iter(results.values())).opening)
    rows = []
    for system, result in results.items():
        tiles = [_tile(result.frames[min(moment, len(result.frames) - 1)]) for moment in moments]
        row = np.concatenate(tiles, 1)
        cv2.putText(
            row, f"{system}  {result.opening.std():.3f}", (6, 18), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (255, 255, 0), 1
        )
        rows.append(row)
    return np.concatenate([*rows, plot_openings(results, moments, rows[0].shape[1])])


def widest_moments(opening: np.ndarray) -> list[int]:
    """Return the frame of the widest mouth in each part of a clip."""
    parts = np.array_split(np.arange(len(opening)), COLUMNS)
    return [int(part[opening[part].argmax()]) for part in parts]


def _tile(frame: np.ndarray) -> np.ndarray:
    side = min(frame.shape[:2])
    top, left = (frame.shape[0] - side) // 2, (frame.shape[1] - side) // 2
    return cv2.resize(frame[top : top + side, left : left + side], (TILE, TILE), interpolation=cv2.INTER_AREA)


COLOURS = ((200, 60, 40), (130, 130, 130), (30, 110, 220), (20, 150, 60), (160, 60, 180))


def plot_openings(results: dict[str, Result], moments: list[int], width: int, height: int = 160) -> np.ndarray:
    """Return a plot of the opening over time, a line per system; vertical lines are the moments shown."""
    picture = np.full((height, width, 3), 255, np.uint8)
    top = max(result.opening.max() for result in results.values())
    length = max(len(result.opening) for result in results.values())
    for moment in moments:
        x = round(moment * (width - 1) / max(1, length - 1))
        cv2.line(picture, (x, 0), (x, height), (225, 225, 225), 1)
    for (system, result), colour in zip(results.items(), COLOURS, strict=False):
        across = np.arange(len(result.opening)) * (width - 1) / max(1, length - 1)
        down = height - 6 - result.opening / top * (height - 20)
        line = np.stack([across, down], 1).round().astype(np.int32)
        cv2.polylines(picture, [line], False, colour, 1, cv2.LINE_AA)
        place = (6 + 170 * list(results).index(system), 12)
        cv2.putText(picture, system, place, cv2.FONT_HERSHEY_SIMPLEX, 0.42, colour, 1, cv2.LINE_AA)
    return picture
