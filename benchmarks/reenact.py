"""Self-reenactment of people nobody learned from: ``python benchmarks/reenact.py --corpus CORPUS --data FOOTAGE
--models MODELS``.

The first frame of a clip is the portrait, the clip's own motion drives it, and every frame has a true one beside it.
Rows, from what must lose to the ceiling: the still portrait; the mesh warp without anything learned in it (its cavity
colour and its amplitude tuned on training speakers); the same with the learned mouth layers; with the retouching
network over it; and the true frames' lower faces through a tiny autoencoder (taef2), which knows them.

    mouth        features of a face network nobody trained here (the shipped FaceNet), unit length per place, mean
                 squared distance over three maps, of the lower-face window: LPIPS's formula without its learned
                 weights. LPIPS itself is not computed: its heads are at hand, the AlexNet below them is not.
    landmarks    mean distance of the mouth's 40 tracked landmarks, in % of the outer eye corners' distance
    amplitude    standard deviation of the tracked lip opening over the true one's
    flicker      mean change from frame to frame inside the mouth, over the true one's
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
import tyro
from rich.console import Console
from rich.progress import track
from rich.table import Table
from tiny_autoencoder import TinyAutoencoder

from flowportrait.data.corpus import FaceClip
from flowportrait.evaluation.statistics import bootstrap_ratio
from flowportrait.media.faces import FaceTracker, interpolate_missing_frames
from flowportrait.media.portrait import Portrait
from flowportrait.media.video import iter_frames
from flowportrait.rendering.face_regions import (
    INNER_LOWER,
    INNER_UPPER,
    OUTER_LOWER,
    OUTER_UPPER,
    opening_outline,
    outline_mask,
)
from flowportrait.rendering.motion_basis import LOWER_FACE, MotionBasis
from flowportrait.rendering.mouth_geometry import (
    WINDOW_HEIGHT,
    WINDOW_WIDTH,
    cut_mouth_window,
    mouth_window_transform,
    skin_colour,
)
from flowportrait.rendering.renderer import Renderer
from flowportrait.rendering.self_reenactment import portrait_from_frame, self_reenactment_motion
from flowportrait.rewards.face import FaceNet

MOUTH = sorted({*INNER_LOWER, *INNER_UPPER, *OUTER_LOWER, *OUTER_UPPER})
CAVITIES = ((0.2, 0.15, 0.15), (0.35, 0.25, 0.25), (0.5, 0.38, 0.38))
AMPLITUDES = (0.85, 1.15)


@dataclass(frozen=True)
class Options:
    """What is measured."""

    corpus: Path
    data: Path
    models: Path | None = None
    # folder with taef2_encoder.pth and taef2_decoder.pth, for the ceiling
    clips: int = 16
    # short clips of unseen speakers; none of them with 0
    frames: int = 20
    # per clip
    large: Path | None = None
    # one high-resolution video, reported apart (twice as many frames)
    tuned: tuple[float, float, float, float] | None = None
    # cavity colour and amplitude that an earlier run has tuned; found anew by default
    output: Path | None = None
    # JSON of all figures


@dataclass(frozen=True)
class Scene:
    """One clip: frames, their landmarks ``[T, 478, 3]`` and blendshapes ``[T, 52]``."""

    name: str
    frames: list[np.ndarray]
    landmarks: np.ndarray
    blendshapes: np.ndarray

    def portrait(self) -> Portrait:
        """The first frame."""
        return portrait_from_frame(self.frames[0], self.landmarks[0], self.blendshapes[0], 512)


class FlatCavity:
    """A mouth without anything learned: one colour in proportion to the skin's."""

    def __init__(self, portrait: Portrait, ratio: tuple[float, float, float]) -> None:
        self._colour = skin_colour(portrait.crop, portrait.landmarks) * np.array(ratio)

    def draw(self, frame: np.ndarray, target: np.ndarray) -> None:
        """Fill the opening."""
        points = target[:, :2].astype(np.float64)
        mask = outline_mask(frame.shape[:2], opening_outline(points[INNER_UPPER], points[INNER_LOWER]), 0.6)[..., None]
        frame[:] = np.round(frame + mask * (self._colour - frame)).astype(np.uint8)


