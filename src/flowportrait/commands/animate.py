"""``flowportrait animate``: a photo or a video, and speech, to a talking video."""

from __future__ import annotations

import argparse
import time
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flowportrait.commands import Commands
from flowportrait.commands.animate_options import controls_of, photo, told
from flowportrait.commands.animate_reward import add_reward_options, check_reward_options, perform
from flowportrait.commands.animate_text import check_sound, said
from flowportrait.errors import BadInput
from flowportrait.outputs import check_output_file
from flowportrait.provenance.options import add_provenance_options, provenance_of
from flowportrait.terminal import progress, say

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np
    import torch

    from flowportrait.animator import Animator
    from flowportrait.media.portrait import Portrait

PHOTO_ONLY = {
    "--intensity": 1.0, "--blink": 1.0, "--head-motion": 1.0, "--expression-scale": 1.0, "--gaze": "0,0",
    "--motion-out": None, "--motion-in": None,
}  # fmt: skip
"""Options and their defaults that shape a performance."""

FRAMING = {"--crop": False, "--size": None}
"""Options and their defaults that say how much of a photo is shown."""

SILENT_RMS = 1e-3


def register(commands: Commands) -> None:
    """Add the command and its options."""
    add = commands.add_parser("animate", help="make a talking video from a photo, or dub a video")
    source = add.add_mutually_exclusive_group(required=True)
    source.add_argument("--image", "--source_image", type=Path, help="portrait: photo, painting or drawing")
    source.add_argument("--video", type=Path, help="existing footage to dub: only its lips change")
    source.add_argument(
        "--speaker", action="append", metavar="N=PHOTO,AUDIO",
        help="two people who talk: 1=…  and 2=…, side by side, or two faces of one photo, the left one first",
    )  # fmt: skip
    add.add_argument("--turns", action="store_true", help="with --speaker: play the recordings one after the other")
    sound = add.add_mutually_exclusive_group()
    sound.add_argument("--audio", "--driven_audio", type=Path, help="speech (any audio or video file)")
    sound.add_argument("--text", help="speak this; - reads text from standard input as it comes")
    add.add_argument("--voice", help="with --text: heart (default, English), espeak:LANGUAGE or openai:NAME")
    add.add_argument(
        "--stream", action="store_true",
        help="write video that plays while it grows, of --text or of wav or raw 16-bit mono 16 kHz samples from "
        "standard input as they come; --output - for a pipe",
    )  # fmt: skip
    add.add_argument("--output", type=Path, required=True, help="mp4 to write")
    add.add_argument("--checkpoint", default="rl", help="rl (default), sft, or a folder")
    add.add_argument("--seed", type=int, default=0, help="another number is another performance")
    add.add_argument("--intensity", type=float, default=1.0, metavar="X", help="how expressive: 0.6 to 1.6")
    add.add_argument("--as-heard", action="store_true", help="listen to noise too: take none off before listening")
    add.add_argument(
        "--size", type=int, help="side of the drawn face square in pixels (default: 512, more for large photos)"
    )
    add.add_argument("--crop", action="store_true", help="write the face square alone instead of the whole photo")
    add.add_argument("--face", type=int, metavar="N", help="which of several faces, counted from the left")
    _add_controls(add)
    add_reward_options(add)
    add_provenance_options(add)
    add.add_argument("--json", action="store_true", help="print one JSON object")
    add.set_defaults(run=run)


