"""``flowportrait animate``: a photo or a video, and speech, to a talking video."""

from __future__ import annotations

import argparse
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flowportrait.commands import Commands
from flowportrait.commands.animate_batch import Jobs, jobs_of, run_batch
from flowportrait.commands.animate_options import colour, controls_of, photo, result_summary
from flowportrait.commands.animate_reward import add_reward_options, check_reward_options, perform
from flowportrait.commands.animate_text import check_sound, synthesize_speech, warn_of_quiet_speech
from flowportrait.errors import BadInput
from flowportrait.media.output_formats import FORMATS, output_format
from flowportrait.outputs import check_output_file
from flowportrait.provenance.options import add_provenance_options, provenance_of
from flowportrait.terminal import progress, say, waiting

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import numpy as np
    import torch

    from flowportrait.animator import Animator
    from flowportrait.media.audio import Sound
    from flowportrait.media.portrait import Photo, Portrait
    from flowportrait.provenance.publish import Provenance

PHOTO_ONLY = {
    "--intensity": 1.0, "--blink": 1.0, "--head-motion": 1.0, "--expression-scale": 1.0, "--gaze": "0,0",
    "--motion-out": None, "--motion-in": None,
}  # fmt: skip
"""Options and their defaults that shape a performance."""

FRAMING = {"--crop": False, "--size": None, "--background": None}
"""Options and their defaults that say how much of a photo is shown."""


def register(commands: Commands) -> None:
    """Add the command and its options."""
    add = commands.add_parser("animate", help="make a talking video from a photo, or dub a video")
    source = add.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--image",
        "--source_image",
        type=Path,
        nargs="+",
        action="extend",
        metavar="FILE",
        help="portrait: photo, painting or drawing; several, or a folder of them",
    )
    source.add_argument(
        "--video",
        type=Path,
        nargs="+",
        action="extend",
        metavar="FILE",
        help="existing footage to dub: only its lips change; several, or a folder",
    )
    source.add_argument(
        "--speaker", action="append", metavar="N=PHOTO,AUDIO",
        help="two people who talk: 1=…  and 2=…, side by side, or two faces of one photo, the left one first",
    )  # fmt: skip
    add.add_argument("--turns", action="store_true", help="with --speaker: play the recordings one after the other")
    add.add_argument(
        "--loop", action="store_true",
        help="with --video: where the speech is longer, play the video backwards and forwards in turn until it ends",
    )  # fmt: skip
    sound = add.add_mutually_exclusive_group()
    sound.add_argument(
        "--audio",
        "--driven_audio",
        type=Path,
        nargs="+",
        action="extend",
        metavar="FILE",
        help="speech (any audio or video file); several, or a folder",
    )
    sound.add_argument("--text", help="speak this; - reads text from standard input as it comes")
    add.add_argument("--voice", help="with --text: heart (default, English), espeak:LANGUAGE or openai:NAME")
    add.add_argument(
        "--stream", action="store_true",
        help="write video that plays while it grows, of --text or of wav or raw 16-bit mono 16 kHz samples from "
        "standard input as they come; --output - for a pipe",
    )  # fmt: skip
    add.add_argument(
        "--output",
        type=Path,
        required=True,
        help="video to write: .mp4, .mov, .webm or .gif (without sound); with several inputs a folder",
    )
    add.add_argument(
        "--format",
        choices=[suffix[1:] for suffix in FORMATS],
        help="with several inputs: what to write into the folder (default mp4)",
    )
    add.add_argument("--checkpoint", default="rl", help="rl (default), sft, or a folder")
    add.add_argument("--seed", type=int, default=0, help="another number is another performance")
    add.add_argument("--intensity", type=float, default=1.0, metavar="X", help="how expressive: 0.6 to 1.6")
    add.add_argument("--as-heard", action="store_true", help="listen to noise too: take none off before listening")
    add.add_argument(
        "--size", type=int, help="side of the drawn face square in pixels (default: 512, more for large photos)"
    )
    add.add_argument("--crop", action="store_true", help="write the face square alone instead of the whole photo")
    add.add_argument(
        "--background",
        metavar="COLOR",
        help="what shows through a transparent photo, by name or as #rrggbb (default: white)",
    )
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
    """Photos or videos plus speech to videos.

    Raises:
        BadInput: options that do not go together, or an input that cannot be used.
        PartialFailure: some of several inputs cannot be used; the other videos were made.
    """
    check_sound(options)
    check_reward_options(options)
    _check_options(options)
    if options.speaker:
        from flowportrait.commands.animate_speakers import run_speakers

        check_output_file(options.output)
        return run_speakers(options)
    jobs = jobs_of(options)
    if options.stream:
        from flowportrait.commands.animate_stream import run_stream

        if jobs.together:
            raise BadInput("--stream makes one video: give one --image.")
        if str(options.output) != "-":
            check_output_file(options.output)
        return run_stream(jobs.single)
    if not jobs.together:
        check_output_file(options.output)
    make = _maker(options, jobs)
    return run_batch(options, jobs, make) if jobs.together else make(jobs.single)