def read_scenes(options: Options, split: str, count: int) -> Iterator[Scene]:
    """Clips spread evenly over a split's speakers; GRID's man, who is in every split, is left out."""
    records = [json.loads(line) for line in (options.corpus / "clips.jsonl").read_text().splitlines()]
    records = [r for r in records if (r["split"] == "dev") == (split == "dev") and "grid" not in r["speaker"]]
    turn: dict[str, int] = {}
    for record in records:
        turn[record["speaker"]] = record["turn"] = turn.get(record["speaker"], 0) + 1
    for record in sorted(records, key=lambda r: (r["turn"], r["speaker"]))[:count]:
        clip = FaceClip.load(options.corpus / "clips" / f"{record['name']}.safetensors")
        frames = list(iter_frames(options.data / f"{record['name']}.mp4"))[: options.frames]
        end = min(len(frames), len(clip))
        yield Scene(record["name"], frames[:end], clip.landmarks[:end], clip.blendshapes[:end])


def track_video(path: Path, longest: int) -> Scene:
    """A video that is in no corpus; its frames without a face are cut off."""
    frames = [frame for _, frame in zip(range(longest), iter_frames(path), strict=False)]
    with FaceTracker() as tracker:
        faces = tracker.track(frames)
    start, end = np.flatnonzero(faces.valid)[[0, -1]]
    part = slice(start, end + 1)
    points, shapes = (
        interpolate_missing_frames(v[part], faces.valid[part]) for v in (faces.landmarks, faces.blendshapes)
    )
    return Scene(path.stem, frames[part], points, shapes)


def features(windows: list[np.ndarray]) -> list[torch.Tensor]:
    """Three maps of unit vectors of windows ``[72, 96, 3]`` uint8."""
    images = torch.from_numpy(np.stack(windows)).permute(0, 3, 1, 2).float() / 255
    with torch.inference_mode():
        maps = FaceNet.load().features(torch.nn.functional.interpolate(images, (144, 192), mode="bicubic").clamp(0, 1))
    return [torch.nn.functional.normalize(m, dim=1) for m in maps]


def distance(one: list[torch.Tensor], other: list[torch.Tensor]) -> float:
    """Mouth error between the maps of as many windows."""
    gaps = [(a - b).square().sum(1).mean((1, 2)) for a, b in zip(one, other, strict=True)]
    return float(torch.stack(gaps).mean())


class Measures:
    """Compares drawn frames, in the portrait's crop, with a scene's true ones."""

    def __init__(self, scene: Scene, portrait: Portrait) -> None:
        self._to_crop = np.vstack([portrait.to_crop, [0, 0, 1]])
        self._scene = scene
        self._matrices = [mouth_window_transform(points) for points in scene.landmarks]
        self._true = [
            cut_mouth_window(frame, matrix) for frame, matrix in zip(scene.frames, self._matrices, strict=True)
        ]
        self._inside = [between(p, m, INNER) for p, m in zip(scene.landmarks, self._matrices, strict=True)]
        self._maps = features(self._true)

    def __call__(self, drawn: list[np.ndarray], in_crop: bool = True) -> dict[str, float]:
        """Figures of frames drawn in the crop, or given in the video's own pixels."""
        to_crop = self._to_crop if in_crop else np.eye(3)
        back = np.linalg.inv(to_crop)
        windows = [
            cut_mouth_window(frame, (np.vstack([m, [0, 0, 1]]) @ back)[:2])
            for frame, m in zip(drawn, self._matrices, strict=True)
        ]
        colour = [np.abs(a.astype(float) - b).mean() / 255 for a, b in zip(windows, self._true, strict=True)]
        with FaceTracker() as tracker:
            faces = tracker.track(drawn)
        seen = faces.valid
        result = {"mouth": distance(features(windows), self._maps), "colour": float(np.mean(colour))}
        result["seen"] = float(seen.mean())
        if seen.sum() > 2:
            points = faces.landmarks[seen]
            there = points[..., :2] @ back[:2, :2].T + back[:2, 2]
            true = self._scene.landmarks[seen]
            eyes = np.linalg.norm(true[:, 33, :2] - true[:, 263, :2], axis=-1)
            off = np.linalg.norm(there[:, MOUTH] - true[:, MOUTH, :2], axis=-1).mean(1)
            result["landmarks"] = float((off / eyes).mean() * 100)
            result["amplitude"] = _opening(there).std() / _opening(true).std()
        result["flicker"] = change(windows, self._inside) / change(self._true, self._inside)
        return result


