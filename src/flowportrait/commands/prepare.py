"""``flowportrait prepare``: videos to a training corpus, and a look at one."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from flowportrait.commands import Commands
from flowportrait.errors import BadInput
from flowportrait.files import check_output_folder
from flowportrait.terminal import waiting


def register(commands: Commands) -> None:
    """Add the command and its options."""
    add = commands.add_parser("prepare", help="turn videos into a training corpus, or look at one")
    add.add_argument("inputs", type=Path, nargs="*", metavar="VIDEO_OR_DIR", help="footage")
    add.add_argument("--output", type=Path, help="folder of the corpus; continues one that was begun")
    add.add_argument("--inspect", type=Path, metavar="CORPUS", help="write a report with pictures into this corpus")
    layouts = "whose face is in which file: auto, folders, voxceleb2, lrs3, hdtf, mead or grid"
    add.add_argument("--layout", default="auto", help=layouts)
    add.add_argument("--hold-out", type=float, default=0.0, metavar="SHARE", help="share of speakers for the split dev")
    add.add_argument("--crops", type=int, default=0, metavar="PX", help="also write face videos of this size")
    add.add_argument("--shards", type=int, default=0, metavar="MB", help="also pack WebDataset shards of this size")
    add.add_argument("--workers", type=int, help="processes (default: one for each core)")
    add.add_argument(
        "--set",
        nargs="+",
        action="extend",
        default=[],
        metavar="GATE=VALUE",
        help="quality gates, such as yaw=30 eyes=60",
    )
    add.add_argument("--json", action="store_true", help="print one JSON object")
    add.set_defaults(run=run)


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Videos to a corpus, or a corpus to a report."""
    if options.inspect is not None:
        if options.inputs or options.output:
            raise BadInput("flowportrait prepare --inspect CORPUS takes no videos and no --output.")
        with waiting("drawing the report"):
            from flowportrait.data.corpus_report import write_report

            return write_report(options.inspect)
    if not options.inputs or not options.output:
        raise BadInput("flowportrait prepare needs videos and --output, or --inspect with a corpus.")
    if options.crops and (not 64 <= options.crops <= 2048 or options.crops % 2):
        raise BadInput(f"--crops {options.crops} is not possible: give an even number from 64 to 2048.")
    if not 0 <= options.hold_out < 1:
        raise BadInput(f"--hold-out {options.hold_out} is not possible: give a share from 0 to below 1.")
    check_output_folder(options.output)
    with waiting("starting"):
        from flowportrait.config import override
        from flowportrait.data.extract import Gates
        from flowportrait.data.prepare import Preparation, prepare

    plan = Preparation(
        options.layout,
        options.hold_out,
        override(Gates(), options.set),
        options.crops,
        options.shards,
        options.workers,
    )
    return {"output": str(options.output), **prepare(options.inputs, options.output, plan)}
