"""Train the network that detects occlusions of a mouth.

    python -m tools.train_occlusion DATA

    loss = binary cross-entropy of each cell of 4 x 4 px with the share of it that a synthetic occluder covers

Faces are photos and frames of the footage of everyone outside ``dev``. Occluders are synthetic (``tools.occluders``).
So are many things that must not be taken for one: cast shadows, painted lips, beards and flat drawings.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
import tyro
from tools.occluders import Rng, add_occluder

from flowportrait.errors import BadInput
from flowportrait.media.crop import CanonicalView
from flowportrait.media.faces import FaceTracker
from flowportrait.media.image import read_image
from flowportrait.media.occlusion import CELL_PIXELS, OCCLUSION_VIEW, OcclusionNet
from flowportrait.media.video import iter_frames
from flowportrait.training.optimize import GuardedStep

STORED_VIEW = CanonicalView(
    OCCLUSION_VIEW.left - 0.35,
    OCCLUSION_VIEW.top - 0.35,
    3 * OCCLUSION_VIEW.size,
    3 * OCCLUSION_VIEW.size / (OCCLUSION_VIEW.size / OCCLUSION_VIEW.scale + 0.7),
)
"""The stored view of a face, larger and finer than the network's input."""

FOLDERS = {"celebamask": 1, "london": 1, "talkvid": 8, "celebv": 10, "hdtf": 4, "clips": 8, "grid": 1,
           "anchors": 1}  # fmt: skip
"""Folders of the footage, and number of frames taken from each file."""
MOST_FILES = 700
"""Largest number of pictures of a folder."""
_UNOCCLUDED, _DRAWING = 0.35, 0.08
"""Shares of faces without an occluder, and of flat drawings."""


@dataclass(frozen=True)
class Config:
    """How the network is trained."""

    data: tyro.conf.Positional[Path]
    # folder with split.tsv
    output: Path = Path("weights/flowportrait_weights/occlusion/model.onnx")
    faces: Path = Path("faces.npy")
    # views of faces; made from the data if the file does not exist
    minutes: float = 15.0
    # training time; the learning rate decays with it
    batch: int = 32
    learning_rate: float = 2e-3
    seed: int = 0


