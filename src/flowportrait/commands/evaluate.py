"""``flowportrait evaluate``: measure finished videos, or checkpoints on prompts, side by side."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flowportrait.commands import Commands
from flowportrait.data.prompts import find_videos
from flowportrait.errors import BadInput
from flowportrait.extras import require
from flowportrait.files import check_output_folder
from flowportrait.terminal import print_table, say

MOST_REMARKS = 5
"""Remarks that are printed; the report has all."""


def register(commands: Commands) -> None:
    """Add the command and its options."""
    add = commands.add_parser("evaluate", help="measure finished videos, or checkpoints on prompts")
    add.add_argument("videos", type=Path, nargs="*", metavar="VIDEO", help="files or folders of videos")
    add.add_argument(
        "--system",
        action="append",
        default=[],
        metavar="NAME=WHERE",
        help="a system to compare: a folder of videos (any tool's) or a checkpoint; repeat for more",
    )
    add.add_argument("--real", type=Path, help="folder of the real clips, named like the systems' videos")
    add.add_argument("--against", metavar="NAME", help="the system the others are tested against")
    add.add_argument("--checkpoint", help="render the prompts with this checkpoint and measure")
    add.add_argument("--baseline", help="a second checkpoint to compare with")
    add.add_argument("--prompts", type=Path, help="folder of images and audio files")
    add.add_argument("--seed", type=int, default=0, help="of what checkpoints draw")
    add.add_argument("--groups", type=Path, help="CSV of clip and labels (language, skin tone …) to report apart")
    add.add_argument("--title", default="Talking portraits, measured", help="heading of the report")
    add.add_argument("--cache", type=Path, help="folder of what was measured before (default: the user's cache)")
    add.add_argument("--workers", type=int, default=1, help="processes that look at videos")
    add.add_argument("--output", type=Path, required=True, help="folder of the report and the videos")
    add.add_argument("--json", action="store_true", help="print one JSON object")
    add.set_defaults(run=run)


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Finished videos, or checkpoints rendered on prompts."""
    if (options.videos and options.checkpoint) or not (options.videos or options.checkpoint or options.system):
        raise BadInput("flowportrait evaluate needs either videos or --checkpoint with --prompts, or --system.")
    if options.checkpoint and not options.prompts:
        raise BadInput("flowportrait evaluate --checkpoint needs --prompts with a folder of images and audio files.")
    if options.workers < 1:
        raise BadInput(f"--workers {options.workers} is not a number of processes: give 1 or more.")
    check_output_folder(options.output)
    require("report", "matplotlib")
    from flowportrait.evaluation.api import Videos, evaluate
    from flowportrait.pipelines.batch import system_names

    systems: dict[str, Videos] = {"videos": find_videos(options.videos)} if options.videos else {}
    systems |= named_systems(options.system, options.prompts)
    checkpoints = [name for name in (options.checkpoint, options.baseline) if name]
    if checkpoints:
        systems |= dict(zip(system_names(checkpoints), checkpoints, strict=True))
    report = evaluate(
        systems,
        options.real,
        prompts=options.prompts,
        baseline=options.against or (system_names(checkpoints)[1] if options.baseline else None),
        output=options.output,
        seed=options.seed,
        groups=options.groups,
        title=options.title,
        cache=options.cache,
        workers=options.workers,
    )
    found = report.write(options.output)
    if options.json:
        return found
    print_table(report.table)
    for remark in found["remarks"][:MOST_REMARKS]:
        say(f"Note: {remark}")
    for entry in found["excluded"]:
        say(f"Left out: {entry['system']}/{entry['file']}: {entry['reason']}")
    return {name: found[name] for name in ("report", "metrics.json", "metrics.csv")}


def named_systems(given: Sequence[str], prompts: Path | None) -> dict[str, Path | str]:
    """Where each named system comes from: a path to videos, or the name of a checkpoint.

    Raises:
        BadInput: not NAME=WHERE, a name that cannot be a folder or appears twice, nothing there, or a checkpoint
            without prompts.
    """
    from flowportrait.models.arflow import checkpoint_folder

    found: dict[str, Path | str] = {}
    for entry in given:
        name, equals, where = entry.partition("=")
        if not equals or not name or not where or Path(name).name != name:
            raise BadInput(f"--system {entry} is not NAME=WHERE: write for example --system ours=videos/ours.")
        if name in found or name == "real":
            raise BadInput(f"--system {entry} uses the name '{name}' again: give each its own ('real' is --real).")
        try:
            checkpoint_folder(where)
        except BadInput:
            found[name] = Path(where)
            continue
        if prompts is None:
            raise BadInput(f"--system {entry} is a checkpoint: give --prompts with a folder of images and audio files.")
        found[name] = where
    return found
