"""What redrawing a mouth in a video costs the picture: ``python benchmarks/dubbing.py --corpus CORPUS --data FOOTAGE``.

Each frame of an unseen speaker gets the lips of a later frame of the same clip, which shows what should come out.
Rows: the frame as it was (must lose), redrawn by the warp and the mouth layers, and with the retouching network over
them, as ``animate --video`` does. ``--sheet`` puts frame, drawings and truth of every clip side by side.

    mouth      distance of the lower-face window from the later frame's (``reenact.py``), each in its own head's place
    flicker    mean change from frame to frame inside the mouth, over the later frames' own
    seam       mean difference of neighbouring pixels in a band around the redrawn region, over the untouched frame's
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
import tyro
from reenact import INNER, Scene, between, change, distance, features, read_scenes
from reenact import Options as Footage
from rich.console import Console
from rich.progress import track
from rich.table import Table

from flowportrait.codec.basis import LOWER, MotionBasis
from flowportrait.codec.dubbing import MouthMemory, redraw_mouth
from flowportrait.codec.mouth_window import cut, to_window
from flowportrait.codec.retouch_net import Windows

LATER = 8
"""Frames (0.32 s): by then lips say something else, while head and light are about the same."""


@dataclass(frozen=True)
class Options:
    """What is measured."""

    corpus: Path
    data: Path
    clips: int = 8
    frames: int = 20
    # redrawn per clip
    sheet: Path | None = None
    # PNG to be looked at


def nothing(windows: Windows) -> tuple[torch.Tensor, torch.Tensor]:
    """A network that retouches nothing."""
    return torch.zeros_like(windows.base[:, :2]), torch.zeros_like(windows.base)


def later_lips(scene: Scene) -> np.ndarray:
    """Landmarks ``[T - LATER, 478, 3]`` px: each frame's own, with the lips of LATER frames on."""
    basis = MotionBasis.load()
    own, identity = basis.encode(scene.landmarks, scene.blendshapes)
    spoken = own[:-LATER].clone()
    spoken[:, LOWER] = own[LATER:, LOWER]
    moved = basis.decode(spoken, identity) - basis.decode(own[:-LATER], identity)
    return scene.landmarks[:-LATER] + moved.numpy()


def seam(drawn: list[np.ndarray], frames: list[np.ndarray]) -> float:
    """Steps between neighbouring pixels where the redrawn region ends, over the same in the untouched frames."""
    sums = np.zeros(2)
    for new, old in zip(drawn, frames, strict=True):
        touched = (np.abs(new.astype(int) - old).max(2) > 1).astype(np.uint8)
        whole = cv2.morphologyEx(touched, cv2.MORPH_CLOSE, np.ones((9, 9), np.uint8))
        band = cv2.morphologyEx(whole, cv2.MORPH_GRADIENT, np.ones((5, 5), np.uint8)) > 0
        for place, image in enumerate((new, old)):
            step = np.abs(np.diff(image.astype(int), axis=0)).mean(2)[:, :-1]
            step = step + np.abs(np.diff(image.astype(int), axis=1)).mean(2)[:-1]
            sums[place] += step[band[:-1, :-1]].sum()
    return float(sums[0] / sums[1])


def rows(scene: Scene) -> tuple[dict[str, dict[str, float]], np.ndarray]:
    """Figures of each way, and a picture of the middle frame in each."""
    target, frames = later_lips(scene), scene.frames[:-LATER]
    old = scene.landmarks[:-LATER]
    memory, plain = (MouthMemory.from_video(frames, old, network) for network in (None, nothing))
    ways = {
        "the frame as it was": frames,
        "warp + mouth layers": [redraw_mouth(*each, plain) for each in zip(frames, old, target, strict=True)],
        "+ retouching, as it ships": [redraw_mouth(*each, memory) for each in zip(frames, old, target, strict=True)],
    }
    matrices = [to_window(points) for points in target]
    true_places = [to_window(points) for points in scene.landmarks[LATER:]]
    true = [cut(frame, m) for frame, m in zip(scene.frames[LATER:], true_places, strict=True)]
    inside = [between(p, m, INNER) for p, m in zip(target, matrices, strict=True)]
    true_inside = [between(p, m, INNER) for p, m in zip(scene.landmarks[LATER:], true_places, strict=True)]
    goal = features(true)
    result, picture = {}, [true[len(true) // 2]]
    for name, drawn in ways.items():
        windows = [cut(frame, m) for frame, m in zip(drawn, matrices, strict=True)]
        result[name] = {
            "mouth": distance(features(windows), goal),
            "flicker": change(windows, inside) / change(true, true_inside),
            "seam": seam(drawn, frames) if drawn is not frames else 1.0,
        }
        picture.append(windows[len(true) // 2])
    return result, cv2.resize(np.hstack(picture), None, fx=3, fy=3, interpolation=cv2.INTER_CUBIC)


def main(options: Options) -> None:
    """Measure and print means with bootstrap 95 % intervals over clips."""
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    footage = Footage(options.corpus, options.data, clips=options.clips, frames=options.frames + LATER)
    found = [rows(s) for s in track(read_scenes(footage, "dev", options.clips), "redrawing", options.clips)]
    results = [result for result, _ in found]
    picks = np.random.default_rng(0).integers(len(results), size=(1000, len(results)))
    base = np.array([r["warp + mouth layers"]["mouth"] for r in results])
    shown = Table("", "mouth ↓", "of warp + layers", "flicker", "seam", title=f"{len(results)} clips")
    for name in results[0]:
        column = {key: np.array([r[name][key] for r in results]) for key in results[0][name]}
        low, high = np.percentile(column["mouth"][picks].mean(1) / base[picks].mean(1), [2.5, 97.5])
        share = f"{column['mouth'].mean() / base.mean():.2f} ({low:.2f}–{high:.2f})"
        figures = [f"{np.median(column[key]):.2f}" for key in ("flicker", "seam")]
        shown.add_row(name, f"{column['mouth'].mean():.4f}", share, *figures)
    Console(width=110).print(shown)
    if options.sheet:
        cv2.imwrite(str(options.sheet), np.vstack([picture for _, picture in found])[..., ::-1])


if __name__ == "__main__":
    main(tyro.cli(Options))
