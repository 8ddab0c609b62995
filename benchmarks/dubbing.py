"""What redrawing a mouth in a video costs the picture: ``python benchmarks/dubbing.py --corpus CORPUS --data FOOTAGE``.

Each frame of an unseen speaker gets the lips of a later frame of the same clip, which shows what should come out.
Rows: the frame as it was (must lose), redrawn by the warp and the mouth layers, and with the retouching network over
them, as ``animate --video`` does. ``--sheet`` puts frame, drawings and truth of every clip side by side.

``--cuts N``: N videos of two speakers with a hard cut between them, tracked and dubbed from the file. Rows: the frames
as they were, the video taken for one shot (must lose), shot by shot as it ships, and each speaker's part as a video of
its own (the goal); last columns within four frames of the cut. ``--portraits FOLDER``: portraits that the camera sees
from the side, drawn turning by 20 degrees to either side and then dubbed; there is no truth, so flicker is over that of
the video before.

    mouth      distance of the lower-face window from the later frame's (``reenact.py``), each in its own head's place
    flicker    mean change from frame to frame inside the mouth, over the later frames' own
    seam       mean difference of neighbouring pixels in a band around the redrawn region, over the untouched frame's
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import tempfile
from dataclasses import dataclass, replace
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
from sheets import motion

from flowportrait.evaluation.statistics import bootstrap_ratio
from flowportrait.media.crop import apply_affine
from flowportrait.media.faces import face_yaw, interpolate_missing_frames
from flowportrait.media.image import read_image
from flowportrait.media.portrait import Portrait
from flowportrait.media.video import iter_frames
from flowportrait.media.write_video import write_video
from flowportrait.rendering.dubbing import DubbedVideo, MouthMemory, redraw_mouth
from flowportrait.rendering.footage import track_face_in_video
from flowportrait.rendering.motion_basis import LOWER_FACE, MotionBasis
from flowportrait.rendering.mouth_geometry import WINDOW_HEIGHT, WINDOW_WIDTH, cut_mouth_window, mouth_window_transform
from flowportrait.rendering.renderer import MotionCodec
from flowportrait.rendering.retouch import MouthWindows

NEAR = 4
"""Frames before and after a cut that are told apart."""

ASIDE = 15.0
"""Degrees of yaw from which a portrait is seen from the side."""

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
    cuts: int = 0
    # videos with a cut
    portraits: Path | None = None
    # folder of photos, for turned heads


def nothing(windows: MouthWindows) -> tuple[torch.Tensor, torch.Tensor]:
    """A network that retouches nothing."""
    return torch.zeros_like(windows.base[:, :2]), torch.zeros_like(windows.base)


def later_lips(scene: Scene) -> np.ndarray:
    """Landmarks ``[T - LATER, 478, 3]`` px: each frame's own, with the lips of LATER frames on."""
    basis = MotionBasis.load()
    own, identity = basis.encode(scene.landmarks, scene.blendshapes)
    spoken = own[:-LATER].clone()
    spoken[:, LOWER_FACE] = own[LATER:, LOWER_FACE]
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
    return float(sums[0] / sums[1]) if sums[1] else 1.0


