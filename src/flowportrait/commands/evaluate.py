"""``flowportrait evaluate``: measure finished videos, or checkpoints on prompts."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flowportrait.commands import Commands
from flowportrait.errors import BadInput
from flowportrait.outputs import check_output_folder


def register(commands: Commands) -> None:
    """Add the command and its options."""
    add = commands.add_parser("evaluate", help="measure finished videos, or checkpoints on prompts")
    add.add_argument("videos", type=Path, nargs="*", metavar="VIDEO", help="files or folders of mp4")
    add.add_argument("--checkpoint", help="render the prompts with this checkpoint and measure")
    add.add_argument("--baseline", help="a second checkpoint to compare with")
    add.add_argument("--prompts", type=Path, help="folder of images and audio files")
    add.add_argument("--seed", type=int, default=0)
    add.add_argument("--output", type=Path, required=True)
    add.add_argument("--json", action="store_true", help="print one JSON object")
    add.set_defaults(run=run)


def run(options: argparse.Namespace) -> dict[str, Any]:
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