def change(windows: list[np.ndarray], inside: list[np.ndarray]) -> float:
    """Mean change of colour from one window to the next where ``inside`` ``[72, 96]`` is one."""
    weight = np.stack(inside)[1:, ..., None]
    apart = np.abs(np.diff(np.stack(windows).astype(np.float32), axis=0))
    return float((apart * weight).sum() / weight.sum().clip(1))


INNER, OUTER = (INNER_UPPER, INNER_LOWER), (OUTER_UPPER, OUTER_LOWER)


def between(points: np.ndarray, matrix: np.ndarray, lips: tuple[list[int], list[int]]) -> np.ndarray:
    """Share ``[72, 96]`` of each pixel of the window under ``matrix`` that is between the ``lips``."""
    return outline_mask(
        (WINDOW_HEIGHT, WINDOW_WIDTH),
        opening_outline(*(points[chain, :2] @ matrix[:, :2].T + matrix[:, 2] for chain in lips)),
    )


def _opening(points: np.ndarray) -> np.ndarray:
    eyes = np.linalg.norm(points[:, 33, :2] - points[:, 263, :2], axis=-1)
    return np.linalg.norm(points[:, 14, :2] - points[:, 13, :2], axis=-1) / eyes


def draw(
    scene: Scene, portrait: Portrait, retouch: bool, cavity: tuple[float, float, float] | None, amplitude: float = 1.0
) -> list[np.ndarray]:
    """The scene redrawn."""
    basis = MotionBasis.load()
    _, identity = basis.encode(portrait.landmarks[None], portrait.blendshapes[None], smooth=False)
    motion = self_reenactment_motion(scene.landmarks, scene.blendshapes)
    motion[:, LOWER_FACE] *= amplitude
    renderer = Renderer(portrait, retouch=retouch, workers=1)
    if cavity:
        renderer.mouth = FlatCavity(portrait, cavity)
    return list(renderer(basis.decode(motion, identity).numpy()))


def tuned(options: Options) -> tuple[tuple[float, float, float], float]:
    """Cavity colour and amplitude with the least mouth error on training speakers."""
    scenes = list(read_scenes(options, "train", 6))
    found: dict[tuple[tuple[float, float, float], float], float] = {}
    for cavity in CAVITIES:
        found[cavity, 1.0] = float(np.mean([_error(scene, cavity, 1.0) for scene in scenes]))
    best = min(found, key=lambda key: found[key])[0]
    for amplitude in AMPLITUDES:
        found[best, amplitude] = float(np.mean([_error(scene, best, amplitude) for scene in scenes]))
    return min(found, key=lambda key: found[key])


def _error(scene: Scene, cavity: tuple[float, float, float], amplitude: float) -> float:
    portrait, fewer = scene.portrait(), sparse(scene)
    return Measures(fewer, portrait)(draw(fewer, portrait, False, cavity, amplitude))["mouth"]


def sparse(scene: Scene) -> Scene:
    """Every fourth frame."""
    return Scene(scene.name, scene.frames[::4], scene.landmarks[::4], scene.blendshapes[::4])


