"""Milliseconds per drawn 512 x 512 frame, against warping triangle by triangle: ``python
benchmarks/render.py``.

The baseline is the textbook piecewise-affine warp (one ``cv2.warpAffine`` and one mask per triangle) of the
same mesh, without eyes or mouth interior. One core.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import time
from collections.abc import Callable

import cv2
import numpy as np
from scipy.spatial.transform import Rotation
from skimage import data

from flowportrait.codec.contours import INNER_LOWER, INNER_UPPER
from flowportrait.codec.mesh import HeadMesh
from flowportrait.codec.renderer import Renderer
from flowportrait.media.portrait import Portrait


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


def median_ms(draw: Callable[[np.ndarray], object], poses: np.ndarray) -> float:
    """Median time of one call."""
    times = []
    for pose in poses:
        start = time.perf_counter()
        draw(pose)
        times.append(time.perf_counter() - start)
    return float(np.median(times) * 1e3)


def main() -> None:
    """Print both and their ratio."""
    cv2.setNumThreads(1)
    portrait = Portrait.from_image(data.astronaut())
    start = time.perf_counter()
    renderer = Renderer(portrait)
    prepared = time.perf_counter() - start
    mesh = HeadMesh(portrait.crop, portrait.landmarks)
    poses = talking(portrait.landmarks, 120)
    ours = median_ms(renderer.draw, poses)
    loop = median_ms(lambda pose: naive(portrait.crop, mesh.source, mesh(pose), mesh.triangles), poses[:12])
    small = median_ms(Renderer(portrait, size=128).draw, poses)
    print(f"prepared in {prepared:.2f} s")
    print(f"512 x 512: {ours:.1f} ms a frame; triangle loop {loop:.1f} ms ({loop / ours:.1f} times as long)")
    print(f"128 x 128: {small:.1f} ms a frame")


if __name__ == "__main__":
    main()
