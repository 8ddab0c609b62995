"""``flowportrait animate --stream``: text, or sound as it comes in, to video that can be watched while it is made."""

from __future__ import annotations

import argparse
import sys
import time
from io import FileIO
from typing import Any

from flowportrait.commands.animate_options import controls_of, photo, result_summary
from flowportrait.errors import BadInput
from flowportrait.media.output_formats import FORMATS, output_format
from flowportrait.terminal import say

_NOT_LIVE = {"video": "--video", "motion_in": "--motion-in", "motion_out": "--motion-out"}


def run_stream(options: argparse.Namespace) -> dict[str, Any]:
    """Photo plus sound as it comes to fragmented mp4 or live webm."""
    for name, flag in _NOT_LIVE.items():
        if getattr(options, name):
            raise BadInput(f"--stream does not go with {flag}: give --image, and --text or sound on standard input.")
    if str(options.output) == "-" and options.json:
        raise BadInput("--output - writes the video to standard output: leave out --json.")
    if str(options.output) != "-" and not output_format(options.output).streamed:
        endings = " or ".join(form.suffix for form in FORMATS.values() if form.streamed)
        raise BadInput(f"--stream does not write {options.output.suffix}: give a name that ends in {endings}.")
    import torch

    from flowportrait.animator import Animator
    from flowportrait.commands.animate_reward import steering_of
    from flowportrait.commands.animate_text import synthesize_speech
    from flowportrait.media.portrait import Portrait
    from flowportrait.media.stream import iter_stream, write_stream
    from flowportrait.media.tape import Tape
    from flowportrait.provenance.options import provenance_of
    from flowportrait.provenance.origin import Origin
    from flowportrait.provenance.watermark import marked
    from flowportrait.voice.speaker import ahead

    torch.set_num_threads(1)
    provenance = provenance_of(options, Origin("portrait"))
    image = photo(options.image, options.background)
    animator = Animator.from_pretrained(options.checkpoint, options.intensity, options.as_heard)
    controls = controls_of(options)
    pieces = iter_stream(sys.stdin.buffer) if options.text is None else ahead(synthesize_speech(options))
    tape = Tape(pieces)
    steering = steering_of(options, animator.generator)
    size = options.size or (512 if options.crop else None)
    portrait = Portrait.from_image(image, size, str(options.image), options.face)
    motion = animator.live(tape, seed=options.seed, controls=controls, steering=steering, portrait=portrait)
    frames = animator.show(portrait, motion, crop=options.crop, live=True)
    if provenance is not None:
        frames = marked(frames)
    started = time.monotonic()
    # Not through Python's buffer: a player that is closed would leave it something to complain of at the end.
    piped = str(options.output) == "-"
    target = FileIO(sys.stdout.fileno(), "wb", closefd=False) if piped else options.output
    try:
        count = write_stream(target, frames, tape.frame, tags=provenance.origin.tags() if provenance else None)
    except KeyboardInterrupt:
        say("Interrupted: the video ends here, and plays.")
        raise SystemExit(130) from None
    if count == 0:
        raise BadInput("No sound came in on standard input: pipe wav or raw 16-bit mono 16 kHz samples into it.")
    if piped:
        return {}
    return result_summary(options, count, started)