def collect_faces(data: Path, dev: bool = False) -> np.ndarray:
    """Return views ``[N, S, S, 3]`` uint8 of the faces of everyone in the dev split, or of everyone else."""
    views = []
    with FaceTracker(still=True, max_faces=1) as tracker:
        for folder, frames in FOLDERS.items():
            files = split_files(data, folder, dev)
            for path in files[:: max(1, len(files) * frames // MOST_FILES)]:
                for picture in _pictures(path, frames):
                    faces = tracker.detect(picture)
                    if faces:
                        views.append(STORED_VIEW.cut(picture, faces[0][0]))
    return np.array(views)


def split_files(data: Path, folder: str, dev: bool) -> list[Path]:
    """Return the photos and clips of ``folder`` of people in the dev split of ``split.tsv``, or of everyone else.

    Raises:
        KeyError: if the split does not name a file, so that no dev speaker is trained on by mistake.
    """
    split = {}
    for line in (data / "split.tsv").read_text(encoding="utf-8").splitlines()[1:]:
        name, _, part = line.split("\t")
        split[name] = part == "dev"
    files = [path for path in sorted((data / folder).iterdir()) if path.suffix in (".jpg", ".mp4", ".mpg")]

    def is_dev(path: Path) -> bool:
        # Listed by file, by photo without its ending, or by person.
        keys = [f"{folder}/{name}" for name in (path.name, path.stem, path.stem.partition("_")[0])]
        return split[next((key for key in keys if key in split), keys[0])]

    return [path for path in files if is_dev(path) == dev]


def _pictures(path: Path, count: int) -> Iterator[np.ndarray]:
    """Yield a photo, or up to ``count`` frames of a clip."""
    if path.suffix == ".jpg":
        yield read_image(path)
        return
    try:
        for index, frame in enumerate(iter_frames(path)):
            if index % 12 == 4:
                yield frame
                count -= 1
            if not count:
                return
    except BadInput:
        return


def sample(faces: np.ndarray, rng: Rng) -> tuple[np.ndarray, np.ndarray]:
    """Return one random network input ``[size, size, 3]`` uint8, and the alpha ``[size, size]`` of its occluders."""
    view = replace(OCCLUSION_VIEW)
    if rng.random() < _DRAWING:
        picture = _drawing(view, rng)
    else:
        picture = _random_view(faces[rng.integers(len(faces))], rng)
        picture = _add_distractors(picture, view, rng)
    others = _random_view(faces[rng.integers(len(faces))], rng)
    alpha = np.zeros((view.size, view.size), np.float32)
    if rng.random() < 0.12:
        # The picture ends below the mouth and its edge is repeated.
        edge = round(float(view.pixels(np.array([0, rng.uniform(0.85, 1.5)]))[1]))
        picture[edge:] = picture[edge]
    if rng.random() > _UNOCCLUDED:
        picture, alpha = add_occluder(picture, view, rng, others)
        if rng.random() < 0.2:
            picture, more = add_occluder(picture, view, rng, others)
            alpha = np.maximum(alpha, more)
    if rng.random() < 0.5:
        picture, alpha = picture[:, ::-1], alpha[:, ::-1]
    return _camera(np.ascontiguousarray(picture), rng), np.ascontiguousarray(alpha)


def _random_view(face: np.ndarray, rng: Rng) -> np.ndarray:
    """Return the network's view of a face with slightly wrong landmarks, ``[size, size, 3]`` float32."""
    scale = OCCLUSION_VIEW.scale / STORED_VIEW.scale * np.exp(rng.normal(0, 0.05))
    centre = np.array([0.0, 0.55])
    start = STORED_VIEW.pixels(centre + rng.normal(0, 0.05, 2))
    matrix = cv2.getRotationMatrix2D((float(start[0]), float(start[1])), rng.normal(0, 5), scale)
    matrix[:, 2] += OCCLUSION_VIEW.pixels(centre) - start
    # Longer and shorter lower faces, as mouths open and close.
    nose, longer = OCCLUSION_VIEW.pixels(np.array([0, 0.5]))[1], np.exp(rng.normal(0, 0.08))
    matrix[1] = longer * matrix[1]
    matrix[1, 2] += (1 - longer) * nose
    small = cv2.GaussianBlur(face, (0, 0), 0.8) if scale < 0.75 else face
    return cv2.warpAffine(
        small,
        matrix,
        (OCCLUSION_VIEW.size, OCCLUSION_VIEW.size),
        flags=cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_REPLICATE,
    ).astype(np.float32)


def _add_distractors(picture: np.ndarray, view: CanonicalView, rng: Rng) -> np.ndarray:
    """Return the face with random distractors: a cast shadow, coloured light, painted lips, a beard, a painted look."""
    size = view.size
    ys, xs = np.mgrid[:size, :size].astype(np.float32)
    if rng.random() < 0.35:
        angle, place = rng.uniform(0, 2 * np.pi), view.pixels(np.array([rng.normal(0, 0.4), rng.uniform(0, 1.3)]))
        side = (xs - place[0]) * np.cos(angle) + (ys - place[1]) * np.sin(angle)
        dark = 1 / (1 + np.exp(-side / rng.uniform(0.7, 12)))
        tint = np.exp(rng.normal(0, 0.08, 3))
        picture = picture * (1 - rng.uniform(0.2, 0.8) * dark[..., None] * tint).clip(0.1, 1)
    if rng.random() < 0.25:
        # A coloured lamp from the side or from below.
        angle, place = rng.uniform(0, 2 * np.pi), view.pixels(np.array([rng.normal(0, 0.5), rng.uniform(0.2, 1.6)]))
        side = (xs - place[0]) * np.cos(angle) + (ys - place[1]) * np.sin(angle)
        lit = 1 / (1 + np.exp(-side / rng.uniform(2, 15)))
        picture = picture * (1 + lit[..., None] * rng.uniform(0, 1.2, 3) * rng.uniform(0.2, 1))
    if rng.random() < 0.2:
        # Lips of another colour.
        middle = view.pixels(np.array([0, 0.92]))
        lips = np.exp(-(((xs - middle[0]) / (0.2 * view.scale)) ** 4 + ((ys - middle[1]) / (0.09 * view.scale)) ** 4))
        colour = rng.uniform(0, 255, 3)
        grey = picture.mean(2, keepdims=True) / (picture.mean() + 1)
        picture = picture + rng.uniform(0.2, 0.7) * lips[..., None] * (colour * grey - picture)
    if rng.random() < 0.2:
        # A beard: dark, fine, around mouth and chin, less on the lips.
        beard = np.exp(-((np.abs(xs - size / 2) / (0.62 * view.scale)) ** 4)) / (
            1 + np.exp(-(ys - view.pixels(np.array([0, rng.uniform(0.65, 1.0)]))[1]) / 2)
        )
        middle = view.pixels(np.array([0, 0.9]))
        gap = np.exp(-(((xs - middle[0]) / (0.24 * view.scale)) ** 4 + ((ys - middle[1]) / (0.1 * view.scale)) ** 4))
        noise = cv2.GaussianBlur(rng.normal(0, 1, (size, size)).astype(np.float32), (0, 0), 0.7)
        strength = (beard * (1 - rng.uniform(0.3, 1) * gap) * (rng.uniform(0.3, 0.8) + 0.2 * noise)).clip(0, 0.95)
        picture = picture + strength[..., None] * (rng.uniform(10, 90) * np.array([1, 0.9, 0.8]) - picture)
    if rng.random() < 0.12:
        flat = picture.clip(0, 255).astype(np.uint8)
        flat = cv2.bilateralFilter(flat, 7, rng.uniform(20, 80), rng.uniform(2, 5))
        steps = rng.uniform(4, 40)
        picture = np.round(flat / steps).astype(np.float32) * steps if rng.random() < 0.5 else flat.astype(np.float32)
    return picture


def _drawing(view: CanonicalView, rng: Rng) -> np.ndarray:
    """Return a face of flat colours and lines, like a comic."""
    size, line = view.size, int(rng.integers(1, 3))
    picture = np.full((size, size, 3), rng.uniform(0, 255, 3), np.float32)
    skin = rng.uniform(80, 255) * np.array([1, rng.uniform(0.7, 1), rng.uniform(0.5, 1)])
    ink = rng.uniform(0, 120, 3)

    def place(x: float, y: float) -> tuple[int, int]:
        point = view.pixels(np.array([x, y]))
        return round(float(point[0])), round(float(point[1]))

    axes = (round(rng.uniform(0.65, 1.0) * view.scale), round(rng.uniform(0.85, 1.2) * view.scale))
    middle = place(0, rng.uniform(0.3, 0.5))
    cv2.ellipse(picture, middle, axes, 0, 0, 360, skin.tolist(), -1, cv2.LINE_AA)
    cv2.ellipse(picture, middle, axes, 0, 0, 360, ink.tolist(), line, cv2.LINE_AA)
    hair, style = rng.uniform(0, 255, 3).tolist(), rng.random()
    if style < 0.4:
        cv2.rectangle(picture, (0, 0), place(2, rng.uniform(-0.45, -0.1)), hair, -1)
    elif style < 0.8:
        cap = (round(rng.uniform(0.9, 1.2) * axes[0]), round(rng.uniform(0.7, 1.0) * axes[1]))
        cv2.ellipse(picture, place(0, rng.uniform(-0.5, 0.0)), cap, 0, 180, 360, hair, -1, cv2.LINE_AA)
    for side in (-1, 1):
        wide = round(rng.uniform(0.08, 0.2) * view.scale)
        cv2.circle(picture, place(0.35 * side, 0), wide, (255, 255, 255), -1, cv2.LINE_AA)
        cv2.circle(picture, place(0.35 * side, 0), max(wide // 2, 1), rng.uniform(0, 200, 3).tolist(), -1, cv2.LINE_AA)
    cv2.line(picture, place(0.02, 0.2), place(rng.uniform(-0.1, 0.1), 0.5), ink.tolist(), line, cv2.LINE_AA)
    mouth = (round(rng.uniform(0.08, 0.3) * view.scale), round(rng.uniform(0.02, 0.15) * view.scale))
    colour = ink if rng.random() < 0.5 else rng.uniform(40, 255) * np.array([1, 0.4, 0.4])
    filled = -1 if rng.random() < 0.4 else line
    arc = (0, 180) if rng.random() < 0.6 else (0, 360)
    cv2.ellipse(picture, place(0, rng.uniform(0.75, 0.95)), mouth, 0, *arc, colour.tolist(), filled, cv2.LINE_AA)
    return picture


def _camera(picture: np.ndarray, rng: Rng) -> np.ndarray:
    """Return the picture ``[size, size, 3]`` uint8 with random light, colour, blur, noise and compression."""
    picture = 255 * (picture.clip(0, 255) / 255) ** np.exp(rng.normal(0, 0.25))
    picture = picture * np.exp(rng.normal(0, 0.15) + rng.normal(0, 0.08, 3))
    if rng.random() < 0.12:
        picture = np.repeat(picture.mean(2, keepdims=True), 3, 2) * np.exp(rng.normal(0, 0.03, 3))
    if rng.random() < 0.4:
        picture = cv2.GaussianBlur(picture, (0, 0), rng.uniform(0.3, 1.6))
    if rng.random() < 0.4:
        picture = picture + rng.normal(0, rng.uniform(1, 9), picture.shape)
    result = picture.clip(0, 255).astype(np.uint8)
    if rng.random() < 0.4:
        _, data = cv2.imencode(".jpg", result, [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(25, 90))])
        result = np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR))
    return result


def train(config: Config) -> None:
    """Train the network and write it as ONNX, also during training."""
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    torch.manual_seed(config.seed)
    rng = np.random.default_rng(config.seed)
    if not config.faces.is_file():
        np.save(config.faces, collect_faces(config.data))
    faces = np.load(config.faces)
    print(f"{len(faces)} faces", flush=True)
    network = OcclusionNet()
    average = {name: value.clone() for name, value in network.state_dict().items()}
    optimizer = torch.optim.AdamW(network.parameters(), config.learning_rate, weight_decay=1e-3)
    guarded_step = GuardedStep(network.parameters(), optimizer, math.inf)
    oval = _face_weight()
    began, step, losses = time.monotonic(), 0, []
    while (done := (time.monotonic() - began) / (60 * config.minutes)) < 1:
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * min(1, (step + 1) / 100) * (1 - done)
        pairs = [sample(faces, rng) for _ in range(config.batch)]
        pictures = torch.from_numpy(np.stack([p for p, _ in pairs])).permute(0, 3, 1, 2).float() / 255
        covered = F.avg_pool2d(torch.from_numpy(np.stack([a for _, a in pairs]))[:, None], CELL_PIXELS)
        loss = (F.binary_cross_entropy_with_logits(network.logits(pictures), covered, reduction="none") * oval).mean()
        optimizer.zero_grad()
        loss.backward()
        guarded_step(step + 1)
        step += 1
        for name, value in network.state_dict().items():
            if value.is_floating_point():
                average[name].lerp_(value, 1 - min(0.998, step / (step + 10)))
        losses.append(loss.item())
        if step % 200 == 0:
            print(f"{done:.0%}  step {step}  loss {np.mean(losses[-200:]):.4f}", flush=True)
        if step % 1000 == 0 or done > 0.99:
            export(average, config.output)
    export(average, config.output)


def _face_weight() -> torch.Tensor:
    """Return the loss weight of each cell: one inside the face, little beside it."""
    ys, xs = (
        np.mgrid[: OCCLUSION_VIEW.size // CELL_PIXELS, : OCCLUSION_VIEW.size // CELL_PIXELS] * CELL_PIXELS
        + (CELL_PIXELS - 1) / 2
    )
    middle = OCCLUSION_VIEW.pixels(np.array([0, 0.6]))
    inside = ((xs - middle[0]) / (0.65 * OCCLUSION_VIEW.scale)) ** 2 + (
        (ys - middle[1]) / (0.85 * OCCLUSION_VIEW.scale)
    ) ** 2 < 1
    return torch.from_numpy(np.where(inside, 1.0, 0.15).astype(np.float32))


def export(weights: dict[str, torch.Tensor], path: Path) -> None:
    """Write the network with ``weights`` atomically as ONNX."""
    network = OcclusionNet()
    network.load_state_dict(weights)
    partial = path.with_suffix(".partial")
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.onnx.export(
        network.eval(), (torch.rand(1, 3, OCCLUSION_VIEW.size, OCCLUSION_VIEW.size),), str(partial),
        input_names=["picture"], output_names=["covered"], opset_version=17, dynamo=False,
    )  # fmt: skip
    os.replace(partial, path)


if __name__ == "__main__":
    train(tyro.cli(Config))
