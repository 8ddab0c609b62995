"""Where the mouth error of self-reenactment is: ``python benchmarks/gap.py --corpus CORPUS --data FOOTAGE``.

The drawings of ``reenact.py``, each with one thing made true, and what real frames score by the same measure. Nothing
here is tracked again, so it is quick. Rows say what their window shows; shares are of the drawing by 30 numbers.

    lips where they were tracked    the mesh goes to the tracked landmarks, not to what the motion basis makes of them
    true interior, lips             the truth pasted between the inner (outer) lips
    true light                      what a blur of σ window pixels leaves of truth − drawing, added
    best flow                       the drawing's pixels moved to the truth by optical flow that knows it (DIS); smooth:
                                    that flow blurred by σ; affine: only its best affine part, mostly registration;
                                    so much of its energy foreseen: the rest is left as it is
    best 30 numbers                 those that bring the mesh's points nearest to where the best flow takes them: what
                                    an encoder could reach that knows the picture and how it will be drawn
    nearest other frame             of the same clip, at least three frames away, by the lips' landmarks
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import av
import cv2
import numpy as np
import torch
import tyro
from reenact import INNER, MOUTH, OUTER, Scene, between, distance, features, read_scenes
from reenact import Options as Footage
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

from flowportrait.evaluation.statistics import bootstrap_ratio
from flowportrait.media.crop import apply_affine
from flowportrait.rendering.mesh import N_FACE
from flowportrait.rendering.motion_basis import MOTION_DIM, Identity, MotionBasis
from flowportrait.rendering.mouth_geometry import WINDOW_HEIGHT, WINDOW_WIDTH, cut_mouth_window, mouth_window_transform
from flowportrait.rendering.renderer import Renderer
from flowportrait.rendering.self_reenactment import self_reenactment_motion

_GRID = np.stack(np.meshgrid(np.arange(WINDOW_WIDTH), np.arange(WINDOW_HEIGHT)), -1).astype(np.float32)
_FINER = 2
_ROUNDS, _STIFF, _TRUST, _STEP = 4, 2.0, 0.01, 0.01
"""Rounds of drawing and fitting; blur of the flow in window pixels; what a number's change costs, in pixels²; step of
the slopes."""

_FORESEEN = (0.22, 0.5, 0.75)
"""Shares of the flow's energy; the first is what ``foreseeable.py`` finds."""

_APART = 3


@dataclass(frozen=True)
class Options:
    """What is measured."""

    corpus: Path
    data: Path
    clips: int = 8
    frames: int = 12


