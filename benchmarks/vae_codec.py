"""What is lost on the way through an autoencoder: ``python benchmarks/vae_codec.py --data FOOTAGE ENCODER DECODER``.

Real frames of people no part of this project was trained on (split ``dev``), one frame of each clip, in decibels over
the frame and over the face. Must lose: the same frame shrunk to as many numbers as the latents have, and to as many
cells. Ceiling: the frame through the encoder that writes every video (H.264, crf 17).
"""

from __future__ import annotations

import argparse
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import tempfile
import time
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
import torch

from flowportrait.media.faces import FaceTracker
from flowportrait.media.video import iter_frames
from flowportrait.media.write_video import write_video
from flowportrait.rendering.vae_codec import TinyAutoencoder, VaeCodec


def decibels(before: np.ndarray, after: np.ndarray) -> float:
    """Peak signal-to-noise ratio."""
    return float(10 * np.log10(255**2 / np.square(before.astype(np.float64) - after).mean()))


def shrunk(frame: np.ndarray, factor: float) -> np.ndarray:
    """Down by ``factor`` and up again."""
    height, width = frame.shape[:2]
    small = cv2.resize(frame, (round(width / factor), round(height / factor)), interpolation=cv2.INTER_AREA)
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)


def encoded(frame: np.ndarray) -> np.ndarray:
    """Through a written video."""
    with tempfile.TemporaryDirectory() as folder:
        write_video(Path(folder) / "a.mp4", [frame], None)
        return next(iter_frames(Path(folder) / "a.mp4"))


def main() -> None:
    """One table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, default=os.environ.get("FLOWPORTRAIT_DATA"))
    parser.add_argument("--frames", type=int, default=40)
    parser.add_argument("encoder", type=Path)
    parser.add_argument("decoder", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    codec = VaeCodec(TinyAutoencoder.read(options.encoder, options.decoder))
    table = [line.split("\t") for line in (options.data / "split.tsv").read_text().splitlines()[1:]]
    dev = [options.data / file for file, _, split in table if split == "dev"]
    dev = dev[:: max(1, len(dev) // options.frames)][: options.frames]
    rows: dict[str, list[tuple[float, float]]] = {}
    spent = pixels = 0.0
    with FaceTracker(still=True) as tracker:
        for path in dev:
            frame = next(islice(iter_frames(path), 5, None))
            faces = tracker.detect(frame)
            if not faces:
                continue
            low, high = faces[0][0][:, :2].min(0).astype(int).clip(0), faces[0][0][:, :2].max(0).astype(int)
            started = time.process_time()
            latents = codec.encode(frame[None])
            again = next(codec.decode(latents))
            spent += time.process_time() - started
            pixels += frame.shape[0] * frame.shape[1]
            same = float(np.sqrt(frame.size / latents.values.numel()))
            for name, result in (
                ("autoencoder", again),
                (f"shrunk to as many numbers (1/{same:.2f})", shrunk(frame, same)),
                (f"shrunk to as many cells (1/{codec.spatial})", shrunk(frame, codec.spatial)),
                ("H.264 crf 17", encoded(frame)),
            ):
                face = (slice(low[1], high[1]), slice(low[0], high[0]))
                rows.setdefault(name, []).append((decibels(frame, result), decibels(frame[face], result[face])))
    print(f"{len(rows['autoencoder'])} frames of unseen speakers; dB over the frame, over the face (worst face)")
    for name, values in rows.items():
        whole, face = np.array(values).T
        print(f"  {name:38s} {whole.mean():5.1f}   {face.mean():5.1f}   ({face.min():.1f})")
    print(f"there and back: {spent / pixels * 256 * 256:.2f} s of one core for 256 x 256")


if __name__ == "__main__":
    main()