def _maker(options: argparse.Namespace, jobs: Jobs) -> Callable[[argparse.Namespace], dict[str, Any]]:
    """What makes one video of one input, with everything loaded that they have in common.

    Raises:
        BadInput: what they have in common cannot be used.
    """
    from flowportrait.provenance.origin import Origin

    first = None if jobs.together else _read_input(jobs.single)
    provenance = provenance_of(options, Origin("portrait" if options.image else "footage"))
    controls_of(options)
    with waiting("loading the model"):
        import torch

        from flowportrait.animator import Animator

        # The networks are small: on a busy machine threads that wait for each other cost far more than they bring.
        torch.set_num_threads(1)
        animator = Animator.from_pretrained(options.checkpoint, options.intensity, options.as_heard)
    portraits: dict[Path, Portrait] = {}

    def portrait_of(job: argparse.Namespace, photo: Photo) -> Portrait:
        if job.image not in portraits:
            from flowportrait.media.portrait import Portrait

            size = job.size or (512 if job.crop else None)
            with waiting("looking for the face"):
                found = Portrait.from_image(photo, size, str(job.image), job.face)
            portraits.clear()  # one is enough: recordings of one photo follow each other
            portraits[job.image] = found
        return portraits[job.image]

    def make(job: argparse.Namespace) -> dict[str, Any]:
        given = first or _read_input(job)
        portrait = None if given.photo is None else portrait_of(job, given.photo)
        return _make(job, animator, given, portrait, provenance)

    return make


@dataclass(frozen=True)
class _Input:
    """What a video is made from: sound as it is played, speech ``[N]`` at 16 kHz as it is heard, and the photo; began:
    when reading began."""

    sound: Path | Sound
    speech: np.ndarray
    photo: Photo | None
    began: float


def _read_input(options: argparse.Namespace) -> _Input:
    """Read and check the inputs of one video.

    Raises:
        BadInput: one cannot be used.
    """
    import numpy as np

    from flowportrait.media.audio import read_audio
    from flowportrait.media.tape import joined, speech_of

    began = time.monotonic()
    with waiting("reading the speech"):
        # The generator hears 16 kHz; the video plays what was given.
        sound = options.audio or joined(synthesize_speech(options))
        speech = read_audio(sound) if isinstance(sound, Path) else np.concatenate(list(speech_of([sound])))
    image = photo(options.image, options.background) if options.image else None
    if not options.motion_in:
        from flowportrait.animator import long_enough

        long_enough(speech)
        warn_of_quiet_speech(speech, str(options.audio or "the spoken text"))
    return _Input(sound, speech, image, began)