def blurred(window: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian blur in float."""
    return cv2.GaussianBlur(window.astype(np.float32), (0, 0), sigma)


def rounded(window: np.ndarray) -> np.ndarray:
    """To 8 bits."""
    return np.round(window).clip(0, 255).astype(np.uint8)


def flow(true: np.ndarray, drawn: np.ndarray) -> np.ndarray:
    """Flow ``[72, 96, 2]`` in window pixels: where in ``drawn`` each pixel of ``true`` is."""
    finder = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    finder.setFinestScale(0)
    grey = [cv2.cvtColor(window, cv2.COLOR_RGB2GRAY) for window in (true, drawn)]
    fine = [cv2.resize(g, None, fx=_FINER, fy=_FINER, interpolation=cv2.INTER_CUBIC) for g in grey]
    return cv2.resize(finder.calc(*fine, None), (WINDOW_WIDTH, WINDOW_HEIGHT), interpolation=cv2.INTER_AREA) / _FINER


def affine(field: np.ndarray) -> np.ndarray:
    """The affine map nearest to a flow."""
    place = np.column_stack([_GRID.reshape(-1, 2), np.ones(WINDOW_HEIGHT * WINDOW_WIDTH)])
    return (place @ np.linalg.lstsq(place, field.reshape(-1, 2), rcond=None)[0]).reshape(field.shape).astype(np.float32)


def best_numbers(
    drawn: Callable[[np.ndarray], list[np.ndarray]], motion: Tensor, identity: Identity, true: list[np.ndarray],
    to_windows: np.ndarray,
) -> np.ndarray:  # fmt: skip
    """Landmarks ``[T, 478, 3]`` of the motion near ``motion`` ``[T, 30]`` whose drawing is nearest to the true windows.

    drawn: landmarks to windows; to_windows: ``[T, 2, 3]``, crop pixels to window pixels.
    """
    basis, goal = MotionBasis.load(), features(true)
    least, kept = np.inf, np.zeros(0)

    def places(numbers: Tensor) -> np.ndarray:
        points = basis.decode(numbers, identity)[:, :N_FACE, :2].numpy()
        return points @ to_windows[:, :, :2].swapaxes(1, 2) + to_windows[:, None, :, 2]

    for _ in range(_ROUNDS):
        points = basis.decode(motion, identity).numpy()
        windows = drawn(points)
        error = distance(features(windows), goal)
        if error < least:
            least, kept = error, points
        here = places(motion)
        slopes = np.stack([(places(motion + _STEP * unit) - here) / _STEP for unit in torch.eye(MOTION_DIM)], -1)
        motion = motion.clone()
        for number, (t, w) in enumerate(zip(true, windows, strict=True)):
            x, y = here[number].T
            inside = (x > 0) & (x < WINDOW_WIDTH - 1) & (y > 0) & (y < WINDOW_HEIGHT - 1)
            field = blurred(flow(t, w), _STIFF)
            off = -field[y[inside].round().astype(int), x[inside].round().astype(int)]
            slope = slopes[number, inside].reshape(-1, MOTION_DIM)
            # Gauss and Newton: what the drawing shows at p, the truth shows at p − flow(p).
            matrix = slope.T @ slope / len(slope) + _TRUST * np.eye(MOTION_DIM)
            motion[number] += torch.from_numpy(np.linalg.solve(matrix, slope.T @ off.ravel() / len(slope))).float()
    return kept


def moved(window: np.ndarray, field: np.ndarray) -> np.ndarray:
    """The window's pixels under a flow."""
    return cv2.remap(window, _GRID + field, None, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)


def encoded(frames: list[np.ndarray], crf: int) -> list[np.ndarray]:
    """Frames after H.264."""
    height, width = (side // 2 * 2 for side in frames[0].shape[:2])
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as output:
        stream = output.add_stream("libx264", rate=25, options={"crf": str(crf)})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for frame in frames:
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame[:height, :width]), format="rgb24")
            output.mux(stream.encode(picture))
        output.mux(stream.encode())
    file.seek(0)
    with av.open(file) as read:
        return [frame.to_ndarray(format="rgb24") for frame in read.decode(video=0)]


