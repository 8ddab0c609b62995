"""``flowportrait animate --stream``: text, or sound as it comes in, to video that can be watched while it is made."""

from __future__ import annotations

import argparse
import sys
import time
from typing import Any

from flowportrait.errors import BadInput

_NOT_LIVE = {"video": "--video", "motion_in": "--motion-in", "motion_out": "--motion-out"}


def run_stream(options: argparse.Namespace) -> dict[str, Any]:
    """Photo plus sound as it comes to fragmented mp4."""
    for name, flag in _NOT_LIVE.items():
        if getattr(options, name):
            raise BadInput(f"--stream does not go with {flag}: give --image, and --text or sound on standard input.")
    if str(options.output) == "-" and options.json:
        raise BadInput("--output - writes the video to standard output: leave out --json.")
    import torch

    from flowportrait.animator import Animator
    from flowportrait.codec.controls import Controls
    from flowportrait.commands.animate import fit_largest, gaze
    from flowportrait.commands.animate_reward import steering_of
    from flowportrait.commands.animate_text import said
    from flowportrait.media.image import read_image
    from flowportrait.media.stream import read_stream, write_stream
    from flowportrait.media.tape import Tape
    from flowportrait.media.video import FPS
    from flowportrait.provenance.options import provenance_of
    from flowportrait.provenance.origin import Origin
    from flowportrait.provenance.watermark import marked
    from flowportrait.voice.speaker import ahead

    torch.set_num_threads(1)
    provenance = provenance_of(options, Origin("portrait"))
    image = fit_largest(read_image(options.image))
    animator = Animator.from_pretrained(options.checkpoint)
    controls = Controls(options.blink, options.head_motion, options.expression_scale, gaze(options.gaze))
    pieces = read_stream(sys.stdin.buffer) if options.text is None else ahead(said(options))
    tape = Tape(pieces)
    steering = steering_of(options, animator.generator)
    motion = animator.live(tape, seed=options.seed, controls=controls, steering=steering)
    size = options.size or (512 if options.crop else None)
    frames = animator.draw(
        image, motion, size=size, crop=options.crop, name=str(options.image), face=options.face, live=True
    )
    if provenance is not None:
        frames = marked(frames)
    started = time.monotonic()
    target = sys.stdout.buffer if str(options.output) == "-" else options.output
    count = write_stream(target, frames, tape.frame, tags=provenance.origin.tags() if provenance else None)
    if count == 0:
        raise BadInput("No sound came in on standard input: pipe wav or raw 16-bit mono 16 kHz samples into it.")
    if str(options.output) == "-":
        return {}
    seconds = time.monotonic() - started
    return {
        "output": str(options.output), "frames": count, "fps": FPS, "seconds": round(count / FPS, 3),
        "checkpoint": str(options.checkpoint), "seed": options.seed,
        "real_time_factor": round(seconds / (count / FPS), 3),
    }  # fmt: skip
