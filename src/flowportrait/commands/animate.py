"""``flowportrait animate``: a photo or a video, and speech, to a talking video."""

from __future__ import annotations

import argparse
import time
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flowportrait.commands import Commands
from flowportrait.errors import BadInput
from flowportrait.outputs import check_output_file
from flowportrait.terminal import progress, say

if TYPE_CHECKING:
    import numpy as np

SILENT_RMS = 1e-3
LARGEST_SIDE = 1920


def register(commands: Commands) -> None:
    """Add the command and its options."""
    add = commands.add_parser("animate", help="make a talking video from a photo, or dub a video")
    source = add.add_mutually_exclusive_group(required=True)
    source.add_argument("--image", "--source_image", type=Path, help="portrait: photo, painting or drawing")
    source.add_argument("--video", type=Path, help="existing footage to dub: only its lips change")
    add.add_argument("--audio", "--driven_audio", type=Path, required=True, help="speech (any audio or video file)")
    add.add_argument("--output", type=Path, required=True, help="mp4 to write")
    add.add_argument("--checkpoint", default="rl", help="rl (default), sft, or a folder")
    add.add_argument("--seed", type=int, default=0)
    add.add_argument("--size", type=int, default=512, help="side of the drawn face square in pixels")
    add.add_argument("--crop", action="store_true", help="write the face square alone instead of the whole photo")
    add.add_argument("--json", action="store_true", help="print one JSON object")
    add.set_defaults(run=run)


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Photo or video plus speech to mp4."""
    check_output_file(options.output)
    if not 64 <= options.size <= 2048 or options.size % 2:
        raise BadInput(f"--size {options.size} is not possible: give an even number from 64 to 2048.")
    from flowportrait.media.audio import read_audio
    from flowportrait.media.image import read_image
    from flowportrait.media.video import FPS, write_video

    started = time.monotonic()
    audio = read_audio(options.audio)
    if float((audio.astype("float64") ** 2).mean()) ** 0.5 < SILENT_RMS:
        say(f"Warning: {options.audio} is silent; the face will rest.")
    image = fit_largest(read_image(options.image)) if options.image else None

    import torch

    from flowportrait.animator import Animator

    # The networks are small: on a busy machine threads that wait for each other cost far more than they bring.
    torch.set_num_threads(1)
    animator = Animator.from_pretrained(options.checkpoint)
    if image is not None:
        name = str(options.image)
        frames = animator.animate(image, audio, seed=options.seed, size=options.size, crop=options.crop, name=name)
        total: int | None = -(-len(audio) // (16_000 // FPS))
    else:
        frames, total = animator.dub(options.video, audio, seed=options.seed), None
    with closing(progress(frames, total)) as shown:
        count = write_video(options.output, shown, audio)
    if options.video and len(audio) > (count + 1) * 16_000 // FPS:
        say(f"Warning: {options.audio} is longer than {options.video}; it was cut at the end of the video.")
    seconds = time.monotonic() - started
    return {
        "output": str(options.output), "frames": count, "fps": FPS, "seconds": round(count / FPS, 3),
        "checkpoint": str(options.checkpoint), "seed": options.seed,
        "real_time_factor": round(seconds / (count / FPS), 3),
    }  # fmt: skip


def fit_largest(image: np.ndarray) -> np.ndarray:
    """The photo, scaled down if a side exceeds what ordinary video players take (1920 px)."""
    side = max(image.shape[:2])
    if side <= LARGEST_SIDE:
        return image
    import cv2

    scale = LARGEST_SIDE / side
    return cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