def rows(scene: Scene) -> dict[str, float]:
    """Mouth error of everything for one scene."""
    portrait = scene.portrait()
    back = np.linalg.inv(np.vstack([portrait.to_crop, [0, 0, 1]]))
    matrices = [mouth_window_transform(points) for points in scene.landmarks]
    true = [cut_mouth_window(frame, m) for frame, m in zip(scene.frames, matrices, strict=True)]
    basis = MotionBasis.load()
    _, identity = basis.encode(portrait.landmarks[None], portrait.blendshapes[None], smooth=False)
    motion = self_reenactment_motion(scene.landmarks, scene.blendshapes)
    goals = basis.decode(motion, identity).numpy()

    def drawn(goals: np.ndarray, retouch: bool) -> list[np.ndarray]:
        frames = Renderer(portrait, retouch=retouch, workers=1)(goals)
        return [
            cut_mouth_window(f, (np.vstack([m, [0, 0, 1]]) @ back)[:2]) for f, m in zip(frames, matrices, strict=True)
        ]

    inner, outer = ([between(p, m, lips) for p, m in zip(scene.landmarks, matrices, strict=True)]
                    for lips in (INNER, OUTER))  # fmt: skip

    def pasted(windows: list[np.ndarray], masks: list[np.ndarray]) -> list[np.ndarray]:
        return [rounded(w + k[..., None] * (t.astype(float) - w)) for w, t, k in zip(windows, true, masks, strict=True)]

    def lit(windows: list[np.ndarray], sigma: float) -> list[np.ndarray]:
        return [rounded(w + blurred(t.astype(np.float32) - w, sigma)) for w, t in zip(windows, true, strict=True)]

    base, tracked = drawn(goals, False), drawn(apply_affine(portrait.to_crop, scene.landmarks), False)
    flows = [flow(t, w) for w, t in zip(base, true, strict=True)]
    best = [moved(w, f) for w, f in zip(base, flows, strict=True)]
    to_windows = np.stack([(np.vstack([m, [0, 0, 1]]) @ back)[:2] for m in matrices])
    fitted = best_numbers(lambda points: drawn(points, False), motion, identity, true, to_windows)
    shown = {
        "30 numbers: warp + mouth layers": base,
        "  retouched, as it ships": drawn(goals, True),
        "  blurred σ 0.8": [rounded(blurred(w, 0.8)) for w in base],
        "  lips where they were tracked": tracked,
        "  that and true interior": pasted(tracked, inner),
        "  that and true lips": pasted(tracked, outer),
        "  true interior": pasted(base, inner),
        "  all true but the lips": pasted(base, [1 - mask for mask in outer]),
        "  true light σ 8": lit(base, 8),
        "  true light σ 4": lit(base, 4),
        "  best flow": best,
        "  best flow, smooth σ 4": [moved(w, blurred(f, 4)) for w, f in zip(base, flows, strict=True)],
        "  best flow, smooth σ 8": [moved(w, blurred(f, 8)) for w, f in zip(base, flows, strict=True)],
        "  best flow, affine": [moved(w, affine(f)) for w, f in zip(base, flows, strict=True)],
        "  best flow, true interior, light σ 4": pasted(lit(best, 4), inner),
        "best 30 numbers": drawn(fitted, False),
        "  those, retouched as it ships": drawn(fitted, True),
        "  those and true interior": pasted(drawn(fitted, False), inner),
    }  # fmt: skip
    for share in _FORESEEN:
        part = 1 - (1 - share) ** 0.5
        shown[f"  {share:.0%} of the flow's energy"] = [moved(w, part * f) for w, f in zip(base, flows, strict=True)]
    lips = np.stack([p[MOUTH, :2] @ m[:, :2].T + m[:, 2] for p, m in zip(scene.landmarks, matrices, strict=True)])
    apart = np.linalg.norm(lips[:, None] - lips, axis=-1).mean(-1)
    steps = np.arange(len(true))
    apart[np.abs(steps[:, None] - steps) < _APART] = np.inf
    shown |= {
        "real: nearest other frame": [true[index] for index in apart.argmin(1)],
        "real: the frame after": [*true[1:], true[-2]],
        "real: blurred σ 0.8": [rounded(blurred(t, 0.8)) for t in true],
    }
    for crf in (18, 23, 28):
        again = encoded(scene.frames, crf)
        shown[f"real: H.264 crf {crf}"] = [cut_mouth_window(f, m) for f, m in zip(again, matrices, strict=True)]
    goal = features(true)
    return {name: distance(features(windows), goal) for name, windows in shown.items()}


def main(options: Options) -> None:
    """Measure and print means with bootstrap 95 % intervals over clips."""
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    footage = Footage(options.corpus, options.data, clips=options.clips, frames=options.frames)
    results = [rows(s) for s in track(read_scenes(footage, "dev", options.clips), "drawing", options.clips)]
    base = np.array([next(iter(result.values())) for result in results])
    table = Table("", "mouth ↓", "share", title=f"{len(results)} clips of unseen speakers")
    for name in results[0]:
        column = np.array([result[name] for result in results])
        ratio = bootstrap_ratio(column, base, 1000)
        table.add_row(name, f"{column.mean():.4f}", f"{ratio.mean:.2f} ({ratio.low:.2f}–{ratio.high:.2f})")
    Console(width=100).print(table)


if __name__ == "__main__":
    main(tyro.cli(Options))