def _make(
    options: argparse.Namespace,
    animator: Animator,
    given: _Input,
    portrait: Portrait | None,
    provenance: Provenance | None,
) -> dict[str, Any]:
    """One video; returns what the command prints."""
    from fractions import Fraction

    from flowportrait.media.audio import SAMPLE_RATE
    from flowportrait.media.video import FPS
    from flowportrait.provenance.publish import publish

    fps = Fraction(FPS)
    more: dict[str, Any] = {}
    performed: list[torch.Tensor] = []
    frames: Iterator[np.ndarray]
    dubbed = None
    if portrait is not None:
        motion, total = performance(options, animator, given.speech, portrait)
        frames = animator.show(portrait, _recorded(motion, performed), crop=options.crop)
    else:
        dubbed = animator.dub(
            options.video, given.speech, seed=options.seed, face=options.face, loop=options.loop, progress=progress
        )
        frames, total, fps = iter(dubbed), len(dubbed), dubbed.fps
    if output_format(options.output).audio_codec is None:
        say(f"Note: {options.output.name} will be silent: {options.output.suffix} holds no sound.")
    with closing(progress(frames, total)) as shown:
        count = publish(options.output, shown, given.sound, provenance, fps, frame_total=total, progress=progress)
    if options.motion_out:
        import torch

        from flowportrait.codec.motion_file import write_motion

        write_motion(options.motion_out, torch.cat(performed))
    if dubbed is not None:
        more = {"undubbed_frames": dubbed.undubbed_frames}
        if sentence := dubbed.summary():
            say(sentence)
        if len(given.speech) > (count + 1) * SAMPLE_RATE / fps:
            heard = options.audio or "the spoken text"
            say(f"Warning: {heard} is longer than {options.video}; it was cut at the end of the video. "
                "--loop repeats it.")  # fmt: skip
    return result_summary(options, count, given.began, fps) | more


def performance(
    options: argparse.Namespace, animator: Animator, audio: np.ndarray, portrait: Portrait
) -> tuple[Iterator[torch.Tensor], int | None]:
    """Chunks of motion, from the generator or a file, as the options turn them; and how many frames they are."""
    from flowportrait.codec.motion_file import read_motion
    from flowportrait.media.mel import frame_count

    controls = controls_of(options)
    if options.motion_in:
        if options.intensity != 1.0:
            raise BadInput("--intensity shapes a new performance: leave out --motion-in, or use --expression-scale.")
        given = controls(read_motion(options.motion_in))
        motion, total = iter([given]), len(given)
    else:
        motion, total = perform(options, animator, audio, controls, portrait), frame_count(audio)
    return motion, total


def _recorded(motion: Iterator[torch.Tensor], performed: list[torch.Tensor]) -> Iterator[torch.Tensor]:
    for chunk in motion:
        performed.append(chunk)
        yield chunk


def _check_options(options: argparse.Namespace) -> None:
    """That the options go together, before anything is read.

    Raises:
        BadInput: they do not.
    """
    if options.size is not None and (not 64 <= options.size <= 2048 or options.size % 2):
        raise BadInput(f"--size {options.size} is not possible: give an even number from 64 to 2048.")
    for kinds, kept in ((PHOTO_ONLY, "performance"), (FRAMING, "picture")):
        changed = [flag for flag, default in kinds.items() if _value(options, flag) != default]
        if options.video and changed:
            raise BadInput(f"{changed[0]} works with --image only: a dubbed video keeps its own {kept}.")
    if options.loop and not options.video:
        raise BadInput("--loop works with --video only: a photo speaks for as long as the speech lasts.")
    if options.background:
        colour(options.background)
    if options.motion_out:
        from flowportrait.codec.motion_file import check_name

        check_name(options.motion_out)
        check_output_file(options.motion_out, options.motion_out.suffix.lower()[1:], "--motion-out")


def _value(options: argparse.Namespace, flag: str) -> Any:
    return getattr(options, flag[2:].replace("-", "_"))
