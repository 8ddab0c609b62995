"""Is it still the same person, and does the paste-back show? ``python benchmarks/likeness.py --corpus CORPUS --data
FOOTAGE --portraits FOLDER``.

    identity    cosine of the shipped face network's embeddings: frames drawn with another person's motion against the
                photo; the mark to meet is what frames of one real clip have with its own first frame
    seam        mean difference of neighbouring pixels across the border of the pasted square, over the same 4 to 8
                pixels outside of it (1: nothing to see); the same for the photo itself, which has no seam
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import warnings
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
import tyro
from reenact import Options as Footage
from reenact import read_scenes

from flowportrait.media.crop import paste_back
from flowportrait.media.image import read_image
from flowportrait.media.portrait import Portrait
from flowportrait.rendering.renderer import MotionCodec
from flowportrait.rendering.self_reenactment import self_reenactment_motion
from flowportrait.rewards.face import FaceNet, align_faces

_BAND = range(4, 9)


@dataclass(frozen=True)
class Options:
    """What is measured."""

    corpus: Path
    data: Path
    portraits: Path
    frames: int = 12
    # per portrait and clip, evenly spread


def embeddings(frames: list[np.ndarray], landmarks: np.ndarray) -> torch.Tensor:
    """Unit embeddings ``[T, 1024]``."""
    images = torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2).float() / 255
    with torch.inference_mode():
        return FaceNet.load()(align_faces(images, torch.as_tensor(np.asarray(landmarks)[..., :2], dtype=torch.float32)))


def seam(image: np.ndarray, to_crop: np.ndarray, size: int) -> float:
    """Change across the square's border over the change just outside."""
    corners = np.array([[-0.5, -0.5, 1], [size - 0.5, size - 0.5, 1]]) @ cv2.invertAffineTransform(to_crop).T
    (left, top), (right, bottom) = np.round(corners).astype(int)
    height, width = image.shape[:2]
    grey = image.astype(np.float64).mean(2)
    across, down = np.abs(np.diff(grey, axis=1)), np.abs(np.diff(grey, axis=0))
    lines = []
    for place, step in ((left, -1), (right, 1)):
        lines.append((across[max(top, 0) : bottom].T, place, step, width - 1))
    for place, step in ((top, -1), (bottom, 1)):
        lines.append((down[:, max(left, 0) : right], place, step, height - 1))
    here, beside = [], []
    for change, place, step, last in lines:
        if min(place - 2, place + step * _BAND[-1]) < 0 or max(place + 2, place + step * _BAND[-1]) >= last:
            continue
        here.append(np.mean([change[place + k].mean() for k in (-1, 0, 1)]))
        beside.append(np.mean([change[place + step * k].mean() for k in _BAND]))
    return float(np.sum(here) / np.sum(beside)) if here else float("nan")


def main(options: Options) -> None:
    """Measure and print."""
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    scenes = list(read_scenes(Footage(options.corpus, options.data), "dev", 9))[1:]
    real = []
    for scene in scenes:
        chosen = np.linspace(0, len(scene.frames) - 1, options.frames).round().astype(int)
        vectors = embeddings([scene.frames[i] for i in chosen], scene.landmarks[chosen])
        real.append(float((vectors[1:] @ vectors[0]).mean()))
    print(f"real clips with their own first frame: {np.mean(real):.3f} (worst clip {min(real):.3f})")
    paths = sorted(p for p in options.portraits.iterdir() if p.suffix.lower() in (".jpg", ".jpeg", ".png"))
    likeness, seams, photos = [], [], []
    for number, path in enumerate(paths):
        image, scene = read_image(path), scenes[number % len(scenes)]
        codec = MotionCodec(Portrait.from_image(image, None))
        motion = self_reenactment_motion(scene.landmarks, scene.blendshapes)
        motion = motion[np.linspace(0, len(motion) - 1, options.frames).round().astype(int)]
        frames = list(codec.decode(motion))
        points = np.concatenate([codec.portrait.landmarks[None], codec.landmarks(motion)])
        vectors = embeddings([codec.portrait.crop, *frames], points)
        likeness.append(float((vectors[1:] @ vectors[0]).mean()))
        pasted = [paste_back(image, frame, codec.portrait.to_crop) for frame in frames[::4]]
        seams.append(np.mean([seam(p, codec.portrait.to_crop, frames[0].shape[0]) for p in pasted]))
        photos.append(seam(image, codec.portrait.to_crop, frames[0].shape[0]))
        print(f"{path.stem}: identity {likeness[-1]:.3f}, seam {seams[-1]:.2f}, photo itself {photos[-1]:.2f}")
    print(f"identity {np.mean(likeness):.3f}, {np.mean(real) - np.mean(likeness):+.3f} under real clips")
    print(f"seam {np.nanmean(seams):.3f}, the photos themselves {np.nanmean(photos):.3f}")


if __name__ == "__main__":
    main(tyro.cli(Options))
