"""``flowportrait animate``: a photo or a video, and speech, to a talking video.

    options ─► AnimateRequest ─► AnimatePipeline ─► file and summary

With several inputs, or folders of them, one run makes a folder of videos: a file that cannot be used is reported, and
the others are still made.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro import conf

from flowportrait import terminal
from flowportrait.commands.options import Files, Flag, Json, OptionalInt, OptionalPath, OptionalText, Repeated
from flowportrait.errors import BadInput, PartialFailure
from flowportrait.files import check_output_file
from flowportrait.media.formats import OUTPUT_FORMATS, output_format
from flowportrait.pipelines.batch import BatchItem, is_batch, plan_batch
from flowportrait.pipelines.request import AnimateRequest, SpeakerTurn, parse_emotion, parse_gaze, parse_guide
from flowportrait.terminal import log, no_garbage_collection, waiting

if TYPE_CHECKING:
    from fractions import Fraction

    from flowportrait.pipelines.animate import AnimatePipeline
    from flowportrait.pipelines.inputs import AnimateInputs

Save = Callable[..., dict[str, Any]]
"""Makes one video; returns what is printed of it."""

_source = conf.create_mutex_group(required=True, title="what is animated")
OptionalEnding = Annotated[
    Literal["mp4", "mov", "webm", "gif"] | None, conf.arg(metavar="ENDING", help_behavior_hint="")
]
_sound = conf.create_mutex_group(required=False, title="what is said")


@dataclass(frozen=True)
class AnimateOptions:
    """Make a talking video from a photo and speech, or dub a video."""

    output: Path
    """Video to write: .mp4, .mov, .webm or .gif (without sound); with several inputs a folder."""
    image: Annotated[Files, _source] = ()
    """Portrait: photo, painting or drawing; several, or a folder of them."""
    video: Annotated[Files, _source] = ()
    """Existing footage to dub: only its lips change; several, or a folder."""
    speaker: Annotated[Repeated, _source, conf.arg(metavar="N=PHOTO,AUDIO")] = ()
    """Two people who talk: 1=…  and 2=…, side by side, or two faces of one photo, the left one first."""
    drive: OptionalPath = None
    """With --image: a clip whose expression and head the photo copies, with the clip's sound or that of --audio."""
    audio: Annotated[Files, _sound] = ()
    """Speech (any audio or video file); several, or a folder."""
    text: Annotated[OptionalText, _sound] = None
    """Text to speak; - reads it from standard input while it arrives."""
    voice: OptionalText = None
    """With --text: heart (default, English), espeak:LANGUAGE or openai:NAME."""
    turns: Flag = False
    """With --speaker: play the recordings one after the other."""
    loop: Flag = False
    """With --video: if the speech is longer, play the video backwards and forwards in turn until the speech ends."""
    stream: Flag = False
    """Write a video that can be played while it grows, from --text or sound on standard input (wav, raw 16 bit)."""
    format: OptionalEnding = None
    """With several inputs: what to write into the folder: mp4 (default), mov, webm or gif."""
    checkpoint: str = "rl"
    """Generator: rl, sft, a folder, or org/name on the Hugging Face Hub."""
    seed: int = 0
    """Random seed: another seed gives different motion for the same speech."""
    intensity: float = 1.0
    """How expressive the motion is, from 0.6 to 1.6."""
    style: str = "auto"
    """Manner of speaking: auto (as it is heard), lively or calm; plain leaves the generator's motion as it is."""
    denoise: Flag = True
    """Do not remove noise from the speech before the generator hears it."""
    size: OptionalInt = None
    """Side of the drawn face square in pixels; by default 512, and more for large photos."""
    crop: Flag = False
    """Write the face square alone instead of the whole photo."""
    background: OptionalText = None
    """Colour behind a transparent photo, by CSS name or as #rrggbb; white by default."""
    face: OptionalInt = None
    """Number of the face, counted from the left, from 1; by default the largest face."""
    blink: float = 1.0
    """Photos only: depth of blinks, from 0 (none) to 3."""
    head_motion: float = 1.0
    """Photos only: scale of nods and turns, from 0 (still) to 3."""
    expression_scale: float = 1.0
    """Photos only: scale of brows and smiles, from 0 (none) to 3."""
    gaze: str = "0,0"
    """Photos only: degrees X,Y by which the eyes look to the viewer's right and up."""
    emotion: OptionalText = None
    """Photos only: emotions to show, each from 0 to 1: happy=0.6, sad, angry, surprised, afraid."""
    motion_out: OptionalPath = None
    """Photos only: also write the motion to this file (.csv or .json)."""
    motion_in: OptionalPath = None
    """Photos only: draw the motion of this file instead of new motion."""
    guide: OptionalText = None
    """Photos only: weights of rewards that guide the motion: sync=0…10, motion=0…3, expression=0…3."""
    best_of: int = 1
    """Photos only: generate this many candidates and use the best."""
    by: OptionalText = None
    """With --best-of: reward that ranks them: reward (default), sync, expression, motion, or any other by name."""
    prune: Flag = False
    """With --best-of: choose chunk by chunk, which is cheaper and works with --stream as well."""
    no_provenance: Flag = False
    """Write no AI label, no signed manifest and no watermark."""
    certificate: OptionalPath = None
    """PEM certificate chain to sign the video with; by default a self-signed one."""
    private_key: OptionalPath = None
    """PEM private key of --certificate."""
    json: Json = False