class Goal:
    """What should come out of one scene: its frames with the lips of later ones."""

    def __init__(self, scene: Scene) -> None:
        self.frames, self.landmarks = scene.frames[:-LATER], scene.landmarks[:-LATER]
        self.target = later_lips(scene)
        self._matrices = [mouth_window_transform(points) for points in self.target]
        places = [mouth_window_transform(points) for points in scene.landmarks[LATER:]]
        self.true = [cut_mouth_window(frame, m) for frame, m in zip(scene.frames[LATER:], places, strict=True)]
        self._inside = [between(p, m, INNER) for p, m in zip(self.target, self._matrices, strict=True)]
        seen = [between(p, m, INNER) for p, m in zip(scene.landmarks[LATER:], places, strict=True)]
        self._true_change = change(self.true, seen)

    def windows(self, drawn: list[np.ndarray]) -> list[np.ndarray]:
        """The lower faces of drawn frames."""
        return [cut_mouth_window(frame, m) for frame, m in zip(drawn, self._matrices, strict=True)]

    def __call__(self, drawn: list[np.ndarray], near: slice | None = None) -> dict[str, float]:
        """Figures; ``near``: frames of which mouth and flicker are told apart."""
        windows = self.windows(drawn)
        told = {
            "mouth": distance(features(windows), features(self.true)),
            "flicker": change(windows, self._inside) / self._true_change,
            "seam": seam(drawn, self.frames),
        }
        if near is not None:
            told["mouth, near"] = distance(features(windows[near]), features(self.true[near]))
            told["flicker, near"] = change(windows[near], self._inside[near]) / self._true_change
        return told


def rows(scene: Scene) -> tuple[dict[str, dict[str, float]], np.ndarray]:
    """Figures of each way, and a picture of the middle frame in each."""
    goal = Goal(scene)
    frames, old, target = goal.frames, goal.landmarks, goal.target
    memory, plain = (MouthMemory.from_video(frames, old, network) for network in (None, nothing))
    ways = {
        "the frame as it was": frames,
        "warp + mouth layers": [redraw_mouth(*each, plain) for each in zip(frames, old, target, strict=True)],
        "+ retouching, as it ships": [redraw_mouth(*each, memory) for each in zip(frames, old, target, strict=True)],
    }
    middle = len(frames) // 2
    picture = [goal.true[middle], *(goal.windows(drawn)[middle] for drawn in ways.values())]
    result = {name: goal(drawn) for name, drawn in ways.items()}
    return result, cv2.resize(np.hstack(picture), None, fx=3, fy=3, interpolation=cv2.INTER_CUBIC)


def square(scene: Scene) -> Scene:
    """The scene at 256 x 256 px, so that any two fit into one video."""
    scale = np.array([256 / scene.frames[0].shape[1], 256 / scene.frames[0].shape[0]])
    frames = [cv2.resize(frame, (256, 256), interpolation=cv2.INTER_AREA) for frame in scene.frames]
    matrix = np.column_stack([np.diag(scale), (scale - 1) / 2])
    return replace(scene, frames=frames, landmarks=apply_affine(matrix, scene.landmarks))


def cut_rows(pair: tuple[Scene, Scene], folder: Path) -> dict[str, dict[str, float]]:
    """Figures of one video of two speakers."""
    goals, basis = [Goal(scene) for scene in pair], MotionBasis.load()
    lips = [basis.encode(scene.landmarks, scene.blendshapes)[0][LATER:] for scene in pair]

    def dub(frames: list[np.ndarray], spoken: torch.Tensor, one_shot: bool = False) -> list[np.ndarray]:
        write_video(folder / "video.mp4", frames, None, crf=8)
        footage = track_face_in_video(folder / "video.mp4")
        found.append(footage.starts)
        return list(DubbedVideo(replace(footage, starts=[0]) if one_shot else footage, [spoken]))

    found: list[list[int]] = []
    both, change_at = [*goals[0].frames, *goals[1].frames], len(goals[0].frames)
    ways = {
        "the frame as it was": both,
        "as one shot": dub(both, torch.cat(lips), one_shot=True),
        "shot by shot, as it ships": dub(both, torch.cat(lips)),
        "each part by itself": [
            frame for goal, part in zip(goals, lips, strict=True) for frame in dub(goal.frames, part)
        ],
    }  # fmt: skip
    if found[1] != [0, change_at]:
        print(f"cuts found at {found[1]}, not at {change_at}")
    result = {}
    for name, drawn in ways.items():
        told = [
            goals[0](drawn[:change_at], slice(change_at - NEAR, None)),
            goals[1](drawn[change_at:], slice(0, NEAR)),
        ]
        result[name] = {key: float(np.mean([part[key] for part in told])) for key in told[0]}
    return result