def rows(scene: Scene, cavity: tuple[float, float, float], amplitude: float, models: Path | None) -> dict[str, dict]:
    """Figures of each way of drawing one scene."""
    portrait = scene.portrait()
    measure = Measures(scene, portrait)
    result = {
        "still portrait": measure([scene.frames[0]] * len(scene.frames), in_crop=False),
        "warp, tuned": measure(draw(scene, portrait, False, cavity, amplitude)),
        "warp + mouth layers": measure(draw(scene, portrait, False, None)),
        "warp + layers + retouch": measure(draw(scene, portrait, True, None)),
    }
    if models:
        # The autoencoder is slow, and every fourth frame says as much.
        net, fewer = TinyAutoencoder.load(models), sparse(scene)
        measure = Measures(fewer, portrait)
        drawn = [through(net, *each) for each in zip(fewer.frames, fewer.landmarks, strict=True)]
        result["taef2 (knows the truth)"] = measure(drawn, in_crop=False)
    return result


def through(net: TinyAutoencoder, frame: np.ndarray, landmarks: np.ndarray) -> np.ndarray:
    """The frame with what lies under the mouth window, and as much again around it, through the autoencoder."""
    back = cv2.invertAffineTransform(mouth_window_transform(landmarks))
    corners = (
        np.array([[0, 0, 1], [WINDOW_WIDTH, 0, 1], [0, WINDOW_HEIGHT, 1], [WINDOW_WIDTH, WINDOW_HEIGHT, 1]]) @ back.T
    )
    low, high = corners.min(0), corners.max(0)
    room = (high - low) / 2
    left, top = np.floor(low - room).astype(int).clip(0)
    right, bottom = np.ceil(high + room).astype(int)
    result = frame.copy()
    result[top:bottom, left:right] = net.reconstruct(frame[top:bottom, left:right])
    return result


def table(results: list[dict[str, dict]], title: str) -> dict[str, dict]:
    """Print means with bootstrap 95 % intervals over clips; return them."""
    shown = Table("", "mouth ↓", "of tuned warp", "landmarks % ↓", "colour ↓", "amplitude", "flicker", title=title)
    base = np.array([r["warp, tuned"]["mouth"] for r in results])
    summary = {}
    for name in results[0]:
        column = {key: np.array([r[name].get(key, np.nan) for r in results]) for key in results[0][name]}
        ratio = bootstrap_ratio(column["mouth"], base, 1000)
        summary[name] = {key: float(np.nanmean(value)) for key, value in column.items()}
        summary[name] |= {"of_warp": ratio.mean, "interval": [ratio.low, ratio.high]}
        shown.add_row(
            name, f"{summary[name]['mouth']:.4f}", f"{summary[name]['of_warp']:.2f} ({ratio.low:.2f}–{ratio.high:.2f})",
            *(f"{summary[name].get(key, np.nan):.{digits}f}" for key, digits in
              (("landmarks", 2), ("colour", 4), ("amplitude", 2), ("flicker", 2))),
        )  # fmt: skip
    Console(width=130).print(shown)
    return summary


def main(options: Options) -> None:
    """Measure and print."""
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    cavity, amplitude = (options.tuned[:3], options.tuned[3]) if options.tuned else tuned(options)
    print(f"tuned on training speakers: cavity {cavity} of the skin, amplitude {amplitude}")
    summary = {}
    if options.clips:
        scenes = read_scenes(options, "dev", options.clips)
        results = [rows(s, cavity, amplitude, options.models) for s in track(scenes, "drawing", options.clips)]
        summary["unseen speakers"] = table(results, f"{len(results)} clips of unseen speakers, drawn at 512")
    if options.large:
        scene = track_video(options.large, 2 * options.frames)
        summary["large"] = table([rows(scene, cavity, amplitude, options.models)], f"{options.large.name}")
    if options.output:
        options.output.write_text(json.dumps(summary, indent=1))


if __name__ == "__main__":
    main(tyro.cli(Options))