def request_of(options: AnimateOptions) -> AnimateRequest:
    """Return the request that the options describe; of several inputs it has the first ones.

    Raises:
        BadInput: an option cannot be read.
    """
    image, video, audio = (paths[0] if paths else None for paths in (options.image, options.video, options.audio))
    return AnimateRequest(
        image=image, video=video, drive=options.drive, audio=audio,
        speakers=tuple(SpeakerTurn.parse(text) for text in options.speaker),
        text=options.text, voice=options.voice, checkpoint=options.checkpoint, seed=options.seed,
        intensity=options.intensity, style=options.style, denoise=options.denoise, size=options.size, crop=options.crop,
        background=options.background, face=options.face, blink=options.blink, head_motion=options.head_motion,
        expression_scale=options.expression_scale, gaze=parse_gaze(options.gaze),
        emotion=parse_emotion(options.emotion), motion_in=options.motion_in,
        guide=parse_guide(options.guide), best_of=options.best_of, by=options.by, prune=options.prune,
        loop=options.loop, turns=options.turns,
    )  # fmt: skip


def items_of(options: AnimateOptions) -> tuple[list[BatchItem], bool]:
    """Return the videos to make, and whether they are written to a folder.

    Raises:
        BadInput: inputs that cannot be paired, or an option that goes with one input.
    """
    request, pictures, recordings = request_of(options), options.image or options.video, options.audio
    if not is_batch(pictures, recordings):
        if options.format:
            raise BadInput("--format goes with several inputs: the ending of --output says what one video is.")
        return [BatchItem(request, options.output)], False
    if options.motion_out:
        raise BadInput("--motion-out goes with one input: give one file, or leave it out.")
    suffix = f".{options.format or 'mp4'}"
    return plan_batch(request, options.output, pictures, recordings, suffix), True


def run(options: AnimateOptions) -> dict[str, Any]:
    """Make talking videos from photos or videos and speech, and return a summary.

    Raises:
        BadInput: options that do not go together, or an input that cannot be used.
        PartialFailure: some of several inputs cannot be used; the other videos were made.
    """
    _check_sound(options)
    request = request_of(options)
    request.check_inputs()
    if options.stream:
        request.check_stream()
    for flag, is_set in (("--stream", options.stream), ("--motion-out", options.motion_out)):
        if options.speaker and is_set:
            raise BadInput(f"--speaker does not go with {flag}: each speaker brings a photo and a recording.")
    if options.motion_out:
        _check_motion_output(options, options.motion_out)
    items, together = items_of(options)
    if options.stream and together:
        raise BadInput("--stream makes one video: give one --image.")
    if not together and str(options.output) != "-":
        check_output_file(options.output)
    if options.stream:
        return _stream(options, request)
    if together:
        return _save_batch(options, items, _saver(options))
    began = time.monotonic()
    inputs = _read(request)
    return _saver(options)(items[0], inputs, began)


def _check_sound(options: AnimateOptions) -> None:
    sources = (options.audio, options.text is not None, options.stream, options.speaker, options.drive)
    if not any(sources):
        raise BadInput("There is nothing to say: give --audio FILE, --text TEXT, or --stream with sound coming in.")
    if options.audio and options.stream:
        raise BadInput("--stream reads sound from standard input: leave out --audio, or leave out --stream.")
    if options.voice is not None and options.text is None:
        raise BadInput("--voice reads a text: give --text too.")


def _check_motion_output(options: AnimateOptions, target: Path) -> None:
    from flowportrait.rendering.motion_files import check_motion_file_name

    if options.video:
        raise BadInput("--motion-out works with --image only: a dubbed video keeps its own performance.")
    if options.stream:
        raise BadInput("--stream does not go with --motion-out: give --image, and --text or sound on standard input.")
    check_motion_file_name(target)
    check_output_file(target, target.suffix.lower()[1:], "--motion-out")


def _read(request: AnimateRequest) -> AnimateInputs:
    with no_garbage_collection():
        from flowportrait.pipelines.inputs import read_inputs

    inputs = read_inputs(request, terminal)
    for note in inputs.notes:
        log(note)
    return inputs


def _load_pipeline(options: AnimateOptions) -> AnimatePipeline:
    """Load the networks, after what is cheaper to check.

    Raises:
        BadInput: the certificate, a setting or the checkpoint cannot be used.
    """
    from flowportrait.provenance.manifest import find_credential

    if not options.no_provenance:
        find_credential(options.certificate, options.private_key)
    request_of(options).controls()
    with waiting("loading the model"), no_garbage_collection():
        import torch

        from flowportrait.pipelines.animate import AnimatePipeline

        # The networks are small: on a busy machine threads that wait for each other cost far more than they bring.
        torch.set_num_threads(1)
        return AnimatePipeline.from_pretrained(options.checkpoint, denoise=options.denoise, display=terminal)