def _add_controls(add: argparse.ArgumentParser) -> None:
    """What can be turned up or down without touching the lips, and performances as files."""
    group = add.add_argument_group("performance (photos only; none of the scales moves the lips apart or together)")
    group.add_argument("--blink", type=float, default=1.0, metavar="X", help="depth of blinks; 0: none")
    group.add_argument("--head-motion", type=float, default=1.0, metavar="X", help="nods and turns; 0: still")
    group.add_argument("--expression-scale", type=float, default=1.0, metavar="X", help="brows and smiles; 0: none")
    group.add_argument("--gaze", default="0,0", metavar="X,Y", help="eyes to the viewer's right and up, in degrees")
    group.add_argument("--motion-out", type=Path, metavar="FILE", help="also write the performance (.csv or .json)")
    group.add_argument("--motion-in", type=Path, metavar="FILE", help="draw this performance instead of a new one")


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Photo or video plus speech to mp4."""
    check_sound(options)
    check_reward_options(options)
    if not options.stream or str(options.output) != "-":
        check_output_file(options.output)
    if options.size is not None and (not 64 <= options.size <= 2048 or options.size % 2):
        raise BadInput(f"--size {options.size} is not possible: give an even number from 64 to 2048.")
    changed = [flag for flag, default in PHOTO_ONLY.items() if _value(options, flag) != default]
    if options.video and changed:
        raise BadInput(f"{changed[0]} works with --image only: a dubbed video keeps its own performance.")
    cut = [flag for flag, default in FRAMING.items() if _value(options, flag) != default]
    if options.video and cut:
        raise BadInput(f"{cut[0]} works with --image only: a dubbed video keeps its own picture.")
    _check_not_read(options)
    if options.speaker:
        from flowportrait.commands.animate_speakers import run_speakers

        return run_speakers(options)
    if options.stream:
        from flowportrait.commands.animate_stream import run_stream

        return run_stream(options)
    import numpy as np

    from flowportrait.media.audio import read_audio
    from flowportrait.media.video import FPS
    from flowportrait.provenance.origin import Origin
    from flowportrait.provenance.publish import publish

    started = time.monotonic()
    provenance = provenance_of(options, Origin("portrait" if options.image else "footage"))
    audio = read_audio(options.audio) if options.audio else np.concatenate(list(said(options)))
    if float((audio.astype("float64") ** 2).mean()) ** 0.5 < SILENT_RMS and not options.motion_in:
        from flowportrait.generator.silence import rest_share

        heard, share = options.audio or "the spoken text", rest_share(audio)
        say(f"Warning: {heard} is all but silent, and the lips rest for {share:.0%} of it: speech has to be louder.")
    image = photo(options.image) if options.image else None

    import torch

    from flowportrait.animator import Animator, long_enough
    from flowportrait.media.portrait import Portrait

    if not options.motion_in:
        long_enough(audio)
    # The networks are small: on a busy machine threads that wait for each other cost far more than they bring.
    torch.set_num_threads(1)
    animator = Animator.from_pretrained(options.checkpoint, options.intensity, options.as_heard)
    if image is not None:
        size = options.size or (512 if options.crop else None)
        portrait = Portrait.from_image(image, size, str(options.image), options.face)
        motion, total = performance(options, animator, audio, portrait)
        frames = animator.show(portrait, motion, crop=options.crop)
    else:
        frames, total = animator.dub(options.video, audio, seed=options.seed, face=options.face), None
    with closing(progress(frames, total)) as shown:
        count = publish(options.output, shown, audio, provenance)
    if options.video and len(audio) > (count + 1) * 16_000 // FPS:
        heard = options.audio or "the spoken text"
        say(f"Warning: {heard} is longer than {options.video}; it was cut at the end of the video.")
    return told(options, count, started)


def performance(
    options: argparse.Namespace, animator: Animator, audio: np.ndarray, portrait: Portrait
) -> tuple[Iterator[torch.Tensor], int | None]:
    """Chunks of motion, from the generator or a file, as the options turn them; and how many frames they are."""
    import torch

    from flowportrait.codec.motion_file import read_motion, write_motion
    from flowportrait.media.mel import frame_count

    controls = controls_of(options)
    if options.motion_in:
        if options.intensity != 1.0:
            raise BadInput("--intensity shapes a new performance: leave out --motion-in, or use --expression-scale.")
        given = controls(read_motion(options.motion_in))
        motion, total = iter([given]), len(given)
    else:
        motion, total = perform(options, animator, audio, controls, portrait), frame_count(audio)
    if options.motion_out:
        performed = torch.cat(list(motion))
        write_motion(options.motion_out, performed)
        motion = iter([performed])
    return motion, total


def _check_not_read(options: argparse.Namespace) -> None:
    """That the output does not take the place of what it is made from.

    Raises:
        BadInput: it would.
    """
    for flag in ("--video", "--audio"):
        given = _value(options, flag)
        if given and given.is_file() and options.output.is_file() and given.samefile(options.output):
            raise BadInput(f"--output {options.output} would take the place of {flag}: give another name.")


def _value(options: argparse.Namespace, flag: str) -> Any:
    return getattr(options, flag[2:].replace("-", "_"))