def turned_figures(portrait: Portrait, spoken: torch.Tensor, folder: Path) -> dict[str, float]:
    """Figures of a video in which a portrait turns, dubbed."""
    codec = MotionCodec(portrait)
    turns = [motion({"headYaw": 20 * np.sin(2 * np.pi * t / len(spoken))}) for t in range(len(spoken))]
    write_video(folder / "turning.mp4", codec.decode(torch.cat(turns)), None, crf=8)
    frames = list(iter_frames(folder / "turning.mp4"))
    footage = track_face_in_video(folder / "turning.mp4")
    drawn = list(DubbedVideo(footage, [spoken]))
    landmarks = interpolate_missing_frames(footage.faces.landmarks, footage.faces.valid)
    matrices = [mouth_window_transform(points) for points in landmarks]
    whole = [np.ones((WINDOW_HEIGHT, WINDOW_WIDTH), np.float32)] * len(frames)
    old, new = ([cut_mouth_window(f, m) for f, m in zip(each, matrices, strict=True)] for each in (frames, drawn))
    figures = {"flicker": change(new, whole) / change(old, whole), "seam": seam(drawn, frames)}
    return figures | {"seen": float(footage.faces.valid.mean())}


def show(results: list[dict[str, dict[str, float]]], against: str, title: str) -> None:
    """Print means with bootstrap 95 % intervals over clips."""
    base = np.array([r[against]["mouth"] for r in results])
    others = [key for key in results[0][against] if key != "mouth"]
    shown = Table("", "mouth ↓", f"of {against}", *others, title=title)
    for name in results[0]:
        column = {key: np.array([r[name][key] for r in results]) for key in results[0][name]}
        ratio = bootstrap_ratio(column["mouth"], base, 1000)
        share = f"{ratio.mean:.2f} ({ratio.low:.2f}–{ratio.high:.2f})"
        figures = [f"{np.median(column[key]):.3f}" if "mouth" in key else f"{np.median(column[key]):.2f}"
                   for key in others]  # fmt: skip
        shown.add_row(name, f"{column['mouth'].mean():.4f}", share, *figures)
    Console(width=130).print(shown)


def main(options: Options) -> None:
    """Measure and print."""
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    footage = Footage(options.corpus, options.data, clips=options.clips, frames=options.frames + LATER)
    found = [rows(s) for s in track(read_scenes(footage, "dev", options.clips), "redrawing", options.clips)]
    if found:
        show([result for result, _ in found], "warp + mouth layers", f"{len(found)} clips")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if options.cuts:
            scenes = [square(scene) for scene in read_scenes(footage, "dev", 2 * options.cuts)]
            pairs = list(zip(scenes[::2], scenes[1::2], strict=True))
            cuts = [cut_rows(pair, folder) for pair in track(pairs, "dubbing through cuts")]
            show(cuts, "each part by itself", f"{len(cuts)} cuts")
        if options.portraits:
            scene = next(iter(read_scenes(footage, "dev", 1)))
            spoken, _ = MotionBasis.load().encode(scene.landmarks, scene.blendshapes)
            for path in sorted(options.portraits.iterdir()):
                portrait = Portrait.from_image(read_image(path))
                angle = float(face_yaw(portrait.landmarks))
                if abs(angle) > ASIDE:
                    figures = turned_figures(portrait, spoken, folder)
                    told = ", ".join(f"{key} {value:.2f}" for key, value in figures.items())
                    print(f"{path.stem}: turned by {angle:.0f} degrees, and by 20 to either side of that: {told}")
    if options.sheet:
        cv2.imwrite(str(options.sheet), np.vstack([picture for _, picture in found])[..., ::-1])


if __name__ == "__main__":
    main(tyro.cli(Options))