def _saver(options: AnimateOptions) -> Save:
    """Return the function that makes one video, with everything loaded that several videos share.

    Raises:
        BadInput: what they have in common cannot be used.
    """
    pipeline = _load_pipeline(options)

    def save(item: BatchItem, inputs: AnimateInputs | None = None, began: float | None = None) -> dict[str, Any]:
        from flowportrait.pipelines.guidance import describe_candidates

        request, output = item
        began = began or time.monotonic()
        inputs = inputs or _read(request)
        video = pipeline.run(request, inputs)
        if video.candidates:
            log(describe_candidates(video.candidates, request.by or "reward"))
        if output_format(output).audio_codec is None:
            log(f"Note: {output.name} will be silent: {output.suffix} holds no sound.")
        marked = not options.no_provenance
        count = video.save(
            output, sign=marked, watermark=marked, certificate=options.certificate, private_key=options.private_key
        )
        if options.motion_out:
            from flowportrait.rendering.motion_files import write_motion

            write_motion(options.motion_out, video.motion)
        for note in video.notes[len(inputs.notes) :]:
            log(note)
        result = _summary(request, output, count, time.monotonic() - began, video.frame_rate)
        counts = {"undubbed_frames": video.undubbed_frames, "frames_without_face": video.frames_without_face}
        return result | {name: count for name, count in counts.items() if count is not None}

    return save


def _save_batch(options: AnimateOptions, items: Sequence[BatchItem], save: Save) -> dict[str, Any]:
    """Make every video; returns what the command prints.

    Raises:
        PartialFailure: some were not made.
    """
    options.output.mkdir(parents=True, exist_ok=True)
    videos: list[dict[str, Any]] = []
    failures: dict[str, str] = {}
    total = len(items)
    for number, item in enumerate(items, 1):
        began = time.monotonic()
        try:
            videos.append(save(item))
        except (BadInput, OSError) as error:
            failures[str(item.output)] = str(error)
            log(f"{number} of {total}: {item.output.name} was not made. {error}")
        except KeyboardInterrupt:
            log(f"{len(videos)} of {total} videos are finished in {options.output}.")
            raise
        else:
            log(f"{number} of {total}: {item.output.name}, {time.monotonic() - began:.0f} s")
    result: dict[str, Any] = {"output": str(options.output)}
    if options.json:
        result |= {"videos": videos, "failures": failures}
    else:
        result["made"] = f"{len(videos)} of {total}"
    if failures:
        listed = "; ".join(f"{Path(name).name}: {why}" for name, why in failures.items())
        raise PartialFailure(f"{len(failures)} of {total} videos were not made. {listed}", result)
    return result


def _stream(options: AnimateOptions, request: AnimateRequest) -> dict[str, Any]:
    """Write a fragmented mp4 or live webm from a photo and sound that is still arriving."""
    piped = str(options.output) == "-"
    if piped and options.json:
        raise BadInput("--output - writes the video to standard output: leave out --json.")
    if not piped and not output_format(options.output).streamed:
        endings = " or ".join(form.suffix for form in OUTPUT_FORMATS.values() if form.streamed)
        raise BadInput(f"--stream does not write {options.output.suffix}: give a name that ends in {endings}.")
    from flowportrait.media.stream import iter_sound_stream

    pipeline = _load_pipeline(options)
    stream = pipeline.run_stream(request, None if request.text is not None else iter_sound_stream(sys.stdin.buffer))
    began = time.monotonic()
    # Not through Python's buffer: a player that is closed would leave it something to complain of at the end.
    target = FileIO(sys.stdout.fileno(), "wb", closefd=False) if piped else options.output
    try:
        count = stream.save(target, watermark=not options.no_provenance)
    except KeyboardInterrupt:
        log("Interrupted: the video ends here and can be played.")
        raise SystemExit(130) from None
    if count == 0:
        raise BadInput("No sound came in on standard input: pipe wav or raw 16-bit mono 16 kHz samples into it.")
    return {} if piped else _summary(request, options.output, count, time.monotonic() - began)


def _summary(
    request: AnimateRequest, output: Path, frames: int, seconds: float, frame_rate: Fraction | None = None
) -> dict[str, Any]:
    """Return what the command prints about a video of so many frames that took ``seconds`` to make."""
    from flowportrait.media.video import FPS

    rate = FPS if frame_rate is None or frame_rate == FPS else round(float(frame_rate), 3)
    # What a clip drives is not generated.
    generator = {} if request.drive else {"checkpoint": request.checkpoint, "seed": request.seed}
    return {
        "output": str(output), "frames": frames, "fps": rate, "seconds": round(frames / rate, 3),
        **generator, "real_time_factor": round(seconds / (frames / rate), 3),
    }  # fmt: skip
