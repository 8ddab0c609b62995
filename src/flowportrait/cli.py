"""The command line.

    flowportrait animate   --image P | --video V  --audio A  --output out.mp4
    flowportrait prepare   VIDEO_OR_DIR...  --output CORPUS
    flowportrait pretrain  --corpus CORPUS  --output RUN
    flowportrait posttrain --recipe flow-grpo  --prompts DIR  --output RUN
    flowportrait evaluate  VIDEO... | --checkpoint A [--baseline B] --prompts DIR  --output DIR
    flowportrait demo      --output DIR

Exit code 0 on success, 2 on bad input (one sentence on standard error), 130 on Ctrl-C. With ``--json`` standard
output carries one JSON object and nothing else. Torch and the rest are imported inside the commands, so that
``--help`` answers at once.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import threading
import time
import warnings
from collections.abc import Generator, Iterable, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from flowportrait.errors import BadInput
from flowportrait.outputs import check_output_file, check_output_folder

if TYPE_CHECKING:
    import numpy as np

Item = TypeVar("Item")

SILENT_RMS = 1e-3
LARGEST_SIDE = 1920


class Parser(argparse.ArgumentParser):
    """argparse, with one sentence instead of a usage block when something is wrong."""

    def error(self, message: str) -> NoReturn:
        raise BadInput(f"{self.prog}: {message}; see '{self.prog} --help'.")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    if threading.current_thread() is threading.main_thread():
        # Terminated like interrupted: half-written files are removed on the way out.
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    warnings.showwarning = lambda message, *_, **__: say(f"Warning: {message}")
    try:
        options = parser().parse_args(arguments)
        result = options.run(options)
    except BadInput as error:
        say(str(error))
        return 2
    except KeyboardInterrupt:
        say("Interrupted; nothing half-written was left behind.")
        return 130
    if getattr(options, "json", False):
        print(json.dumps(result))
    else:
        for key, value in result.items():
            print(f"{key}: {value}")
    return 0


def say(sentence: str) -> None:
    """One line on standard error."""
    print(" ".join(sentence.split()), file=sys.stderr)


def parser() -> Parser:
    """Every command and its options."""
    root = Parser(prog="flowportrait", description="A portrait photo and speech in, a talking video out.")
    commands = root.add_subparsers(dest="command", required=True, parser_class=Parser, metavar="COMMAND")

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
    add.set_defaults(run=animate)

    add = commands.add_parser("prepare", help="turn videos into a training corpus")
    add.add_argument("inputs", type=Path, nargs="+", metavar="VIDEO_OR_DIR")
    add.add_argument("--output", type=Path, required=True)
    add.set_defaults(run=prepare)

    add = commands.add_parser("pretrain", help="supervised training on a corpus")
    add.add_argument("--corpus", type=Path, required=True)
    add.add_argument("--output", type=Path, required=True)
    add.add_argument("--resume", action="store_true")
    add.add_argument("--set", nargs="+", action="extend", default=[], metavar="a.b=c", dest="changes")
    add.set_defaults(run=pretrain)

    add = commands.add_parser("posttrain", help="reinforcement learning on portraits and speech")
    add.add_argument("--recipe", default="flow-grpo")
    add.add_argument("--prompts", type=Path, required=True, help="folder of images and audio files")
    add.add_argument("--output", type=Path, required=True)
    add.add_argument("--iterations", type=int)
    add.add_argument("--start", default="sft", help="checkpoint to start from (default sft)")
    add.add_argument("--resume", action="store_true")
    add.add_argument("--set", nargs="+", action="extend", default=[], metavar="a.b=c", dest="changes")
    add.set_defaults(run=posttrain)

    add = commands.add_parser("evaluate", help="measure finished videos, or checkpoints on prompts")
    add.add_argument("videos", type=Path, nargs="*", metavar="VIDEO", help="files or folders of mp4")
    add.add_argument("--checkpoint", help="render the prompts with this checkpoint and measure")
    add.add_argument("--baseline", help="a second checkpoint to compare with")
    add.add_argument("--prompts", type=Path, help="folder of images and audio files")
    add.add_argument("--seed", type=int, default=0)
    add.add_argument("--output", type=Path, required=True)
    add.add_argument("--json", action="store_true", help="print one JSON object")
    add.set_defaults(run=evaluate)

    add = commands.add_parser("demo", help="the main job on real input, with a report")
    add.add_argument("--output", type=Path, required=True)
    add.add_argument("--iterations", type=int, help="post-training iterations (default: as many as fit)")
    add.set_defaults(run=demo)
    return root


def animate(options: argparse.Namespace) -> dict[str, Any]:
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


def prepare(options: argparse.Namespace) -> dict[str, Any]:
    """Videos to a corpus."""
    check_output_folder(options.output)
    from flowportrait.corpus.prepare import prepare as run

    return {"output": str(options.output), **run(options.inputs, options.output)}


def pretrain(options: argparse.Namespace) -> dict[str, Any]:
    """Supervised training."""
    check_output_folder(options.output)
    from flowportrait.config import override
    from flowportrait.generator.pretrain import PretrainConfig
    from flowportrait.generator.pretrain import pretrain as run

    config = override(PretrainConfig(), options.changes)
    return {"checkpoint": str(run(config, options.corpus, options.output, options.resume))}


def posttrain(options: argparse.Namespace) -> dict[str, Any]:
    """Reinforcement learning."""
    check_output_folder(options.output)
    from flowportrait.posttrain.run import posttrain as run

    folder = run(
        options.recipe, options.prompts, options.output, options.iterations, options.resume, options.changes,
        options.start,
    )  # fmt: skip
    return {"checkpoint": str(folder)}


def evaluate(options: argparse.Namespace) -> dict[str, Any]:
    """Finished videos, or checkpoints rendered on prompts."""
    if bool(options.videos) == bool(options.checkpoint):
        raise BadInput("flowportrait evaluate needs either videos or --checkpoint with --prompts.")
    if options.checkpoint and not options.prompts:
        raise BadInput("flowportrait evaluate --checkpoint needs --prompts with a folder of images and audio files.")
    check_output_folder(options.output)
    from flowportrait.evaluate.run import evaluate_videos

    if options.videos:
        return evaluate_videos({"videos": find_videos(options.videos)}, options.output, None)
    from flowportrait.rendering import render_prompts, system_names

    checkpoints = [options.checkpoint] + ([options.baseline] if options.baseline else [])
    names = system_names(checkpoints)
    systems = {
        name: render_prompts(checkpoint, options.prompts, options.output / name, options.seed)
        for name, checkpoint in zip(names, checkpoints, strict=True)
    }
    return evaluate_videos(systems, options.output, names[1] if options.baseline else None)


def demo(options: argparse.Namespace) -> dict[str, Any]:
    """The main job end to end."""
    check_output_folder(options.output)
    from flowportrait.demo import demo as run

    return run(options.output, options.iterations)


def find_videos(inputs: Sequence[Path]) -> list[Path]:
    """mp4 files among files and folders.

    Raises:
        BadInput: something does not exist, or nothing is found.
    """
    found: list[Path] = []
    for given in inputs:
        if not given.exists():
            raise BadInput(f"No video or folder at {given}: check the path.")
        found += sorted(given.rglob("*.mp4")) if given.is_dir() else [given]
    if not found:
        raise BadInput(f"No mp4 files in {', '.join(map(str, inputs))}.")
    return found


def fit_largest(image: np.ndarray) -> np.ndarray:
    """The photo, scaled down if a side exceeds what ordinary video players take (1920 px)."""
    side = max(image.shape[:2])
    if side <= LARGEST_SIDE:
        return image
    import cv2

    scale = LARGEST_SIDE / side
    return cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)


def progress(items: Iterable[Item], total: int | None) -> Generator[Item, None, None]:
    """A bar with a time estimate on standard error while frames are drawn; nothing where that is not a terminal."""
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    hidden = not console.is_terminal
    yield from track(items, "drawing", total, console=console, transient=True, disable=hidden)


if __name__ == "__main__":
    sys.exit(main())
