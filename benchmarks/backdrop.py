"""Does what is behind the person stay, and does that cost anything else? One sheet of rubber against two layers.

    python benchmarks/backdrop.py --data FOOTAGE --output DIR [--seconds 4] [--checkpoint rl]

Every portrait of FOOTAGE/portraits, each with a piece of FOOTAGE/speech, drawn twice with the same motion: as one
sheet, where whatever is near the head bends along, and with the person before a backdrop. Behind: pixels that no share
of the person covers, in the photo or in the frame, against the photo: how many differ by over 8 of 255, and by how much
in the mean. The rest is the evaluation's, on finished mp4 files, with 95 % bootstrap over portraits of the change.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import cv2
import numpy as np
import torch
from rich.progress import track

from flowportrait.evaluation.measure import measure_video
from flowportrait.evaluation.statistics import bootstrap_mean
from flowportrait.media.audio import SAMPLE_RATE, read_audio
from flowportrait.media.image import read_image
from flowportrait.media.portrait import Portrait
from flowportrait.media.write_video import write_video
from flowportrait.pipelines.animator import Animator
from flowportrait.rendering.face_regions import head_weight, person_matte, segment_person, skin_without_openings
from flowportrait.rendering.layers import Backdrop
from flowportrait.rendering.mesh import HeadMesh, Rasterizer
from flowportrait.rendering.renderer import MotionCodec

MOVED, EVERY = 8, 5
SHOWN = {
    "sync_in_time": "LSE-C", "tfi": "TFI", "flicker": "flicker", "identity_kept": "identity", "sharpness": "sharpness",
    "mouth_amplitude": "mouth amplitude", "head_range": "head range",
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("data", "output"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=4)
    parser.add_argument("--checkpoint", default="rl")
    given = parser.parse_args()
    torch.set_num_threads(1)
    animator = Animator.from_pretrained(given.checkpoint)
    images = sorted(path for path in (given.data / "portraits").iterdir() if path.suffix in (".jpg", ".png"))
    sounds = [read_audio(path) for path in sorted((given.data / "speech").glob("*.wav"))]
    length = int(given.seconds * SAMPLE_RATE)
    behind: dict[str, list[tuple[float, float]]] = {"one sheet": [], "two layers": []}
    found: dict[str, list[dict[str, float]]] = {"one sheet": [], "two layers": []}
    for index, path in track(list(enumerate(images)), description="drawing"):
        sound = sounds[index % len(sounds)][:length]
        motion = torch.cat(list(animator.motion(sound, seed=index)))
        codec = MotionCodec(Portrait.from_image(read_image(path), name=path.name))
        free = uncovered(codec, motion)
        skin = skin_without_openings(codec.portrait.crop, codec.portrait.landmarks)
        whole = Backdrop(skin, np.ones(skin.shape[:2], np.float32))
        pictures = {"one sheet": whole, "two layers": codec.renderer.picture}
        for system, codec.renderer.picture in pictures.items():
            frames = list(codec.decode(motion))
            behind[system].append(stays(frames[::EVERY], codec.portrait.crop, free))
            video = given.output / system.replace(" ", "_") / f"{path.stem}.mp4"
            video.parent.mkdir(parents=True, exist_ok=True)
            write_video(video, frames, sound)
            row = measure_video(video).row
            found[system].append({key: float(row[key] or np.nan) for key in SHOWN})
    for system, rows in behind.items():
        share, mean = np.nanmean(rows, axis=0)
        print(f"{system:>11}   behind: {share:.1%} of pixels differ by over {MOVED}, in the mean by {mean:.2f} of 255")
    for key, name in SHOWN.items():
        one, two = (np.array([row[key] for row in found[system]]) for system in found)
        change = bootstrap_mean(two - one)
        print(f"{name:>16}   {one.mean():.3f} → {two.mean():.3f}   ({change.low or 0:+.4f} … {change.high or 0:+.4f})")


def uncovered(codec: MotionCodec, motion: torch.Tensor) -> list[np.ndarray]:
    """Masks ``[S, S]`` bool of every ``EVERY``-th frame: no share of the person is here, and none was in the photo."""
    crop, landmarks = codec.portrait.crop, codec.portrait.landmarks
    mask = segment_person(crop, landmarks)
    share = person_matte(mask, len(crop))
    mesh = HeadMesh(crop, landmarks, head_weight(mask, landmarks, len(crop)))
    place = Rasterizer(mesh.triangles, mesh.source, len(crop))
    free = []
    for points in codec.landmarks(motion[::EVERY]):
        moved = cv2.remap(share, place(mesh(points.astype(np.float64))), None, cv2.INTER_LINEAR)
        free.append((share == 0) & (moved == 0))
    return free


def stays(frames: list[np.ndarray], photo: np.ndarray, free: list[np.ndarray]) -> tuple[float, float]:
    """Share of free pixels that differ, and their mean difference."""
    apart = np.concatenate([
        np.abs(frame.astype(int) - photo).max(-1)[mask] for frame, mask in zip(frames, free, strict=True)
    ])  # fmt: skip
    return float((apart > MOVED).mean()), float(apart.mean())


if __name__ == "__main__":
    main()
