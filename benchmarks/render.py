"""What a drawn frame costs: ``python benchmarks/render.py``.

For sides of 256 to 1024 pixels: milliseconds on one core without and with the retouching network, frames a second with
two threads, and peak memory; at 512 against the textbook piecewise-affine warp of the same mesh (one ``cv2.warpAffine``
and one mask per triangle, without eyes or mouth). Processor time is given too: on a busy machine it is the fairer one.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import resource
import time
from collections.abc import Callable

import cv2
import numpy as np
import torch
from scipy.spatial.transform import Rotation
from skimage import data

from flowportrait.media.portrait import Portrait
from flowportrait.rendering.face_regions import INNER_LOWER, INNER_UPPER
from flowportrait.rendering.mesh import HeadMesh
from flowportrait.rendering.renderer import Renderer


def talking(landmarks: np.ndarray, frames: int) -> np.ndarray:
    """A nodding head with lips that open and close, ``[T, 478, 3]`` px."""
    centre = landmarks.mean(0) + np.array([0, 40, 90])
    poses = []
    for t in range(frames):
        points = landmarks.astype(np.float64)
        points[INNER_LOWER[1:-1], 1] += 12 * np.sin(t) ** 2
        points[INNER_UPPER[1:-1], 1] -= 3 * np.sin(t) ** 2
        angles = [8 * np.sin(0.3 * t), 5 * np.sin(0.2 * t), 3 * np.sin(0.1 * t)]
        turn = Rotation.from_euler("yxz", angles, degrees=True).as_matrix()
        poses.append((points - centre) @ turn.T + centre)
    return np.array(poses)


def naive(image: np.ndarray, source: np.ndarray, target: np.ndarray, triangles: np.ndarray) -> np.ndarray:
    """Piecewise-affine warp, one triangle at a time."""
    result = image.copy()
    for triangle in triangles:
        here, there = source[triangle].astype(np.float32), target[triangle, :2].astype(np.float32)
        x, y, w, h = cv2.boundingRect(there)
        x, y, w, h = max(x, 0), max(y, 0), min(x + w, image.shape[1]), min(y + h, image.shape[0])
        if w <= x or h <= y:
            continue
        matrix = cv2.getAffineTransform(here, there - np.array([x, y], np.float32))
        patch = cv2.warpAffine(image, matrix, (w - x, h - y), borderMode=cv2.BORDER_REPLICATE)
        mask = np.zeros((h - y, w - x), np.uint8)
        cv2.fillConvexPoly(mask, np.round(there - [x, y]).astype(np.int32), 1)
        region = result[y:h, x:w]
        region[mask > 0] = patch[mask > 0]
    return result


def median_ms(draw: Callable[[np.ndarray], object], poses: np.ndarray) -> tuple[float, float]:
    """Median time of one call by the clock, and mean time of the processor."""
    times, before = [], time.thread_time()
    for pose in poses:
        start = time.perf_counter()
        draw(pose)
        times.append(time.perf_counter() - start)
    return float(np.median(times) * 1e3), (time.thread_time() - before) / len(poses) * 1e3


def rate(renderer: Renderer, poses: np.ndarray) -> tuple[float, float]:
    """Frames a second by the clock, and frames for each second of processor time."""
    start, before = time.perf_counter(), time.process_time()
    count = sum(1 for _ in renderer(poses))
    return count / (time.perf_counter() - start), count / (time.process_time() - before)


def main() -> None:
    """Print the table."""
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    for size in (256, 512, 768, 1024):
        portrait = Portrait.from_image(data.astronaut(), size)
        start = time.perf_counter()
        renderer = Renderer(portrait)
        prepared = time.perf_counter() - start
        poses = talking(portrait.landmarks, 60)
        renderer.draw(poses[0])
        plain, plain_cpu = median_ms(Renderer(portrait, retouch=False).draw, poses)
        full, full_cpu = median_ms(renderer.draw, poses)
        fps, per_core = rate(renderer, poses)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(
            f"{size}: warp {plain:.1f} ms ({plain_cpu:.1f} of processor), "
            f"with retouching {full:.1f} ms ({full_cpu:.1f}); "
            f"two threads {fps:.0f} frames/s, {2 * per_core:.0f} on two cores of its own; "
            f"prepared in {prepared:.2f} s; peak {peak:.0f} MB"
        )
        if size == 512:
            mesh = HeadMesh(portrait.crop, portrait.landmarks)
            loop = median_ms(lambda p, m=mesh, c=portrait.crop: naive(c, m.source, m(p), m.triangles), poses[:8])[1]
            print(f"     triangle loop {loop:.1f} ms of processor ({loop / plain_cpu:.1f} times the warp)")


if __name__ == "__main__":
    main()
